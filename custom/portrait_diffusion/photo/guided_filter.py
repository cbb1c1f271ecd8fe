"""Guided image filter (He, Sun and Tang 2013) with box filters in constant time per pixel."""
import torch
from torch import Tensor
from torch.nn import functional as F


def box_mean(picture: Tensor, radius: int) -> Tensor:
    """Mean over the (2r+1)^2 window, cut off at the border (only pixels that exist count).

    Args:
        picture: (C, H, W) float; sums run in float64.
        radius: window half width r >= 0.

    Returns: (C, H, W) in the dtype of ``picture``. Differentiable.
    """
    result = picture.double()
    for axis in (-1, -2):
        length = picture.shape[axis]
        total = F.pad(result.transpose(axis, -1).cumsum(-1), (1, 0)).transpose(axis, -1)
        centre = torch.arange(length, device=picture.device)
        high, low = (centre + radius + 1).clamp_max(length), (centre - radius).clamp_min(0)
        count = (high - low).view([-1] + [1] * (-1 - axis))
        result = (total.index_select(axis, high) - total.index_select(axis, low)) / count
    return result.to(picture.dtype)


def guided_filter(guide: Tensor, target: Tensor, radius: int, eps: float) -> Tensor:
    """Edge-preserving smoothing of ``target`` that follows the edges of a colour guide.

    In every window the output is a linear function of the guide, ``q = a . I + b`` with
    ``a = (Cov(I) + eps 1)^-1 Cov(I, p)`` and ``b = mean(p) - a . mean(I)``; a and b are then averaged over windows.

    Args:
        guide: (C, H, W), usually RGB in [0, 1].
        target: (1, H, W), for example a hard mask.
        radius: window half width in pixels.
        eps: regularisation in squared guide units; larger smooths more.

    Returns: (1, H, W), not clamped. Linear in ``target``; differentiable in both.
    """
    guide, target = guide.double(), target.double()
    mean_guide, mean_target = box_mean(guide, radius), box_mean(target, radius)
    covariance = box_mean((guide[:, None] * guide[None]).flatten(0, 1), radius).unflatten(0, (len(guide), len(guide)))
    covariance = covariance - mean_guide[:, None] * mean_guide[None]
    cross = box_mean(guide * target, radius) - mean_guide * mean_target
    system = covariance.permute(2, 3, 0, 1) + eps * torch.eye(len(guide), dtype=guide.dtype, device=guide.device)
    slope = torch.linalg.solve(system, cross.permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)
    offset = mean_target - (slope * mean_guide).sum(0, keepdim=True)
    result = (box_mean(slope, radius) * guide).sum(0, keepdim=True) + box_mean(offset, radius)
    return result.float()
