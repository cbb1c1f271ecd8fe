"""Similarity transforms between photo, crop and head. Needs numpy only.

A 2D similarity is a (2,3) matrix ``[[a, -b, tx], [b, a, ty]]`` acting on continuous pixel coordinates, in which the
centre of the first pixel is (0.5, 0.5). Functions take anything ``numpy.asarray`` takes and return float64 arrays.
"""
import numpy as np

from ..errors import UsageError
from .canonical import CANONICAL_LANDMARKS_CROP, CANONICAL_LANDMARKS_HEAD

__all__ = [
    "CANONICAL_LANDMARKS_CROP", "CANONICAL_LANDMARKS_HEAD", "apply", "compose", "crop_from_landmarks",
    "fit_scale_translation_3d", "inverse", "opencv_matrix", "rotation_rad", "scale", "umeyama_2d",
]  # fmt: skip


def _point_pair(src, dst, dim: int, minimum: int) -> tuple[np.ndarray, np.ndarray]:
    src, dst = np.asarray(src, np.float64), np.asarray(dst, np.float64)
    if src.shape != dst.shape or src.ndim != 2 or src.shape[1] != dim or len(src) < minimum:
        raise UsageError(
            f"src and dst must both have shape (N,{dim}) with N >= {minimum}, got {src.shape} and {dst.shape}."
        )
    if not (np.isfinite(src).all() and np.isfinite(dst).all()):
        raise UsageError("src and dst must be finite, got NaN or infinity; check the landmark detector's output.")
    return src, dst


def umeyama_2d(src, dst) -> np.ndarray:
    """Similarity without reflection that maps ``src`` onto ``dst`` with least squared error.

    Formula: with points as complex numbers relative to their means,
    ``a + ib = sum(conj(s) d) / sum(|s|^2)``, ``t = mean(d) - (a + ib) mean(s)``; it is the 2D case of Umeyama,
    "Least-squares estimation of transformation parameters between two point patterns", 1991, determinant > 0.

    Args:
        src: (N,2) points, N >= 2, not all equal.
        dst: (N,2) their targets.

    Returns: (2,3) float64 matrix for :func:`apply`.
    Raises: UsageError for wrong shapes, values that are not finite, or coinciding points.
    """
    src, dst = _point_pair(src, dst, dim=2, minimum=2)
    s, d = src[:, 0] + 1j * src[:, 1], dst[:, 0] + 1j * dst[:, 1]
    s0, d0 = s - s.mean(), d - d.mean()
    spread = float((np.abs(s0) ** 2).sum())
    if spread <= 1e-24 * max(1.0, float((np.abs(s) ** 2).sum())):
        raise UsageError("the source points coincide, so no similarity is determined; give two different points.")
    z = (np.conj(s0) * d0).sum() / spread
    t = d.mean() - z * s.mean()
    return np.array([[z.real, -z.imag, t.real], [z.imag, z.real, t.imag]])


def apply(matrix, points):
    """Transform points. Works on numpy arrays and on torch tensors alike and is differentiable for tensors.

    Args:
        matrix: (2,3).
        points: (...,2).

    Returns: (...,2).
    """
    return points @ matrix[:, :2].T + matrix[:, 2]


def compose(second, first) -> np.ndarray:
    """(2,3) matrix of "first ``first``, then ``second``"."""
    second, first = np.asarray(second, np.float64), np.asarray(first, np.float64)
    return np.concatenate([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2:] + second[:, 2:]], axis=1)


def inverse(matrix) -> np.ndarray:
    """(2,3) inverse of an invertible affine matrix. Raises: UsageError if it is singular."""
    matrix = np.asarray(matrix, np.float64)
    if abs(np.linalg.det(matrix[:, :2])) < 1e-300:
        raise UsageError("the transform has scale 0 and no inverse; check the points it was fitted to.")
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def scale(matrix) -> float:
    """Magnification of a similarity (destination length per source length)."""
    return float(np.hypot(matrix[0][0], matrix[1][0]))


def rotation_rad(matrix) -> float:
    """Rotation angle in radians, from the u axis towards the v axis (clockwise on screen, since v points down)."""
    return float(np.arctan2(matrix[1][0], matrix[0][0]))


def opencv_matrix(matrix) -> np.ndarray:
    """The same transform for ``cv2.warpAffine``, whose coordinates put the first pixel centre at (0, 0).

    Formula: ``x' = A x + t`` becomes ``x' = A x + (t + A h - h)`` with ``h = (0.5, 0.5)``.
    """
    matrix = np.asarray(matrix, np.float64)
    half = np.full((2, 1), 0.5)
    return np.concatenate([matrix[:, :2], matrix[:, 2:] + matrix[:, :2] @ half - half], axis=1)


def crop_from_landmarks(landmarks_px, size: int) -> np.ndarray:
    """Photo-to-crop similarity that puts eyes and mouth corners onto their canonical places.

    Args:
        landmarks_px: (5,2) left eye, right eye, nose tip, left and right mouth corner, or (4,2) without the nose, in
            continuous photo pixels; "left" is the smaller u of an upright face. The nose moves with pose: ignored.
        size: edge of the square crop in pixels.

    Returns: (2,3) matrix, photo pixels to crop pixels.
    Raises: UsageError for wrong shapes or values that are not finite.
    """
    points = np.asarray(landmarks_px, np.float64)
    if points.shape == (5, 2):
        points = points[[0, 1, 3, 4]]
    if points.shape != (4, 2):
        raise UsageError(f"landmarks must have shape (5,2) or (4,2), got {np.asarray(landmarks_px).shape}.")
    if size < 1:
        raise UsageError(f"the crop size must be at least 1 pixel, got {size}.")
    return umeyama_2d(points, CANONICAL_LANDMARKS_CROP * size)


def fit_scale_translation_3d(src, dst) -> tuple[float, np.ndarray]:
    """Scale and translation without rotation, ``dst = scale src + t``, with least squared error.

    Formula: ``scale = sum(s . d) / sum(|s|^2)`` of the centred points.

    Args:
        src: (N,3) points, N >= 2, not all equal, for example a head's landmarks in metres.
        dst: (N,3) targets, for example CANONICAL_LANDMARKS_HEAD.

    Returns: scale (float; negative only if the patterns point opposite ways) and translation (3,).
    Raises: UsageError as :func:`umeyama_2d`.
    """
    src, dst = _point_pair(src, dst, dim=3, minimum=2)
    s0, d0 = src - src.mean(0), dst - dst.mean(0)
    spread = float((s0**2).sum())
    if spread <= 1e-24 * max(1.0, float((src**2).sum())):
        raise UsageError("the source points coincide, so no scale is determined; give two different points.")
    factor = float((s0 * d0).sum()) / spread
    return factor, dst.mean(0) - factor * src.mean(0)
