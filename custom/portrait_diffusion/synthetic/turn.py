"""Shoulders turned and tilted beneath the head: in photographs people seldom look where their chest points.

Heads stay in their frame; what lies below turns about the neck, twisted over the neck's height.
"""
import numpy as np
from scipy.spatial.transform import Rotation

from .parts import Part
from .skin import smoothstep

PIVOT = np.array([0.0, -0.2, -0.04])
"""Middle of the neck, head frame."""
SLOPE = 0.45
"""Of the planes between head and neck: from beneath the chin up to the nape, y for each z."""
HEAD, TORSO = -0.16, -0.32
"""Height ``y + SLOPE z`` from which on all is head, and down to which all is torso, scene units."""
SPREAD_DEG, MOST_DEG = (20.0, 5.0, 6.0), (50.0, 12.0, 15.0)
"""Standard deviations and limits of yaw, pitch and roll."""


def sample_turn(rng: np.random.Generator, share: float) -> tuple[float, float, float]:
    """Yaw, pitch and roll of the torso, degrees; zeros for all but this share of people."""
    angles = np.clip(rng.normal(0.0, SPREAD_DEG), -np.array(MOST_DEG), MOST_DEG)
    return tuple(float(a) for a in (angles if rng.random() < share else np.zeros(3)))


def turn_torso(positions: np.ndarray, angles_deg: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Places after the turn, and the rotation at each.

    The rotation vector is w (pitch, yaw, roll), about x, y and z; w is a smooth step from 0 at `HEAD` to 1 at `TORSO`.

    Args: positions (n,3), head frame. Returns: (n,3), and rotations (n,3,3), also for normals.
    """
    yaw, pitch, roll = np.radians(angles_deg)
    height = positions[:, 1] + SLOPE * positions[:, 2]
    weight = 1 - smoothstep(TORSO, HEAD, height)
    turn = Rotation.from_rotvec(weight[:, None] * np.array([pitch, yaw, roll])).as_matrix()
    return np.einsum("nij,nj->ni", turn, positions - PIVOT) + PIVOT, turn


def turn_part(part: Part, angles_deg: tuple[float, float, float]) -> Part:
    """A part with its torso turned, in place."""
    if any(angles_deg):
        part.positions, turn = turn_torso(part.positions, angles_deg)
        part.normals = np.einsum("nij,nj->ni", turn, part.normals)
    return part
