"""The decoder of a field as Triton kernels: two layers of features that lie in memory, forward and backward.

Twin of `ops.triplane.decode_raw`: raw = W2 softplus(W1 f + b1) + b2. The hidden layer is in registers only and computed
again for the gradients. Each program keeps the weights, walks over blocks of points, and adds the gradients of the
weights up for itself; one sum over programs follows.
"""
import os

import torch
import triton
import triton.language as tl

FORWARD_BLOCK, FORWARD_WARPS, FORWARD_PROGRAMS = 64, 4, 8
BACKWARD_BLOCK, BACKWARD_WARPS, BACKWARD_PROGRAMS = 64, 4, 2
"""Points of a block, warps of a program, programs a multiprocessor."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _hidden(features, w1, b1, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """softplus and its derivative, the sigmoid, of the first layer."""
    before = tl.dot(features.to(DOT), tl.trans(w1).to(DOT), input_precision=PRECISION) + b1[None, :]
    small = tl.exp(-tl.abs(before))
    softplus = tl.maximum(before, 0.0) + tl.log(1.0 + small)
    return softplus, tl.where(before >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def _weights(w1, b1, w2, C: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr):
    """First layer (HIDDEN, C), its bias, and the second layer (PADDED, HIDDEN) with rows of zeros after K."""
    c, h, k = tl.arange(0, C), tl.arange(0, HIDDEN), tl.arange(0, PADDED)
    first = tl.load(w1 + h[:, None] * C + c[None, :])
    second = tl.load(w2 + k[:, None] * HIDDEN + h[None, :], mask=(k < K)[:, None], other=0.0)
    return first, tl.load(b1 + h), second


@triton.jit(do_not_specialize=["n_points", "start", "count", "n_blocks"])
def decode(
    features, w1, b1, w2, b2, out, n_points, start, count, n_blocks,
    C: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out`` (B, n_points, K) at start to start + count, of features (B, count, C)."""
    b = tl.program_id(1)
    c, k = tl.arange(0, C), tl.arange(0, PADDED)
    first, bias, second = _weights(w1, b1, w2, C, HIDDEN, K, PADDED)
    shift = tl.load(b2 + k, mask=k < K, other=0.0)
    for block in range(tl.program_id(0), n_blocks, tl.num_programs(0)):
        i = block * BLOCK + tl.arange(0, BLOCK)
        mask = i < count
        near = features + (b * count + i).to(tl.int64)[:, None] * C + c[None, :]
        hidden, _ = _hidden(tl.load(near, mask=mask[:, None], other=0.0), first, bias, DOT, PRECISION)
        raw = tl.dot(hidden.to(DOT), tl.trans(second).to(DOT), input_precision=PRECISION) + shift[None, :]
        target = out + (b * n_points + start + i).to(tl.int64)[:, None] * K + k[None, :]
        tl.store(target, raw, mask=mask[:, None] & (k < K)[None, :])


@triton.jit(do_not_specialize=["n_points", "start", "count", "n_blocks"])
def decode_gradients(
    features, grad_out, w1, b1, w2, grad_features, partial, n_points, start, count, n_blocks,
    C: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, FEATURES: tl.constexpr,
    WEIGHTS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients (B, count, C) of the features, and those of the weights added to this program's row of `partial`."""
    b = tl.program_id(1)
    c, h, k, one = tl.arange(0, C), tl.arange(0, HIDDEN), tl.arange(0, PADDED), tl.arange(0, 16)
    grad_first = tl.zeros((HIDDEN, C), dtype=tl.float32)
    grad_second = tl.zeros((PADDED, HIDDEN), dtype=tl.float32)
    grad_bias = tl.zeros((16, HIDDEN), dtype=tl.float32)  # 16 equal rows: sums as products with ones
    grad_shift = tl.zeros((16, PADDED), dtype=tl.float32)
    first, bias, second = _weights(w1, b1, w2, C, HIDDEN, K, PADDED)
    for block in range(tl.program_id(0), n_blocks, tl.num_programs(0)):
        i = block * BLOCK + tl.arange(0, BLOCK)
        mask = i < count
        rows = (b * count + i).to(tl.int64)[:, None] * C + c[None, :]
        seen = tl.load(features + rows, mask=mask[:, None], other=0.0)
        hidden, slope = _hidden(seen, first, bias, DOT, PRECISION)
        source = grad_out + (b * n_points + start + i).to(tl.int64)[:, None] * K + k[None, :]
        grad = tl.load(source, mask=mask[:, None] & (k < K)[None, :], other=0.0).to(DOT)
        grad_before = (tl.dot(grad, second.to(DOT), input_precision=PRECISION) * slope).to(DOT)
        if FEATURES:
            found = tl.dot(grad_before, first.to(DOT), input_precision=PRECISION)
            tl.store(grad_features + rows, found.to(grad_features.dtype.element_ty), mask=mask[:, None])
        if WEIGHTS:
            ones = tl.full((16, BLOCK), 1.0, DOT)
            grad_second += tl.dot(tl.trans(grad), hidden.to(DOT), input_precision=PRECISION)
            grad_first += tl.dot(tl.trans(grad_before), seen.to(DOT), input_precision=PRECISION)
            grad_bias += tl.dot(ones, grad_before, input_precision=PRECISION)
            grad_shift += tl.dot(ones, grad, input_precision=PRECISION)
    if WEIGHTS:
        program = b * tl.num_programs(0) + tl.program_id(0)
        at = partial + program * (HIDDEN * C + HIDDEN + K * HIDDEN + K) + h[:, None] * C + c[None, :]
        tl.store(at, tl.load(at) + grad_first)
        row = (one == 0)[:, None]
        at = partial + program * (HIDDEN * C + HIDDEN + K * HIDDEN + K) + HIDDEN * C + h[None, :] + 0 * one[:, None]
        tl.store(at, tl.load(at, mask=row) + grad_bias, mask=row)
        at = partial + program * (HIDDEN * C + HIDDEN + K * HIDDEN + K) + HIDDEN * C + HIDDEN
        at_second = at + k[:, None] * HIDDEN + h[None, :]
        inside = (k < K)[:, None]
        tl.store(at_second, tl.load(at_second, mask=inside) + grad_second, mask=inside)
        at_shift = at + K * HIDDEN + k[None, :] + 0 * one[:, None]
        inside = row & (k < K)[None, :]
        tl.store(at_shift, tl.load(at_shift, mask=inside) + grad_shift, mask=inside)


def operands(dtype: torch.dtype, backward: bool) -> tuple:
    """Data type of the products' operands and how float32 ones are multiplied.

    float16 has no room for small gradients: its backward products are those of float32, whose short form has as many
    digits. For float32 planes `torch.set_float32_matmul_precision` decides, as it does for torch's own products.
    """
    if dtype == torch.float32 or INTERPRETED:  # the interpreter cannot multiply bfloat16
        return tl.float32, "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    if dtype == torch.float16 and backward:
        return tl.float32, "tf32"
    return (tl.bfloat16 if dtype == torch.bfloat16 else tl.float16), "tf32"


def processors(device: torch.device) -> int:
    """Multiprocessors of a device; where the kernels are interpreted, one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
