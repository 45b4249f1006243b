"""Variance-preserving diffusion: noise schedule, score matching, and the third-order DPM-Solver.

Time runs from 0 (action) to 1 (noise), as in the literature on diffusion: a_t = alpha_t a + sigma_t eps.
Source: Song et al. 2021 (the schedule), Lu et al. 2022 (DPM-Solver-3, their Algorithm 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BETA_MIN, BETA_MAX = 0.1, 20.0
EARLIEST = 1e-3  # samplers stop and training starts here: at 0 the noise cannot be told from the action
ORDER = 3

_R1, _R2 = 1.0 / 3.0, 2.0 / 3.0  # where a step looks on its way, as shares of the step in log(alpha / sigma)


def log_alpha(time: float) -> float:
    """log alpha_t = -1/2 int_0^t beta."""
    return -0.25 * time**2 * (BETA_MAX - BETA_MIN) - 0.5 * time * BETA_MIN


def signal_and_noise(time: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t = sqrt(1 - alpha_t^2), of the shape of `time`."""
    log = -0.25 * time.square() * (BETA_MAX - BETA_MIN) - 0.5 * time * BETA_MIN
    return log.exp(), torch.sqrt(-torch.expm1(2.0 * log))


class _Moment(NamedTuple):
    time: float
    alpha: float
    sigma: float

    @classmethod
    def at(cls, time: float) -> _Moment:
        log = log_alpha(time)
        return cls(time, math.exp(log), math.sqrt(-math.expm1(2.0 * log)))

    @classmethod
    def of_ratio(cls, lam: float) -> _Moment:
        """The moment with log(alpha / sigma) = lam: the positive root of log alpha_t = -log(1 + e^(-2 lam)) / 2."""
        log = -0.5 * math.log1p(math.exp(-2.0 * lam))
        spread = BETA_MAX - BETA_MIN
        return cls.at(-4.0 * log / (BETA_MIN + math.sqrt(BETA_MIN**2 - 4.0 * spread * log)))

    @property
    def ratio(self) -> float:
        return math.log(self.alpha / self.sigma)


def dpm_solver(noise_of: Callable[[Tensor, float], Tensor], start: Tensor, evaluations: int) -> Tensor:
    """Points at time `EARLIEST` of the probability flow that starts from `start` at time 1.

    Args:
        noise_of: the network's guess of eps in a_t at time t.
        start: eps ~ N(0, I), any shape.
        evaluations: of the network, a multiple of 3; the steps are even in log(alpha / sigma).
    """
    first, last = _Moment.at(1.0).ratio, _Moment.at(EARLIEST).ratio
    steps = evaluations // ORDER
    moments = [_Moment.of_ratio(first + (last - first) * index / steps) for index in range(steps + 1)]
    x = start
    for begin, end in itertools.pairwise(moments):
        x = _step(noise_of, x, begin, end)
    return x


def _step(noise_of: Callable[[Tensor, float], Tensor], x: Tensor, begin: _Moment, end: _Moment) -> Tensor:
    h = end.ratio - begin.ratio
    near, far = (_Moment.of_ratio(begin.ratio + share * h) for share in (_R1, _R2))
    e0 = noise_of(x, begin.time)
    u1 = near.alpha / begin.alpha * x - near.sigma * math.expm1(_R1 * h) * e0
    d1 = noise_of(u1, near.time) - e0
    curve = math.expm1(_R2 * h) / (_R2 * h) - 1.0
    u2 = far.alpha / begin.alpha * x - far.sigma * math.expm1(_R2 * h) * e0 - far.sigma * _R2 / _R1 * curve * d1
    d2 = noise_of(u2, far.time) - e0
    curve = math.expm1(h) / h - 1.0
    return end.alpha / begin.alpha * x - end.sigma * math.expm1(h) * e0 - end.sigma / _R2 * curve * d2
