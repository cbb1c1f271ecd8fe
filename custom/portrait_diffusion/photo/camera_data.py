"""Training pictures for CameraNet: rendered heads whose camera is known, cropped as badly as a face detector does.

Everything is batched, runs on the device of the input, and draws its randomness from one torch.Generator. Pictures are
addressed in [0, 1] (u right, v down); a similarity is a complex factor z and a complex shift s about the centre c:
``crop = z (frame - c) + s + c``.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UsageError
from ..ops.cameras import projected_landmarks
from ..ops.canonical import CANONICAL_LANDMARKS_CROP
from .backgrounds import chance
from .camera_net import mirrored_camera
from .composites import compose, premultiply
from .matte_data import read_shards, resize_frames, seen_from_front

CENTRE = 0.5 + 0.5j
LANDMARK_NOISE = 0.015
"""Standard deviation of a detector's landmarks, shares of the side, about what YuNet shows on rendered heads."""


@dataclass(frozen=True)
class CameraPool:
    """Views to draw from, M of them.

    Attributes: frames (M, S, S, 4) uint8 straight RGBA; angles (M, 2) azimuth and elevation in degrees; landmarks
        (M, 4, 2) true eyes and mouth corners of the person in [0, 1] of the frame.
    """

    frames: Tensor
    angles: Tensor
    landmarks: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, picks) -> "CameraPool":
        """Some of them."""
        return CameraPool(self.frames[picks], self.angles[picks], self.landmarks[picks])


@dataclass(frozen=True)
class CameraBatch:
    """One training batch.

    Attributes: rgb (B, 3, S, S) in [0, 1], 0 where not valid; valid (B, 1, S, S); angles (B, 2) degrees; anchors
        (B, 4, 2) where the canonical landmarks of the head frame stand in the crop, in [0, 1].
    """

    rgb: Tensor
    valid: Tensor
    angles: Tensor
    anchors: Tensor

    def mirrored(self) -> "CameraBatch":
        """The same photographs, left and right exchanged, and where their cameras stand then."""
        angles, anchors = mirrored_camera(self.angles, self.anchors)
        return CameraBatch(self.rgb.flip(-1), self.valid.flip(-1), angles, anchors)


def load_camera_pool(folder, size: int, device: torch.device, max_frames: int, max_yaw_deg: float) -> CameraPool:
    """Views of training shards, resized, on a device.

    Args: folder with ``train_*.npz``; side in pixels; device; at most so many views; those up to max_yaw_deg.
    Raises: UsageError when there are none.
    """
    parts, count = [], 0
    for rgba, camera, pixels in read_shards(folder, ("rgba", "camera", "landmarks_px")):
        front = seen_from_front(camera, max_yaw_deg)
        frames = torch.from_numpy(np.ascontiguousarray(rgba[front][: max_frames - count]))
        if not len(frames):
            continue
        points = torch.from_numpy(pixels[front][: len(frames)][:, [0, 1, 3, 4]] / rgba.shape[-2]).float()
        angles = torch.from_numpy(camera[front][: len(frames), :2].copy()).float()
        small = torch.cat([resize_frames(part.to(device), size) for part in frames.split(256)])
        parts.append((small, ((angles + 180) % 360 - 180).to(device), points.to(device)))
        count += len(frames)
        if count >= max_frames:
            break
    if not count:
        raise UsageError(f"No view in '{folder}' is within {max_yaw_deg:g} degrees of the front; render others.")
    return CameraPool(*(torch.cat(column) for column in zip(*parts)))


def make_camera_batch(pool: CameraPool, size: int, generator: torch.Generator) -> CameraBatch:
    """Views as photographs in crops of that side, a multiple of 16. Args: pool: the batch's rows. Not differentiable.

    Half of the views are mirrored, and their cameras with them. The crop puts noisy landmarks onto their canonical
    places, then errs further, a little or, one time in five, a lot.
    """
    batch = len(pool)
    mirror = chance(generator, batch, 0.5) > 0
    layers = premultiply(pool.frames)
    layers = torch.where(mirror, layers.flip(-1), layers)
    flip = mirror[:, 0, 0]  # (B, 1)
    turned, flipped = mirrored_camera(pool.angles, pool.landmarks)
    angles = torch.where(flip, turned, pool.angles)
    landmarks = torch.where(flip[..., None], flipped, pool.landmarks)
    noise = torch.randn(landmarks.shape, generator=generator, device=landmarks.device)
    z, s = crop_of(landmarks + LANDMARK_NOISE * noise)
    wide = chance(generator, batch, 0.2)[:, 0, 0, 0]
    error = torch.randn(batch, 4, generator=generator, device=landmarks.device)
    turn = error[:, 0] * math.radians(2.0) * (1 + 4 * wide)
    zoom = error[:, 1] * 0.03 * (1 + 2 * wide)
    z = z * torch.polar(torch.exp(zoom), turn)
    s = s + torch.complex(error[:, 2], error[:, 3]) * (0.01 * (1 + 3 * wide))
    anchors = place(projected_landmarks(angles[:, 0], angles[:, 1]), z, s)
    grid = F.affine_grid(theta_of(z, s), [batch, 1, size, size], align_corners=False)
    placed = F.grid_sample(layers, grid, padding_mode="border", align_corners=False)
    made = compose(placed, placed, generator, dressed=False)
    return CameraBatch(made.rgb, made.valid, angles, anchors)


def crop_of(landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """z, s (B,) complex of the similarity that puts landmarks (B, 4, 2) onto ``CANONICAL_LANDMARKS_CROP``.

    Least squares (Umeyama 1991 in two dimensions): z = sum conj(a) b / sum |a|^2 of the centred points.
    """
    here = torch.view_as_complex(landmarks.contiguous()) - CENTRE
    there = torch.view_as_complex(landmarks.new_tensor(CANONICAL_LANDMARKS_CROP)) - CENTRE
    a, b = here - here.mean(1, keepdim=True), there - there.mean()
    z = (a.conj() * b).sum(1) / a.abs().square().sum(1)
    return z, there.mean() - z * here.mean(1)


def place(points: Tensor, z: Tensor, s: Tensor) -> Tensor:
    """Where points (B, N, 2) of the frame come to lie in the crop."""
    moved = z[:, None] * (torch.view_as_complex(points.contiguous()) - CENTRE) + s[:, None] + CENTRE
    return torch.view_as_real(moved)


def theta_of(z: Tensor, s: Tensor) -> Tensor:
    """(B, 2, 3) for `affine_grid`: from the crop's to the frame's coordinates, both in [-1, 1]."""
    back, shift = 1 / z, -2 * s / z
    first = torch.stack([back.real, -back.imag, shift.real], -1)
    return torch.stack([first, torch.stack([back.imag, back.real, shift.imag], -1)], 1)
