"""The one interface that trainer, evaluator and learner see of an algorithm."""

from __future__ import annotations

import abc
import copy
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from om2p_data.envs.registry import Task
from om2p_data.recipe import Record
from om2p_train.batches import Batch
from om2p_train.networks import Actor
from om2p_train.streams import SeedStreams

Noise = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)


class Options(Record):
    """Base of every algorithm's own options (the `[options]` table of its recipe)."""


class Algorithm(nn.Module, abc.ABC):
    """Losses and actions of K = seeds x agents independent learners, stacked.

    A loss is a pure function of weights, batch and noise, and returns one number a learner. An algorithm says nothing
    of optimisers, devices, logging or loops.

    Attributes:
        options_type: class of the algorithm's options.
        actor: whose parameters `actor_loss` trains, and whose `act` is the policy.
        critic: whose parameters `critic_loss` trains, or None for an algorithm without values.
        targets: pairs (target, source) that follow by Polyak averaging.
    """

    options_type: ClassVar[type[Options]]

    actor: Actor
    critic: Any  # a module, called as the algorithm itself defines, or None
    targets: list[tuple[nn.Module, nn.Module]]

    @abc.abstractmethod
    def __init__(self, task: Task, options: Options, streams: SeedStreams):
        """Build the networks for `task`, one set a seed, from the initialisation streams."""
        super().__init__()

    @abc.abstractmethod
    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        """All random numbers that one update's losses need."""

    def critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Loss of the critic, [K]. Called only where there is one."""
        raise TypeError(f"{type(self).__name__} has no critic")

    @abc.abstractmethod
    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Loss of the actor, [K]; the critic's weights are constants in it."""


def target_of(module: M) -> M:
    """A copy that follows `module` and takes no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


def temporal_difference_loss(values: Tensor, batch: Batch, next_value: Tensor, gamma: float) -> Tensor:
    """Squared error of both critics against r + gamma (1 - terminated) V(o'), [K].

    Args:
        values: Q_1, Q_2 of the batch, [K, 2, B].
        batch: rewards and mask.
        next_value: value of the next observation, [K, B]; no gradient flows into it.
        gamma: discount.
    """
    target = batch.rewards + gamma * batch.mask * next_value
    return (values - target.detach().unsqueeze(1)).square().mean(-1).sum(-1)


def guidance(values: Tensor, normalize: bool) -> Tensor:
    """Mean value of the actor's own actions, [K]; divided by its mean size if `normalize`.

    Args:
        values: Q_1, Q_2 of the actor's actions, [K, 2, B].
        normalize: makes the weight of the guidance independent of the scale of rewards, as in TD3+BC.
    """
    q = values.mean(1)  # [K, B]
    size = q.detach().abs().mean(-1).clamp_min(torch.finfo(q.dtype).eps)  # [K]
    return q.mean(-1) / size if normalize else q.mean(-1)
