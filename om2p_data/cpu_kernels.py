"""Stacked perceptrons forward and backward on a CPU: numba kernels that pass over each value while it is in the cache.

A framework runs a network operation by operation over the whole stack, so that every intermediate value travels to
memory and back several times, and its layer norm and GELU are slow besides. Here one network after another (or one
block of its rows) goes through all its layers: a product of BLAS, then bias, activation, its derivative and layer norm
in two passes over the block. The derivative of the activation is kept instead of its argument, so that the way back,
and forward mode, cost one multiplication a value.

Sizes differ from layer to layer, which arrays in numba cannot: a table of `LAYER` rows holds addresses. Whoever fills
it (`om2p_data.fused`) answers for them.

Letters as elsewhere: K networks, B rows each, I inputs, O outputs of a layer.
"""

# numba's intrinsics have another signature than the functions that define them, and its exports are not declared:
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportPrivateImportUsage=false

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types
from numba.extending import intrinsic

RELU, GELU = range(2)

# One affine map of the stack, and what follows it. All fields but the first two are addresses of float32 values.
LAYER = np.dtype(
    [
        ("inputs", np.int64),
        ("outputs", np.int64),
        ("weight", np.int64),  # [K, I, O]
        ("bias", np.int64),  # [K, O]
        ("norm_weight", np.int64),  # [K, O], layer norm's
        ("norm_bias", np.int64),
        # Kept on the way forward for the way back (hidden layers only):
        ("output", np.int64),  # [K, B, O], after activation and norm
        ("slope", np.int64),  # [K, B, O], the activation's derivative
        ("normed", np.int64),  # [K, B, O], before the norm's scale and shift
        ("norm_scale", np.int64),  # [K, B], 1 / standard deviation
        # Made on the way back:
        ("delta", np.int64),  # [K, B, O], the loss by the activation's argument
        ("norm_sums", np.int64),  # [K, blocks, 2, O], each block's part of the norm's two gradients
        ("weight_grad", np.int64),
        ("bias_grad", np.int64),
        ("norm_weight_grad", np.int64),
        ("norm_bias_grad", np.int64),
    ]
)

_f32 = np.float32
ITEM = 4  # bytes of a float32
_NORM_EPS = _f32(1e-5)  # PyTorch's

# Sums in any order, but no assumption that values are finite: a loss that has become NaN must stay so.
#
# A division is a division: with "arcp" (approximate reciprocals) the process that compiled the kernels got other
# numbers than those that loaded them, and a resumed run was no longer the interrupted one. Why was not found out.
# A compiler may give a loop that writes several versions, chosen by the distance of its arrays, so such a loop does not
# sum into a scalar: the versions could round differently.
_ARITHMETIC = {"reassoc", "contract", "nsz"}
_MATHS = {"cache": True, "fastmath": _ARITHMETIC, "error_model": "numpy"}  # numba's own error model hinders SIMD


@intrinsic
def _pointer(_, address):  # int64 -> void*
    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


@intrinsic
def _power_of_two(_, exponent):  # 2^n for a whole n in [-126, 127], by writing the exponent's bits
    def build(context, builder, signature, arguments):
        bits = ir.IntType(32)
        biased = builder.add(builder.fptosi(arguments[0], bits), ir.Constant(bits, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(bits, 23)), ir.FloatType())

    return types.float32(types.float32), build


@njit(**_MATHS)
def _matrix(address, rows, columns):
    return carray(_pointer(address), (rows, columns), np.float32)


@njit(**_MATHS)
def _vector(address, size):
    return carray(_pointer(address), (size,), np.float32)


# Each call of `np.dot` is compiled anew where it stands, so it stands in three places only.
@njit(cache=True)
def _product(a, b, out):
    np.dot(a, b, out)


@njit(cache=True)
def _product_bt(a, b, out):  # a b^T
    np.dot(a, b.T, out)


@njit(cache=True)
def _product_at(a, b, out):  # a^T b
    np.dot(a.T, b, out)


