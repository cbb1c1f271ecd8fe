"""Draw grown hair: each strand becomes a card, a narrow strip with a texture of many hairs."""

import numpy as np

from . import hair, lighting
from .fur import FurRegions
from .heads import HeadBasis
from .mesh import sample_surface, unit, vertex_normals
from .parts import LABELS, Part
from .skin import hair_linear, scalp_region
from .strands import Body, arc_lengths, frames, grow
from .subjects import Subject

COLUMNS, WIDTH, HEIGHT = 8, 48, 256
"""Cards in the texture, and texels of one."""
TEXTURE = "asset:hair/strands"
SHORT = 0.2
"""Haircuts whose longest hair is shorter, scene units, get more and narrower cards."""
CARDS = {"long": (800, 0.032), "short": (1600, 0.016)}
"""Number of cards and their width, scene units."""
BODY_FROM = -0.5
"""Height from which on the body is in the way of hair, scene units."""


def grown_parts(
    subject: Subject, head: np.ndarray, normals: np.ndarray, basis: HeadBasis, regions: FurRegions, clothes: list[Part],
    textures: dict,
) -> list[Part]:  # fmt: skip
    """The hair of a subject that has a haircut, as one part.

    Args: vertices and normals (n,3) of the head, head frame; clothes that the hair falls on; textures, added to.
    """
    rng, cut = subject.rng(14), subject.haircut
    weight = scalp_region(regions.mean, subject.hairline) * (1 - regions.bare)
    count, width = CARDS["short" if max(cut.lengths) < SHORT else "long"]
    faces = basis.faces[weight[basis.faces].min(1) > 0.25]
    face, corners = sample_surface(head, faces, count, rng)
    roots, root_normals = (np.einsum("nk,nkc->nc", corners, values[faces[face]]) for values in (head, normals))
    solid = (head[:, 1] > BODY_FROM) & (regions.bare < 0.5) & np.isin(np.arange(len(head)), basis.faces)
    body = Body(
        np.concatenate([head[solid], *(part.positions for part in clothes)]),
        np.concatenate([normals[solid], *(part.normals for part in clothes)]),
    )
    if TEXTURE not in textures:
        textures[TEXTURE] = strand_texture()
    positions, mesh_normals, uvs, triangles, start = [], [], [], [], 0
    for lines in grow(cut, roots, unit(root_normals), body, rng):
        p, uv, f = ribbons(lines, width, rng)
        positions.append(p)
        mesh_normals.append(vertex_normals(p, f))
        uvs.append(uv)
        triangles.append(f + start)
        start += len(p)
    points = np.concatenate(positions)
    return [
        Part(
            "hair", LABELS["hair"], points, unit(hair.smooth_normals(points, np.concatenate(mesh_normals), own=0.2)),
            np.concatenate(uvs), np.concatenate(triangles), TEXTURE, mode="hair",
            tint=hair_linear(subject) * hair.NEUTRAL_GAIN, wrap=lighting.WRAP_HAIR,
        )
    ]  # fmt: skip


def ribbons(
    lines: np.ndarray, width: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strips along strands (n,k,3): positions (2nk,3), texture coordinates (2nk,2), triangles (2n(k-1),3).

    Args: width of a strip where it is widest, give or take a third, scene units.
    """
    n, k, _ = lines.shape
    _, side, outward = frames(lines)
    roll = rng.normal(0, 0.35, (n, 1, 1))
    across = np.cos(roll) * side + np.sin(roll) * outward
    s = arc_lengths(lines)
    v = s / np.maximum(s[:, -1:], 1e-6)
    half = 0.5 * width * rng.uniform(0.7, 1.3, (n, 1)) * (0.75 + 0.5 * v - 0.6 * v**3)
    edges = np.stack([lines - half[..., None] * across, lines + half[..., None] * across], 2)
    column = rng.integers(COLUMNS, size=(n, 1, 1)) + np.where(rng.random((n, 1, 1)) < 0.5, [0.02, 0.98], [0.98, 0.02])
    uvs = np.stack([np.broadcast_to(column / COLUMNS, (n, k, 2)), np.broadcast_to(1 - v[..., None], (n, k, 2))], -1)
    corner = np.arange(n * k * 2).reshape(n, k, 2)
    a, b, c, d = corner[:, :-1, 0], corner[:, :-1, 1], corner[:, 1:, 0], corner[:, 1:, 1]
    faces = np.concatenate([np.stack([a, b, d], -1), np.stack([a, d, c], -1)], 1)
    return edges.reshape(-1, 3), uvs.reshape(-1, 2), faces.reshape(-1, 3)


def strand_texture() -> np.ndarray:
    """Texture (HEIGHT, COLUMNS WIDTH, 4) uint8 of `COLUMNS` cards, roots on top: hairs side by side that end at
    different heights, grey, of `hair.NEUTRAL` brightness on average."""
    rng = np.random.default_rng(0)
    cards = [_card(rng, 1.0 + 0.35 * (k / (COLUMNS - 1) - 0.5)) for k in range(COLUMNS)]
    value, alpha = (np.concatenate([card[k] for card in cards], 1) for k in range(2))
    value *= hair.NEUTRAL / value[alpha > 0.5].mean()
    grey = (hair.to_display(value).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.stack([grey, grey, grey, (alpha * 255 + 0.5).astype(np.uint8)], -1)


def _card(rng: np.random.Generator, tone: float) -> tuple[np.ndarray, np.ndarray]:
    """Brightness and opacity (HEIGHT, WIDTH) of one card."""
    v = np.linspace(0, 1, HEIGHT)[:, None]
    x = np.linspace(-1, 1, WIDTH)
    streak = hair.blur(rng.standard_normal((1, WIDTH)).repeat(HEIGHT, 0).astype(np.float32), 0.7)
    drift = hair.blur(rng.standard_normal((HEIGHT, WIDTH)).astype(np.float32), 6.0)
    value = tone * np.exp(0.3 * streak / streak.std() + 0.12 * drift / drift.std()) * (0.8 + 0.25 * v)
    end = 0.72 + 0.26 * rng.random(WIDTH) - 0.3 * np.abs(x) ** 3  # hairs at the edges end first
    bare = (0.25 + 0.5 * v) * np.abs(x) ** 4  # and leave gaps
    alpha = ((end - v) / 0.06).clip(0, 1) * ((0.9 * rng.random(WIDTH) + 0.25 - bare) / 0.12).clip(0, 1)
    alpha *= ((v - 0.05 * rng.random(WIDTH)) / 0.01).clip(0, 1)  # no straight line where they begin
    return value, alpha
