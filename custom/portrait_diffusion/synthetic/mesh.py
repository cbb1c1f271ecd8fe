"""Small functions on triangle meshes given as arrays."""

import numpy as np


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (n,3) of a mesh with vertices (n,3) and triangles (f,3); vertices without faces get
    +z."""
    corners = vertices[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros(vertices.shape, np.float64)
    for k in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(faces[:, k], face_normals[:, axis], len(vertices))
    return unit(normals, fallback=(0, 0, 1)).astype(np.float32)


def unit(vectors: np.ndarray, fallback=(0.0, 0.0, 1.0)) -> np.ndarray:
    """Vectors (...,3) divided by their length; those shorter than 1e-12 become ``fallback``."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 1e-12, vectors / np.maximum(length, 1e-12), np.asarray(fallback, vectors.dtype))


def split_corners(faces: np.ndarray, face_uvs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give every (vertex, uv) pair its own corner.

    Args:
        faces, face_uvs: (f,3) vertex and texture indices.
    Returns: vertex index (c,) and uv index (c,) of each corner, and triangles (f,3) of corners.
    """
    pairs = faces.astype(np.int64) * (int(face_uvs.max()) + 1) + face_uvs
    corners, index = np.unique(pairs, return_inverse=True)
    return corners // (int(face_uvs.max()) + 1), corners % (int(face_uvs.max()) + 1), index.reshape(-1, 3)


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, rng: np.random.Generator):
    """Area-weighted random points.

    Returns: face index (count,) and barycentric coordinates (count,3).
    """
    corners = vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    edges = np.cumsum(area)
    face = np.searchsorted(edges, rng.random(count) * edges[-1]).clip(0, len(faces) - 1)
    r1, r2 = np.sqrt(rng.random(count)), rng.random(count)
    return face, np.stack([1 - r1, r1 * (1 - r2), r1 * r2], 1)
