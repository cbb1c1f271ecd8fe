"""Planes that other generators than ours were trained with: axes, frame, and what their decoder's colours mean.

A `PlaneFrame` says where in the head frame a set of planes lies and how to read it; its functions go from points to raw
decoder outputs to density and colour. Names of layouts:

    own         this project's planes and grids (`ops.triplane`)
    eg3d        tri-plane with EG3D's axes; sigmoid colours
    panohead    tri-grid with PanoHead's axes; colours linear in the features
    spherehead  two spherical tri-planes, front and back (Li et al., "SphereHead", 2024); linear colours
    pyramid     pyramid of tri-grids, mean over levels (Wu et al., "Portrait3D", 2024); linear colours
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import choose
from .canonical import BOX_RADIUS
from .field import query_field
from .triplane import (
    EG3D_AXES,
    PANOHEAD_AXES,
    PLANE_AXES,
    DecoderWeights,
    colour_activation,
    decode_raw,
    density_activation,
    sample_planes,
)

AXES = {
    "own": PLANE_AXES, "eg3d": EG3D_AXES, "panohead": PANOHEAD_AXES, "spherehead": PANOHEAD_AXES,
    "pyramid": PANOHEAD_AXES,
}  # fmt: skip
LAYOUTS = tuple(AXES)
SIGMOID_COLOURS = ("own", "eg3d")
"""Layouts whose raw colours go through a sigmoid; those of the others are colours already."""


@dataclass(frozen=True)
class PlaneFrame:
    """Where planes lie in the head frame, and how to read them.

    Attributes:
        layout: see the module text.
        radius: half edge of the cube that the planes span, scene units; centre: of that cube, head frame.
        crop: nothing exists where |x| or |z|, from the centre, exceeds this; 0 is no such limit. Layouts other than own
            have nothing outside the cube either.
        density_scale: factor on the density, 1 / s for planes that were trained in units s times as large as ours.
    """

    layout: str = "own"
    radius: float = BOX_RADIUS
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    crop: float = 0.0
    density_scale: float = 1.0

    def coordinates(self, head_points: Tensor) -> Tensor:
        """Head-frame points (...,3) in the planes' coordinates: the cube is [-1, 1]^3."""
        return self._from_centre(head_points) / self.radius

    def _from_centre(self, head_points: Tensor) -> Tensor:
        """Points (...,3) seen from the cube's centre; by numbers, since a tensor of them would be copied to the GPU."""
        if not any(self.centre):
            return head_points
        return torch.stack([x - middle for x, middle in zip(head_points.unbind(-1), self.centre, strict=True)], dim=-1)

    def raw(
        self, planes: list[Tensor], weights: DecoderWeights, head_points: Tensor, implementation: str = "auto"
    ) -> Tensor:
        """Decoder outputs (B,N,4), raw density and raw colour, at head-frame points (B,N,3).

        Args: implementation: see `ops.field.query_field`; spheres and grids that fade have the torch one alone.
        """
        coords = self.coordinates(head_points)
        if self.layout == "spherehead" or fades(self.layout, planes):
            choose(f"field of {self.layout} planes", implementation, coords.device, ("torch",))
            return decode_raw(layout_features(self.layout, planes, coords), weights)
        level_reduce = "sum" if self.layout == "own" else "mean"
        return query_field(
            planes, coords, weights, level_reduce=level_reduce, axes=AXES[self.layout], implementation=implementation
        )

    def colour(self, raw_colour: Tensor) -> Tensor:
        """Colour (...,3) of raw colours, about [0, 1]."""
        return colour_activation(raw_colour) if self.layout in SIGMOID_COLOURS else raw_colour

    def density(self, raw_density: Tensor, head_points: Tensor) -> Tensor:
        """Density (...,1) per scene unit of raw densities at head-frame points (...,3); 0 where nothing exists."""
        density = density_activation(raw_density)
        if self.density_scale != 1:
            density = density * self.density_scale
        if self.layout == "own" and not self.crop:
            return density
        away = self._from_centre(head_points)
        limit = self.crop or self.radius
        inside = (away[..., 0:1].abs() <= limit) & (away[..., 2:3].abs() <= limit) & (
            away[..., 1:2].abs() <= self.radius
        )
        return torch.where(inside, density, torch.zeros_like(density))

    def activated(self, raw: Tensor, head_points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (...,1) and colour (...,3) of decoder outputs (...,4) at head-frame points (...,3)."""
        return self.density(raw[..., :1], head_points), self.colour(raw[..., 1:4])

    def field(self, planes: list[Tensor], weights: DecoderWeights, head_points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (B,N,1) and colour (B,N,3) at head-frame points (B,N,3)."""
        return self.activated(self.raw(planes, weights, head_points), head_points)


OWN_FRAME = PlaneFrame()


def sphere_coordinates(coords: Tensor, back: bool) -> Tensor:
    """Spherical coordinates of one of SphereHead's two spheres.

    The frame is turned, front sphere (x,y,z) to (z,y,-x), back sphere to (-z,-x,y); then
    ``theta = 2 atan2(|(x,y)|, z) / pi - 1, phi = atan2(y, x) / pi, r = 2 |p| / sqrt(3) - 1``.

    Args: coords (...,3), the cube is [-1, 1]^3. Returns: (...,3) theta, phi, r; each in [-1, 1] in the cube.
    """
    x, y, z = coords.unbind(-1)
    x, y, z = (-z, -x, y) if back else (z, y, -x)
    tiny = torch.finfo(coords.dtype).tiny  # keeps the gradient finite on the polar axis
    flat = (x.square() + y.square()).clamp_min(tiny).sqrt()
    theta = 2 * torch.atan2(flat, z) / math.pi - 1
    phi = torch.atan2(y, torch.where((x == 0) & (y == 0), torch.full_like(x, tiny), x)) / math.pi
    radius = 2 * (x.square() + y.square() + z.square()).clamp_min(tiny).sqrt() / math.sqrt(3.0) - 1
    return torch.stack([theta, phi, radius], dim=-1)


def fused_spheres(spheres: list[Tensor], coords: Tensor, implementation: str = "auto") -> Tensor:
    """Features of two spherical tri-planes: ``(F_A w_A + F_B w_B) / (w_A + w_B + 1e-8)``, mean over planes.

    A sphere's share ``w = (1 + cos pi theta) / 2 * (1 + cos pi phi) / 2`` is 1 in its middle and 0 behind it.

    Args: spheres two (B,3,C,R,R); coords (B,N,3) in [-1, 1]. Returns: (B,N,C).
    """
    total, shares = 0.0, 1e-8
    for planes, back in zip(spheres, (False, True)):
        place = sphere_coordinates(coords, back)
        share = ((1 + torch.cos(math.pi * place[..., :2])) / 2).prod(dim=-1, keepdim=True)
        total = total + share * sample_planes(planes, place, axes=PANOHEAD_AXES, implementation=implementation)
        shares = shares + share
    return total / shares


def layout_features(layout: str, planes: list[Tensor], coords: Tensor, implementation: str = "auto") -> Tensor:
    """Features before the decoder (B,N,C).

    Args: planes: levels in any order; spherehead the front and the back sphere; coords (B,N,3), the cube is [-1, 1]^3.
    """
    if layout == "own":
        return sample_planes(planes, coords, implementation=implementation)
    if layout == "spherehead":
        return fused_spheres(planes, coords, implementation)
    if fades(layout, planes):
        return sum(_sample_thin(level, coords, AXES[layout]) for level in planes) / len(planes)
    return sample_planes(planes, coords, level_reduce="mean", axes=AXES[layout], implementation=implementation)


def fades(layout: str, planes: list[Tensor]) -> bool:
    """Whether these are grids with one layer that fades along depth; `ops.triplane` takes such as planes, our own."""
    return layout not in ("own", "spherehead") and planes[0].ndim == 6 and planes[0].shape[3] == 1


def _sample_thin(planes: Tensor, coords: Tensor, axes: tuple) -> Tensor:
    """Mean over the planes of a tri-grid with one layer, see `fades`."""
    order = [axis for plane in axes for axis in plane]
    chosen = torch.stack([coords[..., axis] for axis in order], dim=-1)
    grid = chosen.unflatten(-1, (3, 3)).transpose(1, 2).flatten(0, 1)[:, None, None]  # (3B,1,1,N,3)
    out = F.grid_sample(planes.flatten(0, 1), grid, align_corners=False, padding_mode="zeros")
    return out.view(*planes.shape[:3], -1).mean(dim=1).transpose(1, 2)
