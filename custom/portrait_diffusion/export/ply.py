"""Coloured PLY in the same frame and unit as the GLB (y up, metres, the face looks along +z)."""
from pathlib import Path

import numpy as np
import trimesh

from ..files import write_bytes
from .glb import WORLD_TO_GLTF, to_gltf


def write_ply(path: str | Path, mesh: trimesh.Trimesh, colours: np.ndarray) -> None:
    """Write a binary PLY with normals and vertex colours.

    Args: mesh: world frame, units.  colours: (V,3) uint8 sRGB.
    """
    out = trimesh.Trimesh(
        to_gltf(mesh.vertices), mesh.faces, vertex_colors=colours, process=False,
        vertex_normals=np.asarray(mesh.vertex_normals) @ WORLD_TO_GLTF.T,
    )  # fmt: skip
    write_bytes(path, out.export(file_type="ply", encoding="binary", vertex_normal=True))
