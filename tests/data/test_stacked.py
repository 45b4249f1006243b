"""Stacked networks: the same numbers as torch's own layers one by one, and exact directional derivatives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from om2p_data.stacked import Activation, StackedLinear, StackedMLP, polyak

MODULES = {Activation.RELU: nn.ReLU, Activation.GELU: nn.GELU, Activation.TANH: nn.Tanh}


def stacked(activation: Activation, *, layer_norm: bool = False, stack: int = 3) -> StackedMLP:
    generator = torch.Generator().manual_seed(0)
    net = StackedMLP(stack, 4, 2, (8, 6), activation, layer_norm=layer_norm, generator=generator).double()
    if net.norms is not None:
        with torch.no_grad():
            for norm in net.norms:
                for parameter in norm.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return net


def alone(net: StackedMLP, k: int) -> nn.Sequential:
    """Network k as torch's own layers, with copies of its weights."""

    def linear(layer: StackedLinear) -> nn.Linear:
        module = nn.Linear(*layer.weight.shape[1:], dtype=torch.float64)
        module.weight.data.copy_(layer.weight[k].T)
        module.bias.data.copy_(layer.bias[k, 0])
        return module

    modules: list[nn.Module] = []
    for index, layer in enumerate(net.hidden_layers):
        modules += [linear(layer), MODULES[net.activation]()]
        if net.norms is not None:
            norm = nn.LayerNorm(layer.weight.shape[2], dtype=torch.float64)
            norm.weight.data.copy_(net.norms[index].weight[k, 0])
            norm.bias.data.copy_(net.norms[index].bias[k, 0])
            modules.append(norm)
    return nn.Sequential(*modules, linear(net.output_layer))


def inputs(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("activation", "layer_norm"), list(itertools.product(Activation, [False, True])))
def test_values_and_gradients_equal_networks_run_alone(activation: Activation, layer_norm: bool) -> None:
    net = stacked(activation, layer_norm=layer_norm)
    x = inputs(3, 5, 4)
    out = net(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), out)  # narrow layers multiply in another order there
    out.square().sum().backward()
    for k in range(3):
        single = alone(net, k)
        expected = single(x[k])
        torch.testing.assert_close(out[k], expected)
        expected.square().sum().backward()
        first = net.hidden_layers[0].get_parameter("weight").grad
        assert first is not None
        torch.testing.assert_close(first[k].T, single[0].get_parameter("weight").grad)
        last = net.output_layer.bias.grad
        assert last is not None
        torch.testing.assert_close(last[k, 0], single[-1].get_parameter("bias").grad)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_networks_do_not_touch_each_other(layer_norm: bool) -> None:
    net = stacked(Activation.GELU, layer_norm=layer_norm)
    x = inputs(3, 5, 4).requires_grad_()
    net(x)[1].sum().backward()
    assert x.grad is not None
    assert [bool(part.any()) for part in x.grad] == [False, True, False]
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert [bool(part.any()) for part in parameter.grad] == [False, True, False], name


@pytest.mark.parametrize("activation", Activation)
def test_tangent_equals_jvp_and_central_differences(activation: Activation) -> None:
    net = stacked(activation)
    x, dx = inputs(3, 50, 4), inputs(3, 50, 4, seed=2)
    value, tangent = net.forward_with_tangent(x, dx)
    expected_value, expected_tangent = torch.func.jvp(net, (x,), (dx,))
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(tangent, expected_tangent)
    step = 1e-6
    difference = (net(x + step * dx) - net(x - step * dx)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-7)
    assert tangent.abs().max() > 0.01


def test_the_value_beside_a_tangent_stays_differentiable_and_the_tangent_does_not() -> None:
    net = stacked(Activation.GELU)
    x, dx = inputs(3, 5, 4), inputs(3, 5, 4, seed=2)
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    value, tangent = net.forward_with_tangent(x, dx)
    assert not tangent.requires_grad
    found = torch.autograd.grad(value.square().sum(), list(net.parameters()))
    torch.testing.assert_close(found, expected)


def test_a_tangent_through_layer_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="without layer norm"):
        stacked(Activation.GELU, layer_norm=True).forward_with_tangent(inputs(3, 5, 4), inputs(3, 5, 4))


def test_initial_weights_differ_between_networks_and_repeat_with_the_generator() -> None:
    def layer(seed: int) -> StackedLinear:
        return StackedLinear(4, 25, 1000, torch.Generator().manual_seed(seed))

    weight = layer(0).weight.detach()
    torch.testing.assert_close(weight, layer(0).weight.detach(), rtol=0, atol=0)
    assert not torch.isclose(weight[0], weight[1]).all()
    assert not torch.isclose(weight, layer(1).weight).all()
    assert weight.abs().max() <= 0.2
    assert weight.std().item() == pytest.approx(0.2 / math.sqrt(3), rel=0.02)


def test_polyak_moves_targets_by_a_share_and_leaves_sources() -> None:
    targets, sources = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.full((3,), 5.0)]
    polyak(targets, sources, 0.25)
    assert [target.tolist() for target in targets] == [[0.25] * 2, [2.0] * 3]
    assert [source.tolist() for source in sources] == [[1.0] * 2, [5.0] * 3]
