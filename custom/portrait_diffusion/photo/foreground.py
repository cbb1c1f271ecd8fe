"""Foreground colours under a soft alpha, without the colour fringe of the background."""
import torch
from torch import Tensor
from torch.nn import functional as F

from .guided_filter import box_mean


def estimate_foreground(rgb: Tensor, alpha: Tensor, valid: Tensor | None = None, radii=(90, 6)) -> Tensor:
    """Blur-fusion foreground estimation (Forte 2021, Approximate Fast Foreground Colour Estimation, ICIP).

    For each radius, large to small, with box means ``<.>`` over windows:
    ``F^ = <alpha F> / <alpha>``, ``B^ = <(1 - alpha) B> / <1 - alpha>``,
    ``F = F^ + alpha (I - alpha F^ - (1 - alpha) B^)``, and B is replaced by B^. Starts from F = B = I.

    Args:
        rgb: (S, S, 3) composite in [0, 1].
        alpha: (S, S, 1) in [0, 1].
        valid: (S, S, 1); pixels with 0 do not count.
        radii: window half widths at S = 512; they scale with S.

    Returns: (S, S, 3) in [0, 1]: equals ``rgb`` where alpha is 1, nearby foreground colour where it is 0.
        Differentiable.
    """
    picture, cover = rgb.permute(2, 0, 1), alpha.permute(2, 0, 1)
    weight = torch.ones_like(cover) if valid is None else valid.permute(2, 0, 1)
    foreground = background = picture
    far_foreground, far_background = _mean(picture, cover * weight), _mean(picture, (1 - cover) * weight)
    for radius in radii:
        radius = max(1, round(radius * rgb.shape[0] / 512))
        inside, outside = cover * weight, (1 - cover) * weight
        near_foreground = _weighted_mean(foreground, inside, radius, far_foreground)
        background = _weighted_mean(background, outside, radius, far_background)
        rest = picture - cover * near_foreground - (1 - cover) * background
        # outside the photograph the picture says nothing
        foreground = (near_foreground + cover * rest * weight).clamp(0, 1)
        far_foreground, far_background = foreground, background
    return foreground.permute(1, 2, 0).contiguous()


def sure_part(alpha: Tensor, valid: Tensor, margin: int = 3) -> Tensor:
    """A matte without its outermost pixels, whose colours are half the background's however sure it is of them.

    The least alpha within ``margin`` pixels, softened by a box of two thirds of that; the border of the photograph is
    no outline. `estimate_foreground` then takes an outline's colours from further inside: the sides of a head are seen
    through these pixels alone.

    Args: alpha, valid (S, S, 1) in [0, 1]; margin: at S = 512, it scales with S. Returns: (S, S, 1), at most alpha.
    """
    radius = max(1, round(margin * alpha.shape[0] / 512))
    inside = torch.maximum(alpha, 1 - valid).permute(2, 0, 1)
    least = -F.max_pool2d(-inside[None], 2 * radius + 1, 1, radius)[0]
    return torch.minimum(box_mean(least, max(1, round(2 * radius / 3))).permute(1, 2, 0), alpha)


def _weighted_mean(picture: Tensor, weight: Tensor, radius: int, fallback: Tensor) -> Tensor:
    """Box mean of a picture under a weight, or the fallback where the window holds no weight."""
    total = box_mean(weight, radius)
    return torch.where(total > 1e-5, box_mean(picture * weight, radius) / total.clamp_min(1e-5), fallback)


def _mean(picture: Tensor, weight: Tensor) -> Tensor:
    return (picture * weight).sum((1, 2), keepdim=True) / weight.sum().clamp_min(1e-6)
