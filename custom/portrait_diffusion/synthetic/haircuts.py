"""Haircuts that no asset has, drawn at random: what `strands` grows."""

from dataclasses import dataclass

import numpy as np

NONE = -1.0
"""Of a height: there is no such line."""


@dataclass(frozen=True)
class Haircut:
    """One haircut; lengths, heights and places in scene units of the head frame (x to its left, y up, z forward).

    Attributes:
        style: its name, of `STYLES`.
        lengths: of hair above the forehead, on top, at the sides and behind.
        line: height at which hair is cut off, or NONE.
        part: x of the parting.
        sweep_deg: how hair on top is combed: 0 sideways from the parting, 90 forward, -90 back.
        side_back: how far hair at the sides is combed back, in [0, 1].
        lift: how steeply hair leaves the scalp: 0 along it, 1 upright.
        fall: how fast hair bends to the ground, radians per scene unit: 5 is stiff, 40 limp.
        volume: how far the outermost hair lies off the head.
        wave, period: amplitude and length of waves along the hair.
        fringe: height down to which hair hangs over the forehead, or NONE.
        opening: half the width of the face that hair leaves free.
        tucked: whether hair at the sides goes behind the ears.
        ties: places (x, y, z) relative to the head at which hair is tied.
        tied_above: height of the lowest root that is tied; what grows below falls.
        knot: what comes after the tie: 'tail', 'bun' or 'braid'.
        knot_length, knot_radius: its size.
    """

    style: str
    lengths: tuple[float, float, float, float]
    line: float = NONE
    part: float = 0.0
    sweep_deg: float = 0.0
    side_back: float = 0.0
    lift: float = 0.3
    fall: float = 20.0
    volume: float = 0.03
    wave: float = 0.0
    period: float = 0.1
    fringe: float = NONE
    opening: float = 0.12
    tucked: bool = False
    ties: tuple[tuple[float, float, float], ...] = ()
    tied_above: float = NONE
    knot: str = ""
    knot_length: float = 0.0
    knot_radius: float = 0.0


#: Relative odds (male, female) of each style.
STYLES = {
    "crop": (2.0, 0.1),
    "swept": (1.6, 0.2),
    "parted": (1.6, 0.3),
    "curls": (1.0, 1.0),
    "shag": (0.7, 0.9),
    "bob": (0.1, 1.8),
    "long": (0.4, 2.6),
    "tail": (0.15, 1.1),
    "bun": (0.15, 0.9),
    "braid": (0.0, 0.5),
    "half up": (0.05, 0.6),
}


def sample_haircut(rng: np.random.Generator, share: float, female: bool) -> Haircut | None:
    """A haircut for this share of people, None for the others.

    Args: rng; share in [0, 1]; female: whose odds.
    """
    chosen = rng.random() < share
    odds = np.array([pair[int(female)] for pair in STYLES.values()])
    style = str(rng.choice(list(STYLES), p=odds / odds.sum()))
    cut = _DRAW[style](rng, female)
    return Haircut(style, **cut) if chosen else None


