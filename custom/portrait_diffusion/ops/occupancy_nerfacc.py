"""Empty-space skipping by nerfacc's `OccGridEstimator`: even steps in occupied cells, none behind what is opaque.

The other way to use the grid of `ops.occupancy`: steps of one length instead of a number of samples a ray (Müller et
al., "Instant Neural Graphics Primitives", 2022). It needs a GPU and nerfacc 0.5.3, whose `sampling` returns the steps'
rays, starts and ends, sorted (github.com/nerfstudio-project/nerfacc at 57ccfa1: nerfacc/estimators/occ_grid.py). All
rays get as many samples as the one with most of them; what a ray does not need is asked, too, in intervals of length 0.
"""
import functools
from typing import Any

import torch
from torch import Tensor

from ..errors import EnvironmentProblem
from .backends import choose
from .occupancy import SEEN, grid_density, widened
from .volrend import SampleFn, sample_within

OPAQUE = 1e-4
"""Transmittance of the grid below which nothing is asked any more."""


def step_borders(rays: Tensor, starts: Tensor, ends: Tensor, near: Tensor) -> Tensor:
    """Borders of the steps of each ray and of the gaps between them, so that the whole is one chain of intervals.

    Args:
        rays: (M,) ray of each step, ascending; starts, ends: (M,) distances, ascending within a ray, not overlapping.
        near: (R,1) what rays without steps get, at most the starts.

    Returns: (R,S+1) ascending, S at least 1 and as large as the ray with most intervals needs; behind a ray's last
        border it is repeated: intervals of length 0.
    """
    follows = torch.zeros_like(rays, dtype=torch.bool)
    follows[:-1] = (rays[1:] == rays[:-1]) & (starts[1:] <= ends[:-1] + 1e-6)
    place = torch.arange(len(rays), device=rays.device) * 2
    order = torch.cat([place, (place + 1)[~follows]]).argsort()  # every start, and the ends that no step follows
    marks = torch.cat([starts, ends[~follows]])[order]
    owners = torch.cat([rays, rays[~follows]])[order]
    counts = torch.bincount(owners, minlength=len(near))
    number = torch.arange(len(owners), device=rays.device) - (counts.cumsum(0) - counts)[owners]
    borders = near.repeat(1, max(2, int(counts.max())) if len(owners) else 2)
    borders[owners, number] = marks.to(borders)
    return borders.cummax(dim=-1)[0]


def marched_samples(
    grid: Tensor, radius: float, steps: int, empty: bool, generator: torch.Generator | None = None
) -> SampleFn:
    """A `sample_fn` of `volrend.render_rays` that steps through a grid of densities by nerfacc.

    Args:
        grid: of `density_grid`, on a CUDA device. radius: scene units.
        steps: that the longest ray through the cylinder, its diagonal, would take.
        empty: step through empty cells, too; in training, where matter must be able to grow.
        generator: random places within the steps; None takes the middles.

    Returns: the function; it waits for the GPU, as the number of samples depends on the rays.
    Raises: EnvironmentProblem without a GPU or nerfacc.
    """
    choose("ray marching", "nerfacc", grid.device, ("torch", "nerfacc"))
    edge = grid.shape[0]
    occupied = torch.ones_like(grid, dtype=torch.bool)
    if not empty:
        occupied = widened(grid) * 2 * radius > SEEN  # a ray through all cells below has an optical depth below SEEN
    marcher = estimator(radius, edge, grid.device)

    @torch.no_grad()
    def sample(rays_o: Tensor, rays_d: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        o, d = (x.reshape(-1, 3).float() for x in (rays_o, rays_d))
        low, high = (x.reshape(-1).float() for x in (near, far))

        def density(starts: Tensor, ends: Tensor, rays: Tensor) -> Tensor:
            middle = (0.5 * (starts + ends))[:, None]
            return grid_density(grid, o[rays] + middle * d[rays], radius).float()

        marcher.binaries = occupied.permute(2, 1, 0)[None].contiguous()  # by x, y, z
        found = marcher.sampling(
            o, d, sigma_fn=density, t_min=low, t_max=high, render_step_size=8**0.5 * radius / steps,
            early_stop_eps=OPAQUE,
        )  # fmt: skip
        edges = step_borders(*found, low[:, None]).to(near).view(*near.shape[:-1], -1)
        return sample_within(edges, generator), edges

    return sample


@functools.lru_cache(maxsize=4)
def estimator(radius: float, edge: int, device: torch.device) -> Any:
    """nerfacc's estimator of the cube ``[-radius, radius]^3``; its cells are set before each use.

    Raises: EnvironmentProblem when nerfacc has no compiled code.
    """
    from nerfacc import OccGridEstimator
    from nerfacc.cuda import _backend  # its code is compiled now, if that was not done when it was installed

    if _backend._C is None:
        raise EnvironmentProblem(
            "ray marching: nerfacc has no CUDA code, and there is no nvcc to compile it; install the CUDA toolkit of "
            f"torch {torch.__version__} (CUDA {torch.version.cuda}), or set renderer.estimator=occupancy."
        )
    return OccGridEstimator([-radius] * 3 + [radius] * 3, resolution=edge).to(device)
