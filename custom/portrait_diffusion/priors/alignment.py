"""What the encoder sees: the portrait resampled onto the frontal (x, y) plane of the tri-plane box."""
import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.canonical import BOX_RADIUS, half_height

FACE_DEPTH = 0.14
"""Depth z (head frame) of the plane onto which the portrait is laid: about the surface of the face."""


def plane_grid(size: int, device, dtype=torch.float32) -> Tensor:
    """grid_sample coordinates (1, size, size, 2) of the canonical crop for a regular grid over the box's (x, y).

    A head-frame point (x, y, z) projects to x / ((d - z) tan(fovy / 2)) in [-1, 1] of the canonical crop; v points
    down. Row 0 is y = -radius, as rows of a plane are: the result is upside down as an image and right as a plane.
    """
    centres = (torch.arange(size, device=device, dtype=dtype) + 0.5) / size * 2 - 1
    scaled = centres * BOX_RADIUS / half_height(FACE_DEPTH)
    y, x = torch.meshgrid(scaled, scaled, indexing="ij")
    return torch.stack([x, -y], dim=-1)[None]


def encoder_input(
    premultiplied: Tensor, alpha: Tensor, valid: Tensor, yaw_deg: Tensor, pitch_deg: Tensor, size: int
) -> Tensor:
    """Stack what the encoder reads.

    Args:
        premultiplied: (B, 3, S, S) colour times alpha of the canonical crop, in [0, 1].
        alpha: (B, 1, S, S); valid: (B, 1, S, S), 0 where the photograph ends.
        yaw_deg, pitch_deg: (B,) head pose: azimuth and elevation of the camera that took the photo, degrees.
        size: side of the encoder's input.
    Returns: (B, 7, size, size).
    """
    stack = torch.cat([premultiplied * valid, alpha * valid, valid], dim=1)
    grid = plane_grid(size, stack.device, stack.dtype).expand(stack.shape[0], -1, -1, -1)
    plane = F.grid_sample(stack, grid, align_corners=False, padding_mode="zeros")
    pose = torch.stack([yaw_deg, pitch_deg], dim=1).to(stack.dtype)[:, :, None, None] / 90.0
    return torch.cat([plane, pose.expand(-1, -1, size, size)], dim=1)
