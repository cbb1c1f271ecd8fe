"""A Gaussian over W+, from which random heads are drawn: where the encoder puts heads, as mean and scaled axes."""
import torch
from torch import Tensor


def fit_gaussian(ws: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Mean and principal axes of latents, each axis as long as the standard deviation along it.

    With X the (N, D) centred latents and X = U S V^T, axis k is V_k S_k / sqrt(N - 1). Axes beyond N - 1 are zero.

    Args:
        ws: (N, L, W) style vectors of N heads, N >= 2.
        rank: number of axes kept, the longest first.
    Returns: mean (L, W), axes (rank, L, W), float32.
    """
    flat = ws.flatten(1).double()
    mean = flat.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    axes = directions * (lengths / (len(flat) - 1) ** 0.5)[:, None]
    axes = torch.cat([axes, axes.new_zeros(max(0, rank - len(axes)), axes.shape[1])])[:rank]
    return mean.float().view(ws.shape[1:]), axes.float().view(rank, *ws.shape[1:])


def draw(mean: Tensor, axes: Tensor, z: Tensor, truncation: float = 1.0) -> Tensor:
    """Latents ``mean + truncation * sum_k z_k axes_k`` (N, L, W) of standard normal z (N, rank)."""
    return mean + truncation * torch.einsum("nk,klw->nlw", z.to(axes), axes)
