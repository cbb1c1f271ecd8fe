"""Mesh clean-up and health: components, smoothing, decimation, and a report of what came out."""
from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..errors import PortraitError
from ..optional import require

TAUBIN_LAMBDA, TAUBIN_MU = 0.5, 0.526  # pass-band frequency 1/lambda - 1/mu = 0.1, Taubin 1995, section 3


@dataclass
class MeshHealth:
    """What a mesh is like. Lengths in the mesh's units; bounds (2,3) = lowest and highest corner."""

    vertices: int
    faces: int
    components: int
    watertight: bool
    winding_consistent: bool
    boundary_edges: int
    non_manifold_edges: int
    degenerate_faces: int
    euler_number: int
    area: float
    volume: float
    bounds: list

    def sentence(self) -> str:
        """One line for a log."""
        size = np.subtract(self.bounds[1], self.bounds[0])
        return (
            f"{self.faces} faces, {self.vertices} vertices, {self.components} component(s), "
            f"{'watertight' if self.watertight else f'{self.boundary_edges} open edges'}, "
            f"{self.non_manifold_edges} non-manifold edges, size {size[0]:.3f} x {size[1]:.3f} x {size[2]:.3f}"
        )


def face_components(faces: np.ndarray, vertex_count: int) -> np.ndarray:
    """Component label (F,) of every face; faces that share a vertex belong together."""
    rows = faces[:, [0, 1]].ravel()
    columns = faces[:, [1, 2]].ravel()
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(vertex_count, vertex_count))
    _, labels = connected_components(graph, directed=False)
    return np.unique(labels[faces[:, 0]], return_inverse=True)[1]


def keep_large_components(mesh: trimesh.Trimesh, min_fraction: float) -> tuple[trimesh.Trimesh, int]:
    """Drop floaters and inner cavities: components below min_fraction of the largest area, or with negative volume.

    Args: min_fraction: share of the largest component's area in [0,1].
    Returns: the mesh and the number of removed components.
    Raises: PortraitError when the mesh has no faces.
    """
    if len(mesh.faces) == 0:
        raise PortraitError("The surface has no triangles; the field is empty at this iso level.")
    labels = face_components(mesh.faces, len(mesh.vertices))
    area = np.bincount(labels, weights=mesh.area_faces)
    corners = mesh.vertices[mesh.faces]  # (F,3,3)
    signed = np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6.0
    volume = np.bincount(labels, weights=signed)
    keep = (area >= min_fraction * area.max()) & (volume > 0)
    keep[area.argmax()] = True
    mesh = mesh.copy()
    mesh.update_faces(keep[labels])
    mesh.remove_unreferenced_vertices()
    return mesh, int((~keep).sum())


def smooth_taubin(mesh: trimesh.Trimesh, iterations: int) -> trimesh.Trimesh:
    """Taubin's lambda|mu smoothing (SIGGRAPH 1995), low-pass without shrinking; ``iterations`` are pairs of steps."""
    smooth = mesh.copy()
    return trimesh.smoothing.filter_taubin(smooth, lamb=TAUBIN_LAMBDA, nu=TAUBIN_MU, iterations=2 * iterations)


def simplify(mesh: trimesh.Trimesh, target_faces: int) -> trimesh.Trimesh:
    """Quadric edge-collapse decimation (Garland, Heckbert 1997) to about ``target_faces`` faces, without pinches."""
    require("fast_simplification", extra="export", package="fast-simplification")
    simple = mesh.simplify_quadric_decimation(face_count=target_faces)
    simple.update_faces(simple.nondegenerate_faces())
    simple.remove_unreferenced_vertices()
    return split_pinches(simple)


def split_pinches(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Give each sheet of surface its own vertices where collapses made sheets touch (edges with more than two faces).

    Face corners are joined across edges with exactly two faces; every connected group of corners becomes one vertex.
    """
    faces = mesh.faces
    corner = np.arange(faces.size).reshape(-1, 3)
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)  # (3F,2), edge i of face f at 3f+i
    _, edge, count = np.unique(edges, axis=0, return_inverse=True, return_counts=True)
    if (count <= 2).all():
        return mesh
    order = np.argsort(edge.ravel(), kind="stable")
    order = order[count[edge.ravel()[order]] == 2].reshape(-1, 2)  # pairs of half-edges
    ends = corner[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)[order]  # (E,2 half-edges,2 ends) corners
    ends_vertex = faces.ravel()[ends]
    flipped = ends_vertex[:, 0, 0] != ends_vertex[:, 1, 0]
    ends[flipped, 1] = ends[flipped, 1, ::-1]
    rows, columns = ends[:, 0].ravel(), ends[:, 1].ravel()
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(faces.size, faces.size))
    _, group = connected_components(graph, directed=False)
    source = np.empty(group.max() + 1, np.int64)
    source[group] = faces.ravel()
    return trimesh.Trimesh(mesh.vertices[source], group.reshape(-1, 3), process=False)


def mesh_health(mesh: trimesh.Trimesh) -> MeshHealth:
    """Count what matters for use in other programs: open and non-manifold edges, components, size."""
    counts = np.unique(mesh.edges_sorted, axis=0, return_counts=True)[1]
    return MeshHealth(
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        components=int(face_components(mesh.faces, len(mesh.vertices)).max()) + 1,
        watertight=bool(mesh.is_watertight),
        winding_consistent=bool(mesh.is_winding_consistent),
        boundary_edges=int((counts == 1).sum()),
        non_manifold_edges=int((counts > 2).sum()),
        degenerate_faces=int((~mesh.nondegenerate_faces()).sum()),
        euler_number=int(mesh.euler_number),
        area=float(mesh.area),
        volume=float(mesh.volume),
        bounds=mesh.bounds.tolist(),
    )
