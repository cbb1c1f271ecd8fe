"""Do the distillation gradients of two views want the same of the surface they both see? The score of MV-NRS.

The paper (arXiv 2411.10369) keeps the noise whose gradient is more consistent with other views and gives no formula;
this is a cosine over mutually visible latents, as a relative of the gradient consistency of "Geometry-Aware Score
Distillation" (arXiv 2406.16695). Both views must have the same timestep.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.projection import forward_project


@dataclass
class ViewOfLatents:
    """Camera and depth of B views on the latent grid: c2w (B, 4, 4), fovy (B,), depth (B, h, w), 0 for background."""

    c2w: Tensor
    fovy: Tensor
    depth: Tensor

    def rows(self, index: Tensor) -> "ViewOfLatents":
        """The indexed views."""
        return ViewOfLatents(self.c2w[index], self.fovy[index], self.depth[index])


@torch.no_grad()
def carried_gradient(gradient: Tensor, source: ViewOfLatents, target: ViewOfLatents) -> tuple[Tensor, Tensor]:
    """A gradient (B, C, h, w) on the source's latents as the target sees it, and where (B, 1, h, w) it is known."""
    return forward_project(
        gradient[:, None], source.depth[:, None], source.c2w[:, None], source.fovy[:, None], target.c2w, target.fovy,
        *target.depth.shape[-2:], target_depth=target.depth, subdivide=4,
    )  # fmt: skip


@torch.no_grad()
def agreement(gradient: Tensor, neighbour: Tensor, valid: Tensor, min_share: float = 0.02) -> Tensor:
    """Mean cosine between gradients over the latents where both are known.

    s = mean over valid latents of <g, h> / (|g| |h|), the inner product over channels; latents are no vectors in space,
    so nothing is rotated.

    Args:
        gradient, neighbour: (B, C, h, w), the second already carried over.
        valid: (B, 1, h, w).
        min_share: share of valid latents below which two views cannot be compared.
    Returns: (B,) in [-1, 1]; NaN where they cannot be compared.
    """
    cosine = torch.nn.functional.cosine_similarity(gradient, neighbour, dim=1, eps=1e-12)[:, None] * valid
    count = valid.sum(dim=(1, 2, 3))
    score = cosine.sum(dim=(1, 2, 3)) / count.clamp(min=1)
    return torch.where(count >= min_share * valid[0].numel(), score, torch.nan)


@torch.no_grad()
def pair_scores(gradients: Tensor, views: ViewOfLatents, pairs: Tensor) -> Tensor:
    """Scores of several candidates of each view against their partners' first candidates.

    Args:
        gradients: (K, B, C, h, w) of K noise candidates in each of B views, candidate 0 is the anchor's.
        views: the B views.
        pairs: (P, 2) index pairs (view, neighbour).
    Returns: (K, P): how well each candidate of pairs[:, 0] agrees with the anchor's gradient of pairs[:, 1].
    """
    first, second = pairs.unbind(1)
    moved, valid = carried_gradient(gradients[0, second], views.rows(second), views.rows(first))
    return torch.stack([agreement(g[first], moved, valid) for g in gradients])


def shuffled_control(gradients: Tensor, views: ViewOfLatents, pairs: Tensor, generator: torch.Generator) -> Tensor:
    """The same score with the neighbour's gradient taken from other places: near 0 if the score means anything. (P,).

    The carried gradient's latents are permuted within the picture.
    """
    first, second = pairs.unbind(1)
    moved, valid = carried_gradient(gradients[0, second], views.rows(second), views.rows(first))
    p, c, h, w = moved.shape
    order = torch.randperm(h * w, generator=generator, device=moved.device)
    known = (moved / valid.clamp(min=1e-6)).flatten(2)
    random = torch.randn(known.shape, generator=generator, device=moved.device)
    filled = torch.where(valid.flatten(2) > 0, known, random)
    return agreement(gradients[0, first], filled[:, :, order].view(p, c, h, w), valid)


def keep_best(scores: Tensor) -> Tensor:
    """Index (P,) of the best candidate by scores (K, P); where nothing can be compared (NaN) the anchor, 0, stays.

    A tie is the anchor's.
    """
    known = torch.where(scores.isnan(), -torch.inf, scores)
    best = known.argmax(dim=0)
    return torch.where(known.gather(0, best[None])[0] > known[0], best, 0)
