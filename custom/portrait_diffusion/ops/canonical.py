"""The canonical portrait: camera, volume, landmark positions and the unit of length. Needs numpy only.

Everything else follows from a few numbers: camera distance, field of view, box radius, and where eyes and mouth corners
sit in the canonical crop. A picture is in ``docs/conventions.md``.
"""
import math

import numpy as np

CANONICAL_DISTANCE = 2.7
"""Distance of the portrait camera from the origin in scene units (the value of EG3D and PanoHead)."""
CANONICAL_FOVY_DEG = 13.374
"""Vertical field of view of the portrait camera in degrees (focal length 4.2647 image heights, as in EG3D)."""
BOX_RADIUS = 0.36
"""Half edge of the volume and radius of the upright cylinder that bounds all matter, in scene units."""
INTERPUPILLARY_METRES = 0.063
"""Mean adult distance between the pupils (Dodgson, "Variation and extrema of human interpupillary distance", 2004)."""

CANONICAL_LANDMARKS_CROP = np.array(
    [[0.5 - 0.09375, 0.46875], [0.5 + 0.09375, 0.46875], [0.5 - 0.0777, 0.6855], [0.5 + 0.0777, 0.6855]]
)
"""(4,2) unit coordinates (u right, v down): left eye, right eye, left and right mouth corner; left = smaller u."""

LANDMARK_DEPTH = 0.15
"""Head-frame z of the four canonical landmarks, in scene units."""


def half_height(depth: float = 0.0) -> float:
    """Half of what the canonical camera's picture spans at head-frame z = depth, (d - z) tan(fovy / 2), scene units."""
    return (CANONICAL_DISTANCE - depth) * math.tan(math.radians(CANONICAL_FOVY_DEG) / 2)


def _landmarks_head() -> np.ndarray:
    """(4,3) points at ``z = LANDMARK_DEPTH`` that the canonical camera projects onto CANONICAL_LANDMARKS_CROP."""
    offset = (CANONICAL_LANDMARKS_CROP - 0.5) * 2 * half_height(LANDMARK_DEPTH)
    return np.stack([offset[:, 0], -offset[:, 1], np.full(len(offset), LANDMARK_DEPTH)], axis=1)


CANONICAL_LANDMARKS_HEAD = _landmarks_head()
"""(4,3) the same points in the head frame (x right in the frontal image, y up, z towards the camera)."""

METRES_PER_UNIT = INTERPUPILLARY_METRES / float(CANONICAL_LANDMARKS_HEAD[1, 0] - CANONICAL_LANDMARKS_HEAD[0, 0])
"""Real length of one scene unit, about 0.562 m: 63 mm divided by the distance of the canonical eyes."""
