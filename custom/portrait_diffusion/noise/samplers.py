"""Where a guidance takes its noise from: registered classes with one method, so that ablations change one thing."""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..host import BaseObject, register


@dataclass
class NoiseRequest:
    """Noise wanted for B views.

    Attributes:
        shape: (B, C, h, w) of the latents.
        c2w: (B, 4, 4); fovy: (B,) radians: the views.
        depth: (B, H, W) distance along the rays, 0 for background, H and W whole multiples of h and w; None when the
            geometry is not known.
        generator: source of all randomness, on the latents' device.
        dtype: of the noise.
    """

    shape: tuple
    c2w: Tensor
    fovy: Tensor
    depth: Tensor | None
    generator: torch.Generator
    dtype: torch.dtype = torch.float32


@register("portrait-diffusion-iid-noise")
class IIDNoise(BaseObject):
    """Fresh noise for every view and step, as DreamFusion has it."""

    def __call__(self, request: NoiseRequest) -> Tensor:
        """(B, C, h, w) standard normal."""
        g = request.generator
        return torch.randn(request.shape, generator=g, device=g.device, dtype=request.dtype)


@register("portrait-diffusion-fixed-noise")
class FixedNoise(BaseObject):
    """The same noise in every view and step, in image coordinates: a cheap control for the other samplers."""

    @dataclass
    class Config(BaseObject.Config):
        seed: int = 0  # of the one draw

    cfg: Config

    def __call__(self, request: NoiseRequest) -> Tensor:
        """(B, C, h, w), one standard normal draw repeated over the batch."""
        g = torch.Generator().manual_seed(self.cfg.seed)
        noise = torch.randn(request.shape[1:], generator=g, dtype=request.dtype)
        return noise.to(request.generator.device).expand(request.shape).clone()
