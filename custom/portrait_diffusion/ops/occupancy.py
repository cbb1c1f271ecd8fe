"""Empty-space skipping: a grid of densities that says, without the field, where along a ray there is something to see.

The grid plays the part of a coarse pass. It is looked up at many places of a ray, which costs a few bytes each; its
emission-absorption weights then say where the field itself is asked. Weights hold transmittance, so nothing is asked
behind what is opaque (early termination), and hardly anything in empty space.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import choose
from .volrend import (
    OPACITY_EPS,
    RandomSource,
    SampleFn,
    quantile_strata,
    ray_cylinder,
    stratified_samples,
    uniform,
)

SEEN = 1e-3
"""Optical depth through the widened grid below which a ray counts as empty."""
UNIFORM_SHARE = 0.25
"""Part of the samples that is spread evenly over a ray, so that what the grid has missed is found again."""
REACH = 2
"""Look-ups before and after a place with weight that count as much as it: the grid knows surfaces only roughly."""


@torch.no_grad()
def density_grid(density_fn: Callable[[Tensor], Tensor], radius: float, resolution: int, like: Tensor) -> Tensor:
    """Densities at the centres of the cells of the cube ``[-radius, radius]^3``.

    Args:
        density_fn: world points (N,3) to density (N,1).
        radius: scene units. resolution: cells along an edge.
        like: gives device and data type.

    Returns: (R,R,R), indexed by z, y, x.
    """
    centres = ((torch.arange(resolution, device=like.device, dtype=like.dtype) + 0.5) / resolution * 2 - 1) * radius
    rows = max(1, 262144 // resolution**2)
    layers = []
    for z in centres.split(rows):
        grid = torch.stack(torch.meshgrid(z, centres, centres, indexing="ij"), dim=-1)
        layers.append(density_fn(grid.flip(-1).reshape(-1, 3)).view(grid.shape[:-1]).to(like))
    return torch.cat(layers)


def grid_density(grid: Tensor, points: Tensor, radius: float) -> Tensor:
    """Densities (...) between cells, trilinear, at world points (...,3); those outside are 0."""
    flat = (points / radius).reshape(1, 1, 1, -1, 3).to(grid.dtype)
    return F.grid_sample(grid[None, None], flat, align_corners=False, padding_mode="zeros").view(points.shape[:-1])


def widened(grid: Tensor) -> Tensor:
    """Every cell as dense as the densest of its 27 neighbours: nothing narrower than two cells is overlooked."""
    return F.max_pool3d(grid[None, None], 3, stride=1, padding=1)[0, 0]


def guide_weights(density: Tensor, deltas: Tensor) -> Tensor:
    """Histogram for `quantile_strata` from the grid's densities.

    The emission-absorption weights, each raised to the largest within `REACH`, and `UNIFORM_SHARE` of them evenly; even
    altogether where the grid is empty.

    Args: density, deltas (...,S). Returns: (...,S) >= 0.
    """
    optical = density * deltas
    before = torch.cumsum(optical, dim=-1) - optical
    weights = torch.exp(-before) * -torch.expm1(-optical)
    flat = weights.flatten(0, -2)
    raised = F.max_pool1d(flat[None], 2 * REACH + 1, stride=1, padding=REACH)[0].view(weights.shape)
    total = raised.sum(-1, keepdim=True)
    even = UNIFORM_SHARE / (1 - UNIFORM_SHARE) * total / weights.shape[-1]
    return torch.where(total > OPACITY_EPS, raised + even, torch.ones_like(raised))


def guided_samples(
    grid: Tensor, radius: float, samples: int, generator: RandomSource | None = None, implementation: str = "auto"
) -> SampleFn:
    """A `sample_fn` of `volrend.render_rays` that goes by a grid of densities, with one look-up a cell.

    Args:
        grid: of `density_grid`.
        radius: scene units, half edge of the grid's cube.
        samples: of the field, a ray.
        generator: None is deterministic.
        implementation: "torch" (the reference), "triton" (`ops.occupancy_triton`: a GPU, float32) or "auto". Borders
            and samples agree to 1e-4 of a ray's length.

    Returns: the function; its results are detached.
    Raises: as `volrend.composite_rays`, when the function is called.
    """

    @torch.no_grad()
    def sample(rays_o: Tensor, rays_d: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        unfit = None
        if torch.float64 in (grid.dtype, near.dtype):
            unfit = "it computes in float32, got float64"
        elif samples > 512:
            unfit = f"it has at most 512 samples a ray, got {samples}"
        # auto is torch until whole runs with the kernels have been compared
        if choose("guided samples", implementation, grid.device, ("torch", "triton"), unfit) == "triton":
            return _guided_by_kernels(grid, radius, samples, generator, rays_o, rays_d, near, far)
        t, edges = stratified_samples(near, far, grid.shape[0])
        density = grid_density(grid, rays_o[..., None, :] + t[..., None] * rays_d[..., None, :], radius)
        weights = guide_weights(density.to(t), edges[..., 1:] - edges[..., :-1])
        return quantile_strata(edges, weights, samples, generator)

    return sample


def _guided_by_kernels(grid, radius, samples, generator, rays_o, rays_d, near, far) -> tuple[Tensor, Tensor]:
    """What the function of `guided_samples` returns, by Triton."""
    from .occupancy_triton import strata, weights_along

    shape = near.shape[:-1]
    near, far = (x.reshape(-1, 1).float() for x in (near, far))
    rays = (x.reshape(-1, 3).float() for x in (rays_o, rays_d))
    weights = weights_along(grid.float(), *rays, near, far, radius)
    places = None if generator is None else uniform((*shape, samples), generator, near).view(-1, samples)
    t, borders = strata(weights, near, far, samples, places, REACH, UNIFORM_SHARE, OPACITY_EPS)
    return t.view(*shape, samples), borders.view(*shape, samples + 1)


@torch.no_grad()
def sees_matter(wide: Tensor, rays_o: Tensor, rays_d: Tensor, radius: float) -> Tensor:
    """Whether there is anything along rays (...,3): (...,1) bool; by the `widened` grid.

    One look-up every two cells: what has been widened is three cells wide.
    """
    near, far, hit = ray_cylinder(rays_o, rays_d, radius)
    t, edges = stratified_samples(near, far, max(1, wide.shape[0] // 2))
    density = grid_density(wide, rays_o[..., None, :] + t[..., None] * rays_d[..., None, :], radius)
    optical = (density * (edges[..., 1:] - edges[..., :-1])).sum(-1, keepdim=True)
    return hit & (optical > SEEN)
