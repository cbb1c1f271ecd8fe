"""Grow hair: polylines from the scalp that lift off, bend to the ground, and lie on whatever body is in their way.

A strand marches in equal steps: its direction bends to the ground, its next point is pushed out of the face's opening
and of the body, and what the body pushed is its direction from there on, an inelastic contact. Tied hair marches to its
tie instead. Bundles are arrays (n, k, 3) of n strands of k points.
"""

import numpy as np
from scipy.spatial import cKDTree

from .haircuts import NONE, Haircut
from .knots import braid, bun, tail
from .mesh import unit
from .skin import smoothstep
from .variety import SKULL, smooth_field

STEP = 0.018
"""Longest step of a strand, scene units."""
FEWEST, MOST = 6, 28
"""Points of a strand."""
REACH = 0.15
"""Distance from a point of the body within which it is felt, scene units."""
STIFFEST_HANGING = 12.0
"""Least `fall` of fringes and tails, radians per scene unit."""
TIED_POINTS = 16
"""Points of a strand on its way to a tie."""
DOWN = np.array([0.0, -1.0, 0.0])


class Body:
    """What hair lies on: points (m, 3) and outward unit normals (m, 3)."""

    def __init__(self, points: np.ndarray, normals: np.ndarray):
        self.points, self.normals = points, normals
        self._tree = cKDTree(points)

    def push_out(self, p: np.ndarray, margin: np.ndarray) -> np.ndarray:
        """Points (n, 3) moved along the nearest point's normal until they are ``margin`` (n,) above its plane.

        Points that are farther than `REACH` from the body stay.
        """
        distance, nearest = self._tree.query(p, distance_upper_bound=REACH)
        found = np.isfinite(distance)
        at = nearest[found]
        height = ((p[found] - self.points[at]) * self.normals[at]).sum(-1)
        lift = np.maximum(margin[found] - height, 0.0)
        moved = p.copy()
        moved[found] += lift[:, None] * self.normals[at]
        return moved


def regions(roots: np.ndarray) -> np.ndarray:
    """Weights (n, 4), of sum 1: how much a root belongs to the hair above the forehead, on top, at the sides and
    behind."""
    u = unit(roots - SKULL)
    top = smoothstep(0.25, 0.75, u[:, 1])
    front = top * smoothstep(0.0, 0.55, u[:, 2])
    behind = (1 - top) * smoothstep(0.05, 0.75, -u[:, 2])
    return np.stack([front, top - front, 1 - top - behind, behind], 1)


def root_lengths(roots: np.ndarray, cut: Haircut, rng: np.random.Generator) -> np.ndarray:
    """Length (n,) of the hair of each root: the haircut's, uneven by a smooth tenth and from strand to strand; no
    longer than it takes to fall to the line."""
    even = regions(roots) @ np.array(cut.lengths)
    if cut.line != NONE:
        even = np.minimum(even, 1.2 * (roots[:, 1] - cut.line) + 0.15)
    return even * (1 + 0.12 * smooth_field(roots, rng)).clip(0.6, 1.4) * rng.uniform(0.75, 1.0, len(roots))


def comb(roots: np.ndarray, normals: np.ndarray, cut: Haircut, rng: np.random.Generator) -> np.ndarray:
    """Unit direction (n, 3) in which hair leaves the scalp.

    Formula: the tangential part of (1 - s) top + s side, plus ``lift`` normals; top is combed by ``sweep_deg`` from the
        parting, sides hang and go back by ``side_back``; s falls from 1 beside the skull to 0 on its top.
    """
    angle = np.radians(cut.sweep_deg)
    off = roots[:, 0] - cut.part
    ahead = smoothstep(-0.09, 0.01, roots[:, 2])  # of the crown, where the parting ends
    away = np.cos(angle) * np.tanh(off / 0.012) * ahead
    top = np.stack([away, np.zeros(len(roots)), np.sin(angle) * ahead - (1 - ahead)], 1)
    side = unit(np.array([0.0, -1.0, -1.2 * cut.side_back])) * np.ones((len(roots), 1))
    upper = smoothstep(0.35, 0.8, unit(roots - SKULL)[:, 1])[:, None]
    flow = upper * top + (1 - upper) * side
    flow += np.array([0.25, 0.12, 0.12]) * np.stack([smooth_field(roots, rng) for _ in range(3)], 1)
    flow -= normals * (flow * normals).sum(1, keepdims=True)
    lift = cut.lift * (0.4 + 0.6 * upper) * rng.uniform(0.3, 1.0, (len(roots), 1))
    return unit((1 - 0.8 * lift) * unit(flow) + lift * normals + 0.1 * rng.standard_normal(roots.shape))