def _u(rng, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _part(rng) -> float:
    return float(rng.choice([_u(rng, -0.07, 0.07), rng.normal(0, 0.008)]))


def _waves(rng, often: float = 0.5) -> dict:
    if rng.random() > often:
        return {"wave": _u(rng, 0.0, 0.002), "period": _u(rng, 0.1, 0.2)}
    period = _u(rng, 0.05, 0.16)
    return {"wave": period * _u(rng, 0.04, 0.12), "period": period}


def _fringe(rng, often: float) -> float:
    return _u(rng, 0.045, 0.12) if rng.random() < often else NONE


def _crop(rng, female) -> dict:
    top = _u(rng, 0.035, 0.1)
    side, behind = (max(0.018, top * _u(rng, 0.25, 0.9)) for _ in range(2))
    return {
        "lengths": (top * _u(rng, 0.8, 1.3), top, side, behind),
        "part": _part(rng), "sweep_deg": _u(rng, -20, 90), "side_back": _u(rng, 0, 0.6), "lift": _u(rng, 0.15, 0.6),
        "fall": _u(rng, 2, 12), "volume": _u(rng, 0.01, 0.03), "fringe": _u(rng, 0.08, 0.14), **_waves(rng, 0.4),
    }  # fmt: skip


def _swept(rng, female) -> dict:
    top = _u(rng, 0.08, 0.16)
    side = _u(rng, 0.02, 0.08)
    return {
        "lengths": (top * _u(rng, 0.9, 1.2), top, side, side * _u(rng, 0.9, 2.0)), "part": _part(rng),
        "sweep_deg": _u(rng, -90, -35), "side_back": _u(rng, 0.5, 1), "lift": _u(rng, 0.15, 0.6),
        "fall": _u(rng, 8, 20), "volume": _u(rng, 0.01, 0.05), **_waves(rng, 0.4),
    }  # fmt: skip


def _parted(rng, female) -> dict:
    top = _u(rng, 0.08, 0.17)
    side = _u(rng, 0.03, 0.1)
    return {
        "lengths": (top * _u(rng, 0.8, 1.2), top, side, side * _u(rng, 0.9, 1.6)),
        "part": float(rng.choice([-1, 1])) * _u(rng, 0.02, 0.08), "sweep_deg": _u(rng, -30, 35),
        "side_back": _u(rng, 0, 0.8), "lift": _u(rng, 0.05, 0.45), "fall": _u(rng, 8, 25),
        "volume": _u(rng, 0.01, 0.035), "fringe": _fringe(rng, 0.4), **_waves(rng, 0.4),
    }  # fmt: skip


def _curls(rng, female) -> dict:
    longest = _u(rng, 0.08, 0.32 if female else 0.18)
    period = _u(rng, 0.035, 0.07)
    return {
        "lengths": (longest * _u(rng, 0.5, 0.9), longest * _u(rng, 0.7, 1), longest * _u(rng, 0.5, 1), longest),
        "part": _part(rng), "sweep_deg": _u(rng, -60, 60), "lift": _u(rng, 0.5, 0.95), "fall": _u(rng, 5, 18),
        "volume": _u(rng, 0.03, 0.08), "wave": period * _u(rng, 0.12, 0.22), "period": period,
        "fringe": _fringe(rng, 0.3), "opening": _u(rng, 0.11, 0.15),
    }  # fmt: skip


def _shag(rng, female) -> dict:
    longest = _u(rng, 0.13, 0.28)
    return {
        "lengths": tuple(longest * _u(rng, 0.55, 1.0) for _ in range(4)), "part": _part(rng),
        "sweep_deg": _u(rng, -60, 70), "side_back": _u(rng, 0, 0.7), "lift": _u(rng, 0.05, 0.5),
        "fall": _u(rng, 10, 25), "volume": _u(rng, 0.02, 0.05), "fringe": _fringe(rng, 0.5),
        "opening": _u(rng, 0.1, 0.15), "tucked": bool(rng.random() < 0.3), **_waves(rng, 0.6),
    }  # fmt: skip


def _falling(rng, line: float) -> dict:
    return {
        "lengths": (0.62, 0.65, 0.62, 0.6), "line": line, "part": _part(rng), "sweep_deg": _u(rng, -45, 10),
        "side_back": _u(rng, 0, 0.6), "lift": _u(rng, 0.0, 0.25), "fall": _u(rng, 18, 40),
        "volume": _u(rng, 0.01, 0.045), "fringe": _fringe(rng, 0.35), "opening": _u(rng, 0.1, 0.155),
        "tucked": bool(rng.random() < 0.3), **_waves(rng, 0.6),
    }  # fmt: skip


def _bob(rng, female) -> dict:
    return _falling(rng, _u(rng, -0.22, -0.06))


def _long(rng, female) -> dict:
    return _falling(rng, _u(rng, -0.5, -0.22))


def _tied(rng) -> dict:
    angle = np.radians(_u(rng, -30, 75))  # of the tie, about the skull: 0 behind, 90 on top
    radius = 0.19
    place = (float(rng.normal(0, 0.006)), 0.05 + radius * np.sin(angle), -0.03 - radius * np.cos(angle))
    return {
        "lengths": (0.5, 0.5, 0.5, 0.5), "part": _part(rng), "sweep_deg": _u(rng, -90, -30),
        "lift": _u(rng, 0.1, 0.4), "fall": _u(rng, 15, 30), "volume": _u(rng, 0.006, 0.022),
        "fringe": _fringe(rng, 0.3), "ties": (tuple(float(v) for v in place),), **_waves(rng, 0.3),
    }  # fmt: skip


def _both_sides(rng) -> tuple:
    x, y, z = _u(rng, 0.12, 0.17), _u(rng, -0.06, 0.16), _u(rng, -0.12, -0.02)
    return ((x, y, z), (-x, y, z))


def _tail(rng, female) -> dict:
    cut = _tied(rng)
    if female and rng.random() < 0.2:
        cut["ties"] = _both_sides(rng)
    return {**cut, "knot": "tail", "knot_length": _u(rng, 0.12, 0.5), "knot_radius": _u(rng, 0.025, 0.06)}


def _bun(rng, female) -> dict:
    cut = _tied(rng)
    if female and rng.random() < 0.15:
        cut["ties"] = _both_sides(rng)
    return {**cut, "knot": "bun", "knot_radius": _u(rng, 0.035, 0.075)}


def _braid(rng, female) -> dict:
    cut = _tied(rng)
    if rng.random() < 0.4:
        cut["ties"] = _both_sides(rng)
    return {**cut, "knot": "braid", "knot_length": _u(rng, 0.25, 0.5), "knot_radius": _u(rng, 0.018, 0.03)}


def _half_up(rng, female) -> dict:
    cut, tied = _falling(rng, _u(rng, -0.5, -0.12)), _tied(rng)
    knot = {"knot": "bun", "knot_radius": _u(rng, 0.025, 0.05)}
    if rng.random() < 0.6:
        knot = {"knot": "tail", "knot_length": _u(rng, 0.1, 0.3), "knot_radius": _u(rng, 0.02, 0.04)}
    return {**cut, "ties": tied["ties"], "tied_above": _u(rng, 0.06, 0.14), **knot}


_DRAW = {
    "crop": _crop, "swept": _swept, "parted": _parted, "curls": _curls, "shag": _shag, "bob": _bob, "long": _long,
    "tail": _tail, "bun": _bun, "braid": _braid, "half up": _half_up,
}  # fmt: skip
