"""What HPDM is told about a view: its geometry, what other views show of it, the references, and how far they count."""
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops.cameras import get_rays, world_to_head
from ...ops.canonical import BOX_RADIUS
from ...ops.smoothstep import smoothstep

GEOMETRY_CHANNELS = 7
"""Normal (3), position (3), opacity (1)."""
EXPLICIT_CHANNELS = 4 + GEOMETRY_CHANNELS
"""Projected colours (3), where they are valid (1), geometry of the target."""
GATE_DEG = (60.0, 120.0)
"""Angle between view directions up to which a reference counts fully, and from which it counts nothing."""


@dataclass
class References:
    """Views to which the Implicit-Branch attends; R of them for each row.

    Attributes:
        latents: (B, R, C, h, w) of their pictures.
        geometry: (B, R, 7, H, W) of `geometry_maps`.
        tokens: (B, R, L, D) cross-attention tokens (cameras or text).
        gate: (B, R) in [0, 1], see `angle_gate`.
    """

    latents: Tensor
    geometry: Tensor
    tokens: Tensor
    gate: Tensor


@dataclass
class Conditions:
    """Everything the denoiser is told about B views.

    Attributes:
        tokens: (B, L, D) cross-attention tokens of the views (cameras or text).
        explicit: (B, 11, H, W) of `explicit_image`; None is no explicit condition.
        references: None is no implicit condition.
        plain_tokens: (B, L, D) tokens of the row that sees neither condition, as of an empty or negative prompt; the
            explicit scale is then that of text and projection together. None: the same tokens.
    """

    tokens: Tensor
    explicit: Tensor | None = None
    references: References | None = None
    plain_tokens: Tensor | None = None

    def repeated(self, count: int) -> "Conditions":
        """The same B views so many times, one set after the other."""

        def again(x: Tensor | None) -> Tensor | None:
            if x is None or x.stride(0) != 0:
                return None if x is None else torch.cat([x] * count)
            return x[:1].expand(count * len(x), *x.shape[1:])  # the same for all rows

        told = self.references
        if told is not None:
            told = References(*(again(x) for x in (told.latents, told.geometry, told.tokens, told.gate)))
        return Conditions(again(self.tokens), again(self.explicit), told, again(self.plain_tokens))

    def alone(self) -> "Conditions":
        """What the row without conditions is told."""
        return Conditions(self.tokens if self.plain_tokens is None else self.plain_tokens)

    def without_references(self) -> "Conditions":
        """The same without the implicit condition."""
        return replace(self, references=None)


def geometry_maps(
    depth: Tensor, normals: Tensor, opacity: Tensor, c2w: Tensor, fovy: Tensor, crop: Tensor | None = None
) -> Tensor:
    """What is where in a view, in the head frame: the same place has the same values in every view.

    Args:
        depth: (B, H, W) distance along the ray, scene units, 0 for background.
        normals: (B, H, W, 3) unit length, world frame. opacity: (B, H, W) in [0, 1].
        c2w (B, 4, 4), fovy (B,) radians, crop (B, 3) or None: the view's camera.
    Returns: (B, 7, H, W): normals and positions over `BOX_RADIUS`, both in the head frame and times opacity; opacity.
    """
    rays_o, rays_d = get_rays(c2w, fovy, depth.shape[1], depth.shape[2], crop)
    points = world_to_head(rays_o + depth[..., None] * rays_d) / BOX_RADIUS
    solid = (opacity * (depth > 0))[..., None]
    maps = torch.cat([world_to_head(normals) * solid, points.clamp(-1.5, 1.5) * solid, solid], dim=-1)
    return maps.permute(0, 3, 1, 2)


def explicit_image(projected: Tensor, valid: Tensor, geometry: Tensor) -> Tensor:
    """Input of the Explicit-Branch (B, 11, H, W).

    Args: projected (B, 3, H, W) in [0, 1] and valid (B, 1, H, W) of `ops.projection.forward_project`; geometry
        (B, 7, H, W) of `geometry_maps`.
    """
    return torch.cat([(2 * projected - 1) * valid, valid, geometry], dim=1)


def angle_gate(
    c2w: Tensor, reference_c2w: Tensor, full_deg: float = GATE_DEG[0], none_deg: float = GATE_DEG[1]
) -> Tensor:
    """How far a reference counts for a view: 1 up to `full_deg` between their lines of sight, 0 from `none_deg`.

    Without it attention puts the only face it knows on the back of the head.

    Args: c2w (B, 4, 4), reference_c2w (B, R, 4, 4). Returns: (B, R).
    """
    cosine = (c2w[:, None, :3, 2] * reference_c2w[..., :3, 2]).sum(-1).clamp(-1, 1)
    return 1 - smoothstep(torch.rad2deg(torch.acos(cosine)), full_deg, none_deg)
