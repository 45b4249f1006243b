"""Flow mathematics against densities, differences and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from om2p_data.errors import UserError
from om2p_data.stacked import Activation, StackedMLP
from om2p_train.flows import (
    Derivative,
    TimeDistribution,
    TimePair,
    adaptive_weight,
    check_finite_difference,
    interpolate,
    mean_flow,
)
from om2p_train.streams import SAMPLING, SeedStreams

XIS = [
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.2, 0.0),
    (2.0, 0.0, 0.0, 0.0),
    (0.0, 3.0, 0.0, 0.0),
    (1.5, 0.5, -4.0, 0.0),
    (-0.5, -0.5, 0.0, 0.0),
    (0.0, 0.0, 60.0, 0.0),
]


def _distribution(xi, t):
    """Distribution function of Eq. 4 at t, by quadrature."""
    # t = s^4 / (s^4 + (1 - s)^4) removes the integrable singularities at both ends.
    s = np.linspace(0, 1, 400_001)[1:-1]
    a, b = s**4, (1 - s) ** 4
    grid = a / (a + b)
    jacobian = 4 * s**3 * (1 - s) ** 3 / (a + b) ** 2
    log_density = xi[0] * np.log(grid) + xi[1] * np.log(b / (a + b)) + xi[2] * grid
    mass = np.exp(log_density - log_density.max()) * jacobian
    cumulative = np.concatenate([[0], np.cumsum((mass[1:] + mass[:-1]) / 2)])
    return np.interp(t, grid, cumulative / cumulative[-1])


@pytest.mark.parametrize("xi", XIS)
def test_times_follow_their_density(xi):
    """Kolmogorov-Smirnov at the 0.1% level: 1.95 / sqrt(n)."""
    n = 200_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(3))
    times = np.sort(TimeDistribution(xi).sample(uniform).double().numpy())
    assert times[0] >= 0
    assert times[-1] <= 1
    expected = _distribution(xi, times)
    empirical = np.arange(1, n + 1) / n
    distance = max(np.abs(empirical - expected).max(), np.abs(empirical - 1 / n - expected).max())
    assert distance < 1.95 / np.sqrt(n)


def test_the_goodness_of_fit_test_can_fail():
    n = 200_000
    times = np.sort(TimeDistribution((0, 0, 0.2, 0)).sample(torch.rand(n)).double().numpy())
    assert np.abs(np.arange(1, n + 1) / n - _distribution((0, 0, 0.3, 0), times)).max() > 1.95 / np.sqrt(n)


def test_a_density_without_a_norm_is_refused():
    with pytest.raises(UserError, match="greater than -1"):
        TimeDistribution((-1.0, 0, 0, 0))


def _pairs(pair, equal_share=0.25):
    streams = SeedStreams([0], SAMPLING)
    return pair.sample(TimeDistribution((0, 0, 0, 0)), equal_share, streams, 1, 100_000)[0].unbind(-1)


def test_ordered_pairs_are_ordered_and_share_their_time():
    r, t = _pairs(TimePair.ORDERED)
    assert (r <= t).all()
    assert (r == t).float().mean() == pytest.approx(0.25, abs=0.01)
    apart = r < t
    assert r[apart].mean() == pytest.approx(1 / 3, abs=0.01)
    assert t[apart].mean() == pytest.approx(2 / 3, abs=0.01)


def test_one_draw_pairs_lie_on_a_line_and_independent_ones_do_not():
    r, t = _pairs(TimePair.ONE_DRAW)
    torch.testing.assert_close(r + t, torch.ones_like(r))
    r, t = _pairs(TimePair.INDEPENDENT)
    assert abs(torch.corrcoef(torch.stack([r, t]))[0, 1]) < 0.02


def _problem(dtype, width=32):
    generator = torch.Generator().manual_seed(1)
    net = StackedMLP(3, 4 + 2 + 2, 2, (width, width), Activation.GELU, generator=generator).to(dtype)
    obs, actions, eps = (torch.randn(3, 64, size, generator=generator, dtype=dtype) for size in (4, 2, 2))
    times = torch.rand(3, 64, 2, generator=generator, dtype=dtype)
    return net, obs, actions, eps, times


def test_exact_derivative_equals_central_differences_in_float64():
    net, obs, actions, eps, times = _problem(torch.float64)
    r, t = times[..., :1], times[..., 1:]
    _, target = mean_flow(net, obs, actions, eps, times, Derivative.EXACT, 0.0)

    def u(r):
        a_r, _ = interpolate(actions, eps, r)
        return net(torch.cat([obs, a_r, r, t], -1))

    h = 1e-5
    with torch.no_grad():
        du_dr = (u(r + h) - u(r - h)) / (2 * h)
    expected = (actions - eps) - (r - t) * du_dr
    torch.testing.assert_close(target, expected, rtol=1e-8, atol=1e-8)


def test_exact_derivative_equals_jvp():
    net, obs, actions, eps, times = _problem(torch.float64)
    r, t = times[..., :1], times[..., 1:]
    u, target = mean_flow(net, obs, actions, eps, times, Derivative.EXACT, 0.0)
    a_r, v = interpolate(actions, eps, r)
    value, du_dr = torch.func.jvp(lambda a, r: net(torch.cat([obs, a, r, t], -1)), (a_r, r), (v, torch.ones_like(r)))
    torch.testing.assert_close(u, value)
    torch.testing.assert_close(target, v - (r - t) * du_dr)


def test_finite_difference_of_1e_3_is_close_in_float32():
    net, obs, actions, eps, times = _problem(torch.float32)
    _, exact = mean_flow(net, obs, actions, eps, times, Derivative.EXACT, 0.0)
    _, difference = mean_flow(net, obs, actions, eps, times, Derivative.FINITE_DIFFERENCE, 1e-3)
    assert (difference - exact).norm() / exact.norm() < 2e-3


def test_a_step_below_resolution_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"below the resolution of float32.*1e-3"):
        check_finite_difference(1e-12, torch.float32)
    check_finite_difference(1e-12, torch.float64)
    with pytest.raises(UserError, match="rounding"):
        check_finite_difference(1.3e-7, torch.float32)


def test_zero_derivative_is_flow_matching_and_targets_carry_no_gradient():
    net, obs, actions, eps, times = _problem(torch.float32)
    for derivative in Derivative:
        u, target = mean_flow(net, obs, actions, eps, times, derivative, 1e-3)
        assert u.requires_grad
        if derivative is Derivative.ZERO:
            torch.testing.assert_close(target, actions - eps)
        elif derivative is Derivative.EXACT:
            assert not target.requires_grad


def test_adaptive_weight():
    square = torch.tensor([[0.0, 1.0, 3.0]], requires_grad=True)
    weight = adaptive_weight(square, 0.5)
    assert not weight.requires_grad
    torch.testing.assert_close(weight, (square.detach() + 1e-3) ** -0.5)
