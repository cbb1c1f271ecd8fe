"""Augmentations that make renders of synthetic heads look like what a photo and its matte deliver; batched."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(shape: tuple, low: float, high: float, generator: torch.Generator, device) -> Tensor:
    """Uniform numbers in [low, high) from a generator on `device`."""
    return torch.rand(shape, generator=generator, device=device) * (high - low) + low


def colour_jitter(rgb: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """One photometric change a sample, the same for all of its views: gain per channel, exposure, gamma, saturation.

    One sample in ten becomes grey, as old photographs are.

    Args: rgb (B, ..., 3) in [0, 1]; strength (B,) in [0, 1]. Returns: the same shape, clamped to [0, 1].
    """
    b, device = rgb.shape[0], rgb.device
    shape = (b,) + (1,) * (rgb.dim() - 2)

    def draw(low, high, channels=1):
        value = uniform((*shape, channels), low, high, generator, device)
        return value * strength.view(*shape, 1)

    exposure = torch.exp(draw(-0.3, 0.3) + draw(-0.08, 0.08, 3))
    gamma = torch.exp(draw(-0.3, 0.3))
    grey = rgb.mean(dim=-1, keepdim=True)
    coloured = (uniform((*shape, 1), 0.0, 1.0, generator, device) >= 0.1).to(rgb) * strength.view(*shape, 1)
    coloured = coloured + 1 - strength.view(*shape, 1)
    out = grey + (rgb - grey) * torch.exp(draw(-0.35, 0.35)) * coloured
    out = (out.clamp(0.0, 1.0) ** gamma) * exposure
    return out.clamp(0.0, 1.0)


def surface_texture(points: Tensor, generator: torch.Generator, waves: int = 12) -> Tensor:
    """Random solid texture like strands, the same in every view because it is a function of the position alone.

    n(p) = m(p) sqrt(2 / N) sum_i sin(k_i . p + phi_i): wavelengths from 0.016 to 0.06 units across a random direction,
    mostly the vertical, and about seven times longer along it; m in (0, 1) is a smooth random mask of wavelength 0.25.

    Args: points (B, ..., 3) world frame, scene units. Returns: (B, ...) of variance at most 1.
    """
    b, device = points.shape[0], points.device

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=device)

    vertical = torch.eye(3, device=device)[2]  # nothing is copied from the host: this runs inside a CUDA graph
    strand = F.normalize(vertical + 0.5 * normal(b, 1, 3), dim=-1)
    across = normal(b, waves, 3)
    across = F.normalize(across - (across * strand).sum(dim=-1, keepdim=True) * strand, dim=-1)
    shortest, longest = math.log(0.016), math.log(0.06)
    frequency = 2 * math.pi * torch.exp(-uniform((b, waves, 1), shortest, longest, generator, device))
    k = frequency * (across + 0.15 * normal(b, waves, 1) * strand)
    phase = uniform((b, waves), 0.0, 2 * math.pi, generator, device)
    flat = points.reshape(b, -1, 3)
    total = torch.sin(flat @ k.transpose(1, 2) + phase[:, None]).sum(dim=-1) * math.sqrt(2.0 / waves)
    slow = F.normalize(normal(b, 3, 1), dim=1) * (2 * math.pi / 0.25)
    mask = torch.sigmoid(4.0 * torch.sin((flat @ slow)[..., 0] + uniform((b, 1), 0.0, 2 * math.pi, generator, device)))
    return (total * mask).view(points.shape[:-1])


def turn_hue(rgb: Tensor, angle: Tensor, saturation: Tensor) -> Tensor:
    """Hue turned about the grey axis and saturation scaled; brightness (the mean) stays but for clamping.

    Rodrigues' rotation about k = (1, 1, 1) / sqrt 3 of the part of a colour that is perpendicular to it.

    Args: rgb (B, ..., 3) in [0, 1]; angle (B,) radians; saturation (B,) factor. Returns: the same shape, clamped.
    """
    shape = (-1,) + (1,) * (rgb.dim() - 1)
    angle, saturation = angle.view(shape), saturation.view(shape)
    grey = rgb.mean(dim=-1, keepdim=True)
    colour = rgb - grey
    across = (colour.roll(-2, dims=-1) - colour.roll(-1, dims=-1)) / 3**0.5  # k x colour
    return (grey + saturation * (colour * angle.cos() + across * angle.sin())).clamp(0.0, 1.0)


def affine_jitter(images: Tensor, generator: torch.Generator, shift: float = 0.003, scale: float = 0.01) -> Tensor:
    """Tiny similarity jitter of what the encoder sees. images (B, C, S, S).

    Tiny on purpose: the fitted camera of a photo takes up its misalignment, and a jitter of some pixels that the
    targets do not share can only be answered with blur.
    """
    b, device = images.shape[0], images.device
    s = 1.0 + uniform((b,), -scale, scale, generator, device)
    angle = uniform((b,), -0.01, 0.01, generator, device)
    t = uniform((b, 2), -2 * shift, 2 * shift, generator, device)
    cos, sin = torch.cos(angle) * s, torch.sin(angle) * s
    theta = torch.stack([torch.stack([cos, -sin, t[:, 0]], -1), torch.stack([sin, cos, t[:, 1]], -1)], dim=1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="zeros")


def degrade(premultiplied: Tensor, alpha: Tensor, generator: torch.Generator) -> tuple:
    """Blur, noise and matte errors of a photograph.

    Args: premultiplied (B, 3, S, S), alpha (B, 1, S, S), in [0, 1]. Returns: both changed, in [0, 1].
    """
    b, device = alpha.shape[0], alpha.device
    both = torch.cat([premultiplied, alpha], dim=1)
    soft = F.avg_pool2d(F.pad(both, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = uniform((b, 1, 1, 1), -1.0, 0.6, generator, device).clamp(min=0.0)
    both = torch.lerp(both, soft, amount)
    rgb, alpha = both[:, :3], both[:, 3:]
    sigma = uniform((b, 1, 1, 1), 0.0, 0.03, generator, device)
    rgb = rgb + sigma * torch.randn(rgb.shape, generator=generator, device=device) * alpha
    # a low-frequency field grows or eats the matte's edge, as matting networks do
    field = torch.randn((b, 1, 8, 8), generator=generator, device=device)
    field = F.interpolate(field, size=alpha.shape[-2:], mode="bilinear", align_corners=False)
    edge = alpha * (1 - alpha) * 4
    eaten = (alpha + 0.35 * edge * field).clamp(0, 1)
    kept = torch.where(alpha > 1e-3, eaten / alpha.clamp(min=1e-3), torch.ones_like(alpha))
    rgb = rgb * kept.clamp(max=1.5)
    return rgb.clamp(0, 1), eaten


def disguise(premultiplied: Tensor, alpha: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    """Colours as another camera, light and other hair would give them, for inputs whose targets stay as they are.

    Texture like strands (`surface_texture` on the picture's plane), smooth shading, blur (a mean of the picture and
    its box blurs of 3, 5 and 7 pixels, each twice) and noise. A model that is trained on them has to answer what it
    does not know with what it knows.

    Args: premultiplied (B, 3, S, S), alpha (B, 1, S, S), in [0, 1]; amount (B,) in [0, 1], 0 changes nothing.
    Returns: (B, 3, S, S) in [0, alpha].
    """
    b, _, size, _ = premultiplied.shape
    device, a = premultiplied.device, amount.view(b, 1, 1, 1)
    along = (torch.arange(size, device=device) + 0.5) / size - 0.5  # about the head's size in scene units
    y, x = torch.meshgrid(along, along, indexing="ij")
    points = torch.stack([x, torch.zeros_like(x), -y], dim=-1).expand(b, size, size, 3)
    strands = 0.35 * uniform((b, 1, 1), 0.0, 1.0, generator, device) * surface_texture(points, generator)
    shading = 0.2 * torch.randn((b, 1, 4, 4), generator=generator, device=device)
    shading = shading + 0.06 * torch.randn((b, 3, 4, 4), generator=generator, device=device)
    shading = F.interpolate(shading, size=(size, size), mode="bicubic", align_corners=False)
    rgb = premultiplied * torch.exp(a * (strands[:, None] + shading))
    level = uniform((b, 1, 1, 1), -1.0, 1.0, generator, device).clamp(min=0.0)  # half of them are not blurred
    level = (4.0 * level * a).clamp(max=3.0)
    blurred = torch.zeros_like(rgb)
    for k, side in enumerate((1, 3, 5, 7)):
        soft = rgb
        for _ in range(2):
            soft = F.avg_pool2d(F.pad(soft, (side // 2,) * 4, mode="replicate"), side, stride=1)
        blurred = blurred + (1 - (level - k).abs()).clamp(min=0.0) * soft
    sigma = 0.06 * a * uniform((b, 1, 1, 1), 0.0, 1.0, generator, device)
    noisy = blurred + sigma * alpha * torch.randn(rgb.shape, generator=generator, device=device)
    return noisy.clamp(min=0.0).minimum(alpha)


def unknown_border(b: int, size: int, generator: torch.Generator, device, probability: float = 0.4) -> Tensor:
    """Mask (B, 1, S, S), 1 where the photograph is: sometimes it ends inside the canonical crop.

    Each border is cut with probability `probability / 2`, by up to 30 % below, 12 % at the sides, 5 % above.
    """
    position = torch.arange(size, device=device) / size
    on = (torch.rand((b, 4), generator=generator, device=device) < probability / 2).float()
    cut = on * torch.rand((b, 4), generator=generator, device=device)
    bottom, left, right, top = (cut[:, k : k + 1] * limit for k, limit in enumerate((0.30, 0.12, 0.12, 0.05)))
    vertical = (position[None] < 1 - bottom) & (position[None] >= top)
    horizontal = (position[None] >= left) & (position[None] < 1 - right)
    return (vertical[:, None, :, None] & horizontal[:, None, None, :]).float()
