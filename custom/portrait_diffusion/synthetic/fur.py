"""Short hair as shells: buzz cuts and beards are copies of the skin pushed outward, each with fewer and thinner
hairs."""

from dataclasses import dataclass

import numpy as np

from . import lighting
from .hair import blur
from .heads import HeadBasis
from .mesh import vertex_normals
from .normalise import normalise_head
from .parts import LABELS, Part, compact
from .skin import SkinLayout, beard_region, facial_hair_linear, hair_linear, scalp_region, smoothstep
from .subjects import Subject
from .variety import length_map

SHELLS = 7
"""Of the shortest hair; longer hair has more, one every `SHELL_STEP`."""
SHELL_STEP = 0.004
"""Scene units."""


@dataclass(frozen=True)
class FurRegions:
    """Positions (n,3) of the mean head's vertices in the head frame, and the bare parts (n,): lips and ears."""

    mean: np.ndarray
    bare: np.ndarray


def fur_regions(basis: HeadBasis, layout: SkinLayout) -> FurRegions:
    """What the regions depend on, from the mean head of a basis."""
    mean, _, _ = normalise_head(basis.mean, basis.mean[basis.landmark_index])
    bare = np.zeros(len(mean))
    mask = np.maximum(layout.masks["lips"], layout.masks["ears"])
    rows, columns = mask.shape
    x = (layout.uv_head[:, 0] * columns).astype(int).clip(0, columns - 1)
    y = ((1 - layout.uv_head[:, 1]) * rows).astype(int).clip(0, rows - 1)
    np.maximum.at(bare, layout.corner_vertex, mask[y, x])
    return FurRegions(mean, bare)


def style_weight(style: str, p: np.ndarray) -> np.ndarray:
    """Where a beard style grows at head-frame points (...,3), relative to the full beard, in [0,1]."""
    x, y = np.abs(p[..., 0]), p[..., 1]
    if style == "moustache":
        return smoothstep(-0.118, -0.104, y) * smoothstep(0.075, 0.055, x)
    if style == "goatee":
        return smoothstep(0.075, 0.055, x)
    return np.ones(x.shape)


def fur_parts(
    subject: Subject, head: np.ndarray, basis: HeadBasis, layout: SkinLayout, regions: FurRegions, textures: dict
) -> list:
    """Shell parts of a subject's buzz cut and beard (possibly none)."""
    parts = []
    if subject.hair == "buzz":
        weight, picture = (scalp_region(p, subject.hairline) for p in (regions.mean, layout.position))
        weight, picture = weight * (1 - regions.bare), picture * (1 - layout.masks["ears"]) * layout.covered
        parts += _shells(
            "buzz",
            LABELS["hair"],
            weight,
            picture,
            subject.buzz_length,
            1.0,
            hair_linear(subject),
            head,
            basis,
            layout,
            subject.rng(4),
            textures,
            length_map(regions.mean, subject.hair_variety, subject.rng(8)),
            subject.hair_variety,
        )
    beard = subject.beard
    if beard.length > 0:
        weight = beard_region(regions.mean) * (1 - regions.bare) * style_weight(beard.style, regions.mean)
        weight *= 0.55 + 0.45 * smoothstep(-0.05, -0.16, regions.mean[:, 1])
        picture = layout.masks["beard"] * style_weight(beard.style, layout.position)
        parts += _shells(
            "beard",
            LABELS["hair"],
            weight,
            picture,
            beard.length,
            beard.density,
            facial_hair_linear(subject),
            head,
            basis,
            layout,
            subject.rng(5),
            textures,
        )
    return parts


def tuft_tones(shape: tuple, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness (H, W) in [0.55, 1] of tufts a few hairs wide, so that longer hair is not one flat colour."""
    noise = sum(blur(rng.random(shape, np.float32), radius) * radius for radius in (1.5, 4.0, 10.0))
    noise = (noise - noise.mean()) / max(float(noise.std()), 1e-6)
    return (0.85 + 0.12 * amount * noise).clip(0.55, 1.0)


def _shells(
    name, label, weight, mask, length, density, colour, head, basis, layout, rng, textures, relative=1.0, tufts=0.0
) -> list:  # fmt: skip
    corner = layout.corner_vertex
    faces = layout.faces[layout.on_head & (weight[corner][layout.faces].max(1) > 0.02)]
    if not len(faces):
        return []
    normals = vertex_normals(head, basis.faces)
    comb = np.array([0.0, -0.6, 0.0])
    direction = normals + (comb - normals * (normals @ comb)[:, None])
    mask = mask[::2, ::2]
    grain = rng.random(mask.shape).astype(np.float32)
    tone = np.ones(mask.shape, np.float32)
    if tufts > 0:
        tone = tuft_tones(mask.shape, tufts, rng)
    parts = []
    shells = max(SHELLS, round(length / SHELL_STEP))
    reach = length * np.broadcast_to(relative, len(head)) * (0.3 + 0.7 * weight)
    for k in range(shells):
        level = (k + 0.5) / shells
        alpha = smoothstep(
            level - 0.15, level + 0.35, (0.35 + 0.9 * grain) * mask * density + (0.25 if k == 0 else 0.0) * mask
        )
        shade = 0.6 + 0.55 * level
        key = f"{name}_{k}"
        textures[key] = np.repeat((tone * 255).astype(np.uint8)[..., None], 4, axis=-1)
        textures[key][..., 3] = alpha * 255
        vertices = head + direction * (reach * (level + 0.08))[:, None]
        part = Part(
            key,
            label,
            vertices[corner],
            normals[corner],
            layout.uv_head,
            faces,
            key,
            mode="hair",
            tint=colour * shade,
            wrap=lighting.WRAP_HAIR,
            casts=0.0,
        )
        parts.append(compact(part))
    return parts
