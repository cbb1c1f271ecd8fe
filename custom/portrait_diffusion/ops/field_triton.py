"""Planes and their decoder in one Triton kernel: look-ups, sum, and two layers, forward and backward.

Twin of `ops.triplane.decode_raw` on `ops.triplane.sample_planes`. Nothing of 3 C numbers a point is ever in memory. The
forward pass keeps the C summed features of a point for the backward pass while all of them fit in `KEEP_BYTES`, beyond
that the backward pass looks them up again; the hidden layer is always computed again. Planes may be float32, bfloat16
or float16; sums and gradients are float32. Gradients of the weights are added up in each program, one sum over
programs follows; those of the planes are atomic. There is no gradient with respect to the coordinates.
"""
import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .triplane_triton import gather_level, pack_axes, scatter_level

KEEP_BYTES = 1 << 30
FORWARD_BLOCK, FORWARD_WARPS = 64, 4
BACKWARD_BLOCK, BACKWARD_WARPS = 64, 4
NARROW = 16
"""Padded outputs up to which tf32x3 products keep the warps of others: with twice as many, Triton 3.6 answers wrongly
on an H200 (gradients of planes, first layer and its bias) and writes where it should not."""
PROGRAMS_PER_SM = 2
"""Of the backward pass, each of which loops over blocks of points."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _features(
    tables, coords, rows, mask, b, scale,
    AXES: tl.constexpr, LEVELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reduced features (BLOCK, C) of a block of points, float32: what both passes start with."""
    total = tl.zeros((BLOCK, C), dtype=tl.float32)
    for i in tl.static_range(len(LEVELS)):
        total += gather_level(
            tables[i], coords, rows * 3, mask, b, LEVELS[i][2], LEVELS[i][3], AXES, LEVELS[i][0], LEVELS[i][1], C, BLOCK
        )
    return total * scale


