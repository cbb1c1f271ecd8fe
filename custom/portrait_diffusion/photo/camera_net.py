"""CameraNet: from a roughly aligned crop to the canonical camera that took it, and its weight file.

Five landmarks of a face detector say badly how large a head is and how far it looks up: what is searched is the frame
in which heads are modelled, so a network is trained on rendered heads whose frame is known (as Deng et al., "Accurate
3D Face Reconstruction with Weakly-Supervised Learning", 2019, regress a pose from the whole face).
"""
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.canonical import CANONICAL_LANDMARKS_CROP
from .matte_net import ResidualBlock, coordinates
from .net_files import load_net

CAMERA_SIZE = 128
WEIGHTS_FILE = Path(__file__).resolve().parents[1] / "weights" / "camera.safetensors"
WIDTHS = (24, 48, 96, 128, 192)
HIDDEN = 256
MIRRORED = (1, 0, 3, 2)
"""Anchors in a mirrored picture: left is what has the smaller u."""
ANGLE_DEG = 30.0
SPREAD = 0.1
"""Natural sizes of what the network says: degrees, and shares of the crop's side."""


class CameraNet(nn.Module):
    """Residual blocks to 4x4 cells, then two layers that see all of them: place carries the meaning here."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.encoders = nn.ModuleList()
        channels = 6
        for width in widths:
            self.encoders.append(ResidualBlock(channels, width))
            channels = width
        self.hidden = nn.Linear(channels * 16, HIDDEN)
        self.out = nn.Linear(HIDDEN, 10)
        self.register_buffer("canonical", torch.tensor(CANONICAL_LANDMARKS_CROP, dtype=torch.float32), persistent=False)

    def forward(self, rgb: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the camera.

        Args:
            rgb: (B, 3, S, S) in [0, 1]; S a multiple of 16, trained at ``CAMERA_SIZE``.
            valid: (B, 1, S, S), 1 inside the photograph.

        Returns: angles (B, 2), azimuth and elevation in degrees; anchors (B, 4, 2) in [0, 1] of the crop (u, v): where
            ``CANONICAL_LANDMARKS_HEAD`` stand in the picture.
        """
        x = torch.cat([(rgb * 2 - 1) * valid, valid, coordinates(rgb)], 1)
        for level, encoder in enumerate(self.encoders):
            x = encoder(x if level == 0 else F.avg_pool2d(x, 2))
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)
        found = self.out(F.silu(self.hidden(x))).float()
        return found[:, :2] * ANGLE_DEG, self.canonical + SPREAD * found[:, 2:].view(-1, 4, 2)


def mirrored_camera(angles: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Angles (B, 2) in degrees and landmarks (B, 4, 2) in [0, 1], eyes and mouth corners, of the mirrored picture."""
    across = angles.new_tensor([-1.0, 1.0])
    return angles * across, landmarks[:, MIRRORED, :] * across + angles.new_tensor([1.0, 0.0])


def load_camera_net(path=None) -> CameraNet:
    """Read CameraNet from a safetensors file onto the CPU, in evaluation mode.

    Args: path: weight file; default: the one shipped in ``weights/``.
    Returns: the network in float32.
    Raises: EnvironmentProblem when the file is missing; UsageError when it does not hold a CameraNet.
    """
    path = Path(path) if path is not None else WEIGHTS_FILE
    return load_net(
        CameraNet(), path,
        "train them with 'python launch_portrait.py train-camera' or choose camera: landmarks",
    )  # fmt: skip
