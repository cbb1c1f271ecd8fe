"""Triangle mesh with lazy vertex normals, and the surface of an implicit geometry."""
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UsageError
from ..optional import require


class Mesh:
    """Triangles: v_pos (Nv,3) world, t_pos_idx (Nf,3) integer; further data by keyword in `extras`."""

    def __init__(self, v_pos: Tensor, t_pos_idx: Tensor, **extras: Any) -> None:
        self.v_pos = v_pos
        self.t_pos_idx = t_pos_idx
        self.extras: dict[str, Any] = dict(extras)
        self._v_nrm: Tensor | None = None
        self._v_rgb: Tensor | None = None
        self._v_tex: Tensor | None = None
        self._t_tex_idx: Tensor | None = None

    def add_extra(self, key: str, value: Any) -> None:
        """Attach further data."""
        self.extras[key] = value

    @property
    def requires_grad(self) -> bool:
        return self.v_pos.requires_grad

    @property
    def v_nrm(self) -> Tensor:
        """(Nv,3) unit vertex normals: normalised sum of the adjacent faces' area vectors; (0,0,1) where it is zero."""
        if self._v_nrm is None:
            corners = self.v_pos[self.t_pos_idx.long()]  # (Nf,3 corners,3)
            face = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=-1)
            total = torch.zeros_like(self.v_pos)
            for corner in range(3):
                total = total.index_add(0, self.t_pos_idx[:, corner].long(), face)
            up = total.new_tensor([0.0, 0.0, 1.0])
            degenerate = (total * total).sum(-1, keepdim=True) <= 1e-20
            self._v_nrm = F.normalize(torch.where(degenerate, up, total), dim=-1)
        return self._v_nrm

    @property
    def v_rgb(self) -> Tensor | None:
        """(Nv,3) in [0,1], or None before `set_vertex_color`."""
        return self._v_rgb

    def set_vertex_color(self, v_rgb: Tensor) -> None:
        """Colour the vertices. Raises: ValueError if there are not as many colours as vertices."""
        if len(v_rgb) != len(self.v_pos):
            raise ValueError(f"v_rgb must have one colour per vertex: got {len(v_rgb)} for {len(self.v_pos)} vertices.")
        self._v_rgb = v_rgb

    def set_uv(self, v_tex: Tensor, t_tex_idx: Tensor) -> None:
        """Texture coordinates (Nt,2) in [0,1] and the triangles' indices (Nf,3) into them."""
        self._v_tex, self._t_tex_idx = v_tex, t_tex_idx

    @property
    def v_tex(self) -> Tensor:
        """(Nt,2). Raises: UsageError before `set_uv`."""
        if self._v_tex is None:
            raise UsageError("This mesh has no texture coordinates; call set_uv() or save without them.")
        return self._v_tex

    @property
    def t_tex_idx(self) -> Tensor:
        """(Nf,3). Raises: UsageError before `set_uv`."""
        if self._t_tex_idx is None:
            raise UsageError("This mesh has no texture coordinates; call set_uv() or save without them.")
        return self._t_tex_idx


@torch.no_grad()
def extract_isosurface(geometry: Any) -> Mesh:
    """Marching cubes over an implicit geometry's box, with the `isosurface_*` keys of its configuration.

    Returns: Mesh on the geometry's device. Raises: UsageError if the field has no surface or the settings forbid one.
    """
    cfg = geometry.cfg
    if not cfg.isosurface:
        raise UsageError("isosurface() is switched off by this geometry's configuration (isosurface: false).")
    if cfg.isosurface_deformable_grid:
        raise UsageError("isosurface_deformable_grid is not available in this host; set it to false.")
    box = geometry.bbox
    if cfg.isosurface_coarse_to_fine:
        coarse = _marching_cubes(geometry, box, max(cfg.isosurface_resolution // 2, 8)).v_pos
        low, high = coarse.amin(0), coarse.amax(0)
        margin = 0.1 * (high - low).clamp_min(1e-3)
        box = torch.stack([torch.maximum(low - margin, box[0]), torch.minimum(high + margin, box[1])])
    mesh = _marching_cubes(geometry, box, cfg.isosurface_resolution)
    return remove_outliers(mesh, cfg.isosurface_outlier_n_faces_threshold) if cfg.isosurface_remove_outliers else mesh


def _marching_cubes(geometry: Any, box: Tensor, resolution: int) -> Mesh:
    measure = require("skimage.measure", extra="export", package="scikit-image")
    axes = [torch.linspace(float(box[0, i]), float(box[1, i]), resolution, device=box.device) for i in range(3)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    chunk = geometry.cfg.isosurface_chunk or len(points)
    values = torch.cat([geometry.forward_field(part)[0].reshape(-1) for part in points.split(chunk)])
    threshold = geometry.cfg.isosurface_threshold
    if threshold == "auto":
        positive = values[values > 1e-5]
        threshold = float(positive.mean()) if len(positive) else 0.0
    level = -geometry.forward_level(values[:, None], threshold).reshape([resolution] * 3)  # positive inside
    if not (bool((level > 0).any()) and bool((level < 0).any())):
        raise UsageError(
            f"The field crosses the level {threshold} nowhere in the box; change isosurface_threshold or use 'auto'."
        )
    grid, faces, _, _ = measure.marching_cubes(level.float().cpu().numpy(), level=0.0, gradient_direction="ascent")
    spacing = (box[1] - box[0]) / (resolution - 1)
    v_pos = torch.as_tensor(np.ascontiguousarray(grid), device=box.device) * spacing + box[0]
    return Mesh(v_pos, torch.as_tensor(np.ascontiguousarray(faces), device=box.device).long())


def remove_outliers(mesh: Mesh, n_faces: Any) -> Mesh:
    """Keep connected pieces with at least `n_faces` faces (int), or that share of the largest piece's (float)."""
    sparse = require("scipy.sparse", extra="export", package="scipy")
    graph = require("scipy.sparse.csgraph", extra="export", package="scipy")
    faces = mesh.t_pos_idx.cpu().numpy()
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    n = len(mesh.v_pos)
    adjacency = sparse.coo_matrix((np.ones(len(edges), dtype=bool), (edges[:, 0], edges[:, 1])), shape=(n, n))
    piece_of_vertex = graph.connected_components(adjacency, directed=False)[1]
    piece = piece_of_vertex[faces[:, 0]]  # (Nf,)
    size = np.bincount(piece)
    least = n_faces if isinstance(n_faces, int) else n_faces * size.max()
    kept = faces[size[piece] >= least]
    used, renumbered = np.unique(kept, return_inverse=True)
    device = mesh.v_pos.device
    return Mesh(
        mesh.v_pos[torch.as_tensor(used, device=device)],
        torch.as_tensor(renumbered.reshape(-1, 3), device=device).long(),
        **mesh.extras,
    )