@njit(inline="always", **_MATHS)
def _normal(x):
    """Distribution function and density of N(0, 1) at x, within 2e-7.

    The tail is Hastings' approximation of the error function (Abramowitz and Stegun 7.1.26), whose exponential the
    density needs anyway; the exponential is 2^n times a polynomial on [-1/2, 1/2].
    """
    t = x * x * _f32(-0.72134752)  # -x^2/2 log2 e
    far = t < _f32(-125.0)
    t = _f32(0.0) if far else t
    n = np.floor(t + _f32(0.5))
    f = t - n
    p = _f32(1.5403530e-4)
    p = p * f + _f32(1.3333558e-3)
    p = p * f + _f32(9.6181291e-3)
    p = p * f + _f32(5.5504109e-2)
    p = p * f + _f32(2.4022651e-1)
    p = p * f + _f32(6.9314718e-1)
    p = p * f + _f32(1.0)
    bell = _f32(0.0) if far else p * _power_of_two(n)  # exp(-x^2/2)
    k = _f32(1.0) / (_f32(1.0) + _f32(0.23164190) * abs(x))
    q = _f32(1.061405429)
    q = q * k - _f32(1.453152027)
    q = q * k + _f32(1.421413741)
    q = q * k - _f32(0.284496736)
    q = q * k + _f32(0.254829592)
    tail = _f32(0.5) * q * k * bell
    return tail if x < _f32(0.0) else _f32(1.0) - tail, bell * _f32(0.39894228)


@njit(**_MATHS)
def _activate(z, bias, activation):
    """z <- activation(z + bias)."""
    for row in range(len(z)):
        values = z[row]
        if activation == GELU:
            for j in range(len(values)):
                x = values[j] + bias[j]
                below, _ = _normal(x)
                values[j] = x * below
        else:
            for j in range(len(values)):
                x = values[j] + bias[j]
                values[j] = _f32(0.0) if x <= _f32(0.0) else x  # NaN stays


@njit(**_MATHS)
def _activate_with_slope(z, bias, activation, slope):
    """z <- activation(z + bias), and its derivative there."""
    for row in range(len(z)):
        values, slopes = z[row], slope[row]
        if activation == GELU:
            for j in range(len(values)):
                x = values[j] + bias[j]
                below, density = _normal(x)
                values[j] = x * below
                slopes[j] = below + x * density
        else:
            for j in range(len(values)):
                x = values[j] + bias[j]
                values[j] = _f32(0.0) if x <= _f32(0.0) else x
                slopes[j] = _f32(0.0) if x <= _f32(0.0) else _f32(1.0)


@njit(**_MATHS)
def _normalize(h, weight, bias, normed, scale, keep):
    """h <- layer norm of h; with `keep`, the value before scale and shift and 1 / deviation."""
    features = _f32(h.shape[1])
    for row in range(len(h)):
        values = h[row]
        total = _f32(0.0)
        for j in range(len(values)):
            total += values[j]
        mean = total / features
        square = _f32(0.0)
        for j in range(len(values)):
            square += (values[j] - mean) * (values[j] - mean)
        by = _f32(1.0) / np.sqrt(square / features + _NORM_EPS)
        if keep:
            scale[row] = by
            kept = normed[row]
            for j in range(len(values)):
                x = (values[j] - mean) * by
                kept[j] = x
                values[j] = x * weight[j] + bias[j]
        else:
            for j in range(len(values)):
                values[j] = (values[j] - mean) * by * weight[j] + bias[j]


@njit(**_MATHS)
def _normalize_back(grad, weight, normed, scale, weight_sum, bias_sum):
    """Gradient by the norm's output -> by its input, in place; sums over the rows for scale and shift."""
    features = _f32(grad.shape[1])
    weight_sum[:] = _f32(0.0)
    bias_sum[:] = _f32(0.0)
    for row in range(len(grad)):
        g, x = grad[row], normed[row]
        for j in range(len(g)):
            weight_sum[j] += g[j] * x[j]
            bias_sum[j] += g[j]
            g[j] *= weight[j]
        total, along = _f32(0.0), _f32(0.0)
        for j in range(len(g)):
            total += g[j]
            along += g[j] * x[j]
        total /= features
        along /= features
        for j in range(len(g)):
            g[j] = (g[j] - total - x[j] * along) * scale[row]