@triton.jit
def _hidden(features, w1, b1, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """softplus and its derivative, the sigmoid, of the first layer."""
    before = tl.dot(features.to(DOT), tl.trans(w1).to(DOT), input_precision=PRECISION) + b1[None, :]
    small = tl.exp(-tl.abs(before))
    softplus = tl.maximum(before, 0.0) + tl.log(1.0 + small)
    return softplus, tl.where(before >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def _weights(
    w1, b1, w2, C: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """First layer (HIDDEN, C), its bias, and the second layer (PADDED, HIDDEN) with rows of zeros after K."""
    c, h, k = tl.arange(0, C), tl.arange(0, HIDDEN), tl.arange(0, PADDED)
    first = tl.load(w1 + h[:, None] * C + c[None, :])
    second = tl.load(w2 + k[:, None] * HIDDEN + h[None, :], mask=(k < K)[:, None], other=0.0)
    return first, tl.load(b1 + h), second


@triton.jit(do_not_specialize=["n_points"])
def _field_forward(
    tables, coords, w1, b1, w2, b2, out, kept, n_points, scale,
    AXES: tl.constexpr, LEVELS: tl.constexpr, C: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr,
    PADDED: tl.constexpr, KEEP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = n < n_points
    rows = (b * n_points + n).to(tl.int64)
    features = _features(tables, coords, rows, mask, b, scale, AXES, LEVELS, C, BLOCK)
    if KEEP:
        c = tl.arange(0, C)
        tl.store(kept + rows[:, None] * C + c[None, :], features.to(kept.dtype.element_ty), mask=mask[:, None])
    first, bias, second = _weights(w1, b1, w2, C, HIDDEN, K, PADDED)
    hidden, _ = _hidden(features, first, bias, DOT, PRECISION)
    k = tl.arange(0, PADDED)
    raw = tl.dot(hidden.to(DOT), tl.trans(second).to(DOT), input_precision=PRECISION)
    raw += tl.load(b2 + k, mask=k < K, other=0.0)[None, :]
    tl.store(out + rows[:, None] * K + k[None, :], raw, mask=mask[:, None] & (k < K)[None, :])


@triton.jit(do_not_specialize=["n_points", "n_blocks"])
def _field_backward(
    tables, grad_tables, coords, kept, grad_out, w1, b1, w2, partial, n_points, n_blocks, scale,
    AXES: tl.constexpr, LEVELS: tl.constexpr, C: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr,
    PADDED: tl.constexpr, KEEP: tl.constexpr, PLANES: tl.constexpr, WEIGHTS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1)
    c, h, k, one = tl.arange(0, C), tl.arange(0, HIDDEN), tl.arange(0, PADDED), tl.arange(0, 16)
    grad_first = tl.zeros((HIDDEN, C), dtype=tl.float32)
    grad_second = tl.zeros((PADDED, HIDDEN), dtype=tl.float32)
    grad_bias = tl.zeros((16, HIDDEN), dtype=tl.float32)  # 16 equal rows: sums as products with ones
    grad_out_bias = tl.zeros((16, PADDED), dtype=tl.float32)
    for block in range(tl.program_id(0), n_blocks, tl.num_programs(0)):
        n = block * BLOCK + tl.arange(0, BLOCK)
        mask = n < n_points
        rows = (b * n_points + n).to(tl.int64)
        if KEEP:
            features = tl.load(kept + rows[:, None] * C + c[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
        else:
            features = _features(tables, coords, rows, mask, b, scale, AXES, LEVELS, C, BLOCK)
        first, bias, second = _weights(w1, b1, w2, C, HIDDEN, K, PADDED)
        hidden, slope = _hidden(features, first, bias, DOT, PRECISION)
        inside = mask[:, None] & (k < K)[None, :]
        grad = tl.load(grad_out + rows[:, None] * K + k[None, :], mask=inside, other=0.0).to(DOT)
        grad_before = tl.dot(grad, second.to(DOT), input_precision=PRECISION) * slope
        if WEIGHTS:
            ones = tl.full((16, BLOCK), 1.0, DOT)
            grad_second += tl.dot(tl.trans(grad), hidden.to(DOT), input_precision=PRECISION)
            grad_first += tl.dot(tl.trans(grad_before.to(DOT)), features.to(DOT), input_precision=PRECISION)
            grad_bias += tl.dot(ones, grad_before.to(DOT), input_precision=PRECISION)
            grad_out_bias += tl.dot(ones, grad, input_precision=PRECISION)
        if PLANES:
            grad_features = tl.dot(grad_before.to(DOT), first.to(DOT), input_precision=PRECISION) * scale
            for i in tl.static_range(len(LEVELS)):
                scatter_level(
                    grad_tables[i], grad_features, coords, rows * 3, mask, b, LEVELS[i][2], LEVELS[i][3], AXES,
                    LEVELS[i][0], LEVELS[i][1], C,
                )  # fmt: skip
    if WEIGHTS:
        program = b * tl.num_programs(0) + tl.program_id(0)
        target = partial + program * (HIDDEN * C + HIDDEN + K * HIDDEN + K)
        tl.store(target + h[:, None] * C + c[None, :], grad_first)
        target += HIDDEN * C
        tl.store(target + h[None, :] + 0 * one[:, None], grad_bias, mask=(one == 0)[:, None])
        target += HIDDEN
        tl.store(target + k[:, None] * HIDDEN + h[None, :], grad_second, mask=(k < K)[:, None])
        target += K * HIDDEN
        tl.store(target + k[None, :] + 0 * one[:, None], grad_out_bias, mask=(one == 0)[:, None] & (k < K)[None, :])


@dataclass(frozen=True)
class _Shape:
    """What the kernels are compiled for; ``levels``: planes, layers, rows and columns of each."""

    axes: int
    levels: tuple
    channels: int
    hidden: int
    outputs: int

    @property
    def padded(self) -> int:
        """Outputs with those of no use, as many as the matrix units take."""
        return max(16, triton.next_power_of_2(self.outputs))

    def constants(self) -> tuple:
        """Leading compile-time arguments of both kernels."""
        return self.axes, self.levels, self.channels, self.hidden, self.outputs, self.padded


def unfit(levels: list[Tensor], coords: Tensor, weights: tuple) -> str | None:
    """Why the kernels cannot read these inputs, or None when they can."""
    channels, hidden, outputs = levels[0].shape[2], weights[0].shape[0], weights[2].shape[0]
    if coords.requires_grad:
        return "it has no gradient with respect to coordinates"
    if any(level.dtype not in (torch.float32, torch.bfloat16, torch.float16) for level in levels):
        return f"it reads float32, bfloat16 or float16 planes, got {levels[0].dtype}"
    if any(level.dtype != levels[0].dtype for level in levels):
        return "all levels must have one data type"
    for name, size in (("channels", channels), ("hidden units", hidden)):
        if size < 16 or size & (size - 1):
            return f"it needs a power of two of {name}, at least 16, got {size}"
    if outputs > 64:
        return f"it has at most 64 outputs, got {outputs}"
    return None


def _operands(dtype: torch.dtype, backward: bool) -> tuple:
    """Data type of the products' operands and how float32 ones are multiplied.

    float16 has no room for small gradients: its backward products are those of float32, whose short form has as many
    digits. For float32 planes `torch.set_float32_matmul_precision` decides, as it does for torch's own products.
    """
    if dtype == torch.float32 or INTERPRETED:  # the interpreter cannot multiply bfloat16
        return tl.float32, "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    if dtype == torch.float16 and backward:
        return tl.float32, "tf32"
    return (tl.bfloat16 if dtype == torch.bfloat16 else tl.float16), "tf32"


class FusedField(torch.autograd.Function):
    """Raw decoder outputs of points; gradients for planes and weights.

    Args (of ``apply``): coords (B,N,3); the four decoder tensors; plane axes; factor of the sum of all look-ups; levels
        (B,P,C,H,W) or (B,P,C,D,H,W), see `unfit`.
    Returns: (B,N,K) float32.
    """

    @staticmethod
    def forward(ctx, coords: Tensor, w1, b1, w2, b2, axes: tuple, scale: float, *levels: Tensor) -> Tensor:
        b, n = coords.shape[:2]
        sizes = tuple((x.shape[1], x.shape[3] if x.ndim == 6 else 1, *x.shape[-2:]) for x in levels)
        shape = _Shape(pack_axes(axes), sizes, levels[0].shape[2], w1.shape[0], w2.shape[0])
        tables = tuple(x.movedim(2, -1).contiguous() for x in levels)  # channels innermost
        coords, w1, b1, w2, b2 = (x.float().contiguous() for x in (coords, w1, b1, w2, b2))
        dtype = levels[0].dtype
        out = torch.empty(b, n, shape.outputs, device=coords.device, dtype=torch.float32)
        keep = any(ctx.needs_input_grad) and b * n * shape.channels * dtype.itemsize <= KEEP_BYTES
        kept = torch.empty(b, n, shape.channels, device=coords.device, dtype=dtype) if keep else out
        if out.numel():
            with torch.cuda.device_of(out):  # Triton launches on the current device
                _field_forward[(triton.cdiv(n, FORWARD_BLOCK), b)](
                    tables, coords, w1, b1, w2, b2, out, kept, n, scale, *shape.constants(), keep,
                    *_operands(dtype, False), FORWARD_BLOCK, num_warps=FORWARD_WARPS, num_stages=1,
                )  # fmt: skip
        ctx.save_for_backward(coords, w1, b1, w2, kept if keep else None, *tables)
        ctx.shape, ctx.scale, ctx.dtype, ctx.keep = shape, scale, dtype, keep
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        coords, w1, b1, w2, kept, *tables = ctx.saved_tensors
        shape, (b, n) = ctx.shape, coords.shape[:2]
        planes, weights = any(ctx.needs_input_grad[7:]), any(ctx.needs_input_grad[1:5])
        grad_out = grad_out.float().contiguous()
        blocks = triton.cdiv(n, BACKWARD_BLOCK)
        programs = min(blocks, _processors(coords.device) * PROGRAMS_PER_SM)
        pieces = [w1.numel(), b1.numel(), w2.numel(), shape.outputs]
        partial = grad_out.new_empty(programs * b, sum(pieces)) if weights else grad_out
        grads = tuple(torch.zeros(x.shape, device=x.device) if planes else grad_out for x in tables)
        operands = _operands(ctx.dtype, True)
        if grad_out.numel():
            with torch.cuda.device_of(grad_out):
                _field_backward[(programs, b)](
                    tuple(tables), grads, coords, kept if ctx.keep else grad_out, grad_out, w1, b1, w2, partial, n,
                    blocks, ctx.scale, *shape.constants(), ctx.keep, planes, weights, *operands, BACKWARD_BLOCK,
                    num_warps=BACKWARD_WARPS * (2 if operands[1] == "tf32x3" and shape.padded > NARROW else 1),
                    num_stages=1,
                )  # fmt: skip
        of_weights: tuple = (None,) * 4
        if weights:
            parts = partial.sum(dim=0).split(pieces)  # of no programs where there are no points: zero
            of_weights = tuple(part.view(x.shape) for part, x in zip(parts, (w1, b1, w2, w2[:, 0]), strict=True))
        of_planes = [grad.movedim(-1, 2).to(ctx.dtype) if planes else None for grad in grads]
        return None, *of_weights, None, None, *of_planes


def _processors(device: torch.device) -> int:
    """Multiprocessors of a device; where the kernels are interpreted, one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
