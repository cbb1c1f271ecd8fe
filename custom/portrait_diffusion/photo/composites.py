"""Training pictures for the matting network: cut-out heads over procedural scenes, degraded like photographs.

Everything is batched, runs on the device of the input, and draws its randomness from one torch.Generator.
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .backgrounds import background, chance, defocus, fractal_noise, grid, random_colours, uniform
from .degrade import degrade, recolour

FACE = (0.0, 0.04), (0.42, 0.56)
"""Centre and half axes of an ellipse about the face in a canonical crop, [-1, 1] is the frame."""


@dataclass(frozen=True)
class MatteBatch:
    """One training batch, all (B, C, S, S).

    Attributes:
        rgb: the photograph, [0, 1], zero where not valid.
        valid: 1 inside the photograph.
        alpha: the target.
        foreground, background: clean layers with ``clean = alpha foreground + (1 - alpha) background``.
    """

    rgb: Tensor
    valid: Tensor
    alpha: Tensor
    foreground: Tensor
    background: Tensor

    def mirrored(self) -> "MatteBatch":
        """The same pictures, left and right exchanged."""
        return MatteBatch(*(layer.flip(-1) for layer in vars(self).values()))


def make_batch(rgba: Tensor, generator: torch.Generator) -> MatteBatch:
    """Composite, decorate and degrade a batch of cut-outs.

    Args:
        rgba: (B, S, S, 4) uint8, straight (not premultiplied) colour, canonical crop, S a multiple of 16.
        generator: source of randomness on the device of ``rgba``.

    Returns: MatteBatch. Not differentiable.
    """
    premultiplied = premultiply(rgba)
    return compose(warp_foreground(premultiplied, generator), premultiplied, generator)


def premultiply(rgba: Tensor) -> Tensor:
    """(B, S, S, 4) uint8 straight colour to (B, 4, S, S) premultiplied layers in [0, 1]."""
    layers = rgba.permute(0, 3, 1, 2).float() / 255
    return torch.cat([layers[:, :3] * layers[:, 3:], layers[:, 3:]], 1)


def compose(
    placed: Tensor, bystander: Tensor, generator: torch.Generator, dressed: bool = True
) -> MatteBatch:
    """Photographs of cut-outs that stand where they shall stand.

    Args:
        placed: (B, 4, S, S) premultiplied layers, S a multiple of 16.
        bystander: (B, 4, S, S) the same, persons that may stand behind the others.
        generator: source of randomness on their device.
        dressed: whether patterns are laid over clothes, hair and faces (`dress`).

    Returns: MatteBatch. Not differentiable.
    """
    batch, size = placed.shape[0], placed.shape[-1]
    foreground, alpha = unpremultiply(placed)
    foreground = recolour(foreground, generator, strength=1.0)
    foreground = dress(foreground, alpha, generator) if dressed else foreground
    scene = background(generator, batch, size)
    scene = close_up(scene, foreground, generator)
    scene = like_foreground(scene, foreground, alpha, generator)
    scene = bystanders(scene, bystander, generator)
    clean = foreground * alpha + scene * (1 - alpha)
    picture = occlude(light_wrap(clean, alpha, generator), generator)
    valid = photo_border(batch, size, generator)
    rgb = degrade(picture, generator) * valid
    return MatteBatch(rgb, valid, alpha, foreground, scene)


def unpremultiply(premultiplied: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, 4, S, S) premultiplied layers into straight colour and alpha; colour bleeds to where alpha is 0."""
    alpha = premultiplied[:, 3:].clamp(0, 1)
    colour = premultiplied[:, :3] / premultiplied[:, 3:].clamp_min(1e-4)
    spread = defocus(premultiplied, torch.full_like(alpha[:, :, :1, :1], 4.0))
    nearby = spread[:, :3] / spread[:, 3:].clamp_min(1e-4)
    return torch.where(alpha > 0.02, colour, nearby).clamp(0, 1), alpha


