"""Networks for many learners at once: every weight has a leading dimension K (agents, twins or seeds x agents)."""

from __future__ import annotations

import abc
import enum
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NARROW = 4


class Activation(enum.Enum):
    """Non-linearity of the hidden layers.

    GELU is the exact form, x Phi(x): the tanh form that JAX defaults to differs from it by 5e-4 at most and takes four
    times as long on a CPU.
    """

    RELU = "relu"
    GELU = "gelu"
    TANH = "tanh"

    def __call__(self, x: Tensor) -> Tensor:
        if self is Activation.RELU:
            return torch.relu(x)
        if self is Activation.GELU:
            return F.gelu(x)
        return torch.tanh(x)

    def tangent(self, x: Tensor, dx: Tensor) -> Tensor:
        """Derivative at x in the direction dx."""
        if self is Activation.RELU:
            return torch.where(x > 0, dx, 0.0)
        if self is Activation.GELU:
            return torch.ops.aten.gelu_backward(dx, x)
        return dx * (1.0 - torch.tanh(x).square())


class StackedLinear(nn.Module):
    """K affine maps in one batched product, each initialised on its own.

    Args:
        stack: K.
        inputs, outputs: sizes I and O.
        generator: source of the initial weights, U(-1/sqrt(I), 1/sqrt(I)).
    """

    def __init__(self, stack: int, inputs: int, outputs: int, generator: torch.Generator | None = None):
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(stack, inputs, outputs).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(stack, 1, outputs).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor, every: int = 1) -> Tensor:
        """x [K, B, I] -> [K, B, O]; with `every`, only each so many-th of the maps, from the first on."""
        weight, bias = (self.weight, self.bias) if every == 1 else (self.weight[::every], self.bias[::every])
        if weight.shape[2] <= _NARROW and not torch.is_grad_enabled():
            # A product with two or three columns takes twice as long as its transpose with two or three rows (forward
            # only: with gradients the transposed copies cost what is gained).
            return torch.baddbmm(bias.mT, weight.mT, x.mT).mT
        return torch.baddbmm(bias, x, weight)


class StackedLayerNorm(nn.Module):
    """Layer norm over the last dimension with K sets of scale and shift."""

    def __init__(self, stack: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(stack, 1, features))
        self.bias = nn.Parameter(torch.zeros(stack, 1, features))

    def forward(self, x: Tensor, every: int = 1) -> Tensor:
        """x [K, B, F] -> [K, B, F]; `every` as in `StackedLinear`."""
        weight, bias = (self.weight, self.bias) if every == 1 else (self.weight[::every], self.bias[::every])
        return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), weight)


class Kernels(abc.ABC):
    """Another way to compute a `StackedMLP`, equal up to rounding: see `om2p_data.fused`."""

    @abc.abstractmethod
    def take(self, net: StackedMLP, x: Tensor, every: int, share: int) -> bool:
        """Whether they can compute this; what they cannot, or what is wrong, the plain operations get."""

    @abc.abstractmethod
    def value(self, net: StackedMLP, x: Tensor, every: int, share: int) -> Tensor:
        """As `StackedMLP.forward`; with `every` only where no weight learns."""

    @abc.abstractmethod
    def value_and_tangent(self, net: StackedMLP, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """As `StackedMLP.forward_with_tangent`."""


class StackedMLP(nn.Module):
    """K multi-layer perceptrons side by side; the gradient of one never touches another.

    Args:
        stack: K.
        inputs, outputs: sizes I and O.
        hidden: widths of the hidden layers.
        activation: after every hidden layer.
        layer_norm: normalise after the activation, as OM2P's critics do.
        generator: source of the initial weights.

    Attributes:
        kernels: do the work instead of operation after operation, where they can; what is to be traced, compiled or
            exported must have none.
    """

    kernels: Kernels | None = None

    def __init__(
        self,
        stack: int,
        inputs: int,
        outputs: int,
        hidden: Sequence[int],
        activation: Activation,
        *,
        layer_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        sizes = [inputs, *hidden]
        self.activation = activation
        self.hidden_layers = nn.ModuleList(
            StackedLinear(stack, size, width, generator) for size, width in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(StackedLayerNorm(stack, width) for width in hidden) if layer_norm else None
        self.output_layer = StackedLinear(stack, sizes[-1], outputs, generator)

    def forward(self, x: Tensor, every: int = 1, share: int = 1) -> Tensor:
        """x [K / share, B, I] -> [K, B, O].

        Args:
            x: the input; each is read by `share` neighbouring networks.
            every: only each so many-th of the networks is computed, from the first on, so that K is so much smaller.
            share: see x.
        """
        if (
            self.kernels is not None
            and self.kernels.take(self, x, every, share)
            and not (every > 1 and any(parameter.requires_grad for parameter in self.parameters()))
        ):
            return self.kernels.value(self, x, every, share)
        given = x.dtype  # products may be cast to fewer bits, but what is made of the result is not
        if share > 1:
            x = x.repeat_interleave(share, 0)
        for index, layer in enumerate(self.hidden_layers):
            x = self.activation(layer(x, every))
            if self.norms is not None:
                x = self.norms[index](x, every)
        return self.output_layer(x, every).to(given)

    def forward_with_tangent(self, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """Value at x and, without gradient, the derivative in the direction dx: forward mode written out.

        It does what `torch.func.jvp` does, but keeps the value differentiable by reverse mode and leaves out the
        dispatch of two nested transforms, which costs more than the arithmetic of a small network.

        Args:
            x, dx: [K, B, I].

        Returns:
            value [K, B, O] and tangent [K, B, O].
        """
        if self.norms is not None:
            raise ValueError("forward_with_tangent is for networks without layer norm")
        if self.kernels is not None and dx.shape == x.shape and self.kernels.take(self, x, 1, 1):
            return self.kernels.value_and_tangent(self, x, dx)
        given = x.dtype
        for layer in self.hidden_layers:
            z = layer(x)
            with torch.no_grad():
                dx = self.activation.tangent(z, torch.bmm(dx, layer.get_parameter("weight")))
            x = self.activation(z)
        with torch.no_grad():
            dx = torch.bmm(dx, self.output_layer.weight)
        return self.output_layer(x).to(given), dx.to(given)


@torch.no_grad()
def polyak(targets: Sequence[Tensor], sources: Sequence[Tensor], rho: float) -> None:
    """Move every target towards its source in place: target <- (1 - rho) target + rho source."""
    torch._foreach_lerp_(list(targets), list(sources), rho)  # pyright: ignore[reportPrivateImportUsage]
