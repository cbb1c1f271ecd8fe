"""Vectorised triangle rasterisation in NumPy: which pixel centres lie in which triangle, with barycentric weights."""
from typing import NamedTuple

import numpy as np

MAX_TESTS = 1 << 21  # pixel-in-triangle tests per batch, bounds the memory


class Fragments(NamedTuple):
    """One entry per covered pixel and triangle.

    pixel: (K,) flat index row * width + column.  triangle: (K,) index.  bary: (K,3) weights of the corners, sum 1.
    """

    pixel: np.ndarray
    triangle: np.ndarray
    bary: np.ndarray


def rasterise(corners: np.ndarray, height: int, width: int, tolerance: float = 1e-6) -> Fragments:
    """All pixel centres inside each triangle; a pixel covered by several triangles appears several times.

    Triangles are grouped by the size of their bounding box (rounded up to powers of two); each group is tested at once.

    Args:
        corners: (T,3,2) x, y in pixels, y down; the centre of the first pixel is (0.5, 0.5). Either winding.
        height, width: image size in pixels.
        tolerance: how far outside (in barycentric weight) still counts as inside, so that shared edges leave no gaps.

    Returns: Fragments, unordered. Triangles without area give none.
    """
    corners = np.asarray(corners, np.float64)
    first = np.ceil(corners.min(1) - 0.5).clip(0, [width, height]).astype(np.int64)  # (T,2) first centre in the box
    last = np.floor(corners.max(1) - 0.5).clip(-1, [width - 1, height - 1]).astype(np.int64)
    size = last - first + 1
    ab, ac = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    usable = (size > 0).all(1) & (np.abs(area) > 1e-12)
    exponent = np.ceil(np.log2(np.maximum(size, 1))).astype(np.int64)
    group = np.where(usable, exponent[:, 0] * 64 + exponent[:, 1], -1)
    found = []
    for key in np.unique(group[usable]):
        members = np.flatnonzero(group == key)
        box_x, box_y = np.meshgrid(np.arange(1 << (key // 64)), np.arange(1 << (key % 64)))
        box = np.stack([box_x.ravel(), box_y.ravel()], -1)  # (P,2)
        batch = max(1, MAX_TESTS // len(box))
        for start in range(0, len(members), batch):
            t = members[start : start + batch]
            cell = first[t, None] + box  # (t,P,2)
            offset = cell + 0.5 - corners[t, None, 0]
            v = (offset[..., 0] * ac[t, None, 1] - offset[..., 1] * ac[t, None, 0]) / area[t, None]
            w = (ab[t, None, 0] * offset[..., 1] - ab[t, None, 1] * offset[..., 0]) / area[t, None]
            u = 1.0 - v - w
            inside = (np.minimum(np.minimum(u, v), w) >= -tolerance) & (cell <= last[t, None]).all(-1)
            which, where = np.nonzero(inside)
            cells = cell[which, where]
            bary = np.stack([u[which, where], v[which, where], w[which, where]], -1)
            found.append((cells[:, 1] * width + cells[:, 0], t[which], bary))
    if not found:
        return Fragments(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3)))
    return Fragments(*(np.concatenate(part) for part in zip(*found)))


def nearest_fragment(fragments: Fragments, depth: np.ndarray, pixels: int) -> np.ndarray:
    """Depth test. Args: depth (K,) per fragment; pixels: image size. Returns: (pixels,) fragment, -1 = nothing."""
    order = np.lexsort((depth, fragments.pixel))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(fragments.pixel[order]) > 0
    winner = np.full(pixels, -1, np.int64)
    winner[fragments.pixel[order][first]] = order[first]
    return winner
