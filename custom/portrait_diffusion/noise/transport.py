"""Gaussian noise carried from one view to another through depth, exactly white whatever the geometry.

A pixel's noise is the integral of white noise over its area (Chang et al., "How I Warped Your Noise", ICLR 2024,
section 3): it is cut into k x k cells that are white themselves and add up to it, each cell goes to the one target
pixel in which it lands, and a target pixel is the sum of its cells over the root of their number. No cell is used
twice, so the result is N(0, I) given any depth, cameras and occlusion; only its correlation with the source depends on
them. Interpolating noise instead loses variance and correlates neighbours.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.projection import cells_of, places, visible

SAME_SURFACE = 0.03
"""Depths within this of a latent pixel's nearest one are averaged, those behind are another surface; scene units."""


def subdivide(noise: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """White noise on k x k cells a pixel whose block sums over k are the given noise.

    Cell = z - mean(z) + x / k with fresh z: each cell is N(0, 1), all are independent, and their sum over k is x.

    Args: noise (B, C, h, w), N(0, 1). Returns: (B, C, h k, w k).
    """
    b, c, h, w = noise.shape
    z = torch.randn((b, c, h, k, w, k), generator=generator, device=noise.device, dtype=noise.dtype)
    z = z - z.mean(dim=(3, 5), keepdim=True) + noise[:, :, :, None, :, None] / k
    return z.reshape(b, c, h * k, w * k)


def latent_depth(depth: Tensor, factor: int, min_cover: float = 0.5) -> Tensor:
    """Depth of latent pixels: the mean over the nearest surface in their footprint of factor x factor pixels.

    Args: depth (B, H, W), 0 for background; min_cover: share of solid pixels below which a latent pixel is background.
    Returns: (B, H / factor, W / factor).
    """
    b, h, w = depth.shape
    blocks = depth.reshape(b, h // factor, factor, w // factor, factor).transpose(2, 3).flatten(3)
    solid = blocks > 0
    nearest = torch.where(solid, blocks, torch.inf).amin(dim=-1, keepdim=True)
    same = solid & (blocks <= nearest + SAME_SURFACE)
    mean = (blocks * same).sum(-1) / same.sum(-1).clamp(min=1)
    return torch.where(solid.to(depth).mean(-1) >= min_cover, mean, 0)


@torch.no_grad()
def transport(
    noise: Tensor, depth: Tensor, c2w: Tensor, fovy: Tensor, target_c2w: Tensor, target_fovy: Tensor,
    target_depth: Tensor | None = None, generator: torch.Generator | None = None, k: int = 4, min_share: float = 0.25,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Noise of a view carried into another view, exactly white.

    Args:
        noise: (B, C, h, w) of the source view.
        depth: (B, h, w) distance along the rays of its latent pixels (`latent_depth`); 0 for background.
        c2w (B, 4, 4), fovy (B,) radians, and target_c2w, target_fovy: the two cameras.
        target_depth: (B, h, w), the target's own; cells must then lie on it. None: on the nearest cell of their pixel.
        generator: source of the cells and of fresh noise.
        k: a pixel is cut into k x k cells; 8 carry no more than 4, in three times the time.
        min_share: share of k^2 cells below which a target pixel takes fresh noise.
        fresh: (B, C, h, w) noise for what is not carried; None draws it.
    Returns: noise (B, C, h, w) of the target view; carried (B, 1, h, w), 1 where it comes from the source.
    """
    b, c, h, w = noise.shape
    cells = cells_of(depth[:, None], c2w[:, None], fovy[:, None], target_c2w, target_fovy, h, w, k)
    owned = visible(cells, h * w, target_depth)
    index = places(cells.pixel, h * w)
    count = noise.new_zeros(b, 2 * h * w).scatter_add(1, index, owned.to(noise))[:, : h * w]
    values = subdivide(noise, k, generator).flatten(2) * owned[:, None]
    total = noise.new_zeros(b, c, 2 * h * w).scatter_add(2, index[:, None].expand(-1, c, -1), values)[:, :, : h * w]
    if fresh is None:
        fresh = torch.randn(noise.shape, generator=generator, device=noise.device, dtype=noise.dtype)
    carried = (count >= min_share * k * k).view(b, 1, h, w)
    moved = (total / count.clamp(min=1).sqrt()[:, None]).view_as(noise)
    return torch.where(carried, moved, fresh), carried.to(noise)


def radial_spectrum(noise: Tensor, bins: int = 8) -> Tensor:
    """Mean power of noise by spatial frequency, 1 everywhere for white noise of variance 1.

    Args: noise (B, C, h, w). Returns: (bins,), from low frequencies (without the constant) to the highest.
    """
    h, w = noise.shape[-2:]
    power = torch.fft.fft2(noise).abs().square().mean(dim=(0, 1)) / (h * w)
    fy, fx = torch.fft.fftfreq(h, device=noise.device), torch.fft.fftfreq(w, device=noise.device)
    radius = (fy[:, None].square() + fx[None].square()).sqrt()
    index = (radius / radius.max() * bins).long().clamp(max=bins - 1)
    keep = (radius > 0).flatten()
    ones = F.one_hot(index.flatten()[keep], bins).to(power)
    return (power.flatten()[keep] @ ones) / ones.sum(0).clamp(min=1)
