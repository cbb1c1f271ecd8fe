"""Plane features and decoder outputs of the published priors at points of the GAN's head frame (x right, y up).

Which plane reads which coordinates differs by family, see `ops.triplane`; SphereHead has spherical coordinates.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.triplane import EG3D_AXES, PANOHEAD_AXES, PLANE_AXES, decode_raw, sample_planes

AXES = {"eg3d": EG3D_AXES, "panohead": PANOHEAD_AXES, "spherehead": PANOHEAD_AXES, "pyramid": PANOHEAD_AXES}
CROPPED = -1000.0
"""Raw density of points that the published renderers remove."""
__all__ = ["AXES", "CROPPED", "PLANE_AXES", "cropped", "decode_published", "plane_features", "sphere_coordinates"]


def sphere_coordinates(coords: Tensor, back: bool) -> Tensor:
    """Spherical coordinates of one of SphereHead's two spheres (Li et al., "SphereHead", 2024).

    The frame is turned, front sphere (x,y,z) to (z,y,-x), back sphere to (-z,-x,y); then
    ``theta = 2 atan2(|(x,y)|, z) / pi - 1, phi = atan2(y, x) / pi, r = 2 |p| / sqrt(3) - 1``.

    Args: coords (...,3) head frame, the cube is [-1, 1]^3. Returns: (...,3) theta, phi, r; each in [-1, 1] in the cube.
    """
    x, y, z = coords.unbind(-1)
    x, y, z = (-z, -x, y) if back else (z, y, -x)
    tiny = torch.finfo(coords.dtype).tiny
    flat = (x.square() + y.square()).clamp_min(tiny).sqrt()
    theta = 2 * torch.atan2(flat, z) / math.pi - 1
    phi = torch.atan2(y, torch.where((x == 0) & (y == 0), torch.full_like(x, tiny), x)) / math.pi
    radius = 2 * (x.square() + y.square() + z.square()).clamp_min(tiny).sqrt() / math.sqrt(3.0) - 1
    return torch.stack([theta, phi, radius], dim=-1)


def _sphere_weight(coords: Tensor) -> Tensor:
    """(...,1) share of a sphere: ``(1 + cos pi theta) / 2 * (1 + cos pi phi) / 2``, 1 in its middle, 0 behind it."""
    cosines = (1 + torch.cos(math.pi * coords[..., :2])) / 2
    return cosines.prod(dim=-1, keepdim=True)


def fused_spheres(spheres: list[Tensor], coords: Tensor, implementation: str = "auto") -> Tensor:
    """Features of two spherical tri-planes: ``(F_A w_A + F_B w_B) / (w_A + w_B + 1e-8)``, mean over planes.

    Args: spheres two (B,3,C,R,R); coords (B,N,3) in [-1, 1]. Returns: (B,N,C).
    """
    total, shares = 0.0, 1e-8
    for planes, back in zip(spheres, (False, True)):
        place = sphere_coordinates(coords, back)
        share = _sphere_weight(place)
        total = total + share * sample_planes(planes, place, axes=PANOHEAD_AXES, implementation=implementation)
        shares = shares + share
    return total / shares


def plane_features(family: str, planes: list[Tensor], coords: Tensor, implementation: str = "auto") -> Tensor:
    """Features before the decoder.

    Args: planes as `PublishedGenerator.planes` returns them; coords (B,N,3) head frame, the cube is [-1, 1]^3.
    Returns: (B,N,C): mean over planes; the pyramid's mean over levels too.
    """
    if family == "spherehead":
        return fused_spheres(planes, coords, implementation)
    if planes[0].ndim == 6 and planes[0].shape[3] == 1:
        return sum(_sample_thin(level, coords, AXES[family]) for level in planes) / len(planes)
    return sample_planes(
        planes, coords, level_reduce="mean", axes=AXES[family], implementation=implementation
    )


def _sample_thin(planes: Tensor, coords: Tensor, axes: tuple) -> Tensor:
    """A tri-grid with one layer, which fades along depth (`ops.triplane` takes it as a plane, which does not)."""
    order = [axis for plane in axes for axis in plane]
    grid = coords[..., order].unflatten(-1, (3, 3)).transpose(1, 2).flatten(0, 1)[:, None, None]  # (3B,1,1,N,3)
    out = F.grid_sample(planes.flatten(0, 1), grid, align_corners=False, padding_mode="zeros")
    return out.view(*planes.shape[:3], -1).mean(dim=1).transpose(1, 2)


def decode_published(features: Tensor, weights: tuple, sigmoid: bool) -> tuple[Tensor, Tensor]:
    """Raw density (...,1) and features (...,F); `sigmoid`: through EG3D's ``sigmoid * 1.002 - 0.001``."""
    raw = decode_raw(features, weights)
    rest = raw[..., 1:]
    return raw[..., :1], torch.sigmoid(rest) * (1 + 2 * 0.001) - 0.001 if sigmoid else rest


def cropped(points: Tensor, limit: float | None) -> Tensor:
    """(...,1) bool: head-frame points (...,3) that the published renderers remove, ``|x|`` or ``|z|`` > limit."""
    if limit is None:
        return torch.zeros_like(points[..., :1], dtype=torch.bool)
    return (points[..., 0:1].abs() > limit) | (points[..., 2:3].abs() > limit)
