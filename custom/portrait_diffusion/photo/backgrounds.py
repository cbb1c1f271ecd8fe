"""Procedural backgrounds for training the matting network: batched, on any device, driven by a torch.Generator."""
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform random numbers in [low, high) on the generator's device."""
    return torch.rand(*shape, generator=generator, device=generator.device) * (high - low) + low


def chance(generator: torch.Generator, batch: int, probability: float) -> Tensor:
    """(B, 1, 1, 1) float mask that is 1 with the given probability."""
    return (uniform(generator, batch, 1, 1, 1) < probability).float()


def grid(batch: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixel-centre coordinates u, v in [-1, 1], each (B, 1, S, S), turned by a random angle and shifted per sample."""
    line = (torch.arange(size, device=generator.device) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(line, line, indexing="ij")
    angle = uniform(generator, batch, 1, 1, 1, low=-math.pi, high=math.pi)
    cosine, sine = angle.cos(), angle.sin()
    shift = uniform(generator, batch, 2, 1, 1, low=-1, high=1)
    return cosine * u - sine * v + shift[:, :1], sine * u + cosine * v + shift[:, 1:]


def random_colours(generator: torch.Generator, batch: int, count: int) -> Tensor:
    """(B, count, 3) colours: a brightness per colour, tinted by a random saturation; dark and pale ones are common."""
    value = uniform(generator, batch, count, 1) ** uniform(generator, batch, 1, 1, low=0.25, high=2.0)
    tint = uniform(generator, batch, count, 3)
    return value * (1 - uniform(generator, batch, count, 1) ** 1.5 * tint)


def fractal_noise(generator: torch.Generator, batch: int, size: int, channels: int = 1) -> Tensor:
    """(B, C, S, S) noise in [0, 1]: random grids of 2..S/2 cells, enlarged, summed with a random slope per sample."""
    total = torch.zeros(batch, channels, size, size, device=generator.device)
    slope = uniform(generator, batch, 1, 1, 1, low=0.2, high=1.1)
    cells, octave = 2, 0
    while cells <= size // 2:
        layer = torch.randn(batch, channels, cells, cells, generator=generator, device=generator.device)
        layer = F.interpolate(layer, size=(size, size), mode="bilinear", align_corners=False)
        total = total + layer * slope**octave
        cells, octave = cells * 2, octave + 1
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low).clamp_min(1e-6)


def gradients(generator: torch.Generator, batch: int, size: int) -> Tensor:
    """Flat colours and linear or radial ramps between two colours."""
    u, v = grid(batch, size, generator)
    radial = chance(generator, batch, 0.4)
    ramp = torch.sigmoid((radial * (u.square() + v.square()).sqrt() + (1 - radial) * u) * 2)
    ramp = ramp * chance(generator, batch, 0.75)
    first, second = random_colours(generator, batch, 2).unbind(1)
    return _mix(ramp, first, second)


def clouds(generator: torch.Generator, batch: int, size: int) -> Tensor:
    """Fractal noise through a three-colour ramp of random contrast: foliage, walls, sky, clutter."""
    noise = fractal_noise(generator, batch, size)
    sharpness = uniform(generator, batch, 1, 1, 1, low=1, high=25)
    ramp = torch.sigmoid((noise - 0.5) * sharpness)
    first, second, third = random_colours(generator, batch, 3).unbind(1)
    picture = _mix(ramp, first, second)
    return _mix(torch.sigmoid((fractal_noise(generator, batch, size) - 0.6) * sharpness), picture, third)


def patterns(generator: torch.Generator, batch: int, size: int) -> Tensor:
    """Stripes, checks, dots and bricks: periodic functions of turned coordinates, in three colours."""
    u, v = grid(batch, size, generator)
    frequency = torch.exp(uniform(generator, batch, 1, 1, 1, low=math.log(3), high=math.log(40)))
    ratio = torch.exp(uniform(generator, batch, 1, 1, 1, low=-1, high=1))
    row = torch.floor(v * frequency * ratio)
    brick = chance(generator, batch, 0.4)
    wave_u = torch.sin(math.pi * (u * frequency + brick * 0.5 * row))
    wave_v = torch.sin(math.pi * v * frequency * ratio)
    sharpness = uniform(generator, batch, 1, 1, 1, low=1, high=12)
    width = uniform(generator, batch, 2, 1, 1, low=-0.8, high=0.8)
    stripes = torch.sigmoid((wave_u - width[:, :1]) * sharpness)
    cross = torch.sigmoid((wave_v - width[:, 1:]) * sharpness) * chance(generator, batch, 0.6)
    first, second, third = random_colours(generator, batch, 3).unbind(1)
    return _mix(cross * uniform(generator, batch, 1, 1, 1, low=0.3, high=1.0), _mix(stripes, first, second), third)


def shapes(generator: torch.Generator, batch: int, size: int, count: int = 14) -> Tensor:
    """Rotated rectangles and ellipses with hard or soft rims over a gradient: furniture, windows, bokeh discs."""
    picture = gradients(generator, batch, size)
    colours = random_colours(generator, batch, count)
    bokeh = chance(generator, batch, 0.3)
    for index in range(count):
        u, v = grid(batch, size, generator)
        extent = uniform(generator, batch, 2, 1, 1) ** 2 * (0.75 - 0.6 * bokeh) + 0.03
        extent = torch.cat([extent[:, :1], torch.lerp(extent[:, 1:], extent[:, :1], bokeh)], 1)
        a, b = (u / extent[:, :1]).abs(), (v / extent[:, 1:]).abs()
        is_round = torch.maximum(bokeh, chance(generator, batch, 0.4))
        distance = torch.where(is_round > 0, (a.square() + b.square()).sqrt(), torch.maximum(a, b))
        rim = torch.exp(uniform(generator, batch, 1, 1, 1, low=1.5, high=4))
        cover = torch.sigmoid((1 - distance) * rim) * uniform(generator, batch, 1, 1, 1, low=0.4, high=1)
        picture = _mix(cover, picture, colours[:, index])
    return picture


def cells(generator: torch.Generator, batch: int, size: int, count: int = 20) -> Tensor:
    """Voronoi polygons in flat random colours: sharp corners at every angle."""
    u, v = grid(batch, size, generator)
    seeds = uniform(generator, batch, count, 2, low=-2, high=2)
    colours = random_colours(generator, batch, count)
    nearest = torch.full_like(u, float("inf"))
    picture = torch.zeros(batch, 3, size, size, device=generator.device)
    for index in range(count):
        distance = (u - seeds[:, index, 0, None, None, None]).square() + \
            (v - seeds[:, index, 1, None, None, None]).square()
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        picture = torch.where(closer, colours[:, index, :, None, None], picture)
    return picture


GENERATORS = (gradients, clouds, patterns, shapes, cells)


def background(generator: torch.Generator, batch: int, size: int) -> Tensor:
    """Draw a batch of backgrounds.

    Two scenes of random kinds are joined along a cloudy or straight border, defocused by a random amount, and some are
    made dark or pale.

    Args:
        generator: source of randomness; its device is the result's device.
        batch: number of pictures.
        size: side in pixels, a multiple of 16.

    Returns: (B, 3, S, S) in [0, 1].
    """
    first, second = one_scene(generator, batch, size), one_scene(generator, batch, size)
    noise = fractal_noise(generator, batch, size)
    u, _ = grid(batch, size, generator)
    level = torch.where(chance(generator, batch, 0.5) > 0, noise - 0.5, u * 0.3)
    border = torch.sigmoid((level + uniform(generator, batch, 1, 1, 1, low=-0.3, high=0.3)) * 40)
    picture = torch.lerp(first, second, border * chance(generator, batch, 0.6))
    picture = defocus(picture, uniform(generator, batch, 1, 1, 1) * 5 * chance(generator, batch, 0.7))
    dim = 1 - chance(generator, batch, 0.15) * uniform(generator, batch, 1, 1, 1, low=0.5, high=1)
    pale = chance(generator, batch, 0.12) * uniform(generator, batch, 1, 1, 1, low=0.5, high=1)
    return torch.lerp(picture * dim, torch.ones_like(picture), pale).clamp(0, 1)


def one_scene(generator: torch.Generator, batch: int, size: int) -> Tensor:
    """(B, 3, S, S) scene of one random kind per sample, with fine grain on some samples.

    Every kind draws only its own share of the batch, and the shares are then shuffled.
    """
    share = [batch // len(GENERATORS) + (index < batch % len(GENERATORS)) for index in range(len(GENERATORS))]
    parts = [make(generator, count, size) for make, count in zip(GENERATORS, share) if count]
    order = torch.randperm(batch, generator=generator, device=generator.device)
    picture = torch.cat(parts)[order]
    grain = fractal_noise(generator, batch, size) - 0.5
    return (picture + grain * uniform(generator, batch, 1, 1, 1, low=0, high=0.35) *
            chance(generator, batch, 0.5)).clamp(0, 1)


def defocus(picture: Tensor, level: Tensor) -> Tensor:
    """Blur by interpolating between pyramid levels (Williams 1983, mip maps).

    Args:
        picture: (B, C, S, S).
        level: (B, 1, 1, 1), 0 sharp to 4: averaged over 16 pixels; fractions interpolate; more is clamped to 4.

    Returns: (B, C, S, S).
    """
    size = picture.shape[-2:]
    level = level.clamp(0, 4)
    result, pooled = picture * (1 - level).clamp_min(0), picture
    for step in range(1, 5):
        pooled = F.avg_pool2d(pooled, 2)
        smooth = F.interpolate(pooled, size=size, mode="bilinear", align_corners=False)
        result = result + smooth * (1 - (level - step).abs()).clamp_min(0)
    return result


def _mix(weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Blend two pictures (B, 3, S, S) or colours (B, 3) by a mask (B, 1, S, S)."""
    first = first if first.dim() == 4 else first[..., None, None]
    second = second if second.dim() == 4 else second[..., None, None]
    return first * (1 - weight) + second * weight
