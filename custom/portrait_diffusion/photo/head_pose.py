"""Head pose from five landmarks: scaled-orthographic fit of a mean five-point face."""
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError

MEAN_FACE_MM = np.array(
    [[-31.5, 0.0, 0.0], [31.5, 0.0, 0.0], [0.0, -38.0, 34.0], [-25.5, -70.0, 2.0], [25.5, -70.0, 2.0]]
)
"""(5, 3) left eye, right eye, nose tip, left and right mouth corner in the head frame (x right in the frontal image,
y up, z towards the camera), millimetres.

Pupil distance 63 mm (Dodgson 2004); the other proportions are rounded adult means: mouth corners 51 mm apart, 70 mm
under the pupils and level with them in depth, nose tip 38 mm under and 34 mm in front of them."""


@dataclass(frozen=True)
class HeadPose:
    """Pose in degrees.

    Attributes:
        yaw: positive when the face is turned towards the right edge of the picture.
        pitch: positive when the face looks down.
        roll: positive when the head leans clockwise in the picture.
        residual: root mean square distance between fitted and found landmarks, in eye distances of the mean face.
    """

    yaw: float
    pitch: float
    roll: float
    residual: float


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) head-to-camera rotation ``R_z(-roll) R_x(pitch) R_y(yaw)`` from radians; identity faces the camera."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def project(angles, model=MEAN_FACE_MM) -> np.ndarray:
    """(N, 2) scaled-orthographic picture of the model at unit scale, v down, from (yaw, pitch, roll) in radians."""
    points = np.asarray(model) @ rotation(*angles).T
    return points[:, :2] * [1.0, -1.0]


def estimate_head_pose(landmarks, model=MEAN_FACE_MM, iterations: int = 60) -> HeadPose:
    """Least-squares pose under scaled orthography.

    Minimises ``sum |s P R(yaw, pitch, roll) X_i + t - x_i|^2``; for given angles the best s and t are closed-form
    (centred regression), the three angles follow by Levenberg-Marquardt with numerical derivatives, started from
    frontal. Scaled orthography neglects perspective, which shifts pitch by a few degrees in close selfies.

    Args:
        landmarks: (5, 2) pixels: left eye, right eye, nose tip, left and right mouth corner; left = smaller u.
        model: (5, 3) mean face.
        iterations: upper limit of Levenberg-Marquardt steps.

    Returns: HeadPose.
    Raises: UsageError for wrong shapes, values that are not finite, or coinciding landmarks.
    """
    found = np.asarray(landmarks, np.float64)
    if found.shape != (5, 2) or not np.isfinite(found).all():
        raise UsageError(f"Head pose needs five finite landmarks of shape (5, 2), got shape {found.shape}.")
    found = found - found.mean(0)
    spread = np.sqrt((found**2).sum(1).mean())
    if spread < 1e-9:
        raise UsageError("The five landmarks coincide; head pose is not determined.")
    found = found / spread
    angles = np.array([0.0, 0.0, np.arctan2(found[1, 1] - found[0, 1], found[1, 0] - found[0, 0])])
    damping, error = 1e-3, _residual(angles, model, found)
    for _ in range(iterations):
        jacobian = np.stack(
            [(_residual(angles + step, model, found) - _residual(angles - step, model, found)) / 2e-5
             for step in np.eye(3) * 1e-5], 1
        )  # fmt: skip
        normal = jacobian.T @ jacobian
        update = np.linalg.solve(normal + damping * np.eye(3), -jacobian.T @ error)
        trial = _residual(angles + update, model, found)
        if trial @ trial < error @ error:
            angles, error, damping = angles + update, trial, damping / 3
            if np.abs(update).max() < 1e-10:
                break
        else:
            damping *= 4
    yaw, pitch, roll = np.degrees((angles + np.pi) % (2 * np.pi) - np.pi)
    eye_distance = np.linalg.norm(np.asarray(model)[1] - np.asarray(model)[0]) * _scale(project(angles, model), found)
    return HeadPose(float(yaw), float(pitch), float(roll),
                    float(np.sqrt((error**2).sum() / len(found)) / max(eye_distance, 1e-9)))


def _scale(shape: np.ndarray, found: np.ndarray) -> float:
    shape = shape - shape.mean(0)
    return float((shape * found).sum() / (shape**2).sum())


def _residual(angles, model, found: np.ndarray) -> np.ndarray:
    """Residual after the best scale and translation, (2N,); the scale may not turn negative (a mirrored face)."""
    shape = project(angles, model)
    shape = shape - shape.mean(0)
    return (max(_scale(shape, found), 1e-6) * shape - found).ravel()
