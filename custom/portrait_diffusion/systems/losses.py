"""Losses of the stages as pure functions of a render; weights and schedules are the system's."""
import torch.nn.functional as F
from torch import Tensor


def opaque(opacity: Tensor) -> Tensor:
    """Mean entropy of opacity: 0 where it is 0 or 1. Args: opacity, any shape, in [0, 1]."""
    o = opacity.clamp(1e-3, 1 - 1e-3)
    return F.binary_cross_entropy(o, o)


def sparsity(opacity: Tensor) -> Tensor:
    """mean(sqrt(o^2 + 0.01)), threestudio's: matter costs. Args: opacity, any shape."""
    return (opacity.square() + 0.01).sqrt().mean()


def spread(z_variance: Tensor, opacity: Tensor) -> Tensor:
    """Mean variance of depth along the rays that end in matter: 0 for a hard surface; threestudio's `z_variance`.

    Args: z_variance, opacity (B, H, W, 1), squared scene units and [0, 1]; rays count where opacity is above 0.5.
    """
    solid = (opacity.detach() > 0.5).to(z_variance)
    return (z_variance * solid).sum() / solid.sum().clamp(min=1)


def crooked_depth(depth: Tensor, opacity: Tensor, step: float = 0.02) -> Tensor:
    """Mean second difference of depth where three pixels in a row are opaque, cut off at `step`: edges may stay.

    A plane seen in perspective is nearly free. Args: depth, opacity (B, H, W, 1), scene units.
    """
    total = depth.new_zeros(())
    solid = (opacity.detach() > 0.9).to(depth)
    for axis in (1, 2):
        n = depth.shape[axis] - 2
        a, b, c = (depth.narrow(axis, k, n) for k in range(3))
        on = solid.narrow(axis, 0, n) * solid.narrow(axis, 1, n) * solid.narrow(axis, 2, n)
        total = total + ((a - 2 * b + c).abs().clamp(max=step) * on).sum() / on.sum().clamp(min=1)
    return total


def total_variation(grid: Tensor) -> Tensor:
    """Mean absolute difference of neighbours along the last three axes. Args: grid (..., D, H, W)."""
    return sum(grid.diff(dim=axis).abs().mean() for axis in (-3, -2, -1))


def chroma_variation(grid: Tensor) -> Tensor:
    """Total variation of a grid's colours less their mean: coloured specks cost, light and dark strands are free.

    Args: grid (..., 4, D, H, W), raw density and colour.
    """
    colour = grid[..., 1:, :, :, :]
    return total_variation(colour - colour.mean(dim=-4, keepdim=True))


def size(grid: Tensor) -> Tensor:
    """Mean square of a grid: staying near what the initialization gave."""
    return grid.square().mean()


RENDER_LOSSES = {
    "opaque": lambda out: opaque(out["opacity"]),
    "sparsity": lambda out: sparsity(out["opacity"]),
    "z_variance": lambda out: spread(out["z_variance"], out["opacity"]),
    "depth_smooth": lambda out: crooked_depth(out["depth"], out["opacity"]),
}
"""Losses of one render by name: lambda_NAME in a stage's `loss`."""
GRID_LOSSES = {"tv": total_variation, "chroma_tv": chroma_variation, "restoration": size}
"""Losses of the restoration grid by name."""
PHOTO_LOSSES = ("rgb", "alpha", "perceptual")
"""Losses of the photo's own view by name."""
PAINTED_LOSSES = ("painted", "painted_perceptual")
"""Losses of painted views by name, see `systems.painting`."""


def known_names() -> tuple:
    """Names that a stage's `loss` may weigh with lambda_NAME."""
    return (*RENDER_LOSSES, *GRID_LOSSES, *PHOTO_LOSSES, *PAINTED_LOSSES)
