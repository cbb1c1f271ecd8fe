"""Analytic heads for export tests: fields with known surfaces, and a small volume renderer that shows them."""
import math

import torch
from portrait_diffusion.export.fields import FieldFns
from portrait_diffusion.ops.cameras import BOX_RADIUS, get_rays

SHARPNESS = 2000.0  # density rises from 0 to its plateau over about 1/SHARPNESS of signed distance
PLATEAU = 400.0


def soft_density(distance):
    """Density of a body from its signed distance (negative inside): a steep sigmoid whose half value is the surface."""
    return PLATEAU * torch.sigmoid(-SHARPNESS * distance)[..., None]


def position_colour(points):
    """A smooth colour that differs everywhere: (p / (2 BOX_RADIUS)) + 1/2 per axis."""
    return (points / (2 * BOX_RADIUS) + 0.5).clamp(0, 1)


def sphere_field(radius=0.2, centre=(0.0, 0.0, 0.0)):
    """A sphere coloured by position."""

    def density(points):
        return soft_density((points - points.new_tensor(centre)).norm(dim=-1) - radius)

    return FieldFns(density, position_colour)


def head_distance(points):
    """Signed distance (roughly) to a head-like union: skull, nose on +x, neck and shoulders down to the box."""

    def ellipsoid(centre, radii):
        q = (points - points.new_tensor(centre)) / points.new_tensor(radii)
        return (q.norm(dim=-1) - 1.0) * min(radii)

    skull = ellipsoid((0.0, 0.0, 0.03), (0.17, 0.14, 0.2))
    nose = ellipsoid((0.17, 0.0, 0.0), (0.04, 0.025, 0.04))
    neck = torch.maximum(points[..., :2].norm(dim=-1) - 0.085, points[..., 2])
    bust = ellipsoid((-0.02, 0.0, -0.4), (0.2, 0.45, 0.2))
    return torch.stack([skull, nose, neck, bust]).amin(0)


def head_colour(points):
    """Skin in front, dark hair at the back and top, two eyes, red nose, a blue shirt with stripes."""
    x, y, z = points.unbind(-1)
    skin = points.new_tensor([0.85, 0.65, 0.55]).expand_as(points)
    hair = points.new_tensor([0.25, 0.15, 0.1]).expand_as(points)
    shirt = torch.stack([0.2 + 0 * x, 0.3 + 0 * x, 0.5 + 0.4 * torch.sin(120 * z).sign()], -1).clamp(0, 1)
    behind = x < 0.05 + 0.3 * (z - 0.05).clamp(max=0.0)
    out = torch.where((behind | (z > 0.15))[..., None], hair, skin)
    out = torch.where((z < -0.2)[..., None], shirt, out)
    for side in (-0.055, 0.055):
        eye = (((y - side) ** 2 + (z - 0.05) ** 2) < 0.018**2) & (x > 0)
        out = torch.where(eye[..., None], points.new_tensor([0.1, 0.3, 0.2]), out)
    nose = ((y**2 + z**2) < 0.03**2) & (x > 0.18)
    return torch.where(nose[..., None], points.new_tensor([0.9, 0.3, 0.3]), out)


def head_field():
    """A head-like body with features, facing +x."""
    return FieldFns(lambda p: soft_density(head_distance(p)), head_colour)


def volume_render_fn(field, samples=96, background=1.0):
    """A plain volume renderer with the RenderFn contract, for tests: uniform samples, emission-absorption."""

    def render(c2w, fovy, height, width):
        rays_o, rays_d = get_rays(c2w, fovy, height, width)
        near, far = 2.7 - 0.55, 2.7 + 0.55
        step = (far - near) / samples
        t = near + step * (torch.arange(samples, device=c2w.device) + 0.5)
        points = rays_o[..., None, :] + rays_d[..., None, :] * t[:, None]  # (B,H,W,S,3)
        flat = points.reshape(-1, 3).requires_grad_(True)
        inside = (flat.abs() < BOX_RADIUS).all(-1) & (flat[:, :2].norm(dim=-1) < BOX_RADIUS)
        with torch.enable_grad():
            sigma = field.density(flat)[:, 0] * inside
            (slope,) = torch.autograd.grad(sigma.sum(), flat)
        normal = -torch.nn.functional.normalize(slope, dim=-1).reshape(points.shape)
        sigma = sigma.detach().reshape(points.shape[:-1])
        alpha = 1 - torch.exp(-sigma * step)
        transmittance = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha], -1), -1)[..., :-1]
        weights = (alpha * transmittance)[..., None]
        opacity = weights.sum(-2)
        foreground = (weights * field.colour(flat.detach()).reshape(points.shape)).sum(-2)
        mean_normal = torch.nn.functional.normalize((weights * normal).sum(-2), dim=-1)
        return {
            "comp_rgb": foreground + (1 - opacity) * background,
            "comp_rgb_fg": foreground,
            "comp_rgb_bg": torch.full_like(foreground, background),
            "opacity": opacity,
            "depth": (weights[..., 0] * t).sum(-1, keepdim=True),
            "comp_normal": (mean_normal + 1) / 2 * opacity,
        }

    return render


def front_camera():
    """(4,4) canonical front camera and its field of view (1,) in radians, written out by hand."""
    c2w = torch.tensor([[0.0, 0, 1, 2.7], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return c2w, torch.tensor([math.radians(13.374)])
