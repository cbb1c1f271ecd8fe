"""Ray sampling and compositing exactly as the published renderers do them (EG3D; Mip-NeRF's resampling weights).

Axes: ``N`` batch, ``R`` rays, ``S`` samples. Depth is the distance from the camera's centre along a unit direction.
The published code jitters its samples in evaluation too; here the jitter is an argument and none is the default.
"""
import torch
from torch import Tensor

from ...ops.plane_layouts import layout_features
from .fields import CROPPED, cropped, decode_published
from .sizes import RenderOptions


def rays_of_label(label: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rays of the published camera labels, row by row.

    Args: label (N,25): row-major camera-to-world (x right, y down, z forward), row-major intrinsics over image size.
    Returns: origins, unit directions (N,size^2,3), GAN world frame; pixel centres at (i + 0.5) / size.
    """
    c2w, k = label[:, :16].view(-1, 4, 4), label[:, 16:25].view(-1, 3, 3)
    centres = (torch.arange(size, dtype=label.dtype, device=label.device) + 0.5) / size
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    u, v = u.reshape(1, -1), v.reshape(1, -1)
    fx, fy, cx, cy, skew = (k[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2), (0, 1)))
    y = (v - cy) / fy
    x = (u - cx - skew * y) / fx
    camera = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # (N,R,3)
    directions = (camera[:, :, None, :] * c2w[:, None, :3, :3]).sum(-1)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    return c2w[:, None, :3, 3].expand_as(directions), directions


def coarse_depths(options: RenderOptions, shape: tuple[int, int], like: Tensor, jitter: Tensor | None) -> Tensor:
    """(N,R,S) evenly spaced depths, both ends included; `jitter` (N,R,S) in [0, 1) moves each by up to one step."""
    depth = torch.linspace(options.ray_start, options.ray_end, options.coarse, dtype=like.dtype, device=like.device)
    depth = depth.expand(*shape, -1)
    return depth if jitter is None else depth + jitter * ((options.ray_end - options.ray_start) / (options.coarse - 1))


def march(depth: Tensor, sigma: Tensor, features: Tensor, white_back: bool = False) -> dict[str, Tensor]:
    """Compositing with values at the middles of intervals (MipRayMarcher2 of EG3D).

    ``alpha_i = 1 - exp(-softplus((s_i + s_{i+1}) / 2 - 1) d_i)``, ``w_i = alpha_i prod_{j<i} (1 - alpha_j + 1e-10)``.

    Args: depth (N,R,S) ascending; sigma (N,R,S) raw density; features (N,R,S,C).
    Returns: feature (N,R,C), depth (N,R) expected, limited to the range of all depths, opacity (N,R), weights
        (N,R,S-1).
    """
    delta = depth[..., 1:] - depth[..., :-1]
    middle = 0.5 * (depth[..., 1:] + depth[..., :-1])
    density = torch.nn.functional.softplus(0.5 * (sigma[..., 1:] + sigma[..., :-1]) - 1)
    alpha = 1 - torch.exp(-density * delta)
    through = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha + 1e-10], dim=-1), dim=-1)
    weights = alpha * through[..., :-1]
    opacity = weights.sum(-1)
    colour = (weights[..., None] * (0.5 * (features[..., 1:, :] + features[..., :-1, :]))).sum(-2)
    expected = (weights * middle).sum(-1) / opacity
    expected = expected.nan_to_num(nan=torch.inf).clamp(depth.min(), depth.max())
    if white_back:
        colour = colour + (1 - opacity)[..., None]
    return {"feature": colour, "depth": expected, "opacity": opacity, "weights": weights}


@torch.no_grad()
def fine_depths(depth: Tensor, weights: Tensor, n: int, quantiles: Tensor | None = None) -> Tensor:
    """New depths where the first pass has matter, not sorted.

    The weights (N,R,S-1) are widened (maximum, then mean, of neighbours) plus 0.01; the histogram over the middles of
    the coarse intervals, its outer weights left out, is inverted at the quantiles.

    Args: depth (N,R,S); quantiles (N,R,n) in [0, 1]; None is evenly spaced, both ends included. Returns: (N,R,n).
    """
    high = torch.cat([weights[..., :1], torch.maximum(weights[..., :-1], weights[..., 1:]), weights[..., -1:]], dim=-1)
    wide = 0.5 * (high[..., :-1] + high[..., 1:]) + 0.01  # (N,R,S-1)
    bins = 0.5 * (depth[..., :-1] + depth[..., 1:])  # (N,R,S-1)
    pdf = wide[..., 1:-1] + 1e-5
    pdf = pdf / pdf.sum(-1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(pdf[..., :1]), torch.cumsum(pdf, dim=-1)], dim=-1)  # (N,R,S-2)
    if quantiles is None:
        quantiles = torch.linspace(0, 1, n, dtype=depth.dtype, device=depth.device).expand(*depth.shape[:-1], n)
    index = torch.searchsorted(cdf.contiguous(), quantiles.contiguous(), right=True)
    below, above = (index - 1).clamp_min(0), index.clamp_max(pdf.shape[-1])
    low, high = cdf.gather(-1, below), cdf.gather(-1, above)
    left, right = bins.gather(-1, below), bins.gather(-1, above)
    width = high - low
    width = torch.where(width < 1e-5, torch.ones_like(width), width)
    return left + (quantiles - low) / width * (right - left)


def render_features(
    family: str, planes: list[Tensor], decoder: tuple, rays_o: Tensor, rays_d: Tensor, options: RenderOptions,
    jitter: Tensor | None = None, quantiles: Tensor | None = None,
) -> dict[str, Tensor]:
    """Volume rendering of features, in two passes.

    Args:
        planes: of `PublishedGenerator.planes`; decoder: effective weights; rays_o, rays_d (N,R,3) GAN world frame.
        jitter (N,R,S), quantiles (N,R,F): uniform draws in [0, 1); None is deterministic.
    Returns: as `march`, with depth_all and sigma_all (N,R,S+F) of the merged samples, features_all (N,R,S+F,C), and
        coarse: depth, sigma and weights of the first pass. EG3D's features are mapped to [-1, 1] as its marcher does.
    """

    def field(depth: Tensor) -> tuple[Tensor, Tensor]:
        points = rays_o[:, :, None] + depth[..., None] * rays_d[:, :, None]
        flat = points.flatten(1, 2)
        features = layout_features(family, planes, flat * (2 / options.box_warp))
        sigma, rest = decode_published(features, decoder, options.sigmoid)
        sigma = torch.where(cropped(flat, options.crop), torch.full_like(sigma, CROPPED), sigma)
        return sigma.view(depth.shape), rest.view(*depth.shape, -1)

    depth = coarse_depths(options, rays_o.shape[:2], rays_o, jitter)
    sigma, features = field(depth)
    coarse = {"depth": depth, "sigma": sigma}
    if options.fine:
        coarse["weights"] = march(depth, sigma.detach(), features.detach())["weights"]
        new = fine_depths(depth, coarse["weights"], options.fine, quantiles)
        new_sigma, new_features = field(new)
        depth, order = torch.cat([depth, new], dim=-1).sort(dim=-1)
        sigma = torch.cat([sigma, new_sigma], dim=-1).gather(-1, order)
        features = torch.cat([features, new_features], dim=-2)
        features = features.gather(-2, order[..., None].expand_as(features))
    out = march(depth, sigma, features, options.white_back)
    if options.sigmoid:
        out["feature"] = out["feature"] * 2 - 1
    return out | {"depth_all": depth, "sigma_all": sigma, "features_all": features, "coarse": coarse}
