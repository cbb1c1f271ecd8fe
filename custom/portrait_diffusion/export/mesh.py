"""Density field to triangle mesh: sample a grid, choose the iso level from the data, marching cubes, refine, clean."""
import logging
from dataclasses import dataclass

import numpy as np
import trimesh
from scipy import ndimage
from skimage.measure import marching_cubes

from ..errors import PortraitError, UsageError
from ..ops.canonical import BOX_RADIUS, half_height
from .fields import FieldSampler
from .mesh_clean import MeshHealth, keep_large_components, mesh_health, simplify, smooth_taubin

logger = logging.getLogger("portrait_diffusion")

LN2 = float(np.log(2.0))
FLOOR = -half_height()
"""Height of the mesh's lower end, scene units: below it no portrait shows anything, and matter there is a guess."""


@dataclass
class MeshConfig:
    """How the density becomes triangles."""

    resolution: int = 176
    """Grid cells along each side of the box (0.72 units): 176 means cells of 4.1e-3 units = 2.3 mm. 16 to 512."""
    iso_level: float = 0.0
    """Density of the surface, per unit length; 0 chooses it from the data (see choose_iso_level)."""
    refine_steps: int = 4
    """Bisection steps that move every vertex onto the level set of the field itself; 0 keeps marching cubes' guess."""
    fill_interior: bool = True
    """Treat empty space that cannot be reached from above the head inside the volume as solid (hollow heads)."""
    close_bottom: bool = True
    """Close the cut through the bust with a flat cap; False leaves it open."""
    min_component_fraction: float = 0.05
    """Keep components with at least this share of the largest one's area; 1 keeps the largest alone."""
    smooth_iterations: int = 0
    """Pairs of Taubin smoothing steps; 0 keeps the level set as it is."""
    target_faces: int = 20000
    """Triangles after quadric decimation; 0 keeps all. UV unwrapping time grows faster than this number."""

    def __post_init__(self):
        if not 16 <= self.resolution <= 512:
            raise UsageError(f"mesh.resolution must be between 16 and 512, got {self.resolution}.")
        if self.iso_level < 0 or self.target_faces < 0 or self.refine_steps < 0 or self.smooth_iterations < 0:
            raise UsageError("mesh.iso_level, target_faces, refine_steps and smooth_iterations must not be negative.")
        if not 0.0 <= self.min_component_fraction <= 1.0:
            raise UsageError(f"mesh.min_component_fraction must be in [0,1], got {self.min_component_fraction}.")


@dataclass
class DensityGrid:
    """Density at cell centres of the box plus one empty layer around it.

    sigma: (M,M,M) per unit length, axes world x, y, z; M = resolution + 2.
    cut: (M,M,M) signed distance to the walls (`wall_distance`), > 0 inside.
    spacing: cell size in units.  origin: world coordinate of index 0 on every axis.
    """

    sigma: np.ndarray
    cut: np.ndarray
    spacing: float
    origin: float

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """World coordinates of (fractional) grid indices (N,3)."""
        return self.origin + self.spacing * np.asarray(index, np.float64)


@dataclass
class ExtractedMesh:
    """A mesh in the world frame (units), with how it came about."""

    mesh: trimesh.Trimesh
    iso_level: float
    iso_rule: str
    spacing: float
    filled_cells: int
    removed_components: int
    density_points: int
    health: MeshHealth


