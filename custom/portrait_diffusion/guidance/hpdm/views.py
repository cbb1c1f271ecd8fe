"""What is known of a head: pictures with geometry and cameras, from which the conditions of any view are made."""
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.projection import project_cells, source_cells
from .conditions import Conditions, References, angle_gate, explicit_image, geometry_maps
from .model import HPDM


@dataclass
class Views:
    """N known views, for example the photo and some renders.

    Attributes:
        rgb: (N, 3, S, S) over white, in [0, 1].
        depth: (N, S, S) distance along the ray, scene units, 0 for background.
        normals: (N, S, S, 3) unit length, world frame.
        opacity: (N, S, S) in [0, 1].
        c2w: (N, 4, 4); fovy: (N,) radians; crop: (N, 3) or None, see `ops.cameras`.
    """

    rgb: Tensor
    depth: Tensor
    normals: Tensor
    opacity: Tensor
    c2w: Tensor
    fovy: Tensor
    crop: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Views":
        """The same on a device, with another precision."""
        return Views(**{name: v if v is None else v.to(device, dtype) for name, v in vars(self).items()})

    def __len__(self) -> int:
        return len(self.rgb)


@dataclass
class Target:
    """B views to be judged or made; without geometry (None) the model is told of none.

    Attributes: c2w (B, 4, 4), fovy (B,); depth (B, S, S), normals (B, S, S, 3), opacity (B, S, S) as in `Views`.
    """

    c2w: Tensor
    fovy: Tensor
    depth: Tensor | None = None
    normals: Tensor | None = None
    opacity: Tensor | None = None


SUBDIVIDE = 3
"""Cells along the side of a known view's pixel."""
MIN_COVERAGE = 0.25
"""Share of a pixel's cells that a target pixel must have received to be valid."""


class KnownViews:
    """Views with everything that can be computed once: latents, geometry maps, the reference network's tokens, and the
    cells of their surfaces with colours, ready to be projected.

    Args: model; views on its device; gate_floor: what a reference counts at least, from any angle; None is the model's.
    """

    @torch.no_grad()
    def __init__(self, model: HPDM, views: Views, gate_floor: float | None = None):
        self.model, self.views = model, views
        self.gate_floor = model.gate_floor if gate_floor is None else gate_floor
        self.maps = geometry_maps(views.depth, views.normals, views.opacity, views.c2w, views.fovy, views.crop)
        self.latents, self.tokens = model.encode(views.rgb), model.cameras(views.c2w)
        self.bank = model.bank(self.references(torch.ones(1, len(views), device=views.rgb.device)))
        crop = None if views.crop is None else views.crop[None]
        cells = source_cells(views.depth[None], views.c2w[None], views.fovy[None], SUBDIVIDE, crop)
        solid = (views.opacity > 0.5).flatten()
        self.cells = cells.kept(solid[cells.source])  # background and what is seen at a grazing angle never projects
        self.colours = views.rgb.transpose(0, 1).flatten(1)[None, :, self.cells.source]  # (1, 3, M)

    def references(self, gate: Tensor) -> References:
        """All views as references of B rows; gate (B, N)."""
        b = len(gate)
        shown = (x[None].expand(b, *x.shape) for x in (self.latents, self.maps, self.tokens))
        return References(*shown, gate)

    @torch.no_grad()
    def conditions(self, target: Target, explicit: bool = True, implicit: bool = True) -> Conditions:
        """Conditions of B target views, with both branches or one."""
        v, b, n = self.views, len(target.c2w), len(self.views)
        size = v.rgb.shape[-1]
        picture = references = None

        if explicit:
            projected, valid = project_cells(
                self.cells, self.colours, target.c2w, target.fovy, size, size, target.depth, None,
                MIN_COVERAGE * SUBDIVIDE**2,
            )  # fmt: skip
            known = None not in (target.depth, target.normals, target.opacity)
            maps = projected.new_zeros(b, self.maps.shape[1], size, size)
            if known:
                maps = geometry_maps(target.depth, target.normals, target.opacity, target.c2w, target.fovy)
            picture = explicit_image(projected, valid, maps)
        if implicit:
            gate = angle_gate(target.c2w, v.c2w[None].expand(b, n, 4, 4))
            references = self.references(self.gate_floor + (1 - self.gate_floor) * gate)
        return Conditions(self.model.cameras(target.c2w), picture, references)

    def bank_for(self, rows: int) -> dict[str, Tensor]:
        """The cached tokens for so many rows."""
        return {name: tokens.expand(rows, *tokens.shape[1:]) for name, tokens in self.bank.items()}
