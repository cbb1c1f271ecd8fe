"""Resample a photograph into the canonical crop: anti-aliased, alpha-correct, with an exact mask of what it shows."""
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UsageError
from ..ops.similarity import crop_from_landmarks, inverse, scale


@dataclass(frozen=True)
class AlignedCrop:
    """A canonical crop.

    Attributes:
        rgb: (S, S, 3) float32 in [0, 1], straight colour; outside the photograph the nearest edge colour.
        alpha: (S, S, 1) the file's own alpha, or None.
        valid: (S, S, 1), 1 where the pixel centre lies inside the photograph, else 0: unknown, not white.
        photo_to_crop: (2, 3) float64 similarity, continuous pixels to continuous pixels.
    """

    rgb: Tensor
    alpha: Tensor | None
    valid: Tensor
    photo_to_crop: np.ndarray


def align_photo(rgb: Tensor, landmarks, size: int = 512, alpha: Tensor | None = None) -> AlignedCrop:
    """Cut the canonical crop out of a photograph.

    Args:
        rgb: (H, W, 3) float in [0, 1].
        landmarks: (5, 2) or (4, 2) continuous photo pixels, order of ``ops.similarity.crop_from_landmarks``.
        size: side S of the crop.
        alpha: optional (H, W) own alpha of the file in [0, 1].

    Returns: AlignedCrop.
    Raises: UsageError when the landmarks do not determine a similarity.
    """
    return cut_crop(rgb, crop_from_landmarks(landmarks, size), size, alpha)


def cut_crop(rgb: Tensor, photo_to_crop, size: int, alpha: Tensor | None = None) -> AlignedCrop:
    """The same with a given (2, 3) similarity. Colour is resampled premultiplied by the alpha."""
    valid = valid_mask(photo_to_crop, rgb.shape[:2], size).to(rgb.device)
    picture = rgb.permute(2, 0, 1)
    if alpha is None:
        colour = resample(picture, photo_to_crop, size).clamp(0, 1)
        return AlignedCrop(colour.permute(1, 2, 0).contiguous(), None, valid, np.asarray(photo_to_crop))
    layers = resample(torch.cat([picture * alpha[None], alpha[None]]), photo_to_crop, size)
    cover = layers[3:].clamp(0, 1)
    straight = (layers[:3] / layers[3:].clamp_min(1e-3)).clamp(0, 1)
    colour = torch.where(cover > 1e-3, straight, torch.zeros_like(straight))
    return AlignedCrop(
        colour.permute(1, 2, 0).contiguous(), cover.permute(1, 2, 0) * valid, valid, np.asarray(photo_to_crop)
    )


def resample(picture: Tensor, matrix, size: int) -> Tensor:
    """Warp by a similarity: shrink with an anti-aliasing cubic kernel to the target's scale, then sample cubically.

    The kernel of the first step is widened by the shrink factor (Keys 1981 kernel, as in PIL's BICUBIC), so that no
    frequency above the target's Nyquist limit is left to alias; the second step then neither shrinks nor enlarges.

    Args:
        picture: (C, H, W) float.
        matrix: (2, 3) similarity from source to target pixels, centres at +0.5.
        size: target side.

    Returns: (C, size, size); border pixels are repeated outwards; cubic overshoot is not clamped. Differentiable in
        picture.
    """
    matrix = np.asarray(matrix, np.float64)
    height, width = picture.shape[-2:]
    factor = scale(matrix)
    if factor < 1:
        small = (max(1, round(height * factor)), max(1, round(width * factor)))
        picture = F.interpolate(picture[None], size=small, mode="bicubic", align_corners=False, antialias=True)[0]
        stretch = np.diag([width / small[1], height / small[0]])
        matrix = np.concatenate([matrix[:, :2] @ stretch, matrix[:, 2:]], 1)
        height, width = small
    points = _source_points(matrix, size)
    target = torch.as_tensor(points / [width, height] * 2 - 1, dtype=picture.dtype, device=picture.device)
    return F.grid_sample(picture[None], target[None], mode="bicubic", padding_mode="border", align_corners=False)[0]


def valid_mask(matrix, source_shape, size: int) -> Tensor:
    """(S, S, 1) float32: 1 where the preimage of the pixel centre lies in [0, W] x [0, H]."""
    if scale(matrix) < 1e-6:
        raise UsageError("The crop transform has almost zero scale; check the landmarks.")
    points = _source_points(np.asarray(matrix, np.float64), size)
    height, width = source_shape
    inside = (points >= 0).all(-1) & (points <= [width, height]).all(-1)
    return torch.from_numpy(inside.astype(np.float32))[..., None]


def _source_points(matrix: np.ndarray, size: int) -> np.ndarray:
    """(S, S, 2) source position of every target pixel centre."""
    back = inverse(matrix)
    centre = np.arange(size) + 0.5
    u, v = np.meshgrid(centre, centre)
    return np.stack([u, v], -1) @ back[:, :2].T + back[:, 2]
