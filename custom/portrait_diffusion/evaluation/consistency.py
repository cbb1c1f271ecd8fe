"""Do the views of a head agree? One view warped into another through depth, compared where both see the surface.

Blind to blur: a grey head agrees with itself everywhere. Read it beside a measure of detail
(`image.band_energy_ratios`).
"""
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UsageError
from ..ops.projection import forward_project


def warp_error(
    source: Tensor, source_depth: Tensor, target: Tensor, target_depth: Tensor, c2w: tuple[Tensor, Tensor],
    fovy: tuple[Tensor, Tensor], perceptual: Callable | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Difference of a view and another one carried into it, over pixels whose surface both see.

    With the renders' own depth it tells whether colour stays on the head that is rendered (self-warp); with true depth
    also whether the head is where it should be. Not differentiable in depth and cameras.

    Args:
        source, target: (B, 3, H, W) in [0, 1].
        source_depth, target_depth: (B, H, W) distance along the ray, scene units, 0 for background.
        c2w, fovy: of source and target, (B, 4, 4) and (B,) radians each.
        perceptual: (made, truth, mask) -> (B,), for example `stlpips.STLPIPS`.
    Returns: ``l1`` (B,) in [0, 1], ``covered`` (B,) share of the target's surface that could be compared, and with
        `perceptual` ``perceptual`` (B,). NaN where nothing could be compared.
    Raises: UsageError for shapes that do not fit.
    """
    b, _, h, w = target.shape
    if source.shape != target.shape or source_depth.shape != (b, h, w) or target_depth.shape != (b, h, w):
        raise UsageError(
            f"Views to compare need one shape (B,3,H,W) and depth (B,H,W); got {tuple(source.shape)}, "
            f"{tuple(target.shape)}, {tuple(source_depth.shape)} and {tuple(target_depth.shape)}."
        )
    moved, valid = forward_project(
        source[:, None], source_depth[:, None], c2w[0][:, None], fovy[0][:, None], c2w[1], fovy[1], h, w,
        target_depth=target_depth,
    )  # fmt: skip
    count = valid.sum(dim=(1, 2, 3))
    nothing = torch.full_like(count, torch.nan)
    l1 = ((moved - target).abs().mean(dim=1, keepdim=True) * valid).sum(dim=(1, 2, 3)) / count
    found = {
        "l1": torch.where(count > 0, l1, nothing),
        "covered": count / (target_depth > 0).sum(dim=(1, 2)).clamp(min=1),
    }
    if perceptual is not None:
        filled = torch.where(valid > 0, moved, target)  # equal outside, so that edges of the mask count nothing
        value = perceptual(filled, target, valid.clamp(min=1e-6))
        found["perceptual"] = torch.where(count > 0, value.to(count), nothing)
    return found


def flicker(frames: Tensor, depth: Tensor, c2w: Tensor, fovy: Tensor) -> Tensor:
    """Mean change from frame to frame of a film that turns slowly, after the motion is taken out: a scalar.

    Args: frames (T, 3, H, W) in [0, 1]; depth (T, H, W); c2w (T, 4, 4); fovy (T,): consecutive, about 1 degree apart.
    Returns: mean of `warp_error`'s ``l1`` over the T - 1 steps.
    Raises: UsageError for fewer than two frames.
    """
    if len(frames) < 2:
        raise UsageError(f"Flicker needs at least two frames; got {len(frames)}.")
    pairs = (frames[:-1], depth[:-1], frames[1:], depth[1:])
    return warp_error(*pairs, (c2w[:-1], c2w[1:]), (fovy[:-1], fovy[1:]))["l1"].nanmean()