def warp_foreground(premultiplied: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, shift, scale, turn and elastically deform a cut-out; what leaves the frame is continued outwards.

    Continuing the border keeps shoulders that are cut by the frame cut by the frame. Fine deformation frays outlines
    like loose hair.
    """
    batch, _, size, _ = premultiplied.shape
    angle = torch.randn(batch, 1, 1, generator=generator, device=generator.device) * math.radians(6)
    scale = torch.exp(uniform(generator, batch, 1, 1, low=-0.22, high=0.18))
    stretch = torch.exp(uniform(generator, batch, 1, 1, low=-0.1, high=0.1))
    mirror = chance(generator, batch, 0.5)[:, 0] * 2 - 1
    shift = uniform(generator, batch, 2, 1, low=-0.12, high=0.12)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    first_row = torch.cat([cosine * mirror * stretch, -sine * stretch], 2)
    second_row = torch.cat([sine * mirror, cosine], 2)
    theta = torch.cat([torch.cat([first_row, second_row], 1), shift], 2)
    target = F.affine_grid(theta, [batch, 1, size, size], align_corners=False)
    for cells, amplitude, probability in ((4, 0.07, 0.8), (12, 0.02, 0.6), (48, 0.008, 0.5), (size // 2, 0.008, 0.4)):
        wave = torch.randn(batch, 2, cells, cells, generator=generator, device=generator.device)
        wave = F.interpolate(wave, size=(size, size), mode="bicubic", align_corners=False)
        strength = chance(generator, batch, probability) * uniform(generator, batch, 1, 1, 1) * amplitude
        target = target + (wave * strength).permute(0, 2, 3, 1)
    target = swell(target, generator)
    return F.grid_sample(premultiplied, target, padding_mode="border", align_corners=False)


def swell(target: Tensor, generator: torch.Generator, most: float = 0.55) -> Tensor:
    """Let hair, hats and shoulders of some persons reach further from the face, on each side by its own amount.

    Outside of the ellipse `FACE` a place at r times its radius shows what was at 1 + (r - 1) s, with s from
    1 - ``most`` to 1.

    Args: target (B, S, S, 2) places to sample, [-1, 1] is the frame. Returns: the same, faces unchanged.
    """
    batch, size, device = target.shape[0], target.shape[1], target.device
    sides = F.interpolate(uniform(generator, batch, 1, 3, 3), (size, size), mode="bilinear", align_corners=True)
    amount = (most * chance(generator, batch, 0.5) * sides)[:, 0, ..., None]
    centre, axes = (torch.tensor(pair, device=device) for pair in FACE)
    away = target - centre
    radius = (away / axes).norm(dim=-1, keepdim=True).clamp_min(1e-6)
    nearer = (1 + (radius - 1) * (1 - amount)) / radius
    return centre + away * torch.where(radius > 1, nearer, torch.ones_like(nearer))


def dress(foreground: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Vary clothes and hair: patterns below a wavy neck line, soft patches of other colour and streaks elsewhere."""
    batch, _, size, _ = foreground.shape
    v = (torch.arange(size, device=foreground.device) + 0.5).view(1, 1, -1, 1) / size
    wave = (fractal_noise(generator, batch, size) - 0.5) * 0.25
    neck = uniform(generator, batch, 1, 1, 1, low=0.75, high=0.95)
    clothes = torch.sigmoid((v + wave - neck) * 60) * chance(generator, batch, 0.5)
    cloth = background(generator, batch, size)
    folds = 0.6 + 0.8 * fractal_noise(generator, batch, size)
    foreground = torch.lerp(foreground, (cloth * folds).clamp(0, 1), clothes)
    u, w = grid(batch, size, generator)
    angle_noise = fractal_noise(generator, batch, size) * 6
    streaks = torch.sin(u * uniform(generator, batch, 1, 1, 1, low=20, high=120) + angle_noise * 3 + w)
    patch = torch.sigmoid((fractal_noise(generator, batch, size) - 0.6) * 20) * chance(generator, batch, 0.4)
    foreground = foreground * (1 + streaks * patch * uniform(generator, batch, 1, 1, 1, low=0, high=0.5))
    tint = random_colours(generator, batch, 1)[:, 0, :, None, None]
    patch = torch.sigmoid((fractal_noise(generator, batch, size) - 0.65) * 20) * chance(generator, batch, 0.3)
    patch = patch * uniform(generator, batch, 1, 1, 1, low=0.2, high=0.9)
    light = 1 + (fractal_noise(generator, batch, size) - 0.5) * uniform(generator, batch, 1, 1, 1, low=0, high=0.8)
    return (torch.lerp(foreground, tint.expand_as(foreground), patch) * light).clamp(0, 1)


def close_up(scene: Tensor, foreground: Tensor, generator: torch.Generator) -> Tensor:
    """Put a magnified piece of another person into some scenes: hair, skin and cloth tell the two apart no longer."""
    batch, _, size, _ = scene.shape
    scale = uniform(generator, batch, 1, 1, low=0.1, high=0.5)
    shift = uniform(generator, batch, 2, 1, low=-0.5, high=0.5)
    theta = torch.cat([scale * torch.eye(2, device=scene.device), shift], 2)
    target = F.affine_grid(theta, [batch, 1, size, size], align_corners=False)
    piece = F.grid_sample(foreground.roll(1, 0), target, padding_mode="reflection", align_corners=False)
    piece = defocus(piece, uniform(generator, batch, 1, 1, 1, low=0, high=3))
    return torch.lerp(scene, piece, chance(generator, batch, 0.12))


def like_foreground(scene: Tensor, foreground: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Tint some scenes with a colour of the person, so that colour alone does not separate the two."""
    batch, _, size, _ = scene.shape
    index = torch.randint(0, size * size, (batch, 1, 1), generator=generator, device=scene.device)
    inside = F.avg_pool2d(foreground * alpha, 9, 1, 4) / F.avg_pool2d(alpha, 9, 1, 4).clamp_min(0.05)
    picked = inside.flatten(2).gather(2, index.expand(-1, 3, -1))[..., None]
    amount = chance(generator, batch, 0.3) * uniform(generator, batch, 1, 1, 1, low=0.3, high=0.95)
    return torch.lerp(scene, picked.expand_as(scene).clamp(0, 1), amount)


def bystanders(scene: Tensor, premultiplied: Tensor, generator: torch.Generator) -> Tensor:
    """Paste another cut-out far off-centre and out of focus behind some persons; it belongs to the background."""
    batch, _, size, _ = scene.shape
    other = premultiplied.roll(1, 0)
    side = chance(generator, batch, 0.5)[:, 0] * 2 - 1
    scale = torch.exp(uniform(generator, batch, 1, 1, low=-0.2, high=1.2))
    across = side * uniform(generator, batch, 1, 1, low=0.9, high=1.5) * scale
    down = uniform(generator, batch, 1, 1, low=-0.5, high=0.5)
    zero = torch.zeros_like(scale)
    theta = torch.cat([torch.cat([scale, zero, across], 2), torch.cat([zero, scale, down], 2)], 1)
    target = F.affine_grid(theta, [batch, 1, size, size], align_corners=False)
    other = F.grid_sample(other, target, align_corners=False)
    other = defocus(other, uniform(generator, batch, 1, 1, 1, low=0, high=3)) * chance(generator, batch, 0.12)
    return other[:, :3] + scene * (1 - other[:, 3:])


def light_wrap(picture: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Let bright surroundings spill over the outline (flare), and lay haze over the whole picture."""
    batch = len(picture)
    glow = defocus(picture, uniform(generator, batch, 1, 1, 1, low=2, high=4))
    rim = 4 * alpha * (1 - defocus(alpha, torch.full_like(alpha[:, :, :1, :1], 3.0)))
    wrap = chance(generator, batch, 0.3) * uniform(generator, batch, 1, 1, 1, low=0, high=0.7)
    picture = torch.lerp(picture, torch.maximum(picture, glow), (wrap * rim).clamp(0, 1))
    haze = chance(generator, batch, 0.15) * uniform(generator, batch, 1, 1, 1, low=0.05, high=0.4)
    return torch.lerp(picture, random_colours(generator, batch, 1)[:, 0, :, None, None].expand_as(picture), haze)


def occlude(picture: Tensor, generator: torch.Generator, count: int = 4) -> Tensor:
    """Cover parts of some pictures with ellipses in skin or random colours: hands, flowers, cups.

    The target stays the whole outline of the person (amodal inside, background outside): a hand before the face must
    not tear a hole into the head.
    """
    batch, _, size, _ = picture.shape
    skin = torch.tensor([0.75, 0.52, 0.42], device=picture.device) * uniform(generator, batch, 1, low=0.3, high=1.25)
    colour = torch.where(chance(generator, batch, 0.5)[:, :, 0, 0] > 0, skin, random_colours(generator, batch, 1)[:, 0])
    present = chance(generator, batch, 0.2)
    for _ in range(count):
        u, v = grid(batch, size, generator)
        extent = uniform(generator, batch, 2, 1, 1, low=0.03, high=0.22)
        noise = (fractal_noise(generator, batch, size) - 0.5) * 0.8
        distance = ((u / extent[:, :1]).square() + (v / extent[:, 1:]).square()).sqrt() + noise
        cover = torch.sigmoid((1 - distance) * 15) * present
        shade = 0.7 + 0.6 * fractal_noise(generator, batch, size)
        picture = torch.lerp(picture, (colour[..., None, None] * shade).clamp(0, 1), cover)
    return picture


def photo_border(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """(B, 1, S, S) valid mask: a slightly turned rectangle; each side of the photograph enters some crops."""
    line = (torch.arange(size, device=generator.device) + 0.5) / size - 0.5
    v, u = torch.meshgrid(line, line, indexing="ij")
    angle = torch.randn(batch, 1, 1, 1, generator=generator, device=generator.device) * math.radians(6)
    along, down = angle.cos() * u - angle.sin() * v, angle.sin() * u + angle.cos() * v
    valid = torch.ones(batch, 1, size, size, device=generator.device)
    for coordinate, low, high in ((along, 0.25, 0.5), (-along, 0.25, 0.5), (down, 0.3, 0.5), (-down, 0.28, 0.5)):
        limit = uniform(generator, batch, 1, 1, 1, low=low, high=high)
        limit = torch.where(chance(generator, batch, 0.25) > 0, limit, torch.full_like(limit, 2.0))
        valid = valid * (coordinate < limit)
    return valid
