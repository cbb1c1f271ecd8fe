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
    """Quadric edge-collapse decimation (Garland, Heckbert 1997) to at most ``target_faces`` faces, without pinches."""
    require("fast_simplification", extra="export", package="fast-simplification")
    return split_pinches(remove_folds(mesh.simplify_quadric_decimation(face_count=target_faces)))


def remove_folds(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Remove what collapses leave folded flat: faces that name a vertex twice, and pairs of faces on the same corners.

    This opens no edge of a closed mesh: every removed face or pair contributes twice to each of its edges.
    """
    corners = np.sort(mesh.faces, axis=1)
    flat = (corners[:, 0] == corners[:, 1]) | (corners[:, 1] == corners[:, 2])
    _, group, count = np.unique(corners, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(group.ravel(), kind="stable")
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, count)
    paired = rank < (count - count % 2)[group.ravel()]
    out = mesh.copy()
    out.update_faces(~(flat | paired))
    out.remove_unreferenced_vertices()
    return out


def split_pinches(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Give each sheet of surface its own vertices where collapses made sheets touch (edges with more than two faces).

    Face corners are joined across edges with exactly two faces; every connected group of corners becomes one vertex.
    Where that tears an edge open, its two sides (which run in opposite directions) are joined again.
    """
    faces = mesh.faces
    starts = np.arange(faces.size).reshape(-1, 3)
    halves = np.stack([starts, np.roll(starts, -1, axis=1)], -1).reshape(-1, 2)  # (3F,2) corners of each half-edge
    ends = faces.ravel()[halves]  # (3F,2) vertices
    _, edge, count = np.unique(np.sort(ends, axis=1), axis=0, return_inverse=True, return_counts=True)
    edge = edge.ravel()
    if (count <= 2).all():
        return mesh

    def opposite_pairs(chosen: np.ndarray) -> np.ndarray:
        """Corner pairs (P,2): along each edge, the k-th chosen forward half with the k-th backward one."""
        forward = ends[chosen, 0] < ends[chosen, 1]
        sides = []
        for side in (chosen[forward], chosen[~forward]):
            side = side[np.argsort(edge[side], kind="stable")]
            rank = np.arange(len(side)) - np.searchsorted(edge[side], edge[side])
            sides.append((edge[side] * len(halves) + rank, side))
        _, f, b = np.intersect1d(sides[0][0], sides[1][0], return_indices=True)
        f, b = sides[0][1][f], sides[1][1][b]
        return np.concatenate([np.stack([halves[f, 0], halves[b, 1]], -1), np.stack([halves[f, 1], halves[b, 0]], -1)])

    def groups(pairs: np.ndarray) -> np.ndarray:
        graph = coo_matrix((np.ones(len(pairs), np.int8), pairs.T), shape=(faces.size, faces.size))
        return connected_components(graph, directed=False)[1]

    pairs = opposite_pairs(np.flatnonzero(count[edge] == 2))
    group = groups(pairs)
    _, new_edge, new_count = np.unique(np.sort(group[halves], axis=1), axis=0, return_inverse=True, return_counts=True)
    torn = np.flatnonzero((new_count[new_edge.ravel()] == 1) & (count[edge] > 2))
    if len(torn):
        group = groups(np.concatenate([pairs, opposite_pairs(torn)]))
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
