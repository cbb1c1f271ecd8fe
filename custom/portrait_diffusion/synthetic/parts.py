"""The parts of a scene: textured triangles with a label."""

from dataclasses import dataclass

import numpy as np

LABELS = {"background": 0, "skin": 1, "hair": 2, "brows": 3, "eyes": 4, "clothes": 5, "glasses": 6}


@dataclass
class Part:
    """Triangles that share a texture.

    ``positions, normals (n,3)`` head frame; ``uvs (n,2)`` v up; ``faces (f,3)``; ``texture`` a key of
    ``Scene.textures``; ``tint (3,)`` linear factor on the texture; ``light (n,3)`` linear light; ``sheen (n,)`` white
    light added after the texture; ``mode`` 'opaque' (texture alpha ignored), 'cutout' (alpha-tested at 0.5), 'hair'
    (alpha-tested, then its soft rest blended) or 'blend' (blended only, no depth).
    """

    name: str
    label: int
    positions: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    faces: np.ndarray
    texture: str
    mode: str = "opaque"
    tint: tuple | np.ndarray = (1.0, 1.0, 1.0)
    opacity: float = 1.0
    wrap: np.ndarray | None = None
    light: np.ndarray | None = None
    sheen: np.ndarray | None = None
    casts: float = 1.0


@dataclass
class Scene:
    """What a rasteriser draws: parts in order, textures by key (uint8 RGBA, straight alpha), landmarks (5,3), exposure.

    Keys of textures that start with ``asset:`` are the same for every subject, so that a rasteriser may keep them.
    """

    parts: list[Part]
    textures: dict[str, np.ndarray]
    landmarks: np.ndarray
    scale: float
    exposure: float = 1.0


def compact(part: Part) -> Part:
    """Drop vertices that no triangle uses."""
    used, faces = np.unique(part.faces, return_inverse=True)
    part.positions, part.normals, part.uvs, part.faces = (
        part.positions[used],
        part.normals[used],
        part.uvs[used],
        faces.reshape(-1, 3),
    )
    return part
