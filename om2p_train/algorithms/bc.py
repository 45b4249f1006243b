"""Behaviour cloning: every agent learns the data's actions on its own observations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from om2p_train.actors import DeterministicActor
from om2p_train.algorithms.base import Algorithm, Noise, Options
from om2p_train.batches import Batch
from om2p_train.networks import NetworkConfig
from om2p_train.streams import SeedStreams
from om2p_train.team import Team


class BCOptions(Options):
    """Behaviour cloning has none."""


class BC(Algorithm):
    """Deterministic behaviour cloning. (Flow behaviour cloning is OM2P with eta = 0: recipe `bc-flow`.)

    Continuous: L = E || pi(o) - a ||^2. Discrete: L = -E log pi(a | o), and the likeliest choice acts.
    """

    options_type = BCOptions

    def __init__(self, team: Team, config: NetworkConfig, options: BCOptions, streams: SeedStreams):
        super().__init__(team, config, options, streams)
        self.policy = self.actor = DeterministicActor(streams, team, config)

    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        return {}

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        out = self.actor.net(batch.obs)  # [K, B, A]
        if self.team.discrete:
            log_pi = F.log_softmax(self.policy.space.allowed(out), -1)
            return -torch.where(batch.actions > 0, log_pi, 0.0).sum(-1).mean(-1)
        return self.policy.space.trim(torch.tanh(out) - batch.actions).square().sum(-1).mean(-1)
