"""Plane and grid sampling as Triton kernels: the channels are innermost, so every access is coalesced.

Twin of one level of `ops.triplane.sample_planes` (same plane axes, `align_corners=False`, zeros outside): three planes
or the frontal one alone, flat or with layers. The value and the gradient with respect to the planes agree with it;
there is no gradient with respect to the coordinates.

Gradients are added atomically, in whatever order the GPU comes to them, so that repetitions differ by rounding. Under
``torch.use_deterministic_algorithms(True)`` they are added as whole multiples of a power of two (`fixed_point_unit`):
sums of integers do not depend on the order.
"""
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

GATHER_BLOCK, GATHER_WARPS = 32, 4
SCATTER_BLOCK, SCATTER_WARPS = 32, 4
STRIDES = 1_000_003, 999_983
"""Primes for `stride_of`."""


@triton.jit
def _coordinate(coords, base, mask, slot: tl.constexpr, axes: tl.constexpr):
    """One of the coordinates of a point; `axes` packs the axis numbers of column, row and depth, 4 bits each."""
    axis: tl.constexpr = (axes >> (4 * slot)) & 15
    return tl.load(coords + base + axis, mask=mask, other=2.0)


@triton.jit
def _texel(position, size):
    """Index of the lower neighbour and the weight of the upper one."""
    at = (position + 1.0) * size * 0.5 - 0.5
    low = tl.floor(at).to(tl.int32)
    return low, at - low


@triton.jit
def _corner(k: tl.constexpr, x0, fx, y0, fy, height, width):
    """Offset within a layer, whether it is inside, and the bilinear weight of corner k of four."""
    x = x0 + (k & 1)
    y = y0 + (k >> 1)
    wx = fx if (k & 1) else 1.0 - fx
    wy = fy if (k >> 1) else 1.0 - fy
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return tl.where(inside, y * width + x, 0), inside, wx * wy


@triton.jit
def _layer(kz: tl.constexpr, z0, fz, D: tl.constexpr):
    """Layer, whether it is inside, and the weight of layer kz of two."""
    z = z0 + kz
    inside = (z >= 0) & (z < D)
    return tl.where(inside, z, 0), inside, fz if kz else 1.0 - fz


