"""Bake diffuse light with soft shadows and ambient occlusion at vertices, by splatting points into small depth maps.

Light is fixed to the head and independent of the view, so that a radiance field can explain every view. For each of N
directions d (evenly over the sphere for the sky, a few around each lamp) surface points are splatted into an
orthographic depth map; a vertex is lit by d as far as it is not behind the map (percentage-closer filtering over four
cells).
"""

import numpy as np

from .mesh import unit
from .subjects import Lighting

GRID = 96  # cells a side of a depth map
EXTENT = 0.66  # half edge of the region covered, scene units
BIAS = 0.011  # how far behind the map a vertex may be and still count as lit, scene units
WRAP_SKIN = np.array([0.28, 0.14, 0.09])  # light that wraps around the terminator under the skin, red most
WRAP_HAIR = np.array([0.35, 0.35, 0.35])
WRAP_OTHER = np.array([0.05, 0.05, 0.05])


def sphere_directions(count: int) -> np.ndarray:
    """(count,3) unit vectors spread evenly over the sphere (Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    z = 1 - 2 * k / count
    phi = np.pi * (1 + 5**0.5) * k
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(phi), z, r * np.sin(phi)], 1)


def cone_directions(axis: np.ndarray, radius_deg: float, count: int) -> np.ndarray:
    """(count,3) unit vectors spread over a disc of the given angular radius around ``axis``."""
    frame = _frame(axis)
    k = np.arange(count) + 0.5
    r, phi = np.tan(np.radians(radius_deg)) * np.sqrt(k / count), np.pi * (1 + 5**0.5) * k
    return unit(axis + (r * np.cos(phi))[:, None] * frame[0] + (r * np.sin(phi))[:, None] * frame[1])


def visibility(points: np.ndarray, occluders: np.ndarray, direction: np.ndarray, bias: float = BIAS) -> np.ndarray:
    """Fraction in [0,1] of the light from ``direction`` that reaches each point.

    Args:
        points: (n,3), scene units.
        occluders: (m,3) points on the surfaces that cast shadows.
        direction: (3,) unit vector towards the light.
        bias: slack along the direction, scene units.
    Returns: (n,) float32.
    """
    frame = np.concatenate([_frame(direction), direction[None]]).T.astype(np.float32)
    q = occluders @ frame
    cell = ((q[:, :2] + EXTENT) * (GRID / (2 * EXTENT))).astype(np.int32).clip(0, GRID - 1)
    depth = np.full(GRID * GRID, -np.inf, np.float32)
    np.maximum.at(depth, cell[:, 1] * GRID + cell[:, 0], q[:, 2])
    p = points @ frame
    x = ((p[:, :2] + EXTENT) * (GRID / (2 * EXTENT)) - 0.5).clip(0, GRID - 1.001)
    low = x.astype(np.int32).clip(0, GRID - 2)
    t = x - low
    lit = np.zeros(len(points), np.float32)
    level = p[:, 2] + bias
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (t[:, 0] if dx else 1 - t[:, 0]) * (t[:, 1] if dy else 1 - t[:, 1])
            lit += weight * (level >= depth[(low[:, 1] + dy) * GRID + low[:, 0] + dx])
    return lit


def bake(
    points: np.ndarray,
    normals: np.ndarray,
    wrap: np.ndarray,
    occluders: np.ndarray,
    lighting: Lighting,
    sky_count: int = 30,
    lamp_count: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    """Irradiance over pi at points.

    Formula: sum over directions d of V(d) L(d) max(0, (n.d + w) / (1 + w)), w the wrap of each colour channel; a sky
        of radiance 1
    seen by an unoccluded surface gives about 1.

    Args:
        points, normals: (n,3); wrap: (n,3) in [0,1].
        occluders: (m,3) points on the surfaces.
        lighting: distant lights and sky.
    Returns: light (n,3) and ambient visibility (n,) in [0,1], float32.
    """
    points, normals, occluders = (np.asarray(a, np.float32) for a in (points, normals, occluders))
    wrap = np.asarray(wrap, np.float32)
    light = np.zeros(points.shape, np.float32)
    seen, reachable = np.zeros(len(points), np.float32), np.zeros(len(points), np.float32)
    sky, axis = np.asarray(lighting.sky, np.float32), np.asarray(lighting.sky_axis)
    for direction in sphere_directions(sky_count):
        lit = visibility(points, occluders, direction)
        cosine = normals @ direction.astype(np.float32)
        facing = np.maximum(0, cosine)
        seen += lit * facing
        reachable += facing
        ground = 0.45 if direction[1] < -0.2 else 1.0
        radiance = (4 / sky_count) * ground * (1 + lighting.sky_contrast * float(direction @ axis))
        light += _wrapped(cosine, wrap) * lit[:, None] * (radiance * sky)
    for lamp in lighting.lights:
        directions = cone_directions(np.asarray(lamp.direction), lamp.radius_deg, lamp_count)
        for direction in directions:
            lit = visibility(points, occluders, direction)
            light += (
                _wrapped(normals @ direction.astype(np.float32), wrap)
                * lit[:, None]
                * (np.asarray(lamp.colour, np.float32) / lamp_count)
            )
    return light, seen / np.maximum(reachable, 1e-6)


def _wrapped(cosine: np.ndarray, wrap: np.ndarray) -> np.ndarray:
    return np.maximum(0, (cosine[:, None] + wrap) / (1 + wrap) ** 2)


def _frame(direction: np.ndarray) -> np.ndarray:
    helper = np.array([0.0, 1.0, 0.0]) if abs(direction[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    first = unit(np.cross(helper, direction))
    return np.stack([first, np.cross(direction, first)])
