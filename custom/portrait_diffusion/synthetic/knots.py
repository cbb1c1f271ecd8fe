"""What comes after hair's tie: tails, braids and buns as strands (n, k, 3)."""

import numpy as np

from .mesh import unit
from .skin import smoothstep

STRANDS = 120


def tail(centre: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Strands beside each other along a line (k, 3): narrow at the tie, widest after a third, thin at the end."""
    s = np.linspace(0, 1, len(centre))
    girth = radius * (0.3 + 0.7 * np.sin(np.pi * np.minimum(1.4 * s, 0.5))) * (1 - 0.55 * smoothstep(0.45, 1, s))
    return _around(centre, _disc(rng)[:, None] * girth)


def braid(centre: np.ndarray, length: float, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Three bundles that cross along a line (k, 3).

    Formula: bundle j lies at radius (sin a, sin 2a / 2) beside the line, a = 2 pi (s length / (4.5 radius) + j / 3).
    """
    s = np.linspace(0, 1, len(centre))
    angle = 2 * np.pi * (s * length / (4.5 * radius) + np.arange(STRANDS)[:, None] % 3 / 3)
    path = radius * (np.sin(angle) + 0.5j * np.sin(2 * angle))
    return _around(centre, (path + 0.62 * radius * _disc(rng)[:, None]) * (1 - 0.4 * s**3))


def bun(tie: np.ndarray, out: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Coils around a flattened ball that sits on the tie (3,), on the side of the unit vector ``out`` (3,)."""
    axis = unit(out + 0.35 * rng.standard_normal((STRANDS, 3)))[:, None]
    first = unit(np.cross(axis, np.array([0.31, 0.9, 0.3])))
    angle = (rng.uniform(0, 2 * np.pi, (STRANDS, 1)) + np.linspace(0, rng.uniform(2.0, 3.6), 12))[..., None]
    across = rng.uniform(-0.75, 0.75, (STRANDS, 1, 1))
    ring = np.cos(angle) * first + np.sin(angle) * np.cross(axis, first)
    ball = np.sqrt(1 - across**2) * ring + across * axis
    flat = ball - 0.25 * (ball * out).sum(-1, keepdims=True) * out
    return tie + 0.7 * radius * out + radius * rng.uniform(0.86, 1.0, (STRANDS, 1, 1)) * flat


def _disc(rng: np.random.Generator) -> np.ndarray:
    """Even places (STRANDS,) complex in the unit disc."""
    return np.sqrt(rng.random(STRANDS)) * np.exp(2j * np.pi * rng.random(STRANDS))


def _around(centre: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Lines (n, k, 3) beside a line (k, 3), by offsets (n, k) complex across it."""
    tangent = unit(np.gradient(centre, axis=0))
    side = unit(np.cross(np.array([0.3, 0.0, 1.0]), tangent), fallback=(1.0, 0.0, 0.0))
    return centre + offset.real[..., None] * side + offset.imag[..., None] * np.cross(tangent, side)
