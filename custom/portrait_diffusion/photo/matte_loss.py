"""Losses of the matting network."""
import torch
from torch import Tensor
from torch.nn import functional as F


def matte_loss(logits: Tensor, batch) -> dict[str, Tensor]:
    """Terms of the matting loss inside the photograph, float32 scalars, and their weighted sum ``total``.

    * ``alpha``: mean absolute error (Xu et al. 2017, Deep Image Matting).
    * ``composition``: mean absolute error of ``alpha F + (1 - alpha) B`` against the true composite (same paper).
    * ``laplacian``: L1 between Laplacian pyramids, level k weighted by 2^k (Hou and Liu 2019, Context-Aware Image
      Matting).
    * ``entropy``: cross-entropy of the logits; keeps gradients alive where alpha is confidently wrong.

    Args:
        logits: (B, 1, S, S) output of MatteNet.
        batch: composites.MatteBatch.

    Returns: dict of scalars. Differentiable in ``logits``.
    """
    logits = logits.float()
    alpha, weight = logits.sigmoid(), batch.valid
    norm = weight.sum().clamp_min(1)
    difference = (alpha - batch.alpha) * weight
    terms = {
        "alpha": difference.abs().sum() / norm,
        "composition": (difference * (batch.foreground - batch.background)).abs().sum() / (3 * norm),
        "laplacian": laplacian_l1(difference),
        "entropy": (F.binary_cross_entropy_with_logits(logits, batch.alpha, reduction="none") * weight).sum() / norm,
    }
    terms["total"] = terms["alpha"] + terms["composition"] + terms["laplacian"] + 0.25 * terms["entropy"]
    return terms


def laplacian_l1(difference: Tensor, levels: int = 5) -> Tensor:
    """Mean absolute Laplacian pyramid coefficients of a difference picture (B, 1, S, S), level k weighted by 2^k.

    The pyramid is linear, so the pyramid of a difference is the difference of the pyramids. Zero exactly for a constant
    difference.
    """
    total = torch.zeros((), device=difference.device)
    for level in range(levels):
        coarse = F.avg_pool2d(difference, 2)
        smooth = F.interpolate(coarse, size=difference.shape[-2:], mode="bilinear", align_corners=False)
        total = total + 2**level * (difference - smooth).abs().mean()
        difference = coarse
    return total
