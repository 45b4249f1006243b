"""Flow mathematics: interpolants, time distributions and mean-flow targets.

Notation as in the OM2P paper: a is an action of the data, eps ~ N(0, I), flow time runs from 0 (noise) to 1 (action).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

import torch
from torch import Tensor

from om2p_data.errors import UserError
from om2p_data.stacked import StackedMLP
from om2p_train.streams import SeedStreams

_TABLE_SIZE = 4096
_MOST_MASS = 0.5  # in one cell of the table


class TimeDistribution:
    """p(t; xi) ~ t^xi1 (1-t)^xi2 exp(xi3 t) on (0, 1), OM2P paper Eq. 4; xi4 cancels in the normalisation there too.

    The paper's form is exp(xi . [log t, log(1-t), t, 1]). Drawn by inverting the tabulated distribution function.

    Args:
        xi: four numbers; xi1 and xi2 must exceed -1, or the density cannot be normalised.
        device: where draws are made.
    """

    def __init__(self, xi: tuple[float, float, float, float], device: torch.device | str = "cpu"):
        if min(xi[:2]) <= -1.0:
            raise UserError(f"xi = {list(xi)}: the first two numbers must be greater than -1")
        # The grid t = sin^2(pi s / 2) is dense at both ends, where the density may be singular.
        s = torch.linspace(0.0, 1.0, _TABLE_SIZE + 1, dtype=torch.float64)
        middle = (s[:-1] + s[1:]) / 2
        t = torch.sin(math.pi * middle / 2).square()
        log_mass = (
            xi[0] * torch.log(t)
            + xi[1] * torch.log1p(-t)
            + xi[2] * t
            + torch.log(torch.sin(math.pi * middle))  # dt / ds, up to a constant
        )
        mass = torch.exp(log_mass - log_mass.max())
        if float(mass.max() / mass.sum()) > _MOST_MASS:
            raise UserError(f"xi = {list(xi)} puts nearly all times at one point: take smaller numbers")
        cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), mass.cumsum(0)])
        self._cumulative = (cumulative / cumulative[-1]).float().to(device)
        self._time = torch.sin(math.pi * s / 2).square().float().to(device)

    def sample(self, uniform: Tensor) -> Tensor:
        """Uniform draws of any shape -> times of the same shape."""
        cell = torch.searchsorted(self._cumulative, uniform, right=True).clamp_(1, _TABLE_SIZE)
        low, high = self._cumulative[cell - 1], self._cumulative[cell]
        share = (uniform - low) / (high - low).clamp_min(1e-12)
        start = self._time[cell - 1]
        return start + share * (self._time[cell] - start)


class TimePair(enum.Enum):
    """How the start r and the end t of an interval are drawn from p(xi)."""

    ORDERED = "ordered"  # r <= t: two draws in order, and a share of pairs with r = t (that is flow matching)
    ONE_DRAW = "one-draw"  # r = 1 - t, the paper's text
    INDEPENDENT = "independent"  # r = 1 - t' with another draw t', the authors' code

    def sample(self, times: TimeDistribution, equal_share: float, streams: SeedStreams, *shape: int) -> Tensor:
        """r and t, [K, B, 2], for `shape` = (N, B)."""
        draws = times.sample(streams.uniform(*shape, 2))  # [K, B, 2]
        first, second = draws.unbind(-1)
        if self is TimePair.ORDERED:
            t = torch.maximum(first, second)
            together = streams.uniform(*shape) < equal_share
            r = torch.where(together, t, torch.minimum(first, second))
        elif self is TimePair.ONE_DRAW:
            t, r = first, 1.0 - first
        else:
            t, r = first, 1.0 - second
        return torch.stack([r, t], -1)


class Derivative(enum.Enum):
    """How du/dr along the path is computed in the mean-flow target."""

    EXACT = "exact"  # forward mode
    FINITE_DIFFERENCE = "finite-difference"
    ZERO = "zero"  # what a step of 1e-12 amounts to in float32: plain flow matching


def check_finite_difference(step: float, dtype: torch.dtype) -> None:
    """Refuse a step that the number format cannot resolve: r + step == r would make every derivative 0.

    Just above that, the derivative is what rounding makes of it, so a hundredfold is asked for.

    Raises:
        UserError: the step is below 100 times the resolution of `dtype` at 1.
    """
    resolution = torch.finfo(dtype).eps
    if step < 100 * resolution:
        raise UserError(
            f"finite_difference_step = {step:g} is too close to or below the resolution of "
            f"{str(dtype).removeprefix('torch.')} ({resolution:.1e}): r + step is r, or differs by rounding, and the "
            "derivative means nothing; use 1e-3, or derivative = 'zero'"
        )


def interpolate(actions: Tensor, eps: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """a_r = (1 - r) eps + r a and its velocity v = a - eps.

    Args:
        actions, eps: [K, B, A].
        r: [K, B, 1].
    """
    velocity = actions - eps
    return eps + r * velocity, velocity


def mean_flow(
    net: StackedMLP,
    obs: Tensor,
    actions: Tensor,
    eps: Tensor,
    times: Tensor,
    derivative: Derivative,
    step: float,
    guide: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean velocity u(a_r, r, t | o) and its regression target v - (r - t) du/dr (OM2P paper Eq. 2).

    Args:
        net: u, with inputs (o, a_r, r, t).
        obs: [K, B, O], with whatever else u is conditioned on.
        actions, eps: [K, B, A].
        times: r and t, [K, B, 2].
        derivative: how du/dr is computed.
        step: of the finite difference, used by that form only.
        guide: (a_r, r, v) -> the velocity to follow instead of v, [K, B, A].

    Returns:
        u [K, B, A] and the target [K, B, A], which carries no gradient.
    """
    r, t = times[..., :1], times[..., 1:]
    a_r, velocity = interpolate(actions, eps, r)
    if guide is not None:
        velocity = guide(a_r, r, velocity)
    x = torch.cat([obs, a_r, times], -1)  # [K, B, O + A + 2]
    if derivative is Derivative.ZERO:
        return net(x), velocity
    # Along the path o and t stand still, a_r moves with v, and r with 1.
    direction = torch.cat([torch.zeros_like(obs), velocity, torch.ones_like(r), torch.zeros_like(t)], -1)
    if derivative is Derivative.EXACT:
        u, du_dr = net.forward_with_tangent(x, direction)
    else:
        u = net(x)
        with torch.no_grad():
            du_dr = (net(x + step * direction) - u) / step
    return u, velocity - (r - t) * du_dr


def adaptive_weight(square: Tensor, power: float) -> Tensor:
    """MeanFlow's weight 1 / (d^2 + c)^p, c = 1e-3, of a squared error d^2 [K, B]; carries no gradient."""
    return (square.detach() + 1e-3).pow(-power)