@njit(**_MATHS)
def _multiply(values, factors):
    for row in range(len(values)):
        v, f = values[row], factors[row]
        for j in range(len(v)):
            v[j] *= f[j]


@njit(**_MATHS)
def _add_row(values, row):
    for i in range(len(values)):
        v = values[i]
        for j in range(len(v)):
            v[j] += row[j]


@njit(**_MATHS)
def _sum_rows(values, out):
    out[:] = _f32(0.0)
    for row in range(len(values)):
        v = values[row]
        for j in range(len(v)):
            out[j] += v[j]


@njit(cache=True)
def _forward_block(k, of, first, rows, layers, x, x_k, y, activation, norm, keep, dx, dy):
    """Rows first..first + rows of value k, by network `of` of the stack, at input x_k."""
    batch, last = y.shape[1], len(layers) - 1
    tangent = len(dy) > 0
    widest = 0
    for layer in layers[:last]:
        widest = max(widest, layer.outputs)
    loose, slopes = np.empty((2, 0), np.float32), np.empty(0, np.float32)
    tangents = loose
    if not keep:
        loose = np.empty((2, rows * widest), np.float32)
    if tangent:
        tangents = np.empty((2, rows * widest), np.float32)
        if not keep:
            slopes = np.empty(rows * widest, np.float32)
    inputs = layers[0].inputs
    at = x.ctypes.data + ITEM * (x_k * batch + first) * inputs
    tangent_at = dx.ctypes.data + ITEM * (x_k * batch + first) * inputs
    for index in range(last):
        layer = layers[index]
        i, o = layer.inputs, layer.outputs
        here = ITEM * (k * batch + first) * o
        weight, bias = _matrix(layer.weight + ITEM * of * i * o, i, o), _vector(layer.bias + ITEM * of * o, o)
        to = layer.output + here if keep else loose[index % 2].ctypes.data
        z = _matrix(to, rows, o)
        _product(_matrix(at, rows, i), weight, z)
        if keep or tangent:
            slope = _matrix(layer.slope + here if keep else slopes.ctypes.data, rows, o)
            _activate_with_slope(z, bias, activation, slope)
            if tangent:
                tangent_to = tangents[index % 2].ctypes.data
                dz = _matrix(tangent_to, rows, o)
                _product(_matrix(tangent_at, rows, i), weight, dz)
                _multiply(dz, slope)
                tangent_at = tangent_to
        else:
            _activate(z, bias, activation)
        if norm:
            _normalize(
                z,
                _vector(layer.norm_weight + ITEM * of * o, o),
                _vector(layer.norm_bias + ITEM * of * o, o),
                _matrix(layer.normed + here, rows, o),
                _vector(layer.norm_scale + ITEM * (k * batch + first), rows),
                keep,
            )
        at = to
    layer = layers[last]
    i, o = layer.inputs, layer.outputs
    here = ITEM * (k * batch + first) * o
    weight = _matrix(layer.weight + ITEM * of * i * o, i, o)
    out = _matrix(y.ctypes.data + here, rows, o)
    _product(_matrix(at, rows, i), weight, out)
    _add_row(out, _vector(layer.bias + ITEM * of * o, o))
    if tangent:
        _product(_matrix(tangent_at, rows, i), weight, _matrix(dy.ctypes.data + here, rows, o))


