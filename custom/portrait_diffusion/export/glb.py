"""Textured GLB: y up, metres, the face looks along +z (glTF 2.0, section 3.4); read back and checked after writing."""
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from ..errors import PortraitError
from ..files import atomic_path
from ..ops.cameras import METRES_PER_UNIT
from .bake import TexturedMesh

WORLD_TO_GLTF = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Rows: x = world y, y = world z (up), z = world x (the face's direction): the head frame."""


def to_gltf(points: np.ndarray) -> np.ndarray:
    """World points (N,3) in units to glTF coordinates in metres."""
    return np.asarray(points) @ WORLD_TO_GLTF.T * METRES_PER_UNIT


def textured_trimesh(mesh: TexturedMesh) -> trimesh.Trimesh:
    """A trimesh in the glTF frame with one rough, non-metallic, single-sided PBR material."""
    material = trimesh.visual.material.PBRMaterial(
        name="portrait", baseColorTexture=Image.fromarray(mesh.texture), metallicFactor=0.0, roughnessFactor=1.0,
        doubleSided=False,
    )  # fmt: skip
    return trimesh.Trimesh(
        to_gltf(mesh.vertices), mesh.faces, vertex_normals=mesh.normals @ WORLD_TO_GLTF.T, process=False,
        visual=trimesh.visual.TextureVisuals(uv=mesh.uv, material=material),
    )  # fmt: skip


def write_glb(path: str | Path, mesh: TexturedMesh) -> None:
    """Write and verify a GLB. Args: mesh in the world frame. Raises: PortraitError when the file does not read back."""
    scene = trimesh.Scene()
    scene.add_geometry(textured_trimesh(mesh), geom_name="portrait", node_name="portrait")
    with atomic_path(path) as partial:
        partial.write_bytes(scene.export(file_type="glb", include_normals=True))
        check_glb(partial, mesh)


def read_glb(path: str | Path) -> trimesh.Trimesh:
    """The single mesh of a GLB written by write_glb, in its own frame."""
    scene = trimesh.load(path, file_type="glb", process=False)
    (mesh,) = scene.dump()
    return mesh


def check_glb(path: str | Path, mesh: TexturedMesh) -> None:
    """Compare a written GLB with what it was made from: faces, extent, texture, texture coordinates, material."""
    problem = None
    try:
        back = read_glb(path)
        image = back.visual.material.baseColorTexture
        if back.faces.shape != mesh.faces.shape:
            problem = f"it has {len(back.faces)} faces instead of {len(mesh.faces)}"
        elif not np.allclose(back.vertices, to_gltf(mesh.vertices), atol=1e-5):
            problem = "its vertices differ"
        elif not np.allclose(back.visual.uv, mesh.uv, atol=1e-5):
            problem = "its texture coordinates differ"
        elif image is None or image.size != mesh.texture.shape[1::-1]:
            problem = "its texture is missing or has another size"
    except Exception as error:  # any failure of the reader means the file is bad; the cause is chained below
        raise PortraitError(f"The GLB just written cannot be read back ({error}); please report this.") from error
    if problem:
        raise PortraitError(f"The GLB just written does not read back as it was made: {problem}; please report this.")
