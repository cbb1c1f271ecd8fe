"""Where along rays the field is asked, from a grid of densities, as two Triton kernels: weights, then strata.

Twin of the torch part of `ops.occupancy.guided_samples`, in float32; no gradients, as there.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from .volrend_triton import absorbed

BLOCK, WARPS = 128, 4
"""Rays of a program, one thread each, and its warps."""


@triton.jit
def _look_up(grid, x, y, z, inside, EDGE: tl.constexpr):
    """Trilinear density at places in cells from the grid's first centres; zero outside."""
    x0, y0, z0 = tl.floor(x), tl.floor(y), tl.floor(z)
    fx, fy, fz = x - x0, y - y0, z - z0
    ix, iy, iz = x0.to(tl.int32), y0.to(tl.int32), z0.to(tl.int32)
    found = tl.zeros_like(x)
    for corner in tl.static_range(8):
        jx, jy, jz = ix + (corner & 1), iy + ((corner >> 1) & 1), iz + (corner >> 2)
        wx = fx if corner & 1 else 1.0 - fx
        wy = fy if corner & 2 else 1.0 - fy
        wz = fz if corner & 4 else 1.0 - fz
        there = inside & (jx >= 0) & (jx < EDGE) & (jy >= 0) & (jy < EDGE) & (jz >= 0) & (jz < EDGE)
        found += wx * wy * wz * tl.load(grid + (jz * EDGE + jy) * EDGE + jx, mask=there, other=0.0)
    return found


@triton.jit
def _vector(vectors, ray, inside):
    """The three numbers of each ray."""
    at = vectors + 3 * ray
    return (
        tl.load(at, mask=inside, other=0.0),
        tl.load(at + 1, mask=inside, other=0.0),
        tl.load(at + 2, mask=inside, other=0.0),
    )


@triton.jit(do_not_specialize=["n_rays"])
def grid_weights(
    grid, rays_o, rays_d, near, far, weights, n_rays, radius, EDGE: tl.constexpr, BLOCK: tl.constexpr
):
    """``weights`` (R, EDGE): emission-absorption weights of the grid in the middles of equal parts of each ray."""
    ray = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = ray < n_rays
    ox, oy, oz = _vector(rays_o, ray, inside)
    dx, dy, dz = _vector(rays_d, ray, inside)
    start = tl.load(near + ray, mask=inside, other=0.0)
    part = (tl.load(far + ray, mask=inside, other=0.0) - start) / EDGE
    cells = 0.5 * EDGE / radius
    middle = 0.5 * EDGE - 0.5
    before = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(EDGE):
        t = start + part * (i + 0.5)
        x, y, z = (ox + t * dx) * cells + middle, (oy + t * dy) * cells + middle, (oz + t * dz) * cells + middle
        optical = _look_up(grid, x, y, z, inside, EDGE) * part
        tl.store(weights + ray * EDGE + i, tl.exp(-before) * absorbed(optical), mask=inside)
        before += optical


@triton.jit
def _raised(weights, ray, i, inside, BINS: tl.constexpr, REACH: tl.constexpr):
    """The largest weight within REACH of bin i."""
    found = tl.load(weights + ray * BINS + i, mask=inside, other=0.0)
    for step in tl.static_range(1, REACH + 1):
        found = tl.maximum(found, tl.load(weights + ray * BINS + i - step, mask=inside & (i >= step), other=0.0))
        found = tl.maximum(found, tl.load(weights + ray * BINS + i + step, mask=inside & (i + step < BINS), other=0.0))
    return found


