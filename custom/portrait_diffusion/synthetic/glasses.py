"""Spectacles around the eyes: two superellipse rims and a bridge as tubes, temples to the ears, and lenses."""

import numpy as np

from .heads import HeadBasis
from .mesh import unit, vertex_normals
from .parts import LABELS, Part
from .skin import to_linear
from .subjects import Glasses

SIDES = 8
RIM_POINTS = 40


def tube(path: np.ndarray, radius: float, closed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A round tube along points (n,3).

    Returns: vertices (m,3), outward normals (m,3), triangles (t,3).
    """
    following = np.roll(path, -1, 0) if closed else np.concatenate([path[1:], path[-1:]])
    preceding = np.roll(path, 1, 0) if closed else np.concatenate([path[:1], path[:-1]])
    along = unit(following - preceding)
    helper = np.where(np.abs(along[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]])
    first = unit(np.cross(along, helper))
    second = np.cross(along, first)
    angle = np.arange(SIDES) * (2 * np.pi / SIDES)
    normals = first[:, None] * np.cos(angle)[None, :, None] + second[:, None] * np.sin(angle)[None, :, None]
    vertices = path[:, None] + radius * normals
    count = len(path)
    i, j = np.meshgrid(np.arange(count if closed else count - 1), np.arange(SIDES), indexing="ij")
    i, j = i.ravel(), j.ravel()
    i2, j2 = (i + 1) % count, (j + 1) % SIDES
    a, b, c, d = i * SIDES + j, i2 * SIDES + j, i2 * SIDES + j2, i * SIDES + j2
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return vertices.reshape(-1, 3), normals.reshape(-1, 3), faces


def rim_outline(glasses: Glasses) -> np.ndarray:
    """Closed outline (RIM_POINTS,2) of a lens: |x/a|^p + |y/b|^p = 1."""
    angle = np.arange(RIM_POINTS) * (2 * np.pi / RIM_POINTS)
    c, s = np.cos(angle), np.sin(angle)
    power = 2.0 / glasses.exponent
    return np.stack(
        [glasses.half_width * np.sign(c) * np.abs(c) ** power, glasses.half_height * np.sign(s) * np.abs(s) ** power], 1
    )


def glasses_parts(glasses: Glasses, head: np.ndarray, basis: HeadBasis, textures: dict) -> list:
    """Frame and lenses in front of a head with vertices (n,3) in the head frame."""
    right, left, nose = head[basis.landmark_index[:3]]
    skin = head[np.unique(basis.faces)]
    outline = rim_outline(glasses)
    paths, lens_points = [], []
    bridge_ends = []
    for eye in (right, left):
        side = np.sign(eye[0])
        centre_x = side * max(abs(eye[0]) + 0.002, glasses.half_width + 0.011)
        xy = outline + [centre_x, eye[1] - 0.005]
        plane = _front(skin, xy) + 0.006 + glasses.rim
        base = max(plane, max(right[2], left[2]) + 0.012)
        z = base - 1.6 * (np.abs(xy[:, 0]) ** 2 - 0.02**2).clip(0, None)
        points = np.concatenate([xy, z[:, None]], 1)
        paths.append((points, glasses.rim, True))
        lens_points.append(points)
        bridge_ends.append(points[np.argmin(np.abs(points[:, 0]) + 0.3 * np.abs(points[:, 1] - eye[1] - 0.008))])
        hinge = points[np.argmax(np.abs(points[:, 0]) + 0.2 * points[:, 1])]
        paths.append((_temple(hinge, side, skin, glasses.rim), glasses.rim * 0.9, False))
    t = np.linspace(0, 1, 9)[:, None]
    bridge = bridge_ends[0] * (1 - t) + bridge_ends[1] * t
    bridge[:, 1] += 0.006 * np.sin(np.pi * t[:, 0])
    bridge[:, 2] = np.maximum(bridge[:, 2] + 0.003 * np.sin(np.pi * t[:, 0]), _front(skin, bridge[:, :2]) + glasses.rim)
    paths.append((bridge, glasses.rim, False))

    vertices, normals, faces = [], [], []
    for path, radius, closed in paths:
        v, n, f = tube(path, radius, closed)
        faces.append(f + sum(map(len, vertices)))
        vertices.append(v)
        normals.append(n)
    vertices, normals, faces = (
        np.concatenate(vertices),
        np.concatenate(normals).astype(np.float32),
        np.concatenate(faces),
    )
    frame = Part(
        "glasses",
        LABELS["glasses"],
        vertices,
        normals,
        np.zeros((len(vertices), 2)),
        faces,
        "asset:white",
        tint=to_linear(glasses.frame_srgb),
    )
    parts = [frame]
    for points in lens_points:
        positions = np.concatenate([points, points.mean(0, keepdims=True)])
        index = np.arange(RIM_POINTS)
        fan = np.stack([index, (index + 1) % RIM_POINTS, np.full(RIM_POINTS, RIM_POINTS)], 1)
        normal = vertex_normals(positions, fan)
        normal = (normal * np.sign(normal[-1, 2])).astype(np.float32)
        mode = "hair" if glasses.lens_alpha > 0.5 else "blend"
        parts.append(
            Part(
                "lens",
                LABELS["glasses"],
                positions,
                normal,
                np.zeros((len(positions), 2)),
                fan,
                "asset:white",
                mode=mode,
                tint=to_linear(glasses.lens_srgb),
                opacity=glasses.lens_alpha,
                casts=float(glasses.lens_alpha > 0.5),
            )
        )
    return parts


def _front(skin: np.ndarray, xy: np.ndarray) -> float:
    """Largest z of skin vertices close to points (m,2) of the frontal view."""
    near = (skin[:, 2] > 0) & (np.abs(skin[:, None, 0] - xy[None, :, 0]) < 0.006).any(1)
    near[near] &= (
        np.hypot(skin[near][:, None, 0] - xy[None, :, 0], skin[near][:, None, 1] - xy[None, :, 1]) < 0.006
    ).any(1)
    return float(skin[near, 2].max()) if near.any() else 0.0


def _temple(hinge: np.ndarray, side: float, skin: np.ndarray, radius: float) -> np.ndarray:
    """Path (n,3) from the rim back to the ear, outside the temples' skin."""
    path = []
    for t in np.linspace(0, 1, 14):
        z = hinge[2] + t * (-0.035 - hinge[2])
        y = hinge[1] + 0.004 * t
        near = (np.abs(skin[:, 2] - z) < 0.015) & (np.abs(skin[:, 1] - y) < 0.012) & (skin[:, 0] * side > 0)
        out = np.abs(skin[near, 0]).max() + radius + 0.001 if near.any() else 0.0
        wanted = abs(hinge[0]) + 0.010 * min(1.0, 6 * t)
        path.append([side * max(out, wanted), y, z])
    return np.array(path)
