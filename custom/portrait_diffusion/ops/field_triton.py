"""Planes and their decoder as Triton kernels: look-ups and sum, then two layers, forward and backward.

Twin of `ops.triplane.decode_raw` on `ops.triplane.sample_planes`. Nothing of 3 C numbers a point is ever in memory. The
forward pass keeps the C summed features of a point for the backward pass while all of them fit in `KEEP_BYTES`, beyond
that the backward pass looks them up again, `CHUNK_BYTES` of them at a time; the hidden layer is always computed again.
Planes may be float32, bfloat16 or float16; sums and gradients of planes and weights are float32, features and their
gradients have the planes' data type. There is no gradient with respect to the coordinates.
"""
from collections.abc import Iterator

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import decoder_triton as decoder
from .triplane_triton import launch_gather, launch_scatter, pack_axes

KEEP_BYTES = 1 << 30
CHUNK_BYTES = 1 << 28
"""Of features at a time between two kernels. Chunks that stay in the cache (2^25) are slower on an H200: every launch
costs the host more than the memory's traffic costs the GPU."""
LEAST = 2.0**-40
"""Of the largest gradient of a raw output: points that have no larger one count as without. So many digits do sums in
whole numbers keep (`triplane_triton.fixed_point_unit`); in renders most points are such: air, and what is hidden."""


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


def chunks(batch: int, points: int, row_bytes: int, keep: bool) -> Iterator[tuple[int, int]]:
    """First and number of the points of each chunk: all of them if they are kept, else `CHUNK_BYTES` of features."""
    size = points if keep else max(64, CHUNK_BYTES // (batch * row_bytes))
    for start in range(0, points, size):
        yield start, min(size, points - start)


def least_gradient(grad: Tensor) -> Tensor:
    """`LEAST` of the largest number in magnitude, without a dimension; NaN where not all of them are finite."""
    largest = torch.linalg.vector_norm(grad, torch.inf)
    return LEAST * torch.where(largest.isfinite(), largest, torch.nan)


class FusedField(torch.autograd.Function):
    """Raw decoder outputs of points; gradients for planes and weights.

    Args (of ``apply``): coords (B,N,3); the four decoder tensors; plane axes; factor of the sum of all look-ups; levels
        (B,P,C,H,W) or (B,P,C,D,H,W), see `unfit`.
    Returns: (B,N,K) float32.
    """

    @staticmethod
    def forward(ctx, coords: Tensor, w1, b1, w2, b2, axes: tuple, scale: float, *levels: Tensor) -> Tensor:
        b, n = coords.shape[:2]
        dtype, channels, outputs = levels[0].dtype, levels[0].shape[2], w2.shape[0]
        sizes = tuple((x.shape[1], x.shape[3] if x.ndim == 6 else 1, *x.shape[-2:]) for x in levels)
        ctx.sizes = pack_axes(axes), sizes, channels
        ctx.layers = channels, w1.shape[0], outputs, *decoder.parts(outputs)
        tables = tuple(x.movedim(2, -1).contiguous() for x in levels)  # channels innermost
        coords, w1, b1, w2, b2 = (x.float().contiguous() for x in (coords, w1, b1, w2, b2))
        out = torch.empty(b, n, outputs, device=coords.device, dtype=torch.float32)
        keep = any(ctx.needs_input_grad) and b * n * channels * dtype.itemsize <= KEEP_BYTES
        kept = []
        if out.numel():
            with torch.cuda.device_of(out):  # Triton launches on the current device
                for start, count in chunks(b, n, channels * dtype.itemsize, keep):
                    features = torch.empty(b, count, channels, device=coords.device, dtype=dtype)
                    launch_gather(tables, coords, features, start, scale, ctx.sizes)
                    launch_decode(features, (w1, b1, w2, b2), out, start, ctx.layers)
                    kept += [features] if keep else []
        ctx.save_for_backward(coords, w1, b1, w2, *tables, *kept)
        ctx.scale, ctx.dtype = scale, dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        coords, w1, b1, w2, *rest = ctx.saved_tensors
        tables, kept = rest[: len(ctx.sizes[1])], rest[len(ctx.sizes[1]) :]
        (b, n), (channels, _, outputs, *_) = coords.shape[:2], ctx.layers
        planes, weights = any(ctx.needs_input_grad[7:]), any(ctx.needs_input_grad[1:5])
        grad_out = grad_out.float().contiguous()
        pieces = [w1.numel(), b1.numel(), w2.numel(), outputs]
        programs = decoder.processors(coords.device) * decoder.BACKWARD_PROGRAMS
        partial = grad_out.new_zeros(programs * b, sum(pieces)) if weights else grad_out
        least = least_gradient(grad_out) if grad_out.numel() else grad_out
        grads = tuple(torch.zeros(x.shape, device=x.device) if planes else grad_out for x in tables)
        if grad_out.numel():
            with torch.cuda.device_of(grad_out):
                for start, count in chunks(b, n, channels * ctx.dtype.itemsize, bool(kept)):
                    features = kept[0] if kept else grad_out.new_empty(b, count, channels, dtype=ctx.dtype)
                    if not kept:
                        launch_gather(tuple(tables), coords, features, start, ctx.scale, ctx.sizes)
                    pull = torch.empty_like(features) if planes else features
                    wanted = planes, weights
                    launch_decode_gradients(
                        features, grad_out, least, (w1, b1, w2), pull, partial, start, programs, ctx.layers, wanted
                    )
                    if planes:
                        launch_scatter(grads, coords, pull, start, ctx.scale, ctx.sizes)
        of_weights: tuple = (None,) * 4
        if weights:
            parts = partial.sum(dim=0).split(pieces)
            of_weights = tuple(part.view(x.shape) for part, x in zip(parts, (w1, b1, w2, w2[:, 0]), strict=True))
        of_planes = [grad.movedim(-1, 2).to(ctx.dtype) if planes else None for grad in grads]
        return None, *of_weights, None, None, *of_planes


def launch_decode(features: Tensor, weights: tuple, out: Tensor, start: int, layers: tuple) -> None:
    """Fill out (B,N,K) from `start` on with what the decoder makes of features (B,count,C)."""
    b, count = features.shape[:2]
    blocks = triton.cdiv(count, decoder.FORWARD_BLOCK)
    programs = min(blocks, decoder.processors(out.device) * decoder.FORWARD_PROGRAMS)
    decoder.decode[(programs, b)](
        features, *weights, out, out.shape[1], start, count, blocks, *layers, *decoder.operands(features.dtype, False),
        decoder.FORWARD_BLOCK, num_warps=decoder.FORWARD_WARPS, num_stages=decoder.FORWARD_STAGES,
    )  # fmt: skip


def launch_decode_gradients(
    features: Tensor, grad_out: Tensor, least: Tensor, weights: tuple, pull: Tensor, partial: Tensor, start: int,
    programs: int, layers: tuple, wanted: tuple[bool, bool],
) -> None:  # fmt: skip
    """Fill pull (B,count,C) with the features' gradients, and add those of the weights to partial (B programs, W).

    Points without a gradient above `least`, a tensor of one number, count as without. wanted: one, and the other.
    """
    b, count = features.shape[:2]
    blocks = triton.cdiv(count, decoder.BACKWARD_BLOCK)
    decoder.decode_gradients[(programs, b)](
        features, grad_out, least, *weights, pull, partial, grad_out.shape[1], start, count, blocks, *layers, *wanted,
        *decoder.operands(features.dtype, True), decoder.BACKWARD_BLOCK,
        num_warps=decoder.BACKWARD_WARPS, num_stages=decoder.BACKWARD_STAGES,
    )  # fmt: skip
