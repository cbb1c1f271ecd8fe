"""What cameras and files do to a picture: colour, blur, noise, block artefacts. Batched torch, generator-driven."""
import math

import torch
from torch import Tensor

from .backgrounds import chance, defocus, uniform

_LUMA = (0.299, 0.587, 0.114)


def recolour(picture: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Random exposure, contrast, gamma, saturation, hue and white balance, one draw per sample.

    Args:
        picture: (B, 3, S, S) in [0, 1].
        generator: source of randomness.
        strength: scales all amounts; 0 leaves the picture as it is.

    Returns: (B, 3, S, S) in [0, 1].
    """
    batch = len(picture)
    gamma = torch.exp(uniform(generator, batch, 1, 1, 1, low=-0.7, high=0.6) * strength)
    picture = picture.clamp(1e-4, 1) ** gamma
    luma = torch.tensor(_LUMA, device=picture.device).view(1, 3, 1, 1)
    grey = (picture * luma).sum(1, keepdim=True)
    monochrome = 1 - chance(generator, batch, 0.06) * min(strength, 1.0)
    saturation = torch.exp(uniform(generator, batch, 1, 1, 1, low=-0.8, high=0.5) * strength) * monochrome
    picture = grey + (picture - grey) * saturation
    picture = torch.einsum("bij,bjhw->bihw", hue_matrix(_hue_angle(generator, batch, strength)), picture)
    gain = torch.exp(uniform(generator, batch, 3, 1, 1, low=-0.18, high=0.18) * strength)
    exposure = torch.exp(uniform(generator, batch, 1, 1, 1, low=-0.45, high=0.35) * strength)
    contrast = torch.exp(uniform(generator, batch, 1, 1, 1, low=-0.35, high=0.35) * strength)
    mean = picture.mean((1, 2, 3), keepdim=True)
    return (((picture - mean) * contrast + mean) * gain * exposure).clamp(0, 1)


def _hue_angle(generator: torch.Generator, batch: int, strength: float) -> Tensor:
    """Mostly small hue turns; one sample in twenty gets any hue."""
    small = torch.randn(batch, generator=generator, device=generator.device) * 0.12
    wide = uniform(generator, batch, low=-math.pi, high=math.pi)
    return torch.where(uniform(generator, batch) < 0.05, wide, small) * strength


def hue_matrix(angle: Tensor) -> Tensor:
    """(B, 3, 3) rotation of RGB space about the grey axis (Rodrigues' formula with axis (1, 1, 1)/sqrt 3)."""
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) / math.sqrt(3)
    return cosine * torch.eye(3, device=angle.device) + sine * cross + (1 - cosine) / 3


def degrade(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Colour grade, vignette, blur, low resolution, sensor noise and JPEG blocks, each on some samples.

    Args:
        picture: (B, 3, S, S) in [0, 1], S a multiple of 16.
        generator: source of randomness.

    Returns: (B, 3, S, S) in [0, 1].
    """
    batch, _, size, _ = picture.shape
    picture = recolour(picture, generator, strength=0.6)
    line = (torch.arange(size, device=picture.device) + 0.5) / size * 2 - 1
    radius = line.view(1, 1, -1, 1).square() + line.view(1, 1, 1, -1).square()
    vignette = chance(generator, batch, 0.2) * uniform(generator, batch, 1, 1, 1, low=0, high=0.35)
    picture = picture * (1 - vignette * radius)
    soft = chance(generator, batch, 0.4) * uniform(generator, batch, 1, 1, 1) ** 2 * 1.8
    picture = defocus(picture, soft)
    sigma = chance(generator, batch, 0.5) * uniform(generator, batch, 1, 1, 1) ** 2 * 0.07
    noise = torch.randn(picture.shape, generator=generator, device=generator.device)
    blotches = torch.nn.functional.avg_pool2d(noise, 3, 1, 1) * 2
    noise = torch.where(chance(generator, batch, 0.5) > 0, noise, blotches)
    picture = (picture + noise * sigma * (0.3 + picture).sqrt()).clamp(0, 1)
    quality = uniform(generator, batch, 1, 1, 1, low=0.05, high=1.0)
    return torch.where(chance(generator, batch, 0.4) > 0, jpeg_like(picture, 0.02 / quality), picture)


def dct_matrix(device=None) -> Tensor:
    """(8, 8) orthonormal DCT-II matrix."""
    index = torch.arange(8, dtype=torch.float32, device=device)
    matrix = torch.cos((2 * index[None] + 1) * index[:, None] * math.pi / 16) * 0.5
    matrix[0] = math.sqrt(1 / 8)
    return matrix


def jpeg_like(picture: Tensor, step: Tensor) -> Tensor:
    """Quantise 8x8 DCT coefficients; the step grows linearly with frequency, as in JPEG's tables (ITU-T T.81, annex K).

    Args:
        picture: (B, C, S, S), S a multiple of 8.
        step: (B, 1, 1, 1) quantisation step of the lowest frequency, in picture units.

    Returns: (B, C, S, S) in [0, 1].
    """
    batch, channels, size, _ = picture.shape
    transform = dct_matrix(picture.device)
    blocks = picture.reshape(batch, channels, size // 8, 8, size // 8, 8)
    spectrum = torch.einsum("ij,bcyjxk,lk->bcyixl", transform, blocks, transform)
    frequency = torch.arange(8, device=picture.device)
    growth = 1 + 0.7 * (frequency[:, None] + frequency[None])
    steps = step.view(-1, 1, 1, 1, 1, 1) * growth[None, None, None, :, None, :]
    spectrum = (spectrum / steps).round() * steps
    blocks = torch.einsum("ij,bcyixl,lk->bcyjxk", transform, spectrum, transform)
    return blocks.reshape(picture.shape).clamp(0, 1)
