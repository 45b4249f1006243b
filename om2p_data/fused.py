"""`StackedMLP` on a CPU through the kernels of `cpu_kernels`, as one operation of autograd.

It computes what the plain operations compute, up to rounding.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from om2p_data import cpu_kernels
from om2p_data.stacked import Activation, Kernels, StackedMLP

_ACTIVATIONS = {Activation.RELU: cpu_kernels.RELU, Activation.GELU: cpu_kernels.GELU}
_LARGEST_BLOCK = 256  # rows: the values of more leave the cache, and products gain nothing
_SMALLEST_BLOCK = 64  # rows: products of fewer run at half their speed
_FEWEST_UNITS = 6  # blocks that the threads have to share
_MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
_NONE = np.empty((0, 0, 0), np.float32)


def fuse(module: nn.Module) -> None:
    """Run all perceptrons within `module` through the kernels that can be: RELU and GELU."""
    kernels = CpuKernels()
    for part in module.modules():
        if isinstance(part, StackedMLP):
            part.kernels = kernels if part.activation in _ACTIVATIONS else None


class CpuKernels(Kernels):
    """Float32 on a CPU.

    Attributes:
        pool: memory between two updates, by its size in floats. What the system hands out would be cleared page by page
            at every update.
    """

    def __init__(self) -> None:
        self.pool: dict[int, list[Tensor]] = {}

    def take(self, net: StackedMLP, x: Tensor, every: int, share: int) -> bool:
        weight = net.output_layer.weight
        stack, inputs = net.hidden_layers[0].get_parameter("weight").shape[:2]
        of_floats = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
        # The kernels follow addresses: whatever else has other sizes is left to operations that say so.
        fits = x.dim() == 3 and x.numel() > 0 and len(x) * share * every == stack and x.shape[2] == inputs
        return of_floats and fits and all(parameter.is_contiguous() for parameter in _parameters(net))

    def value(self, net: StackedMLP, x: Tensor, every: int, share: int) -> Tensor:
        return self._apply(net, x, None, every, share)[0]

    def value_and_tangent(self, net: StackedMLP, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(net, x, dx, 1, 1)

    def _apply(self, net: StackedMLP, x: Tensor, dx: Tensor | None, every: int, share: int) -> tuple[Tensor, Tensor]:
        parameters = _parameters(net)
        # Within an operation of autograd, gradients are always off.
        keep = torch.is_grad_enabled() and any(value.requires_grad for value in (x, *parameters))
        call = _Call(net, self.pool, share, every, keep)
        return _FusedMLP.apply(call, x, dx, *parameters)  # pyright: ignore[reportReturnType]


class _Call(NamedTuple):
    """What a call of the kernels is about, besides tensors.

    Attributes:
        net: the stack; pool: where memory comes from.
        share, every: see `Kernels`.
        keep: whether there will be a way back.
    """

    net: StackedMLP
    pool: dict[int, list[Tensor]]
    share: int
    every: int
    keep: bool


class _FusedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, dx: Tensor | None, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().contiguous()
        plan = _plan(_widths(call.net, parameters), len(x) * call.share, x.shape[1], call.net.norms is not None)
        layers = _layers(plan, parameters)
        buffer = _Buffer(plan.kept_size, call.pool) if call.keep else None
        if buffer is not None:
            _move(layers, plan.kept, buffer)
        y = x.new_empty(plan.networks, plan.batch, plan.widths[-1])
        dy = _NONE if dx is None else np.empty(y.shape, np.float32)
        _run(
            cpu_kernels.forward,
            layers,
            x.numpy(),
            y.numpy(),
            call.share,
            call.every,
            plan.block_rows,
            _ACTIVATIONS[call.net.activation],
            plan.norm,
            call.keep,
            _NONE if dx is None else dx.detach().contiguous().numpy(),
            dy,
        )
        if call.keep:
            ctx.save_for_backward(x, *parameters)
            ctx.made_of = call, plan, buffer
        tangent = torch.from_numpy(dy)
        ctx.mark_non_differentiable(tangent)
        return y, tangent

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor, _: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *parameters = ctx.saved_tensors  # raises if one was changed since
        call, plan, kept = ctx.made_of
        layers = _layers(plan, parameters)
        _move(layers, plan.kept, kept)
        scratch = _Buffer(plan.scratch_size, call.pool)
        _move(layers, plan.scratch, scratch)
        gradients: list[Tensor | None] = [None] * len(parameters)
        weights = any(ctx.needs_input_grad[3:])
        if weights:
            gradients[:] = made = [torch.empty_like(parameter) for parameter in parameters]
            for field, addresses in _by_field(made, plan.norm).items():
                layers[f"{field}_grad"][: len(addresses)] = addresses
        x_grad = x.new_empty(plan.networks, *x.shape[1:]) if ctx.needs_input_grad[1] else None
        _run(
            cpu_kernels.backward,
            layers,
            x.numpy(),
            y_grad.contiguous().numpy(),
            call.share,
            call.every,
            plan.block_rows,
            plan.norm,
            weights,
            _NONE if x_grad is None else x_grad.numpy(),
        )
        if x_grad is not None and call.share > 1:
            x_grad = x_grad.unflatten(0, (-1, call.share)).sum(1)
        return None, x_grad, None, *gradients


class _Plan(NamedTuple):
    """What follows from sizes alone."""

    layers: np.ndarray  # with addresses relative to the buffers that they will lie in
    widths: tuple[int, ...]  # I of the first layer and O of every layer
    networks: int
    batch: int
    norm: bool
    block_rows: int
    kept: tuple[str, ...]  # fields that lie in the buffer of the way forward
    kept_size: int
    scratch: tuple[str, ...]  # fields that lie in the buffer of the way back
    scratch_size: int


@functools.lru_cache(maxsize=256)
def _plan(widths: tuple[int, ...], networks: int, batch: int, norm: bool) -> _Plan:
    layers = np.zeros(len(widths) - 1, cpu_kernels.LAYER)
    layers["inputs"], layers["outputs"] = widths[:-1], widths[1:]
    # Few networks are cut into blocks, so that threads share them out evenly. How many threads there are must not
    # count: sums are rounded in the order of the blocks.
    rows = max(_SMALLEST_BLOCK, -(-batch * networks // _FEWEST_UNITS))
    block_rows = min(batch, _LARGEST_BLOCK, rows)
    blocks = -(-batch // block_rows)
    hidden = np.array(widths[1:-1])
    values = networks * batch * hidden
    sizes = {
        "output": values,
        "slope": values,
        "normed": values,
        "norm_scale": np.full_like(values, networks * batch),
        "delta": values,
        "norm_sums": 2 * networks * blocks * hidden,
    }

    def lay_out(fields: Iterable[str]) -> int:
        end = 0
        for field in fields:
            ends = end + np.cumsum(sizes[field])
            layers[field][:-1] = cpu_kernels.ITEM * (ends - sizes[field])
            end = int(ends[-1])
        return end

    kept = ("output", "slope", "normed", "norm_scale") if norm else ("output", "slope")
    scratch = ("delta", "norm_sums") if norm else ("delta",)
    return _Plan(layers, widths, networks, batch, norm, block_rows, kept, lay_out(kept), scratch, lay_out(scratch))


def _widths(net: StackedMLP, parameters: Sequence[Tensor]) -> tuple[int, ...]:
    """I of the first layer and O of every layer."""
    weights = parameters[:: 4 if net.norms is not None else 2]
    return (weights[0].shape[1], *(weight.shape[2] for weight in weights))


def _layers(plan: _Plan, parameters: Sequence[Tensor]) -> np.ndarray:
    """The kernels' table, with the addresses of the parameters."""
    layers = plan.layers.copy()
    for field, addresses in _by_field(parameters, plan.norm).items():
        layers[field][: len(addresses)] = addresses
    return layers