@triton.jit
def gather_level(
    planes, coords, base, mask, b, height, width,
    axes: tl.constexpr, P: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum (BLOCK_N, C) over the planes of one level, float32; `base`: where in `coords` each point's numbers start."""
    c = tl.arange(0, C)
    total = tl.zeros((BLOCK_N, C), dtype=tl.float32)
    for p in tl.static_range(P):
        x0, fx = _texel(_coordinate(coords, base, mask, 3 * p, axes), width)
        y0, fy = _texel(_coordinate(coords, base, mask, 3 * p + 1, axes), height)
        z0, fz = _texel(_coordinate(coords, base, mask, 3 * p + 2, axes), D)
        plane = planes + (b * P + p).to(tl.int64) * D * height * width * C
        for kz in tl.static_range(1 if D == 1 else 2):
            z, deep, wz = _layer(kz, z0, fz, D)
            for k in tl.static_range(4):
                offset, inside, weight = _corner(k, x0, fx, y0, fy, height, width)
                inside = inside & mask
                if D > 1:
                    offset += z * height * width
                    inside = inside & deep
                    weight *= wz
                value = tl.load(plane + offset[:, None] * C + c[None, :], mask=inside[:, None], other=0.0)
                total += value.to(tl.float32) * weight[:, None]
    return total


@triton.jit
def scatter_level(
    grad_planes, grad, coords, base, mask, b, height, width, WHOLE: tl.constexpr,
    axes: tl.constexpr, P: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Adjoint of `gather_level`: adds gradients (BLOCK_N, C) to those of the planes, float32 or, if WHOLE, int64."""
    c = tl.arange(0, C)
    for p in tl.static_range(P):
        x0, fx = _texel(_coordinate(coords, base, mask, 3 * p, axes), width)
        y0, fy = _texel(_coordinate(coords, base, mask, 3 * p + 1, axes), height)
        z0, fz = _texel(_coordinate(coords, base, mask, 3 * p + 2, axes), D)
        plane = grad_planes + (b * P + p).to(tl.int64) * D * height * width * C
        for kz in tl.static_range(1 if D == 1 else 2):
            z, deep, wz = _layer(kz, z0, fz, D)
            for k in tl.static_range(4):
                offset, inside, weight = _corner(k, x0, fx, y0, fy, height, width)
                inside = inside & mask
                if D > 1:
                    offset += z * height * width
                    inside = inside & deep
                    weight *= wz
                target = plane + offset[:, None] * C + c[None, :]
                value = grad * weight[:, None]
                if WHOLE:
                    value = tl.floor(value + 0.5).to(tl.int64)
                tl.atomic_add(target, value, mask=inside[:, None], sem="relaxed")


@triton.jit(do_not_specialize=["n_points", "start", "count"])
def gather(
    tables, coords, out, n_points, start, count, scale,
    AXES: tl.constexpr, LEVELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scaled sum of all look-ups of the points start to start + count of each batch; ``out`` (B, count, C)."""
    b = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    base = (b * n_points + start + i).to(tl.int64) * 3
    total = tl.zeros((BLOCK, C), dtype=tl.float32)
    for k in tl.static_range(len(LEVELS)):
        total += gather_level(
            tables[k], coords, base, mask, b, LEVELS[k][2], LEVELS[k][3], AXES, LEVELS[k][0], LEVELS[k][1], C, BLOCK
        )
    target = out + (b * count + i).to(tl.int64)[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(target, (total * scale).to(out.dtype.element_ty), mask=mask[:, None])


@triton.jit(do_not_specialize=["n_points", "start", "count", "stride"])
def scatter(
    grad_tables, coords, grad, unit, n_points, start, count, stride, scale, WHOLE: tl.constexpr,
    AXES: tl.constexpr, LEVELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adjoint of `gather`: adds gradients ``grad`` (B, count, C) to those of the planes; if WHOLE, times the unit.

    Points are taken `stride` apart: neighbours, as along a ray, would wait for each other at the same texels.
    """
    b = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    i = ((i.to(tl.int64) * stride) % count).to(tl.int32)
    base = (b * n_points + start + i).to(tl.int64) * 3
    source = grad + (b * count + i).to(tl.int64)[:, None] * C + tl.arange(0, C)[None, :]
    pull = tl.load(source, mask=mask[:, None], other=0.0).to(tl.float32) * scale
    mask = mask & (tl.sum(tl.abs(pull), axis=1) != 0)  # most points of a render have nothing, see `field_triton.LEAST`
    if WHOLE:
        pull *= tl.load(unit)
    for k in tl.static_range(len(LEVELS)):
        scatter_level(
            grad_tables[k], pull, coords, base, mask, b, LEVELS[k][2], LEVELS[k][3], WHOLE, AXES, LEVELS[k][0],
            LEVELS[k][1], C,
        )  # fmt: skip


def pack_axes(plane_axes) -> int:
    """((column, row, depth) axes of the planes) as one constant for the kernels."""
    packed = 0
    for slot, axis in enumerate(axis for plane in plane_axes for axis in plane):
        packed |= axis << (4 * slot)
    return packed


def launch_gather(tables: tuple, coords: Tensor, out: Tensor, start: int, scale: float, sizes: tuple) -> None:
    """Fill ``out`` (B, count, C) with the features of the points from `start` on; sizes: packed axes, levels, C."""
    b, count = out.shape[:2]
    gather[(triton.cdiv(count, GATHER_BLOCK), b)](
        tables, coords, out, coords.shape[1], start, count, scale, *sizes, GATHER_BLOCK, num_warps=GATHER_WARPS
    )


def fixed_point_unit(grad: Tensor, count: int) -> Tensor:
    """2^k, for which sums of `count` numbers up to the largest of ``grad``, times 2^k, stay within 2^62 (an int64).

    What is lost is below half of 2^-k: 2^-41 of the largest number for two million points. NaN where not all of
    ``grad`` is finite. Returns: float32, without a dimension, on the device; nothing waits for it.
    """
    largest = grad.abs().amax().float()
    exponent = torch.frexp(largest).exponent  # largest < 2^exponent
    unit = torch.exp2((62 - count.bit_length() - exponent).clamp(-126, 126).float())
    return torch.where(largest.isfinite(), unit, torch.nan)


def stride_of(count: int) -> int:
    """A step that takes so many points in turn, each once, and neighbours far from each other: a prime that fits."""
    return STRIDES[count % STRIDES[0] == 0]


def launch_scatter(grads: tuple, coords: Tensor, grad: Tensor, start: int, scale: float, sizes: tuple) -> None:
    """Add ``grad`` (B, count, C), the gradients of the features of the points from `start` on, to float32 planes."""
    b, count = grad.shape[:2]
    whole = torch.are_deterministic_algorithms_enabled()
    unit = fixed_point_unit(grad, count) if whole else grad
    sums = tuple(torch.zeros(x.shape, device=x.device, dtype=torch.int64) for x in grads) if whole else grads
    scatter[(triton.cdiv(count, SCATTER_BLOCK), b)](
        sums, coords, grad, unit, coords.shape[1], start, count, stride_of(count), scale, whole, *sizes, SCATTER_BLOCK,
        num_warps=SCATTER_WARPS,
    )  # fmt: skip
    if whole:
        for x, total in zip(grads, sums, strict=True):
            x += total / unit.double()


def _widened(x: Tensor, channels: int) -> Tensor:
    """With zeros up to so many channels, the last dimension; itself where it has them."""
    return x if x.shape[-1] == channels else F.pad(x, (0, channels - x.shape[-1]))


class SampleTriplanes(torch.autograd.Function):
    """Sum of the look-ups of one level over three (the mean of three planes); gradient for the planes only.

    Args (of ``apply``): planes (B,P,C,H,W) or (B,P,C,D,H,W) with P 3 or 1 (copied with more channels unless C is a
        power of two); coords (B,N,3); plane axes; data type of the result.
    Returns: (B,N,C).
    """

    @staticmethod
    def forward(ctx, planes: Tensor, coords: Tensor, plane_axes: tuple, out_dtype: torch.dtype) -> Tensor:
        fits = planes.ndim in (5, 6) and planes.shape[1] in (1, 3) and coords.shape[0] == planes.shape[0]
        if not fits or coords.shape[2:] != (3,):
            shapes = f"{tuple(planes.shape)} and {tuple(coords.shape)}"
            raise ValueError(
                "the Triton sampler needs planes (B,P,C,H,W) or (B,P,C,D,H,W), P 3 or 1, and coords (B,N,3), "
                f"got {shapes}."
            )
        b, p, c, h, w = *planes.shape[:3], *planes.shape[-2:]
        d = planes.shape[3] if planes.ndim == 6 else 1
        n = coords.shape[1]
        wide = triton.next_power_of_2(c)
        packed = _widened(planes.movedim(2, -1), wide).contiguous()  # (B, P, [D,] H, W, C)
        coords = coords.float().contiguous()
        out = torch.empty(b, n, wide, device=planes.device, dtype=out_dtype)
        axes = pack_axes(plane_axes)
        ctx.sizes = axes, ((p, d, h, w),), wide
        if out.numel():
            with torch.cuda.device_of(out):  # Triton launches on the current device
                launch_gather((packed,), coords, out, 0, 1 / 3, ctx.sizes)
        ctx.save_for_backward(coords)
        ctx.shape, ctx.dtype, ctx.channels = packed.shape, planes.dtype, c
        return out[..., :c]

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        (coords,) = ctx.saved_tensors
        grad = torch.zeros(ctx.shape, device=coords.device, dtype=torch.float32)
        if grad_out.numel():
            pull = _widened(grad_out, ctx.shape[-1]).contiguous()
            with torch.cuda.device_of(grad):
                launch_scatter((grad,), coords, pull, 0, 1 / 3, ctx.sizes)
        return grad[..., : ctx.channels].movedim(-1, 2).to(ctx.dtype), None, None, None
