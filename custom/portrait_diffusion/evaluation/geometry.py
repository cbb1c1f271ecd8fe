"""How far a shape is from the true one: depth, normals, surfaces, landmarks. Cameras are known: nothing is aligned."""
import math

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..errors import UsageError

CLOSE_DEG = 11.25
"""Angle under which a normal counts as right."""
THRESHOLDS_MM = (1.0, 2.0, 5.0)
"""Of the F-score."""


def depth_error(depth: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of depth where both have a surface, in the unit of the input: (B,); NaN where nowhere.

    Args: depth, truth (B, H, W), 0 for background.
    Raises: UsageError for differing shapes.
    """
    if depth.shape != truth.shape or depth.ndim != 3:
        raise UsageError(f"Depth needs one shape (B,H,W) to compare; got {tuple(depth.shape)}, {tuple(truth.shape)}.")
    both = (depth > 0) & (truth > 0)
    return ((depth - truth).abs() * both).sum(dim=(1, 2)) / both.sum(dim=(1, 2))


def normal_error(normals: Tensor, truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Angle between normals, degrees, over the pixels of a mask.

    Args: normals, truth (B, H, W, 3) unit length; mask (B, H, W), more than 1/2 counts.
    Returns: ``mean``, ``median`` in [0, 180] and ``close`` in [0, 1], the share under `CLOSE_DEG`; (B,) each, NaN for
        an empty mask.
    Raises: UsageError for differing shapes.
    """
    if normals.shape != truth.shape or normals.shape[:3] != mask.shape or normals.shape[-1] != 3:
        raise UsageError(
            f"Normals to compare need shapes (B,H,W,3) and a mask (B,H,W); got {tuple(normals.shape)}, "
            f"{tuple(truth.shape)} and {tuple(mask.shape)}."
        )
    # the half-angle form keeps its precision near 0 and 180 degrees, which the arc cosine does not
    angle = 2 * torch.atan2((normals - truth).norm(dim=-1), (normals + truth).norm(dim=-1)) * (180 / math.pi)
    angle = torch.where(mask > 0.5, angle, torch.nan).flatten(1)
    known = ~angle.isnan()
    return {
        "mean": angle.nanmean(dim=1), "median": angle.nanmedian(dim=1).values,
        "close": (angle < CLOSE_DEG).sum(dim=1) / known.sum(dim=1),
    }  # fmt: skip


def surface_distance(made: np.ndarray, truth: np.ndarray, thresholds: tuple = THRESHOLDS_MM) -> dict[str, float]:
    """Chamfer-L1 and F-scores of two sets of surface points.

    Chamfer-L1 is the mean of the mean distances to the nearest point of the other set, there and back; the F-score at d
    is the harmonic mean of the shares of points nearer than d to the other set (Knapitsch et al., "Tanks and Temples",
    ACM TOG 2017).

    Args: made (N, 3), truth (M, 3) in millimetres, sampled evenly; thresholds in millimetres.
    Returns: ``chamfer``, ``f1``, ``f2``, ``f5`` (by threshold).
    Raises: UsageError for an empty set.
    """
    if len(made) == 0 or len(truth) == 0:
        raise UsageError(f"A surface to compare has no points: {len(made)} and {len(truth)}.")
    there, back = cKDTree(truth).query(made)[0], cKDTree(made).query(truth)[0]
    found = {"chamfer": 0.5 * float(there.mean() + back.mean())}
    for threshold in thresholds:
        precision, recall = float((there < threshold).mean()), float((back < threshold).mean())
        both = precision + recall
        found[f"f{threshold:g}"] = 2 * precision * recall / both if both else 0.0
    return found


def landmark_error(made: Tensor, truth: Tensor, left: int = 0, right: int = 1) -> Tensor:
    """Mean distance of landmarks over the distance of two of them (the eyes): (B,), NME.

    Args: made, truth (B, L, 2 or 3); left, right: indices of the eyes.
    Raises: UsageError for differing shapes.
    """
    if made.shape != truth.shape or made.ndim != 3:
        raise UsageError(f"Landmarks to compare need one shape; got {tuple(made.shape)} and {tuple(truth.shape)}.")
    scale = (truth[:, left] - truth[:, right]).norm(dim=-1)
    return (made - truth).norm(dim=-1).mean(dim=1) / scale