def _parameters(net: StackedMLP) -> list[Tensor]:
    """Weight and bias of every layer, each hidden one's followed by its norm's."""
    values: list[Any] = []
    for index, layer in enumerate(net.hidden_layers):
        values += (layer.weight, layer.bias)
        if net.norms is not None:
            norm = net.norms[index]
            values += (norm.weight, norm.bias)
    return [*values, net.output_layer.weight, net.output_layer.bias]


def _by_field(parameters: Sequence[Tensor], norm: bool) -> dict[str, list[int]]:
    """Addresses of `_parameters`, or of tensors like them, by field of the table."""
    fields = ("weight", "bias", "norm_weight", "norm_bias") if norm else ("weight", "bias")
    step = len(fields)
    return {field: [value.data_ptr() for value in parameters[at::step]] for at, field in enumerate(fields)}


def _move(layers: np.ndarray, fields: Iterable[str], buffer: _Buffer) -> None:
    """Make the fields' addresses, relative to the buffer until now, absolute."""
    for field in fields:
        layers[field] += buffer.memory.data_ptr()


class _Buffer:
    """Float32 memory that goes back to its pool when nobody holds it any more."""

    def __init__(self, size: int, pool: dict[int, list[Tensor]]):
        free = pool.setdefault(size, [])
        self.memory = free.pop() if free else torch.empty(size)
        self._pool = pool

    def __del__(self):
        if hasattr(self, "_pool"):  # not if there was no memory
            self._pool.setdefault(len(self.memory), []).append(self.memory)


def _run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Run a kernel on as many threads as PyTorch has."""
    _one_thread_a_product()
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, _MOST_THREADS))
    kernel(*arguments)
    if torch.get_num_threads() != threads:  # numba's first launch sets the number for all who use OpenMP
        torch.set_num_threads(threads)


@functools.cache
def _one_thread_a_product() -> None:
    """The kernels' threads share the work out between them; a BLAS that does so as well would stand in their way."""
    importlib.import_module("scipy.linalg.cython_blas")  # whose BLAS numba takes: it must be loaded to be limited
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)