@triton.jit(do_not_specialize=["n_rays"])
def strata_of_weights(
    weights, near, far, places, t, strata, n_rays,
    BINS: tl.constexpr, REACH: tl.constexpr, SHARE: tl.constexpr, EPS: tl.constexpr, RANDOM: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``strata`` (R, N + 1) of equal shares of the raised weights, with SHARE of them evenly; ``t`` (R, N) in each.

    A ray is one thread's, which walks over bins and borders together: every step ends a stratum or a bin.
    """
    ray = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = ray < n_rays
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in range(BINS):
        total += _raised(weights, ray, tl.full((BLOCK,), k, tl.int32), inside, BINS, REACH)
    seen = total > EPS
    even = total * (SHARE / (1.0 - SHARE) / BINS)
    step = tl.where(seen, total + even * BINS, 1.0 * BINS) / N  # of the quantiles at which strata end
    start, end = tl.load(near + ray, mask=inside, other=0.0), tl.load(far + ray, mask=inside, other=0.0)
    part = (end - start) / BINS
    bin, stratum = tl.zeros((BLOCK,), dtype=tl.int32), tl.full((BLOCK,), 1, tl.int32)
    low, begin = tl.zeros((BLOCK,), dtype=tl.float32), start
    share = tl.where(seen, _raised(weights, ray, bin, inside, BINS, REACH) + even, 1.0)
    own, tracks = t + ray * N - 1, strata + ray * (N + 1)
    tl.store(tracks, start, mask=inside)
    for _ in range(BINS + N - 1):
        quantile = stratum.to(tl.float32) * step
        past = bin >= BINS  # rounding left a quantile behind the last bin
        ends = (quantile < low + share) | past
        left, right = start + part * bin.to(tl.float32), start + part * (bin + 1).to(tl.float32)
        # kept between left and right: borders never cross
        slope = part / tl.where(share > 0, share, 1.0)
        border = tl.where(past, end, tl.minimum(left + slope * tl.maximum(quantile - low, 0.0), right))
        found = inside & ends & (stratum < N)
        place = 0.5
        if RANDOM:
            place = tl.load(places + ray * N + stratum - 1, mask=found, other=0.0)
        tl.store(own + stratum, begin + (border - begin) * place, mask=found)
        tl.store(tracks + stratum, border, mask=found)
        begin = tl.where(found, border, begin)
        low = tl.where(ends, low, low + share)
        bin, stratum = tl.where(ends, bin, bin + 1), tl.where(ends, stratum + 1, stratum)
        share = tl.where(seen, _raised(weights, ray, bin, inside & (bin < BINS), BINS, REACH) + even, 1.0)
    place = 0.5
    if RANDOM:
        place = tl.load(places + ray * N + N - 1, mask=inside, other=0.0)
    tl.store(own + N, begin + (end - begin) * place, mask=inside)
    tl.store(tracks + N, end, mask=inside)


def weights_along(grid: Tensor, rays_o: Tensor, rays_d: Tensor, near: Tensor, far: Tensor, radius: float) -> Tensor:
    """Emission-absorption weights (R,EDGE) of a grid (EDGE,EDGE,EDGE) along rays (R,3) from near to far (R,1)."""
    grid, *rays = (x.contiguous() for x in (grid, rays_o, rays_d, near, far))
    weights = torch.empty(len(near), len(grid), device=near.device)
    if len(near):
        with torch.cuda.device_of(near):  # Triton launches on the current device
            grid_weights[(triton.cdiv(len(near), BLOCK),)](
                grid, *rays, weights, len(near), radius, len(grid), BLOCK, num_warps=WARPS
            )
    return weights


def strata(
    weights: Tensor, near: Tensor, far: Tensor, samples: int, places: Tensor | None,
    reach: int, share: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Samples (R,n) and borders (R,n+1) of strata that hold equal shares of a histogram over equal parts of the rays.

    Args:
        weights: (R,S) >= 0; near, far: (R,1).
        places: (R,n) in [0, 1), where in its stratum each sample lies; None is the middle.
        reach, share, eps: how the histogram is widened and mixed, see `ops.occupancy.guide_weights`.
    """
    weights, near, far = (x.contiguous() for x in (weights, near, far))
    rays, bins = weights.shape
    t, borders = near.new_empty(rays, samples), near.new_empty(rays, samples + 1)
    if rays:
        with torch.cuda.device_of(near):
            strata_of_weights[(triton.cdiv(rays, BLOCK),)](
                weights, near, far, weights if places is None else places.contiguous(), t, borders, rays, bins, reach,
                share, eps, places is not None, samples, BLOCK, num_warps=WARPS,
            )  # fmt: skip
    return t, borders