@njit(cache=True)
def _back_block(k, of, block, first, rows, blocks, layers, y_grad, norm, x_grad):
    """Gradients by the values of rows first..first + rows, from the last layer to the first; as `_forward_block`."""
    batch, last = y_grad.shape[1], len(layers) - 1
    grad = _matrix(y_grad.ctypes.data + ITEM * (k * batch + first) * layers[last].outputs, rows, layers[last].outputs)
    for index in range(last, 0, -1):
        layer, before = layers[index], layers[index - 1]
        i, o = layer.inputs, layer.outputs
        here = ITEM * (k * batch + first) * i
        delta = _matrix(before.delta + here, rows, i)
        _product_bt(grad, _matrix(layer.weight + ITEM * of * i * o, i, o), delta)
        if norm:
            sums = before.norm_sums + ITEM * 2 * i * (k * blocks + block)
            _normalize_back(
                delta,
                _vector(before.norm_weight + ITEM * of * i, i),
                _matrix(before.normed + here, rows, i),
                _vector(before.norm_scale + ITEM * (k * batch + first), rows),
                _vector(sums, i),
                _vector(sums + ITEM * i, i),
            )
        _multiply(delta, _matrix(before.slope + here, rows, i))
        grad = delta
    if len(x_grad) > 0:
        i, o = layers[0].inputs, layers[0].outputs
        out = _matrix(x_grad.ctypes.data + ITEM * (k * batch + first) * i, rows, i)
        _product_bt(grad, _matrix(layers[0].weight + ITEM * of * i * o, i, o), out)


@njit(cache=True)
def _weight_gradients(k, index, blocks, layers, x, x_k, y_grad, norm):
    """Gradients by the parameters of one layer of network k."""
    batch, last = y_grad.shape[1], len(layers) - 1
    layer = layers[index]
    i, o = layer.inputs, layer.outputs
    at = layer.delta if index < last else y_grad.ctypes.data
    grad = _matrix(at + ITEM * k * batch * o, batch, o)
    source = x.ctypes.data + ITEM * x_k * batch * i
    if index > 0:
        source = layers[index - 1].output + ITEM * k * batch * i
    _product_at(_matrix(source, batch, i), grad, _matrix(layer.weight_grad + ITEM * k * i * o, i, o))
    _sum_rows(grad, _vector(layer.bias_grad + ITEM * k * o, o))
    if norm and index < last:
        sums = _matrix(layer.norm_sums + ITEM * 2 * o * k * blocks, blocks, 2 * o)
        _sum_rows(sums[:, :o], _vector(layer.norm_weight_grad + ITEM * k * o, o))
        _sum_rows(sums[:, o:], _vector(layer.norm_bias_grad + ITEM * k * o, o))


@njit(cache=True, parallel=True)
def forward(layers, x, y, share, every, block_rows, activation, norm, keep, dx, dy):
    """Values, and with `dx` the derivative in that direction.

    Args:
        layers: [L] of `LAYER`, the last one without activation.
        x: [K / share, B, I].
        y: [K, B, O], to be filled.
        share: how many neighbouring networks read the same input.
        every: only each so many-th network of the stack is computed, from the first on: K of K x every.
        block_rows: how many rows are taken through the layers together.
        activation: RELU or GELU.
        norm: layer norm after every activation.
        keep: fill what `backward` needs.
        dx, dy: as x and y; dy of length 0 asks for no derivative. Not with norm.
    """
    blocks = (y.shape[1] + block_rows - 1) // block_rows
    for unit in prange(y.shape[0] * blocks):
        k, first = unit // blocks, (unit % blocks) * block_rows
        rows = min(block_rows, y.shape[1] - first)
        _forward_block(k, k * every, first, rows, layers, x, k // share, y, activation, norm, keep, dx, dy)


@njit(cache=True, parallel=True)
def backward(layers, x, y_grad, share, every, block_rows, norm, weights, x_grad):
    """Gradients, after `forward` with `keep` and the same blocks.

    Args:
        layers, x, share, every, block_rows, norm: as there.
        y_grad: [K, B, O].
        weights: whether the parameters' gradients are wanted; with `every` they are not.
        x_grad: [K, B, I], to be filled; of length 0 if not wanted.
    """
    blocks = (y_grad.shape[1] + block_rows - 1) // block_rows
    for unit in prange(y_grad.shape[0] * blocks):
        k, block = unit // blocks, unit % blocks
        first = block * block_rows
        rows = min(block_rows, y_grad.shape[1] - first)
        _back_block(k, k * every, block, first, rows, blocks, layers, y_grad, norm, x_grad)
    if weights:
        for unit in prange(y_grad.shape[0] * len(layers)):
            k, index = unit // len(layers), unit % len(layers)
            _weight_gradients(k, index, blocks, layers, x, k // share, y_grad, norm)
