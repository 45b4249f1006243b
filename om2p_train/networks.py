"""Stacked actors and critics. Leading dimension K = seeds x agents, seeds outermost."""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from om2p_data.stacked import Activation, StackedMLP
from om2p_train.streams import SeedStreams


def per_seed(streams: SeedStreams, build: Callable[[torch.Generator], StackedMLP]) -> StackedMLP:
    """One network a seed, initialised from its own stream, joined along the leading dimension."""
    networks = [build(generator) for generator in streams.generators]
    joined = networks[0]
    for name, parameter in joined.named_parameters():
        parameter.data = torch.cat([network.get_parameter(name).data for network in networks])
    return joined.to(streams.device)


class OneStep(enum.Enum):
    """What a flow actor's one-step action is made of."""

    JUMP = "eps+u"  # clip(eps + u(eps, 0, 1 | o)), OM2P paper Eq. 3
    RAW = "u"  # clip(u(eps, 0, 1 | o)), the authors' released code


class Actor(nn.Module, abc.ABC):
    """Decentralised policies of K = seeds x agents learners: all that acting needs.

    Attributes:
        kind: name of the class in policy files.
        architecture: the constructor's arguments besides `streams`, as JSON values.
        net: the network.
    """

    kind: ClassVar[str]
    architecture: dict[str, Any]
    net: StackedMLP

    @abc.abstractmethod
    def act(self, obs: Tensor, eps: Tensor) -> Tensor:
        """obs [K, B, O], eps ~ N(0, I) [K, B, A] -> actions [K, B, A] in [-1, 1]."""


class FlowActor(Actor):
    """Mean velocity u(a_r, r, t | o) of every agent and the one-step action that it gives.

    Args:
        streams: initialisation streams, one a seed.
        num_agents, obs_dim, act_dim: N, O, A.
        hidden: widths of the hidden layers (GELU).
        one_step: form of the one-step action.
    """

    kind = "flow"

    def __init__(
        self,
        streams: SeedStreams,
        num_agents: int,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        one_step: OneStep | str,
    ):
        super().__init__()
        self.one_step = OneStep(one_step)
        self.architecture = {
            "num_agents": num_agents,
            "obs_dim": obs_dim,
            "act_dim": act_dim,
            "hidden": list(hidden),
            "one_step": self.one_step.value,
        }
        inputs = obs_dim + act_dim + 2
        self.net = per_seed(
            streams, lambda g: StackedMLP(num_agents, inputs, act_dim, hidden, Activation.GELU, generator=g)
        )

    def act(self, obs: Tensor, eps: Tensor) -> Tensor:
        start = torch.zeros_like(obs[..., :1])
        u = self.net(torch.cat([obs, eps, start, start + 1.0], -1))  # u(eps, 0, 1 | o), [K, B, A]
        return (eps + u if self.one_step is OneStep.JUMP else u).clamp(-1.0, 1.0)


class DeterministicActor(Actor):
    """a = tanh(net(o)) of every agent; the noise is ignored.

    Args: as `FlowActor`, without `one_step`.
    """

    kind = "deterministic"

    def __init__(self, streams: SeedStreams, num_agents: int, obs_dim: int, act_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.architecture = {
            "num_agents": num_agents,
            "obs_dim": obs_dim,
            "act_dim": act_dim,
            "hidden": list(hidden),
        }
        self.net = per_seed(
            streams, lambda g: StackedMLP(num_agents, obs_dim, act_dim, hidden, Activation.GELU, generator=g)
        )

    def act(self, obs: Tensor, eps: Tensor) -> Tensor:
        del eps
        return torch.tanh(self.net(obs))


ACTORS: dict[str, type[Actor]] = {actor.kind: actor for actor in (FlowActor, DeterministicActor)}


class TwinCritic(nn.Module):
    """Two values Q_1, Q_2 of (o, a) for every agent (GELU, layer norm after the activation).

    Args: as `FlowActor`, without `one_step`.
    """

    def __init__(self, streams: SeedStreams, num_agents: int, obs_dim: int, act_dim: int, hidden: Sequence[int]):
        super().__init__()
        inputs = obs_dim + act_dim
        self.net = per_seed(
            streams,
            lambda g: StackedMLP(2 * num_agents, inputs, 1, hidden, Activation.GELU, layer_norm=True, generator=g),
        )

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """obs [K, B, O], actions [K, B, A] -> [K, 2, B]."""
        x = torch.cat([obs, actions], -1)
        stack, batch, _ = x.shape
        twice = x.repeat_interleave(2, 0)  # [2 K, B, O + A]
        return self.net(twice).view(stack, 2, batch)
