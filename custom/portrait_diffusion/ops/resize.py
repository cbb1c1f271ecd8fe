"""Pictures at another size."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize, a triangle as wide as the larger pixels: without aliasing when it shrinks.

    Where PyTorch is asked for deterministic algorithms it is two products with matrices, because a GPU adds up
    interpolation's own gradient in any order; they agree to rounding.

    Args: x (B, C, H, W); size (rows, columns).
    Returns: (B, C, rows, columns), differentiable; `x` itself if it has that size.
    """
    if x.shape[-2:] == tuple(size):
        return x
    how = {"mode": "bilinear", "antialias": True, "align_corners": False}
    if not torch.are_deterministic_algorithms_enabled():
        return F.interpolate(x, tuple(size), **how)
    of_rows, of_columns = (
        F.interpolate(torch.eye(old, device=x.device, dtype=x.dtype)[None, None], (new, old), **how)[0, 0]
        for old, new in zip(x.shape[-2:], size, strict=True)
    )
    return of_rows @ x @ of_columns.t()
