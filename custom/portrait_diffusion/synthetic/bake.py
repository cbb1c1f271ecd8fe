"""Give every vertex of a scene its light, once for all views."""

import numpy as np

from . import hair, lighting
from .mesh import sample_surface
from .parts import LABELS, Part, Scene
from .skin import hair_linear
from .subjects import Subject

OCCLUDER_POINTS = 48000


def _occluders(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Points (m,3) on the surfaces that cast shadows, where their textures are opaque."""
    parts = [part for part in scene.parts if part.casts > 0]
    areas = np.array([np.linalg.norm(np.cross(*_edges(part)), axis=1).sum() for part in parts])
    points = []
    for part, area in zip(parts, areas):
        count = int(OCCLUDER_POINTS * area / areas.sum()) + 64
        face, weights = sample_surface(part.positions, part.faces, count, rng)
        position = np.einsum("nk,nkc->nc", weights, part.positions[part.faces[face]])
        if part.mode != "opaque":
            uv = np.einsum("nk,nkc->nc", weights, part.uvs[part.faces[face]]) % 1.0
            alpha = scene.textures[part.texture][..., 3]
            rows, columns = alpha.shape
            opaque = alpha[
                ((1 - uv[:, 1]) * rows).astype(int).clip(0, rows - 1),
                (uv[:, 0] * columns).astype(int).clip(0, columns - 1),
            ]
            position = position[opaque * part.opacity > 100]
        points.append(position)
    return np.concatenate(points)


def _edges(part: Part):
    corners = part.positions[part.faces]
    return corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]


def bake_light(scene: Scene, subject: Subject) -> None:
    """Fill light and sheen of every part, and the exposure that makes the face as bright as the subject's lighting
    asks."""
    occluders = _occluders(scene, subject.rng(2))
    points, normals = (
        np.concatenate([getattr(part, name) for part in scene.parts]) for name in ("positions", "normals")
    )
    wraps = np.concatenate(
        [
            np.broadcast_to(lighting.WRAP_OTHER if part.wrap is None else part.wrap, part.positions.shape)
            for part in scene.parts
        ]
    )
    light, ambient = lighting.bake(points, normals, wraps, occluders, subject.lighting)
    key = np.asarray(subject.lighting.lights[0].direction)
    face = next(part for part in scene.parts if part.name == "face")
    first = sum(len(part.positions) for part in scene.parts[: scene.parts.index(face)])
    front = (face.positions[:, 2] > 0.08) & (face.positions[:, 1] > -0.16) & (face.positions[:, 1] < 0.12)
    face_light = float(np.percentile(light[first : first + len(face.positions)][front].mean(1), 75))
    start = 0
    for part in scene.parts:
        rows = slice(start, start + len(part.positions))
        start = rows.stop
        part.light = light[rows]
        part.sheen = np.zeros(len(part.positions), np.float32)
        if part.name == "catchlight":
            part.light = np.full_like(part.light, 1.3 * face_light)
        if part.name == "teeth":
            part.light = np.maximum(part.light, 0.55 * face_light)
        if part.label == LABELS["skin"] and part.name in ("face", "body"):
            part.sheen = (0.035 * np.maximum(0, part.normals @ key) ** 12 * light[rows].mean(1)).astype(np.float32)
        if part.name == "hair":
            part.light = part.light * 0.85 * (0.35 + 0.65 * ambient[rows, None]) ** 0.7
            dark = 1 - float(np.mean(hair_linear(subject))) ** 0.5
            part.light = part.light * (
                1 + (0.6 + 1.2 * dark**2) * hair.highlight(part.positions, part.normals, key)[:, None]
            )
    scene.exposure = float(subject.lighting.exposure / max(face_light, 1e-3))
