"""Unwrap a mesh with xatlas and bake the colours that the volume renderer shows into a texture."""
import logging
from dataclasses import dataclass

import numpy as np
import trimesh
from scipy import ndimage

from ..errors import PortraitError, UsageError
from ..ops.cameras import BOX_RADIUS
from ..optional import require
from .fields import FieldSampler
from .raster import rasterise

logger = logging.getLogger("portrait_diffusion")


@dataclass
class BakeConfig:
    """How colours get onto the mesh."""

    texture_size: int = 1024
    """Texture width and height in pixels, 64 to 8192; 1024 on a head is about 0.6 mm per texel."""
    padding: int = 4
    """Empty texels between charts; they are filled with the nearest chart's colour so that no seams show."""
    depth_range: float = 4.0
    """How far along the normal the short rays go, in grid cells: half of it outside the surface, all of it inside."""
    density_samples: int = 12
    """Density samples of each short ray, per vertex."""
    colour_samples: int = 2
    """Colour samples of each texel: the mean over this many equal shares of the light that reaches the eye."""

    def __post_init__(self):
        if not 64 <= self.texture_size <= 8192:
            raise UsageError(f"bake.texture_size must be between 64 and 8192, got {self.texture_size}.")
        if self.density_samples < 2 or self.colour_samples < 1 or self.padding < 0 or self.depth_range < 0:
            raise UsageError(
                "bake.density_samples must be >= 2, colour_samples >= 1, padding and depth_range not negative."
            )