def leave_face_free(p: np.ndarray, sign: np.ndarray, cut: Haircut) -> np.ndarray:
    """Points (n, 3) moved out of what the hair leaves free: before the face sideways, from the ears back if tucked.

    Args: sign (n,), +-1: to which side a strand goes.
    """
    p = p.copy()
    before = smoothstep(0.02, 0.08, p[:, 2]) * smoothstep(0.16, 0.08, p[:, 1]) * smoothstep(-0.3, -0.2, p[:, 1])
    p[:, 0] += sign * before * np.maximum(cut.opening - sign * p[:, 0], 0.0)
    start = -0.035 if cut.tucked else 0.07  # a plane that rises from behind the ear, or the cheek, to the forehead
    limit = start + (0.17 - start) * smoothstep(0.0, 0.17, p[:, 1])
    p[:, 2] = np.minimum(p[:, 2], np.where(np.abs(p[:, 0]) > 0.07, limit, np.inf))
    return p


def astray(lines: np.ndarray) -> np.ndarray:
    """Which strands (n,) bool cross the mouth, the chin or the throat."""
    x, y, z = np.moveaxis(lines, -1, 0)
    return ((np.abs(x) < 0.085) & (y < -0.02) & (z > 0.0)).any(1)


def march(
    roots: np.ndarray, direction: np.ndarray, length: np.ndarray, margin: np.ndarray, fall: float, body: Body,
    points: int, free: Haircut | None = None, sign: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Strands (n, points, 3) of given lengths (n,) from roots (n, 3).

    Args:
        direction: (n, 3) unit; margin: (n,) distance that a strand comes to keep from the body; fall: radians per scene
        unit by which it bends to the ground; free: the haircut whose opening these strands leave free, and to which
        side (``sign``, n).
    """
    step = (length / (points - 1))[:, None]
    line = [roots + 0.0015 * direction]
    for k in range(1, points):
        direction = unit(direction + np.minimum(fall * step, 0.5) * DOWN)
        p = line[-1] + step * direction
        if free is not None:
            p = leave_face_free(p, sign, free)
        q = body.push_out(p, margin * np.minimum(1.0, 0.1 + k * step[:, 0] / 0.1))
        direction = unit(step * direction + q - p)
        line.append(q)
    return np.stack(line, 1)


def march_to(roots: np.ndarray, tie: np.ndarray, margin: np.ndarray, body: Body, points: int) -> np.ndarray:
    """Strands (n, points, 3) that lie on the head on their way to a tie (3,) or ties (n, 3), and end there."""
    line = [roots]
    for k in range(1, points):
        rest = tie - line[-1]
        p = line[-1] + rest * min(1.0, 1.12 / (points - k))
        arc = np.sin(np.pi * k / (points - 1)) ** 0.5
        line.append(body.push_out(p, 0.002 + margin * arc))
    line[-1] = np.broadcast_to(tie, roots.shape).copy()
    return np.stack(line, 1)


def frames(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit tangent, side and outward direction, each (n, k, 3), of strands around a head."""
    tangent = unit(np.gradient(lines, axis=1))
    outward = lines - SKULL - np.minimum(lines[..., 1:2] - SKULL[1], 0.0) * np.array([0.0, 1.0, 0.0])
    outward = unit(outward - tangent * (outward * tangent).sum(-1, keepdims=True))
    return tangent, np.cross(outward, tangent), outward


def arc_lengths(lines: np.ndarray) -> np.ndarray:
    """Distance (n, k) along each strand from its root."""
    steps = np.linalg.norm(np.diff(lines, axis=1), axis=-1)
    return np.concatenate([np.zeros((len(lines), 1)), np.cumsum(steps, 1)], 1)


def wave(lines: np.ndarray, amplitude: float, period: float, rng: np.random.Generator) -> np.ndarray:
    """Strands with waves: neighbours wave together, amplitudes grow over the first hand from the root.

    Formula: x + a(s) (sin(2 pi s / period + phase) side + .6 cos(...) outward)
    """
    if amplitude <= 0 or len(lines) == 0:
        return lines
    _, side, outward = frames(lines)
    s = arc_lengths(lines)
    phase = 2.2 * smooth_field(lines[:, 0] * 1.6, rng) + 0.5 * rng.standard_normal(len(lines))
    angle = 2 * np.pi * s / period + phase[:, None]
    size = amplitude * smoothstep(0.0, 0.1, s)
    return lines + (size * np.sin(angle))[..., None] * side + (0.6 * size * np.cos(angle))[..., None] * outward


def cut_off(lines: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Strands whose points from the first one below ``height`` (n,) on are drawn together where they cross it."""
    below = lines[..., 1] < height[:, None]
    below[:, 0] = False
    first = np.where(below.any(1), below.argmax(1), lines.shape[1] - 1)
    rows = np.arange(len(lines))
    a, b = lines[rows, np.maximum(first - 1, 0)], lines[rows, first]
    drop = a[:, 1] - b[:, 1]
    t = np.where(drop > 1e-9, (a[:, 1] - height) / np.where(drop > 1e-9, drop, 1.0), 1.0).clip(0, 1)
    end = np.where(below.any(1)[:, None], a + t[:, None] * (b - a), lines[:, -1])
    return np.where((np.arange(lines.shape[1]) >= first[:, None])[..., None], end[:, None], lines)


def grow(
    cut: Haircut, roots: np.ndarray, normals: np.ndarray, body: Body, rng: np.random.Generator
) -> list[np.ndarray]:
    """All strands of a haircut: bundles (n, k, 3).

    Args: roots (n, 3) on the scalp and normals (n, 3), head frame; the body that the hair lies on.
    """
    margin = 0.003 + cut.volume * rng.random(len(roots)) ** 0.7
    length, direction = root_lengths(roots, cut, rng), comb(roots, normals, cut, rng)
    fringe = _over_the_forehead(roots, cut, rng)
    tied = (len(cut.ties) > 0) & (roots[:, 1] > cut.tied_above) & ~fringe
    loose = ~tied & ~fringe
    bundles = []
    if loose.any():
        bundles.append(_loose(cut, roots[loose], direction[loose], length[loose], margin[loose], body, rng))
    if fringe.any():
        forward = unit(direction[fringe] * [0.8, 0.0, 0.0] + [0.0, 0.1, 1.0]) + 0.6 * cut.lift * normals[fringe]
        bundles.append(_fringe(cut, roots[fringe], unit(forward), margin[fringe], body, rng))
    if tied.any():
        ties = np.array(cut.ties)
        nearest = np.linalg.norm(roots[tied, None] - ties, axis=-1).argmin(1)
        lines = march_to(roots[tied], ties[nearest], 0.6 * margin[tied], body, TIED_POINTS)
        bundles.append(wave(lines, 0.4 * cut.wave, cut.period, rng))
        bundles += [wave(lines, cut.wave, cut.period, rng) for lines in knots(cut, body, rng)]
    return [lines for lines in bundles if len(lines)]


def knots(cut: Haircut, body: Body, rng: np.random.Generator) -> list[np.ndarray]:
    """Strands (n, k, 3) of what comes after each tie."""
    bundles = []
    for tie in np.array(cut.ties):
        out = unit(tie - SKULL)
        if cut.knot == "bun":
            bundles.append(bun(tie, out, cut.knot_radius, rng))
            continue
        start = unit(out + [0.0, 0.3, 0.0])[None]  # a tail leaves its tie a little upwards
        length, margin = np.array([cut.knot_length]), np.array([1.1 * cut.knot_radius])
        fall, points = max(cut.fall, STIFFEST_HANGING), _points(cut.knot_length)
        centre = march(tie[None], start, length, margin, fall, body, points)
        if cut.knot == "tail":
            bundles.append(tail(centre[0], cut.knot_radius, rng))
        else:
            bundles.append(braid(centre[0], cut.knot_length, cut.knot_radius, rng))
    return bundles


def _loose(cut, roots, direction, length, margin, body, rng) -> np.ndarray:
    side = roots[:, 0] - cut.part + 0.004 * rng.standard_normal(len(roots))
    sign = np.where(side >= 0, 1.0, -1.0)
    lines = march(roots, direction, length, margin, cut.fall, body, _points(length.max()), cut, sign)
    lines = lines[~astray(lines)]
    if cut.line != NONE:
        lines = cut_off(lines, cut.line + 0.012 * rng.standard_normal(len(lines)))
    return wave(lines, cut.wave, cut.period, rng)


def _fringe(cut, roots, direction, margin, body, rng) -> np.ndarray:
    down, ahead = np.maximum(roots[:, 1] - cut.fringe, 0.01), np.maximum(0.11 - roots[:, 2], 0.0)
    length = np.minimum(1.25 * down + 0.6 * ahead + 0.02, 0.3) * rng.uniform(0.85, 1.05, len(roots))
    fall = max(cut.fall, STIFFEST_HANGING)
    lines = march(roots, direction, length, 0.4 * margin + 0.003, fall, body, _points(length.max()))
    return wave(lines, 0.6 * cut.wave, cut.period, rng)


def _over_the_forehead(roots: np.ndarray, cut: Haircut, rng: np.random.Generator) -> np.ndarray:
    """Which roots (n,) bool belong to the fringe: those at the forehead, with an uneven border."""
    if cut.fringe == NONE:
        return np.zeros(len(roots), bool)
    x, y, z = (roots + 0.012 * rng.standard_normal(roots.shape)).T
    return (np.abs(x) < 0.1) & (z > 0.05) & (y > 0.09)


def _points(longest: float) -> int:
    return int(np.clip(np.ceil(longest / STEP) + 1, FEWEST, MOST))
