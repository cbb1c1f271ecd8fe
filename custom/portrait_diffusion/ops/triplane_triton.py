"""Tri-plane sampling as Triton kernels: gather and scatter with the channels innermost, so every access is coalesced.

Twin of the bilinear branch of `ops.triplane.sample_planes` (same plane axes, `align_corners=False`, zeros outside). The
value and the gradient with respect to the planes agree with it; there is no gradient with respect to the coordinates.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64


@triton.jit
def _corner_offset(x, y, height, width):
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return tl.where(inside, y * width + x, 0), inside


@triton.jit
def _plane_coords(coords, base, mask, p: tl.constexpr, axes: tl.constexpr):
    """Column and row coordinate of a point on plane p; `axes` packs (column, row) axis numbers, 4 bits each."""
    col: tl.constexpr = (axes >> (8 * p)) & 15
    row: tl.constexpr = (axes >> (8 * p + 4)) & 15
    return tl.load(coords + base + col, mask=mask, other=2.0), tl.load(coords + base + row, mask=mask, other=2.0)


@triton.jit
def _forward(planes, coords, out, n_points, height, width, axes: tl.constexpr, C: tl.constexpr, BLOCK_N: tl.constexpr):
    b = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = n < n_points
    c = tl.arange(0, C)
    base = (b * n_points + n).to(tl.int64) * 3
    total = tl.zeros((BLOCK_N, C), dtype=tl.float32)
    for p in tl.static_range(3):
        u, v = _plane_coords(coords, base, mask, p, axes)
        ix = (u + 1.0) * width * 0.5 - 0.5
        iy = (v + 1.0) * height * 0.5 - 0.5
        x0 = tl.floor(ix).to(tl.int32)
        y0 = tl.floor(iy).to(tl.int32)
        fx = ix - x0
        fy = iy - y0
        plane = planes + (b * 3 + p).to(tl.int64) * height * width * C
        for k in tl.static_range(4):
            x = x0 + (k & 1)
            y = y0 + (k >> 1)
            wx = fx if (k & 1) else 1.0 - fx
            wy = fy if (k >> 1) else 1.0 - fy
            offset, inside = _corner_offset(x, y, height, width)
            inside = inside & mask
            value = tl.load(plane + offset[:, None] * C + c[None, :], mask=inside[:, None], other=0.0)
            total += value.to(tl.float32) * (wx * wy)[:, None]
    total = total / 3.0
    tl.store(
        out + (b * n_points + n).to(tl.int64)[:, None] * C + c[None, :],
        total.to(out.dtype.element_ty),
        mask=mask[:, None],
    )


@triton.jit
def _backward(
    grad_planes, coords, grad_out, n_points, height, width, axes: tl.constexpr, C: tl.constexpr, BLOCK_N: tl.constexpr
):
    b = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = n < n_points
    c = tl.arange(0, C)
    base = (b * n_points + n).to(tl.int64) * 3
    rows = (b * n_points + n).to(tl.int64)
    grad = tl.load(grad_out + rows[:, None] * C + c[None, :], mask=mask[:, None], other=0.0)
    grad = grad.to(tl.float32) / 3.0
    for p in tl.static_range(3):
        u, v = _plane_coords(coords, base, mask, p, axes)
        ix = (u + 1.0) * width * 0.5 - 0.5
        iy = (v + 1.0) * height * 0.5 - 0.5
        x0 = tl.floor(ix).to(tl.int32)
        y0 = tl.floor(iy).to(tl.int32)
        fx = ix - x0
        fy = iy - y0
        plane = grad_planes + (b * 3 + p).to(tl.int64) * height * width * C
        for k in tl.static_range(4):
            x = x0 + (k & 1)
            y = y0 + (k >> 1)
            wx = fx if (k & 1) else 1.0 - fx
            wy = fy if (k >> 1) else 1.0 - fy
            offset, inside = _corner_offset(x, y, height, width)
            inside = inside & mask
            target = plane + offset[:, None] * C + c[None, :]
            tl.atomic_add(target, grad * (wx * wy)[:, None], mask=inside[:, None], sem="relaxed")


def pack_axes(plane_axes) -> int:
    """((column, row, ...) axes of three planes) as one constant for the kernels."""
    packed = 0
    for p, (col, row, *_) in enumerate(plane_axes):
        packed |= (col | (row << 4)) << (8 * p)
    return packed


class SampleTriplanes(torch.autograd.Function):
    """Mean of three bilinear look-ups; gradient with respect to the planes only."""

    @staticmethod
    def forward(ctx, planes: Tensor, coords: Tensor, plane_axes: tuple, out_dtype: torch.dtype) -> Tensor:
        if planes.ndim != 5 or planes.shape[1] != 3 or coords.shape[0] != planes.shape[0] or coords.shape[2:] != (3,):
            shapes = f"{tuple(planes.shape)} and {tuple(coords.shape)}"
            raise ValueError(f"the Triton sampler needs planes (B,3,C,H,W) and coords (B,N,3), got {shapes}.")
        b, _, c, h, w = planes.shape
        n = coords.shape[1]
        if c & (c - 1):
            raise ValueError(f"the Triton sampler needs a power of two of channels, got {c}; use ops.triplane.")
        packed = planes.permute(0, 1, 3, 4, 2).contiguous()  # (B, 3, H, W, C)
        coords = coords.float().contiguous()
        out = torch.empty(b, n, c, device=planes.device, dtype=out_dtype)
        axes = pack_axes(plane_axes)
        if out.numel():
            with torch.cuda.device_of(out):  # Triton launches on the current device
                _forward[(triton.cdiv(n, BLOCK), b)](packed, coords, out, n, h, w, axes, c, BLOCK)
        ctx.save_for_backward(coords)
        ctx.shape, ctx.axes, ctx.dtype = (b, c, h, w), axes, planes.dtype
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        (coords,) = ctx.saved_tensors
        b, c, h, w = ctx.shape
        n = coords.shape[1]
        grad = torch.zeros(b, 3, h, w, c, device=coords.device, dtype=torch.float32)
        if grad_out.numel():
            with torch.cuda.device_of(grad):
                _backward[(triton.cdiv(n, BLOCK), b)](grad, coords, grad_out.contiguous(), n, h, w, ctx.axes, c, BLOCK)
        return grad.permute(0, 1, 4, 2, 3).to(ctx.dtype), None, None, None
