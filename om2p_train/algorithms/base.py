"""The one interface that trainer, evaluator and learner see of an algorithm."""

from __future__ import annotations

import abc
import copy
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from om2p_data.errors import UserError
from om2p_data.recipe import Record
from om2p_train.batches import Batch, Transitions
from om2p_train.compute import Precision
from om2p_train.networks import NetworkConfig, TwinCritic
from om2p_train.streams import SeedStreams
from om2p_train.team import ActionSpace, Team

Noise = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)


class NormalizeQ(enum.Enum):
    """What the guidance of an actor by Q is divided by: its weight then means the same at any scale of rewards."""

    NONE = "none"
    SIZE = "size"  # mean |Q|, as in TD3+BC (Fujimoto and Gu, 2021)
    SLOPE = "slope"  # root mean square of |dQ/da|: the weight is then the pull itself, in units of the behaviour loss


class Options(Record):
    """Base of every algorithm's own options (the `[options]` table of its recipe)."""

    def check(self, precision: Precision) -> None:
        """Turn away what means nothing when factors of products have so few bits.

        Raises:
            UserError: it is turned away.
        """


@dataclass(frozen=True)
class Stage:
    """A part of a run in which the same losses are trained.

    Attributes:
        updates: how many.
        critic, actor: which of the two losses are trained.
        prepare: called once before the first update, with all the data; what it makes belongs in buffers.
    """

    updates: int
    critic: bool = True
    actor: bool = True
    prepare: Callable[[Transitions, SeedStreams], None] | None = None


class Algorithm(nn.Module, abc.ABC):
    """Losses and actions of K = seeds x agents learners, stacked.

    A loss is a pure function of weights, batch and noise, and returns one number a learner. An algorithm says nothing
    of optimisers, devices, logging or loops.

    Args:
        team: sizes.
        config: shape of the networks.
        options: of `options_type`.
        streams: initialisation streams, one a seed.

    Attributes:
        options_type: class of the algorithm's options.
        policy: the `Actor` that is evaluated, saved and exported.
        actor: whose parameters `actor_loss` trains, or None for a policy that is read off the critic.
        critic: whose parameters `critic_loss` trains, or None for an algorithm without values.
        targets: pairs (target, source) that follow by Polyak averaging.
    """

    options_type: ClassVar[type[Options]]

    policy: Any  # an `Actor`, of the class that the algorithm chooses
    actor: Any  # a module, called as the algorithm itself defines, or None
    critic: Any
    targets: list[tuple[nn.Module, nn.Module]]

    @abc.abstractmethod
    def __init__(self, team: Team, config: NetworkConfig, options: Any, streams: SeedStreams):
        super().__init__()
        self.team = team
        self.options = options
        self.actor, self.critic, self.targets = None, None, []

    @abc.abstractmethod
    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        """All random numbers that one update's losses need."""

    def critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Loss of the critic, [K]. Called only where there is one."""
        raise TypeError(f"{type(self).__name__} has no critic")

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Loss of the actor, [K]; the critic's weights are constants in it. Called only where there is one."""
        raise TypeError(f"{type(self).__name__} has no actor")

    def stages(self, updates: int) -> list[Stage]:
        """What is trained when; the stages' updates sum to `updates`."""
        return [Stage(updates, critic=self.critic is not None, actor=self.actor is not None)]


def needs_continuous(team: Team, what: str, instead: str) -> None:
    """Refuse discrete actions.

    Args:
        team: sizes.
        what: what cannot be done with them, and why.
        instead: which recipes can.

    Raises:
        UserError: they are discrete.
    """
    if team.discrete:
        raise UserError(f"{what} needs continuous actions, and these are discrete; {instead}")


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


def guidance(
    critic: TwinCritic, space: ActionSpace, obs: Tensor, actions: Tensor, normalize: NormalizeQ, weight: float = 1.0
) -> Tensor:
    """Weighted mean value of the actor's own actions, [K], for the actor to climb.

    Args:
        critic: Q_1 and Q_2, whose mean is taken.
        space: of the actions; what pads a smaller agent's is no part of the slope.
        obs: [K, B, O].
        actions: of the actor, [K, B, A].
        normalize: what it is divided by. With `SLOPE` only the gradient is: the number is then the plain mean.
        weight: of the guidance.
    """
    if normalize is NormalizeQ.SLOPE:
        moved: Tensor = _UnitSlope.apply(actions, weight)  # pyright: ignore[reportAssignmentType]
        actions = space.trim(moved)
    q = critic(obs, actions).mean(1)  # [K, B]
    if normalize is NormalizeQ.SIZE:
        q = q / q.detach().abs().mean(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).eps)
    return weight * q.mean(-1)


class _UnitSlope(torch.autograd.Function):
    """Actions as they are; the gradient by them [K, B, A], of a mean over B, is scaled to a given root mean square."""

    @staticmethod
    def forward(ctx: Any, actions: Tensor, size: float) -> Tensor:
        ctx.size = size
        return actions.view_as(actions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Scaled first, so that no square is too small; a gradient of zero stays one.
        gradient = gradient / gradient.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        # A transition's part in a mean is 1 / B of its own gradient.
        slope = (gradient.square().sum((1, 2), keepdim=True) * gradient.shape[1]).sqrt()
        return ctx.size * gradient / slope.clamp_min(1.0), None