def wall_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance (up to corners) of world points (...,3) to cylinder, top and floor, > 0 inside."""
    radius, height = np.hypot(points[..., 0], points[..., 1]), points[..., 2]
    return np.minimum(BOX_RADIUS - np.maximum(radius, height), height - FLOOR)


def sample_density_grid(sampler: FieldSampler, resolution: int) -> DensityGrid:
    """Evaluate the density at the centres of resolution^3 cells of the box; outside the cylinder it counts as zero."""
    spacing = 2.0 * BOX_RADIUS / resolution
    origin = -BOX_RADIUS - 0.5 * spacing
    axis = origin + spacing * np.arange(resolution + 2)
    sigma = np.zeros((resolution + 2,) * 3, np.float32)
    cut = np.empty_like(sigma)
    for i, x in enumerate(axis):  # one slab at a time: the grid's points never exist all at once
        y, z = np.meshgrid(axis, axis, indexing="ij")
        points = np.stack([np.full_like(y, x), y, z], -1)
        cut[i] = wall_distance(points)
        inside = cut[i] > 0
        if inside.any():
            sigma[i][inside] = sampler.density(points[inside])
    return DensityGrid(sigma, cut, spacing, origin)


def choose_iso_level(grid: DensityGrid) -> float:
    """Half of the median density met where a ray has lost half of its light.

    Rays run along the grid from the four sides and from above; a ray's optical depth is tau_i = sum_{j<=i} sigma_j h,
    and it has lost half of its light where tau first reaches ln 2. Half of the density there puts the surface in the
    middle of the rise for a sharp wall, and where the wall becomes visible for a soft one.

    Returns: density per unit length.
    Raises: PortraitError when no ray loses half of its light (an empty field).
    """
    met = []
    for axis, reverse in ((0, False), (0, True), (1, False), (1, True), (2, True)):
        along = np.moveaxis(grid.sigma, axis, 0)
        along = along[::-1] if reverse else along
        tau = np.cumsum(along, axis=0, dtype=np.float32) * grid.spacing
        seen = tau[-1] >= LN2
        first = (tau >= LN2).argmax(axis=0)
        met.append(np.take_along_axis(along, first[None], axis=0)[0][seen])
    met = np.concatenate(met)
    if met.size == 0:
        raise PortraitError(
            "The field is empty: no ray through the box loses half of its light (highest density "
            f"{float(grid.sigma.max()):.3g} per unit), so there is no surface to export; "
            "the fit has failed: look at its loss curves and previews, and run it again."
        )
    return 0.5 * float(np.median(met))


def hidden_cells(grid: DensityGrid, iso_level: float) -> np.ndarray:
    """Empty cells that cannot be reached from above the head through empty cells inside the walls, (M,M,M)."""
    inside = grid.cut > 0
    empty = inside & (grid.sigma < iso_level)
    labels, _ = ndimage.label(empty)
    top = np.flatnonzero(inside.any(axis=(0, 1)))[-1]
    reached = np.unique(labels[:, :, top])
    reached = reached[reached > 0]
    if reached.size == 0:  # matter covers the whole top: nothing says what is outside
        return np.zeros_like(inside)
    return empty & ~np.isin(labels, reached)


def refine_vertices(
    vertices: np.ndarray, sampler: FieldSampler, grid: DensityGrid, iso_level: float, steps: int
) -> np.ndarray:
    """Move marching-cubes vertices along their grid edge onto the level set of the field: bisection, one secant step.

    Args: vertices: (V,3) grid indices, each on an edge between two neighbouring cell centres (others stay).
    Returns: (V,3) grid indices. Vertices on the walls and next to filled cells stay where they are.
    """
    lower = np.floor(vertices)
    fraction = vertices - lower
    axis = fraction.argmax(1)
    on_edge = (fraction > 0).sum(1) == 1
    step = np.eye(3)[axis]
    low, high = lower.astype(int), (lower + step).astype(int)
    high = np.minimum(high, grid.sigma.shape[0] - 1)
    excess_low = grid.sigma[tuple(low.T)] - iso_level
    excess_high = grid.sigma[tuple(high.T)] - iso_level
    free = (grid.cut[tuple(low.T)] > 0) & (grid.cut[tuple(high.T)] > 0)
    chosen = np.flatnonzero(on_edge & free & ((excess_low > 0) != (excess_high > 0)))
    base, step = lower[chosen], step[chosen]
    ends = np.stack([np.zeros(len(chosen)), np.ones(len(chosen))])  # (2,C) bracket along the edge
    excess = np.stack([excess_low[chosen], excess_high[chosen]]).astype(np.float64)
    columns = np.arange(len(chosen))
    for _ in range(steps):
        middle = ends.mean(0)
        value = sampler.density(grid.to_world(base + middle[:, None] * step)) - iso_level
        replaced = np.where((value > 0) == (excess[0] > 0), 0, 1)
        ends[replaced, columns], excess[replaced, columns] = middle, value
    t = ends[0] - excess[0] * (ends[1] - ends[0]) / (excess[1] - excess[0])
    refined = vertices.astype(np.float64)
    refined[chosen] = base + t.clip(1e-3, 1 - 1e-3)[:, None] * step
    return refined


def extract_mesh(sampler: FieldSampler, config: MeshConfig) -> ExtractedMesh:
    """Turn a density field into a clean triangle mesh in the world frame.

    Args: sampler: the field.  config: see MeshConfig.
    Returns: the mesh with its iso level and health report.
    Raises: PortraitError when the field is empty or nothing is left above the iso level.
    """
    points_before = sampler.density_points
    grid = sample_density_grid(sampler, config.resolution)
    iso_level, iso_rule = config.iso_level, "given in the settings"
    if iso_level == 0:
        iso_level = choose_iso_level(grid)
        iso_rule = "half of the median density where rays have lost half of their light"
    if not (grid.sigma > iso_level).any():
        raise PortraitError(
            f"No matter reaches the iso level {iso_level:.4g} (highest density {float(grid.sigma.max()):.3g}"
            " per unit); set mesh.iso_level lower, or to 0 to choose it from the data."
        )
    # min(matter, wall): matter is kept steeper than the wall's distance so that caps are exact planes and cylinders
    solid = np.clip(grid.sigma / iso_level - 1.0, -1.0, 1.0) * 4.0
    filled = hidden_cells(grid, iso_level) if config.fill_interior else np.zeros(grid.sigma.shape, bool)
    solid[filled | (grid.cut <= 0)] = 4.0
    solid = np.minimum(solid, grid.cut / grid.spacing)
    solid[solid == 0] = -1e-6  # a level exactly on a cell centre would make degenerate triangles
    vertices, faces, _, _ = marching_cubes(solid.astype(np.float32), 0.0)
    if config.refine_steps:
        vertices = refine_vertices(vertices, sampler, grid, iso_level, config.refine_steps)
    mesh = trimesh.Trimesh(grid.to_world(vertices), faces, process=False)
    if mesh.volume < 0:
        mesh.invert()
    mesh, removed = keep_large_components(mesh, config.min_component_fraction)
    if not config.close_bottom:
        on_cut = np.abs(mesh.vertices[:, 2] - FLOOR) < 1e-3 * grid.spacing
        mesh.update_faces(~on_cut[mesh.faces].all(axis=1))
        mesh.remove_unreferenced_vertices()
    if config.smooth_iterations:
        mesh = smooth_taubin(mesh, config.smooth_iterations)
    if config.target_faces and len(mesh.faces) > config.target_faces:
        mesh = simplify(mesh, config.target_faces)
        mesh, _ = keep_large_components(mesh, config.min_component_fraction)  # slivers that were pinched off
    health = mesh_health(mesh)
    logger.info("mesh: iso level %.4g (%s); %s", iso_level, iso_rule, health.sentence())
    return ExtractedMesh(
        mesh, float(iso_level), iso_rule, grid.spacing, int(filled.sum()), removed,
        sampler.density_points - points_before, health,
    )
