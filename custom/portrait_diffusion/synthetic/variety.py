"""Hair that no asset has: smooth random changes of shape, and lengths of short hair that vary over the scalp.

An asset pack has a handful of hair meshes, and a model that is trained on them learns them by heart: it answers a
stranger's hair with one of those it knows. These changes make every training head's hair its own.
"""
import numpy as np

from .mesh import unit

SKULL = np.array([0.0, 0.05, -0.03])
"""Centre of the skull in the head frame."""
PERIODS = (0.2, 0.7)
"""Shortest and longest period of the random fields, scene units."""
OUTWARD = 0.02
"""Standard deviation by which hair moves from the skull, scene units; towards it by a fifth of that at most."""
SWAY = 0.018
"""Standard deviation by which hanging hair moves sideways, scene units."""


def smooth_field(points: np.ndarray, rng: np.random.Generator, modes: int = 6) -> np.ndarray:
    """Random field with mean 0 and variance 1 over fields: a sum of plane waves with random directions and periods.

    Args: points (..., 3), scene units. Returns: (...).
    """
    direction = unit(rng.standard_normal((modes, 3)))
    rate = 2 * np.pi / np.exp(rng.uniform(*np.log(PERIODS), modes))
    phase = rng.uniform(0, 2 * np.pi, modes)
    return np.sqrt(2.0 / modes) * np.sin(points @ (direction * rate[:, None]).T + phase).sum(-1)


def vary_shape(positions: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Other hair of the same style: wider or flatter, longer or shorter below the ears, uneven.

    Args: positions (n, 3) of a fitted hair mesh, head frame; amount in [0, 1], 0 changes nothing.
    Returns: (n, 3).
    """
    if amount == 0:
        return positions
    size = 1 + amount * np.clip(rng.normal([0.03, 0.03, 0.03], 0.05), -0.05, 0.15)
    length = np.exp(amount * rng.uniform(-0.5, 0.35))
    p = SKULL + (positions - SKULL) * size
    low = p[:, 1] < -0.02
    p[low, 1] = -0.02 + (p[low, 1] + 0.02) * length
    outward = unit(p - SKULL)
    p = p + outward * (amount * OUTWARD * np.maximum(smooth_field(p, rng), -0.2))[:, None]
    hanging = ((0.05 - p[:, 1]) / 0.2).clip(0, 1)
    for axis in (0, 2):
        p[:, axis] += amount * SWAY * hanging * smooth_field(p, rng)
    return p


def length_map(points: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Relative length of cropped hair: longer on top than at the sides or even, and uneven.

    Args: points (n, 3) of the scalp, head frame; amount in [0, 1], 0 is the same length everywhere.
    Returns: (n,) in [0.15, 1.3].
    """
    if amount == 0:
        return np.ones(len(points))
    top = ((points[:, 1] - rng.uniform(0.0, 0.08)) / 0.12).clip(0, 1)
    fade = 1 - rng.uniform(0, 0.8) * (1 - top)
    front = 1 + rng.uniform(-0.3, 0.4) * ((points[:, 2] + 0.03) / 0.15).clip(-1, 1) * top
    return (fade * front * (1 + amount * 0.25 * smooth_field(points, rng))).clip(0.15, 1.3)
