"""The published image formation: raw render, background, colour head, super-resolution. For parity and for previews.

Everything that becomes a 3D asset goes through the project's own geometry instead (`adapter`): the super-resolution is
a 2D network and does not agree between views.
"""
from dataclasses import replace

import torch
from torch import Tensor

from ...ops.resize import resized
from .generator import PublishedGenerator
from .marching import rays_of_label, render_features


def render_image(
    generator: PublishedGenerator, ws: Tensor, label: Tensor, size: int | None = None, planes: list | None = None,
    background: Tensor | None = None, jitter: Tensor | None = None, quantiles: Tensor | None = None,
    super_resolution: bool = True, samples: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """Images of latent rows under camera labels, as the published generators make them.

    Args:
        ws: (N,num_ws,w_dim); label: (N,25), see `marching.rays_of_label`.
        size: edge of the raw render, None is the file's; planes, background: of these ws, if they are at hand.
        jitter, quantiles: see `marching.render_features`; samples: of the two passes, None is the file's.
    Returns: raw (N,3,n,n) and image (N,3,4m,4m) in about [-1, 1]; opacity, depth (N,1,n,n); feature (N,C,n,n) of the
        foreground; with a background also mask (N,1,n,n) and feature_bg, the features over the background.
    """
    options = generator.options if samples is None else replace(generator.options, coarse=samples[0], fine=samples[1])
    n = options.raw_resolution if size is None else size
    planes = generator.planes(ws) if planes is None else planes
    rays_o, rays_d = rays_of_label(label, n)
    marched = render_features(
        generator.sizes.family, planes, generator.decoder.weights(), rays_o, rays_d, options, jitter, quantiles
    )

    def picture(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1).transpose(1, 2).unflatten(2, (n, n))

    out = {key: picture(marched[key]) for key in ("feature", "depth", "opacity")}
    feature = out["feature"]
    if generator.sizes.background:
        background = generator.background(ws) if background is None else background
        feature = feature + (1 - out["opacity"]) * resized(background, (n, n))
        out |= {"feature_bg": feature, "mask": out["opacity"] * 1.002 - 0.001}
    out["raw"] = generator.torgb(feature, ws[:, -1]) if generator.sizes.features else feature[:, :3]
    if super_resolution:
        out["image"] = generator.superresolution(out["raw"], feature, ws[:, -1])
    return out


def shift_label(label: Tensor, shift: Tensor) -> Tensor:
    """Camera label (N,25) with its camera moved by (N,3) in the GAN's world frame (PanoHead's ``t_mapping``)."""
    moved = label.clone()
    moved[:, [3, 7, 11]] = moved[:, [3, 7, 11]] + shift
    return moved


def generate(
    generator: PublishedGenerator, z: Tensor, condition: Tensor, label: Tensor, truncation: float = 1.0,
    size: int | None = None,
) -> dict[str, Tensor]:
    """Whole generator from z: mapping, camera shift, image. Args as `PublishedGenerator.map` and `render_image`."""
    ws = generator.map(z, condition, truncation)
    shift = generator.camera_shift(z, condition, truncation)
    return render_image(generator, ws, shift_label(label, shift), size)


def frontal_label(family: str, like: Tensor) -> Tensor:
    """(1,25) the frontal camera, also the usual condition: distance 2.7, the family's focal length."""
    from .families import FOCAL

    c2w = torch.diag(like.new_tensor([1.0, -1.0, -1.0, 1.0]))
    c2w[2, 3] = 2.7
    k = like.new_tensor([[FOCAL[family], 0, 0.5], [0, FOCAL[family], 0.5], [0, 0, 1]])
    return torch.cat([c2w.flatten(), k.flatten()])[None]
