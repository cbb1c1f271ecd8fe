"""Rendering of a batch of heads, each with its own planes, for training and evaluation of priors."""
import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.cameras import world_to_head
from ..ops.canonical import BOX_RADIUS
from ..ops.triplane import PLANE_AXES, DecoderWeights, colour_activation, decode_raw, density_activation, sample_planes
from ..ops.volrend import render_rays


def half_precision(device: torch.device) -> torch.autocast:
    """Networks of the prior in bfloat16 on an accelerator, as they are on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "cpu")


def plane_features(levels: list[Tensor], coords: Tensor) -> Tensor:
    """`sample_planes`, through the Triton kernels on a GPU (bfloat16 out) where coordinates need no gradient."""
    if levels[0].is_cuda and not coords.requires_grad:
        from ..ops.triplane_triton import SampleTriplanes

        return sum(SampleTriplanes.apply(level, coords, PLANE_AXES, torch.bfloat16) for level in levels)
    return sample_planes(levels, coords)


def decode_half(features: Tensor, weights: DecoderWeights) -> Tensor:
    """`decode_raw` in the features' own half precision (autocast would widen softplus to float32)."""
    half = features.dtype
    w1, b1, w2, b2 = (w.to(half) for w in weights)
    return F.linear(F.softplus(F.linear(features, w1, b1)), w2, b2).float()


def render_planes(
    planes: list[Tensor], weights: tuple, rays_o: Tensor, rays_d: Tensor, coarse: int, fine: int,
    generator: torch.Generator | None,
) -> dict:
    """Render M images, each from its own planes.

    Args:
        planes: levels of a pyramid, (M, 3 or 1, C, [D,] R, R) each; weights: four decoder tensors.
        rays_o, rays_d: (M, H, W, 3) world space.
        coarse, fine: samples a ray; generator: None renders deterministically.
    Returns: rgb (M, 3, H, W) premultiplied, opacity (M, 1, H, W), depth (M, 1, H, W) along the ray.
    """
    weights = DecoderWeights(*weights)
    m, h, w, _ = rays_o.shape

    def field(points: Tensor) -> tuple:
        with torch.autocast(points.device.type, enabled=False):
            features = plane_features(planes, world_to_head(points) / BOX_RADIUS)
            raw = decode_half(features, weights) if features.dtype == torch.bfloat16 else decode_raw(features, weights)
        return density_activation(raw[..., :1]), colour_activation(raw[..., 1:4])

    flat_o, flat_d = rays_o.reshape(m, h * w, 3), rays_d.reshape(m, h * w, 3)
    out = render_rays(field, flat_o, flat_d, BOX_RADIUS, coarse, fine, generator, compact=not planes[0].is_cuda)
    return {k: out[k].transpose(1, 2).reshape(m, -1, h, w) for k in ("rgb", "opacity", "depth")}
