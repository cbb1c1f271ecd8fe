"""Finite differences of fields."""
from collections.abc import Callable

import torch
from torch import Tensor


def central_differences(field: Callable[[Tensor], Tensor], points: Tensor, step: float) -> Tensor:
    """Gradient of a scalar field by central differences, (f(x + s e_k) - f(x - s e_k)) / 2 s; differentiable as f is.

    Args:
        field: (..., 3, 2, 3) points to (..., 3, 2) values.
        points: (..., 3). step: s, in the points' unit.
    Returns: (..., 3).
    """
    offsets = step * torch.eye(3, dtype=points.dtype, device=points.device)
    probes = points[..., None, None, :] + torch.stack([offsets, -offsets], dim=1)
    plus, minus = field(probes).unbind(-1)
    return (plus - minus) / (2 * step)
