"""Close the bust where the upright cylinder and the bottom plane cut it, so that no view looks into a hollow shell."""

import numpy as np

from ..ops.canonical import BOX_RADIUS

BINS = 180


def bust_caps(
    meshes: list[tuple[np.ndarray, np.ndarray]], radius: float = BOX_RADIUS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surfaces on the cylinder wall and on the bottom plane that fill the cut of the bust.

    The bust is taken to be star-shaped around the vertical axis below the highest crossing of the wall at each angle:
    the wall is filled from the bottom up to that crossing, the bottom out to the outermost crossing.

    Args:
        meshes: list of (vertices (n,3), triangles (f,3)) of skin and clothes, head frame.
        radius: cylinder radius and half height.
    Returns: vertices (c,3), normals (c,3), triangles (t,3); empty arrays where nothing is cut.
    """
    rim = radius * 0.9995
    edges = [
        np.stack([v[f[:, [0, 1, 2]]].reshape(-1, 3), v[f[:, [1, 2, 0]]].reshape(-1, 3)]) for v, f in meshes if len(f)
    ]
    if not edges:
        return np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    a, b = np.concatenate(edges, axis=1)
    wall = _crossings(a, b, np.hypot(a[:, 0], a[:, 2]) - rim, np.hypot(b[:, 0], b[:, 2]) - rim)
    top = _polar_max(wall, wall[:, 1], -np.inf)
    floor = _crossings(a, b, a[:, 1] + rim, b[:, 1] + rim)
    reach = np.minimum(_polar_max(floor, np.hypot(floor[:, 0], floor[:, 2]), 0.0), rim)
    reach = np.where(np.isfinite(top) & (top > -rim), rim, reach)
    angle = (np.arange(BINS) + 0.5) * (2 * np.pi / BINS)
    ring = np.stack([np.sin(angle), np.zeros(BINS), np.cos(angle)], 1)
    following = (np.arange(BINS) + 1) % BINS

    height = np.maximum(np.where(np.isfinite(top), top, -rim), -rim)
    low, high = ring * rim - [0, rim, 0], ring * rim + height[:, None] * [0, 1, 0]
    used = np.flatnonzero((height > -rim) | (height[following] > -rim))
    quad = np.stack([used, following[used], following[used] + BINS, used + BINS], 1)
    wall_faces = np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]])

    disc = np.concatenate([ring * reach[:, None], [[0, 0, 0]]]) - [0, rim, 0]
    used = np.flatnonzero((reach > 0) & (reach[following] > 0))
    disc_faces = np.stack([following[used], used, np.full(len(used), BINS)], 1) + 2 * BINS
    vertices = np.concatenate([low, high, disc])
    normals = np.concatenate([ring, ring, np.tile([0.0, -1.0, 0.0], (BINS + 1, 1))])
    return vertices, normals, np.concatenate([wall_faces, disc_faces])


def _crossings(a: np.ndarray, b: np.ndarray, side_a: np.ndarray, side_b: np.ndarray) -> np.ndarray:
    """Points (m,3) where edges a-b change side (linear interpolation of the signed values)."""
    cut = side_a * side_b < 0
    t = (side_a / np.where(cut, side_a - side_b, 1.0))[cut, None]
    return a[cut] + t * (b[cut] - a[cut])


def _polar_max(points: np.ndarray, value: np.ndarray, empty: float) -> np.ndarray:
    """Largest value (BINS,) of the points in each bin of angle around the y axis; gaps of up to four bins are
    bridged."""
    result = np.full(BINS, -np.inf)
    angle = np.arctan2(points[:, 0], points[:, 2]) % (2 * np.pi)
    np.maximum.at(result, (angle * (BINS / (2 * np.pi))).astype(int) % BINS, value)
    filled = result.copy()
    for step in (1, 2, 3, 4):
        for shift in (step, -step):
            neighbour, opposite = (
                np.roll(result, shift),
                np.max([np.roll(result, -np.sign(shift) * k) for k in (1, 2, 3, 4)], axis=0),
            )
            gap = ~np.isfinite(filled) & np.isfinite(neighbour) & np.isfinite(opposite)
            filled[gap] = np.minimum(neighbour, opposite)[gap]
    filled[~np.isfinite(filled)] = empty
    return filled
