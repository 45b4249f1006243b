"""Stacked networks. Leading dimension K = seeds x agents, seeds outermost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from om2p_data.recipe import Record
from om2p_data.stacked import Activation, StackedLinear, StackedMLP
from om2p_train.streams import SeedStreams
from om2p_train.team import Team

N = TypeVar("N", bound=nn.Module)


class NetworkConfig(Record):
    """Shape of all networks of a run (the `[network]` table)."""

    hidden: tuple[Annotated[int, Field(gt=0, le=65_536)], ...] = Field(
        min_length=1, max_length=64, description="widths of the hidden layers"
    )
    activation: Activation = Field(description="between the layers")
    critic_layer_norm: bool = Field(description="layer norm after each of the critics' activations")


def per_seed(streams: SeedStreams, build: Callable[[torch.Generator], N]) -> N:
    """One network a seed, initialised from its own stream, joined along the leading dimension."""
    with streams.device:  # a generator fills tensors of its own device only
        networks = [build(generator) for generator in streams.generators]
    joined = networks[0]
    for name, parameter in joined.named_parameters():
        parameter.data = torch.cat([network.get_parameter(name).data for network in networks])
    return joined


class TwinCritic(nn.Module):
    """Two values Q_1, Q_2 of (o, a) for every agent.

    Args:
        streams: initialisation streams, one a seed.
        team: sizes.
        config: shape of the network.
    """

    def __init__(self, streams: SeedStreams, team: Team, config: NetworkConfig):
        super().__init__()
        self.net = per_seed(
            streams,
            lambda g: StackedMLP(
                2 * team.num_agents,
                team.input_dim + team.act_dim,
                1,
                config.hidden,
                config.activation,
                layer_norm=config.critic_layer_norm,
                generator=g,
            ),
        )

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """obs [K, B, O], actions [K, B, A] -> [K, 2, B]."""
        return self.net(torch.cat([obs, actions], -1), share=2).view(len(obs), 2, -1)

    def first(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Q_1 alone, at half the price: obs [K, B, O], actions [K, B, A] -> [K, B]."""
        return self.net(torch.cat([obs, actions], -1), every=2).squeeze(-1)

    def of_many(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Values of several actions of each observation: obs [K, B, O], actions [K, B, m, A] -> [K, 2, B, m]."""
        return self(*_repeated(obs, actions)).unflatten(-1, actions.shape[1:3])

    def first_of_many(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Q_1 alone of several actions of each observation, [K, B, m]."""
        return self.first(*_repeated(obs, actions)).unflatten(-1, actions.shape[1:3])


def _repeated(obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Every observation beside each of its actions: [K, B, O] and [K, B, m, A] -> [K, B m, O] and [K, B m, A]."""
    return obs.unsqueeze(2).expand(-1, -1, actions.shape[2], -1).flatten(1, 2), actions.flatten(1, 2)


class StateValue(nn.Module):
    """One value V of o for every agent. Args: as `TwinCritic`."""

    def __init__(self, streams: SeedStreams, team: Team, config: NetworkConfig):
        super().__init__()
        self.net = per_seed(
            streams,
            lambda g: StackedMLP(
                team.num_agents,
                team.input_dim,
                1,
                config.hidden,
                config.activation,
                layer_norm=config.critic_layer_norm,
                generator=g,
            ),
        )

    def forward(self, obs: Tensor) -> Tensor:
        """obs [K, B, O] -> [K, B]."""
        return self.net(obs).squeeze(-1)


class ResidualMLP(nn.Module):
    """K perceptrons whose layers add to a linear image of their input: the score network of diffusion policies.

    Args:
        stack: K.
        inputs, outputs: sizes I and O.
        hidden: widths of the layers.
        activation: after every layer's affine map.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        stack: int,
        inputs: int,
        outputs: int,
        hidden: Sequence[int],
        activation: Activation,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        sizes = list(itertools.pairwise([inputs, *hidden]))
        self.activation = activation
        self.layers = nn.ModuleList(StackedLinear(stack, size, width, generator) for size, width in sizes)
        self.skips = nn.ModuleList(StackedLinear(stack, size, width, generator) for size, width in sizes)
        self.output_layer = StackedLinear(stack, hidden[-1], outputs, generator)

    def forward(self, x: Tensor) -> Tensor:
        """x [K, B, I] -> [K, B, O]."""
        given = x.dtype
        for layer, skip in zip(self.layers, self.skips, strict=True):
            x = skip(x) + self.activation(layer(x))
        return self.output_layer(x).to(given)


class FourierTime(nn.Module):
    """Random Fourier features of a time in [0, 1] (Tancik et al. 2020): cos and sin of F fixed frequencies.

    Args:
        streams: initialisation streams, one a seed.
        num_agents: N.
        features: 2 F.
        scale: standard deviation of the frequencies, in turns.
    """

    frequencies: Tensor

    def __init__(self, streams: SeedStreams, num_agents: int, features: int, scale: float):
        super().__init__()
        self.register_buffer("frequencies", 2.0 * math.pi * scale * streams.normal(num_agents, 1, features // 2))

    def forward(self, time: Tensor) -> Tensor:
        """time [K, B, 1] -> [K, B, 2 F]."""
        angle = time * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], -1)
