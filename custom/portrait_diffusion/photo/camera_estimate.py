"""The canonical camera of a photograph: CameraNet on several crops of it, from a face detector's landmarks on."""
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..ops.similarity import apply, compose, crop_from_landmarks, inverse
from .align import resample, valid_mask
from .camera_net import CAMERA_SIZE, CameraNet, mirrored_camera
from .head_pose import HeadPose

CAMERA_METHODS = ("network", "landmarks")
MAX_ANGLE_DEG = {"azimuth": 40.0, "elevation": 20.0}
"""Of what landmarks say."""
ROUNDS = (8, 16)
"""Crops of each round; a round starts where the last one said that the head is."""
WIDE_SIZE = 5 * CAMERA_SIZE // 2
"""Side of the picture from which the crops of a round are cut: a quarter wider than they are, and twice as fine."""
_WIDEN = np.array([[2.0, 0, CAMERA_SIZE / 4], [0, 2.0, CAMERA_SIZE / 4]])


@dataclass(frozen=True)
class CameraEstimate:
    """Canonical camera of a picture.

    Attributes: azimuth_deg, elevation_deg: of the camera, the host's convention; anchors (4, 2) float64: where
        ``CANONICAL_LANDMARKS_HEAD`` stand in the picture, in its pixels.
    """

    azimuth_deg: float
    elevation_deg: float
    anchors: np.ndarray

    def moved(self, matrix: np.ndarray) -> "CameraEstimate":
        """The same in the picture that a (2, 3) similarity makes of this one."""
        return CameraEstimate(self.azimuth_deg, self.elevation_deg, apply(matrix, self.anchors))


def check_camera_method(method: str) -> None:
    """Raises: UsageError for an unknown name."""
    if method not in CAMERA_METHODS:
        raise UsageError(f"camera is '{method}'; expected one of: {', '.join(CAMERA_METHODS)}.")


def landmark_camera(landmarks, pose: HeadPose | None) -> CameraEstimate:
    """Camera from a face's landmarks alone: they are taken for the canonical ones, the pose for that of a mean face.

    Pitch from five points is rough, so only half of it is believed. The size is 5 % off on rendered heads; on photos
    mouths are found too high.

    Args: landmarks (5, 2) of a picture, in its pixels; pose, None is frontal.
    """
    azimuth = elevation = 0.0
    if pose is not None:
        limit = MAX_ANGLE_DEG
        azimuth = max(-limit["azimuth"], min(limit["azimuth"], -pose.yaw))
        elevation = max(-limit["elevation"], min(limit["elevation"], 0.5 * pose.pitch))
    return CameraEstimate(azimuth, elevation, np.asarray(landmarks, np.float64)[[0, 1, 3, 4]])


@torch.no_grad()
def estimate_camera(rgb: Tensor, landmarks, net: CameraNet) -> CameraEstimate:
    """Camera of a photograph: the mean of what the network says of crops that are slightly shifted, scaled and
    mirrored.

    Args:
        rgb: (H, W, 3) float in [0, 1].
        landmarks: (5, 2) or (4, 2) of the face, continuous pixels; order of `ops.similarity.crop_from_landmarks`.
        net: in evaluation mode.

    Returns: CameraEstimate in pixels of the photograph. Not differentiable.
    Raises: UsageError when the landmarks do not determine a similarity.
    """
    where = np.asarray(landmarks, np.float64)
    picture = rgb.permute(2, 0, 1)
    angles = torch.zeros(1, 2)
    for count in ROUNDS:
        to_wide = compose(_WIDEN, crop_from_landmarks(where, CAMERA_SIZE))
        wide = resample(picture, to_wide, WIDE_SIZE).clamp(0, 1)
        layers = torch.cat([wide, valid_mask(to_wide, rgb.shape[:2], WIDE_SIZE).permute(2, 0, 1)])
        cuts = [_cut(index) for index in range(count)]
        crops = torch.stack([resample(layers, matrix, CAMERA_SIZE) for matrix, _ in cuts])
        valid = (crops[:, 3:] > 0.5).to(crops)
        mirrored = torch.tensor([mirror for _, mirror in cuts]).view(-1, 1, 1, 1)
        shown = torch.cat([crops[:, :3].clamp(0, 1) * valid, valid], 1)
        shown = torch.where(mirrored, shown.flip(-1), shown)
        angles, anchors = net(shown[:, :3], shown[:, 3:])
        anchors = anchors.double()
        turned, flipped = mirrored_camera(angles, anchors)
        angles = torch.where(mirrored[:, :, 0, 0], turned, angles)
        anchors = torch.where(mirrored[:, :, 0], flipped, anchors)
        found = []
        for points, (matrix, _) in zip((anchors * CAMERA_SIZE).numpy(), cuts):
            found.append(apply(inverse(compose(matrix, to_wide)), points))
        where = np.mean(found, 0)
    azimuth, elevation = angles.mean(0).tolist()
    return CameraEstimate(azimuth, elevation, where)


def _cut(index: int) -> tuple[np.ndarray, bool]:
    """(2, 3) from the wider picture to crop number ``index`` (Roberts' R3 sequence), and whether that is mirrored."""
    du, dv, zoom = (0.5 + np.array([0.8192, 0.6711, 0.5497]) * (index // 2 + 1)) % 1 - 0.5
    factor = 0.5 * np.exp(0.08 * zoom)
    shift = CAMERA_SIZE / 2 + 0.03 * CAMERA_SIZE * np.array([du, dv]) - factor * WIDE_SIZE / 2
    return np.array([[factor, 0.0, shift[0]], [0.0, factor, shift[1]]]), bool(index % 2)