@dataclass
class TexturedMesh:
    """A mesh in the world frame (units) with one texture.

    vertices: (V,3).  faces: (F,3).  normals: (V,3) unit.  uv: (V,2) in [0,1], v upwards (row 0 is v = 1).
    texture: (S,S,3) uint8 sRGB.  covered: share of texels inside charts.  charts: number of charts.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    covered: float
    charts: int


def unwrap(mesh: trimesh.Trimesh, size: int, padding: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Cut the surface into charts and pack them into the unit square.

    Args: mesh: any triangle mesh.  size: texture size the packing aims at, pixels.  padding: texels between charts.
    Returns: source (V',) original vertex of each new vertex, faces (F,3), uv (V',2) with v upwards, number of charts.
    Raises: PortraitError when xatlas cannot place every chart.
    """
    xatlas = require("xatlas", extra="export")
    atlas = xatlas.Atlas()
    unit = mesh.vertices / max(float(np.ptp(mesh.vertices, axis=0).max()), 1e-9)  # xatlas has absolute tolerances
    atlas.add_mesh(unit.astype(np.float32), mesh.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, padding, True
    atlas.generate(xatlas.ChartOptions(), packing)
    if atlas.atlas_count != 1:
        raise PortraitError(
            f"The UV charts do not fit into one texture of {size} pixels ({atlas.atlas_count} would be needed); "
            "set bake.texture_size higher or mesh.target_faces lower."
        )
    source, faces, uv = atlas.get_mesh(0)
    uv = np.asarray(uv, np.float64)
    uv[:, 1] = 1.0 - uv[:, 1]
    return np.asarray(source, np.int64), np.asarray(faces, np.int64), uv, int(atlas.chart_count)


def seen_depths(
    sampler: FieldSampler, points: np.ndarray, normals: np.ndarray, half_range: float, samples: int, shares: int
) -> np.ndarray:
    """Depths along the inward normal from which equal shares of the light come.

    A short ray enters half_range above the surface and ends 2 half_range below it. With w_i = T_i (1 - exp(-sigma_i d))
    (Max 1995) and its normalised running sum, the result are the quantiles (k + 1/2) / shares of that distribution.

    Args: points (V,3) world, normals (V,3) outward unit, half_range in units, samples per ray, shares = colour samples.
    Returns: (V, shares) signed depth, positive = inside. Zero where the ray meets no matter.
    """
    edges = np.linspace(-half_range, 2.0 * half_range, samples + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    where = points[:, None] - middle[:, None] * normals[:, None]  # (V,samples,3)
    inside_box = (np.abs(where) <= BOX_RADIUS).all(-1)
    tau = np.zeros(inside_box.shape, np.float64)
    tau[inside_box] = sampler.density(where[inside_box]).clip(0.0) * (edges[1] - edges[0])
    transmittance = np.exp(-np.concatenate([np.zeros((len(tau), 1)), tau.cumsum(1)], axis=1))
    reached = 1.0 - transmittance  # (V,samples+1) share of light stopped before each edge
    total = reached[:, -1:]
    share = reached / np.maximum(total, 1e-12)
    depths = np.zeros((len(points), shares))
    rows = np.arange(len(points))
    for k in range(shares):
        level = (k + 0.5) / shares
        right = (share[:, 1:] < level).sum(1).clip(max=samples - 1) + 1
        low, high = share[rows, right - 1], share[rows, right]
        fraction = ((level - low) / np.maximum(high - low, 1e-12)).clip(0.0, 1.0)
        depths[:, k] = edges[right - 1] + fraction * (edges[right] - edges[right - 1])
    depths[total[:, 0] < 1e-3] = 0.0
    return depths


def seen_colours(sampler: FieldSampler, points: np.ndarray, normals: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Mean field colour at the given depths below the surface. Args: (N,3), (N,3), (N,shares). Returns: (N,3)."""
    total = np.zeros((len(points), 3))
    for k in range(depths.shape[1]):
        total += sampler.colour((points - depths[:, k : k + 1] * normals).clip(-BOX_RADIUS, BOX_RADIUS))
    return total / depths.shape[1]


def vertex_colours(sampler: FieldSampler, mesh: trimesh.Trimesh, spacing: float, config: BakeConfig) -> np.ndarray:
    """Colours one sees at the vertices, (V,3) uint8 sRGB. Args: spacing: grid cell in units."""
    normals = np.asarray(mesh.vertex_normals)
    half_range = 0.5 * config.depth_range * spacing
    depths = seen_depths(sampler, mesh.vertices, normals, half_range, config.density_samples, config.colour_samples)
    return to_uint8(seen_colours(sampler, np.asarray(mesh.vertices), normals, depths))


def to_uint8(colour: np.ndarray) -> np.ndarray:
    """[0,1] to 0..255, rounded."""
    return np.round(np.clip(colour, 0.0, 1.0) * 255.0).astype(np.uint8)


def dilate(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Give every unknown texel the value of the nearest known one. Args: (S,S,C), (S,S) bool. Returns: (S,S,C)."""
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return image[nearest[0], nearest[1]]


def bake(sampler: FieldSampler, mesh: trimesh.Trimesh, spacing: float, config: BakeConfig) -> TexturedMesh:
    """Texture a mesh with the colours that the volume renderer shows.

    The field evaluations are density_samples per vertex (density) and colour_samples per covered texel (colour).

    Args: sampler: the field.  mesh: world frame.  spacing: grid cell in units.  config: see BakeConfig.
    Returns: TexturedMesh. Raises: PortraitError when unwrapping fails.
    """
    size = config.texture_size
    source, faces, uv, charts = unwrap(mesh, size, config.padding)
    vertices = np.asarray(mesh.vertices)[source]
    normals = np.asarray(mesh.vertex_normals)[source]
    half_range = 0.5 * config.depth_range * spacing
    depths = seen_depths(
        sampler, np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals), half_range,
        config.density_samples, config.colour_samples,
    )[source]  # fmt: skip
    pixels = np.stack([uv[:, 0], 1.0 - uv[:, 1]], -1) * size
    fragments = rasterise(pixels[faces], size, size)
    if len(fragments.pixel) == 0:
        raise PortraitError(
            f"No texel centre of the {size}x{size} texture lies on the surface; set bake.texture_size higher."
        )
    corners = faces[fragments.triangle]  # (K,3)
    attributes = np.concatenate([vertices, normals, depths], -1)
    texel = sum(fragments.bary[:, i : i + 1] * attributes[corners[:, i]] for i in range(3))  # (K,6+shares)
    normal = texel[:, 3:6] / np.maximum(np.linalg.norm(texel[:, 3:6], axis=1, keepdims=True), 1e-9)
    image = np.zeros((size * size, 3))
    known = np.zeros(size * size, bool)
    image[fragments.pixel] = seen_colours(sampler, texel[:, :3], normal, texel[:, 6:])
    known[fragments.pixel] = True
    texture = to_uint8(dilate(image.reshape(size, size, 3), known.reshape(size, size)))
    logger.info(
        "bake: %d texels (%.0f %% of %d x %d) in %d charts", int(known.sum()), 100 * known.mean(), size, size, charts
    )
    return TexturedMesh(vertices, faces, normals, uv, texture, float(known.mean()), charts)
