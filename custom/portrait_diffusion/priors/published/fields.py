"""Decoder outputs of the published priors as their own renderers want them; plane features are `ops.plane_layouts`."""
import torch
from torch import Tensor

from ...ops.triplane import decode_raw

CROPPED = -1000.0
"""Raw density of points that the published renderers remove."""


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
