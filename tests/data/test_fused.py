"""The CPU's kernels compute what the operations they stand for compute, at any size, and leave nothing behind."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor

from om2p_data.fused import CpuKernels, fuse
from om2p_data.stacked import Activation, StackedMLP

SIZES = [  # networks, rows, inputs, outputs, hidden, share
    (6, 128, 20, 1, (64, 64), 2),
    (3, 301, 22, 2, (48,), 1),  # several blocks, the last one not full
    (1, 7, 3, 2, (5, 9, 4), 1),
    (4, 1, 6, 3, (16, 8), 2),  # one row
    (30, 517, 8, 1, (17, 12), 2),
]


def networks(
    stack: int, inputs: int, outputs: int, hidden: tuple[int, ...], activation: Activation, layer_norm: bool
) -> tuple[StackedMLP, StackedMLP]:
    """One stack in float64, operation by operation, and its twin in float32 through the kernels."""
    generator = torch.Generator().manual_seed(0)
    net = StackedMLP(stack, inputs, outputs, hidden, activation, layer_norm=layer_norm, generator=generator)
    with torch.no_grad():
        for norm in net.norms or ():
            for parameter in norm.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
    twin = copy.deepcopy(net)
    fuse(twin)
    assert twin.kernels is not None
    return net.double(), twin


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def equal(found: Tensor, expected: Tensor, what: str = "") -> None:
    """To float32's rounding, measured by the largest entry; a norm over a row of small deviation enlarges it."""
    scale = expected.abs().max().clamp_min(1e-6)
    torch.testing.assert_close(
        found.double() / scale, expected / scale, rtol=0, atol=2e-5, msg=lambda m: f"{what}: {m}"
    )


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    ("activation", "layer_norm"), list(itertools.product([Activation.RELU, Activation.GELU], [False, True]))
)
@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_gradients_equal_float64(sizes, activation, layer_norm, threads) -> None:
    stack, rows, inputs, outputs, hidden, share = sizes
    plain, twin = networks(stack, inputs, outputs, hidden, activation, layer_norm)
    x, weight = normal(stack // share, rows, inputs), normal(stack, rows, outputs, seed=2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, expected = [], []
        for net, results, value in ((plain, expected, x.double()), (twin, found, x)):
            leaf = value.clone().requires_grad_()
            y = net(leaf, share=share)
            (y * weight.to(y.dtype)).sum().backward()
            results += [y.detach(), leaf.grad, *(parameter.grad for parameter in net.parameters())]
        with torch.no_grad():
            found.append(twin(x, share=share))
            expected.append(expected[0])
    finally:
        torch.set_num_threads(before)
    names = ["value", "input", *dict(plain.named_parameters()), "value without gradients"]
    for name, one, other in zip(names, found, expected, strict=True):
        equal(one, other, name)


def test_every_other_network_without_its_weights_gradient() -> None:
    plain, twin = networks(6, 5, 1, (16, 16), Activation.GELU, True)
    x = normal(3, 40, 5)
    gradients = []
    for net, value in ((plain, x.double()), (twin, x)):
        net.requires_grad_(False)
        leaf = value.clone().requires_grad_()
        net(leaf, every=2).square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    equal(gradients[1], gradients[0])
    twin.requires_grad_(True)  # the operations themselves take over
    twin(x, every=2).square().sum().backward()
    assert [bool(row.any()) for row in twin.output_layer.bias.grad] == [True, False] * 3  # pyright: ignore[reportOptionalIterable]


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.GELU])
@pytest.mark.parametrize("rows", [9, 300])
def test_tangents_equal_float64(activation: Activation, rows: int) -> None:
    plain, twin = networks(3, 6, 2, (32, 16), activation, False)
    x, dx = normal(3, rows, 6), normal(3, rows, 6, seed=2)
    expected, expected_tangent = plain.forward_with_tangent(x.double(), dx.double())
    value, tangent = twin.forward_with_tangent(x, dx)
    equal(value, expected)
    equal(tangent, expected_tangent)
    assert not tangent.requires_grad
    with torch.no_grad():
        equal(twin.forward_with_tangent(x, dx)[1], expected_tangent)
    value.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(twin.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        equal(one.grad, other.grad)


def through_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU and its derivative by the kernels: a network of one unit with weight 1."""
    net = StackedMLP(1, 1, 1, (1,), Activation.GELU)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    fuse(net)
    leaf = x.view(1, -1, 1).clone().requires_grad_()
    y = net(leaf)
    y.sum().backward()
    assert leaf.grad is not None
    return y.detach().view(-1), leaf.grad.view(-1)


def test_gelu_over_its_whole_range() -> None:
    x = torch.cat([torch.linspace(-12, 12, 40_001), torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4, 1e18])])
    value, slope = through_gelu(x)
    exact = x.double().requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    expected.sum().backward()
    assert exact.grad is not None
    torch.testing.assert_close(value.double(), expected.detach(), rtol=2e-7, atol=1e-6)
    torch.testing.assert_close(slope.double(), exact.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.GELU])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_nan_stays_in_its_own_row_and_network(activation: Activation, layer_norm: bool) -> None:
    _, twin = networks(2, 3, 2, (8, 8), activation, layer_norm)
    x = normal(2, 5, 3)
    x[1, 2, 0] = torch.nan
    bad = twin(x).isnan().all(-1)
    assert bad.nonzero().tolist() == [[1, 2]]


def test_the_way_back_can_be_taken_twice() -> None:
    _, twin = networks(2, 3, 1, (8, 8), Activation.GELU, True)
    loss = twin(normal(2, 5, 3)).square().sum()
    first = torch.autograd.grad(loss, list(twin.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(twin.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_weights_changed_before_the_way_back_are_an_error() -> None:
    _, twin = networks(2, 3, 1, (8,), Activation.RELU, False)
    loss = twin(normal(2, 5, 3)).sum()
    with torch.no_grad():
        twin.output_layer.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_the_kernels_do_not_know_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuKernels, "value", lambda *_: pytest.fail("the kernels were called"))
    tanh = StackedMLP(2, 3, 1, (8,), Activation.TANH)
    fuse(tanh)
    assert tanh(normal(2, 5, 3)).shape == (2, 5, 1)
    _, twin = networks(2, 3, 1, (8,), Activation.RELU, False)
    assert twin.double()(normal(2, 5, 3).double()).dtype == torch.float64


def test_memory_is_used_again() -> None:
    _, twin = networks(4, 5, 1, (16, 16), Activation.GELU, True)

    def pool() -> dict[int, int]:
        assert isinstance(twin.kernels, CpuKernels)
        return {size: len(free) for size, free in twin.kernels.pool.items()}

    def step() -> None:
        loss = twin(normal(4, 64, 5)).sum() + twin(normal(4, 64, 5)).sum()  # two graphs at a time
        loss.backward()

    with torch.no_grad():
        twin(normal(4, 64, 5))
    assert not any(pool().values())  # nothing is kept for a way back that will not come
    step()
    after_one = pool()
    for _ in range(20):
        step()
    assert pool() == after_one


def test_kernels_leave_the_number_of_threads_alone() -> None:
    _, twin = networks(4, 5, 1, (16,), Activation.RELU, False)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            twin(normal(4, 64, 5)).sum().backward()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_numbers_depend_neither_on_threads_nor_on_where_memory_lies() -> None:
    """Small networks whose arrays lie close together, in changing order, on one thread and on two."""
    _, twin = networks(3, 5, 2, (16, 8), Activation.GELU, True)
    leaf = normal(3, 70, 5).requires_grad_()

    def gradients() -> list[Tensor]:
        twin.zero_grad()
        leaf.grad = None
        twin(leaf).square().sum().backward()
        assert leaf.grad is not None
        return [leaf.grad, *(parameter.grad for parameter in twin.parameters() if parameter.grad is not None)]

    expected = gradients()
    assert isinstance(twin.kernels, CpuKernels)
    pool = twin.kernels.pool
    sizes = list(pool)
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    try:
        for attempt in range(60):
            torch.set_num_threads(1 + attempt % 2)
            room, end = torch.empty(200_000), 0
            things = [*twin.parameters(), *sizes]
            for index in torch.randperm(len(things), generator=generator).tolist():
                thing = things[index]
                size = thing if isinstance(thing, int) else thing.numel()
                place = room[end : end + size]
                if isinstance(thing, int):
                    pool[thing] = [place]
                else:
                    thing.data = place.view_as(thing).copy_(thing.data)
                end += size + 4 * (attempt % 5)
            assert all(torch.equal(one, other) for one, other in zip(gradients(), expected, strict=True)), attempt
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "shape",
    [(4, 7, 6), (3, 7, 5), (1, 7, 5), (7, 5), (4, 0, 5)],
)
def test_wrong_sizes_are_what_they_are_to_the_plain_operations(shape: tuple[int, ...]) -> None:
    plain = StackedMLP(4, 5, 1, (8,), Activation.RELU)
    twin = copy.deepcopy(plain)
    fuse(twin)
    x = normal(*shape)
    try:
        expected = plain(x)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            twin(x)
    else:
        torch.testing.assert_close(twin(x), expected)


def test_other_parameters_than_float32_go_the_plain_way() -> None:
    _, twin = networks(2, 3, 1, (8,), Activation.RELU, False)
    twin.double()
    with pytest.raises(RuntimeError):
        twin(normal(2, 5, 3))


def test_every_other_network_of_which_some_weights_learn() -> None:
    _, twin = networks(4, 3, 1, (8,), Activation.RELU, False)
    twin.output_layer.requires_grad_(False)
    twin(normal(2, 5, 3), every=2).sum().backward()
    gradient = twin.hidden_layers[0].get_parameter("bias").grad
    assert gradient is not None
    assert [bool(row.any()) for row in gradient] == [True, False, True, False]
