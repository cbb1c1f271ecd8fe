"""Windows of the image plane that training looks through, and the mirror image of a view."""
import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 64
"""Side of the patches that training compares, pixels."""


def camera_condition(azimuth: Tensor, elevation: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """(M, 6) condition of the discriminator from degrees and the patch window (unit coordinates)."""
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    return torch.stack([a.sin(), a.cos(), e.sin() * 2, scale, offset[:, 0], offset[:, 1]], dim=1)


def patch_rays(c2w: Tensor, fovy: Tensor, scale: Tensor, offset: Tensor, size: int) -> tuple:
    """Rays of a window of the image plane, by elementwise sums: matrix products in TF32 would bend them.

    Args:
        c2w: (M, 4, 4); fovy: (M,) radians.
        scale: (M,) share of the frame; offset: (M, 2) of its upper left corner (u, v), in [0, 1].
        size: side of the window in pixels.
    Returns: rays_o, rays_d (M, size, size, 3) world frame, unit directions.
    """
    centres = (torch.arange(size, device=c2w.device, dtype=c2w.dtype) + 0.5) / size
    u = offset[:, 0, None] + centres * scale[:, None]  # (M, size)
    v = offset[:, 1, None] + centres * scale[:, None]
    half = torch.tan(fovy / 2)
    x = ((2 * u - 1) * half[:, None])[:, None, :].expand(-1, size, -1)
    y = ((1 - 2 * v) * half[:, None])[:, :, None].expand(-1, -1, size)
    directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
    rays_d = F.normalize((directions[..., None, :] * c2w[:, None, None, :3, :3]).sum(-1), dim=-1)
    return c2w[:, None, None, :3, 3].expand_as(rays_d), rays_d


def mirror_view(c2w: Tensor, flip: Tensor) -> Tensor:
    """Camera that sees the head's mirror image (y to -y) as the given one sees the head, columns reversed.

    With S = diag(1, -1, 1) on the world and the camera's own x axis reversed, so that it stays right-handed.

    Args: c2w (M, 4, 4); flip (M,) bool, which rows to change.
    """
    sign = torch.ones_like(c2w)
    sign[:, 1] *= -1
    sign[:, :, 0] *= -1
    return torch.where(flip[:, None, None], c2w * sign, c2w)


def over_white(premultiplied: Tensor, alpha: Tensor) -> Tensor:
    """Premultiplied colour over a white background."""
    return premultiplied + (1 - alpha)


def premultiplied_images(rgba: Tensor) -> Tensor:
    """(..., S, S, 4) straight uint8 to (..., 4, S, S) premultiplied colour and alpha in [0, 1]."""
    rgba = rgba.float() / 255.0
    return torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1).movedim(-1, -3)
