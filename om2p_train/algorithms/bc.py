"""Behaviour cloning: every agent regresses the data's actions on its own observations."""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from om2p_data.envs.registry import Task
from om2p_train.algorithms.base import Algorithm, Noise, Options
from om2p_train.batches import Batch
from om2p_train.networks import DeterministicActor
from om2p_train.streams import SeedStreams


class BCOptions(Options):
    """Options of behaviour cloning."""

    hidden: tuple[PositiveInt, ...] = Field(min_length=1)


class BC(Algorithm):
    """Deterministic behaviour cloning: L = E || pi(o) - a ||^2. (Flow behaviour cloning is OM2P with eta = 0.)"""

    options_type = BCOptions

    def __init__(self, task: Task, options: BCOptions, streams: SeedStreams):
        super().__init__(task, options, streams)
        self.actor = DeterministicActor(streams, task.num_agents, task.obs_dim, task.act_dim, options.hidden)
        self.critic = None
        self.targets = []

    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        return {}

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        no_noise = torch.empty_like(batch.actions)
        return (self.actor.act(batch.obs, no_noise) - batch.actions).square().sum(-1).mean(-1)
