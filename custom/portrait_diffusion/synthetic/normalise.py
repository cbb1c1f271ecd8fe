"""Put a head where every photograph's head is put: eyes and mouth corners on the canonical landmarks, upright, no
rotation."""

import numpy as np

from ..ops.canonical import CANONICAL_LANDMARKS_HEAD
from ..ops.similarity import fit_scale_translation_3d

FITTED = (0, 1, 3, 4)  # of the five landmarks: two eyes, (nose tip), two mouth corners


def normalise_head(vertices: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Scale and translate vertices so that the landmarks fall on CANONICAL_LANDMARKS_HEAD in the least-squares sense.

    Args:
        vertices: (n,3); landmarks: (5,3) eyes (smaller x first), nose tip, mouth corners, same frame.
    Returns: vertices (n,3) in the head frame, scale, translation (3,), with ``head = scale * v + translation``.
    """
    scale, translation = fit_scale_translation_3d(landmarks[list(FITTED)], CANONICAL_LANDMARKS_HEAD)
    return vertices * scale + translation, scale, translation
