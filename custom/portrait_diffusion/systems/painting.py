"""Pictures that the multi-view model paints over renders, to which the head is fitted until the next look.

Score distillation asks the denoiser in every step and gets a noisy direction; here a look around the head is
denoised to pictures once, and many steps are fitted to them. Haque et al., "Instruct-NeRF2NeRF", ICCV 2023, replaces
its dataset so; the pictures are those of Meng et al., "SDEdit", ICLR 2022.
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.cameras import GOLDEN, along_ranges
from ..ops.resize import resized
from .stages import StageConfig


@dataclass
class Painted:
    """Pictures of canonical cameras.

    Attributes: rgb (N, 3, S, S) over white, in [0, 1]; azimuth, elevation (N,) degrees.
    """

    rgb: Tensor
    azimuth: Tensor
    elevation: Tensor

    def __len__(self) -> int:
        return len(self.rgb)

    def to(self, device: torch.device) -> "Painted":
        """The same on a device."""
        return Painted(*(x.to(device) for x in vars(self).values()))


def look_around(stage: StageConfig, turn: int) -> tuple[Tensor, Tensor]:
    """Azimuths and elevations (N,), degrees; evenly over the stage's ranges, each turn between the others.

    Args: turn: number of the look, from 0.
    """
    n, low, high = stage.painted, *stage.elevations
    shift = (turn * GOLDEN[0]) % 1.0
    azimuth = [along_ranges((k + shift) / n, stage.azimuths) for k in range(n)]
    height = [((k + turn * n + 0.5) * GOLDEN[0]) % 1.0 for k in range(n)]
    return torch.tensor(azimuth), low + (high - low) * torch.tensor(height)


def rows_of(step: int, views: int, painted: int) -> list[int]:
    """Which pictures a step shows: all in turn, in a fixed mixed order, so that views of a step lie apart."""
    stride = next(s for s in range(max(1, round(painted * GOLDEN[0])), 2 * painted + 2) if math.gcd(s, painted) == 1)
    return [((step * views + k) * stride) % painted for k in range(min(views, painted))]


def painting_losses(render: Tensor, painted: Tensor, perceptual: nn.Module | None) -> dict[str, Tensor]:
    """How far renders are from what was painted.

    Args: render (B, H, W, 3) over white; painted (B, 3, S, S), resized to the render; perceptual: ST-LPIPS or None.
    Returns: ``painted``, mean absolute difference; with `perceptual` ``painted_perceptual``.
    """
    picture = render.permute(0, 3, 1, 2)
    target = resized(painted, picture.shape[-2:])
    found = {"painted": (picture - target).abs().mean()}
    if perceptual is not None:
        found["painted_perceptual"] = perceptual(picture.clamp(0, 1), target.clamp(0, 1)).mean()
    return found
