"""Paint one person's skin: tone, cheeks, lips, freckles, pores, stubble; on a magnified copy of the head's part of
the texture."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .heads import HeadBasis
from .mesh import split_corners
from .normalise import normalise_head
from .subjects import Subject

#: Part of MakeHuman's skin layout that shows the head and neck: u from, u to, v from, v to (v up).
HEAD_RECT = (0.625, 1.0, 0.14, 0.83)
HEAD_TEXELS = (896, 480)
BODY_TEXELS = 256


@dataclass(frozen=True)
class SkinLayout:
    """Where things are on the magnified head texture; computed once for a basis.

    ``corner_vertex, corner_uv (c,)`` and ``faces (f,3)`` are the body mesh with its own corner for every (vertex, uv)
    pair; ``on_head (f,)`` marks triangles that use the head texture; ``uv_head, uv_body (c,2)``; ``position (H,W,3)``
    rest position of each head texel in the head frame (mean head), ``covered (H,W)``; ``masks`` name -> (H,W) in
    [0,1].
    """

    corner_vertex: np.ndarray
    faces: np.ndarray
    on_head: np.ndarray
    uv_head: np.ndarray
    uv_body: np.ndarray
    position: np.ndarray
    covered: np.ndarray
    masks: dict


def skin_layout(basis: HeadBasis) -> SkinLayout:
    """Work out the layout from the mean head of a basis (about a second)."""
    corner_vertex, corner_uv, faces = split_corners(basis.faces, basis.face_uvs)
    uv = basis.uvs[corner_uv]
    u0, u1, v0, v1 = HEAD_RECT
    inside = (uv[:, 0] > u0 + 0.004) & (uv[:, 1] > v0 + 0.004) & (uv[:, 1] < v1 - 0.004)
    on_head = inside[faces].all(1)
    uv_head = (uv - [u0, v0]) / [u1 - u0, v1 - v0]
    mean, _, _ = normalise_head(basis.mean, basis.mean[basis.landmark_index])
    ears = np.maximum(_movement(basis, "l-ear-trans-up"), _movement(basis, "r-ear-trans-up"))
    attributes = np.concatenate([mean, ears[:, None], np.ones((len(mean), 1))], 1)[corner_vertex]
    painted = rasterise_uv(uv_head, faces[on_head], attributes, HEAD_TEXELS)
    position, covered = painted[..., :3], painted[..., 4] > 0.5
    return SkinLayout(
        corner_vertex, faces, on_head, uv_head, uv, position, covered, _masks(position, covered, painted[..., 3])
    )


def _movement(basis: HeadBasis, label: str) -> np.ndarray:
    row = basis.macro_table.shape[-1] + 2 * basis.local_labels.index(label)
    length = np.linalg.norm(basis.components[row].reshape(-1, 3), axis=1)
    return (length / np.percentile(length[length > 1e-6], 90)).clip(0, 1)


def rasterise_uv(uv: np.ndarray, faces: np.ndarray, attributes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Interpolate attributes (c,k) over a texture of ``shape`` (rows, columns), row 0 at v = 1; texels outside stay
    0."""
    rows, columns = shape
    picture = np.zeros((rows, columns, attributes.shape[1]), np.float32)
    points = np.stack([uv[:, 0] * columns, (1 - uv[:, 1]) * rows], 1) - 0.5
    for face in faces:
        p = points[face]
        low, high = np.floor(p.min(0)).astype(int).clip(0), np.ceil(p.max(0)).astype(int) + 1
        x, y = np.meshgrid(np.arange(low[0], min(high[0], columns)), np.arange(low[1], min(high[1], rows)))
        e1, e2 = p[1] - p[0], p[2] - p[0]
        area = e1[0] * e2[1] - e1[1] * e2[0]
        if abs(area) < 1e-9 or x.size == 0:
            continue
        dx, dy = x - p[0, 0], y - p[0, 1]
        b1, b2 = (dx * e2[1] - dy * e2[0]) / area, (e1[0] * dy - e1[1] * dx) / area
        hit = (b1 > -0.02) & (b2 > -0.02) & (b1 + b2 < 1.02)
        weights = np.stack([1 - b1 - b2, b1, b2], -1)[hit]
        picture[y[hit], x[hit]] = weights @ attributes[face]
    return picture


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, 3t^2 - 2t^3 between; ``low > high`` falls instead of rising."""
    t = ((x - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


def beard_region(p: np.ndarray) -> np.ndarray:
    """How much beard grows at head-frame points (...,3) of the normalised mean head, in [0,1] (lips not excluded)."""
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    cheek = -0.104 + 0.045 * smoothstep(0.05, 0.1, x) + 0.085 * smoothstep(0.095, 0.122, x)
    moustache = -0.076 - 0.028 * smoothstep(0.03, 0.06, x)
    line = np.where(x < 0.06, moustache, cheek)
    edge = smoothstep(0.014, -0.012, y - line)
    back = smoothstep(0.0, 0.03, z)
    neck = smoothstep(-0.23, -0.19, y)
    return edge * back * neck


def lip_region(p: np.ndarray) -> np.ndarray:
    """The lips among head-frame points (...,3) of the normalised mean head, in [0,1]."""
    x, y, z = np.abs(p[..., 0]), p[..., 1] + 0.1135, p[..., 2]
    upper = 0.0175 * (1 - (x / 0.046).clip(0, 1) ** 1.6) - 0.003 * np.exp(-((x / 0.006) ** 2))
    lower = 0.021 * np.sqrt((1 - (x / 0.044) ** 2).clip(0, 1))
    inside = np.minimum(upper - y, y + lower)
    return smoothstep(-0.0025, 0.003, inside) * smoothstep(0.1, 0.13, z) * smoothstep(0.048, 0.043, x)


def scalp_region(p: np.ndarray, recession: float = 0.0) -> np.ndarray:
    """How much hair grows on the scalp at head-frame points (...,3) of the normalised mean head, in [0,1] (ears not
    excluded).

    Args: recession: how far the hairline has moved back, scene units.
    """
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    front = 0.143 + recession * (1 + 1.5 * smoothstep(0.03, 0.08, x)) - 0.015 * smoothstep(0.06, 0.1, x)
    side = -0.03 + (front + 0.03) * smoothstep(0.035, 0.095, z)
    nape = -0.095 + 0.05 * smoothstep(-0.14, 0.03, z)
    line = np.where(z > 0.03, np.maximum(side, nape), nape)
    return smoothstep(-0.012, 0.016, y - line)


def _masks(p: np.ndarray, covered: np.ndarray, ears: np.ndarray) -> dict:
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    front = smoothstep(0.0, 0.06, z)
    cheeks = np.exp(-(((x - 0.078) / 0.036) ** 2 + ((y + 0.055) / 0.036) ** 2)) * front
    nose = np.exp(-((x / 0.022) ** 2 + ((y + 0.055) / 0.03) ** 2)) * smoothstep(0.14, 0.17, z)
    ears = smoothstep(0.7, 0.95, ears)
    lips = lip_region(p)
    masks = {
        "cheeks": cheeks,
        "flush": np.maximum(np.maximum(cheeks, 0.8 * nose), 0.6 * ears),
        "lips": lips,
        "ears": ears,
        "beard": beard_region(p) * (1 - lips) * (1 - ears),
        "face": (z > 0.06) & (y > -0.16) & (y < 0.13),
        "tone": (z > 0.08) & (((np.abs(y + 0.06) < 0.03) & (x > 0.05)) | ((y > 0.08) & (y < 0.12) & (x < 0.06))),
    }
    return {name: np.where(covered, mask, 0).astype(np.float32) for name, mask in masks.items()}


def to_linear(srgb) -> np.ndarray:
    """Display values in [0,1] to linear light, gamma 2.2."""
    return np.asarray(srgb, np.float32) ** 2.2


def to_display(linear) -> np.ndarray:
    """Linear light to display values, gamma 1/2.2."""
    return np.maximum(linear, 0) ** (1 / 2.2)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise (rows, columns) of about unit variance whose features are ``cell`` texels wide."""
    small = rng.standard_normal((int(shape[0] / cell) + 3, int(shape[1] / cell) + 3)).astype(np.float32)
    big = np.asarray(Image.fromarray(small).resize((shape[1], shape[0]), Image.BICUBIC))
    return big / max(float(big.std()), 1e-6)


def paint_skin(subject: Subject, layout: SkinLayout, texture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The head and body textures of one subject.

    Args:
        texture: (H,W,3 or 4) uint8 skin of the asset pack.
    Returns: head (896,480,4) and body (256,256,4) uint8, opaque.
    """
    rows, columns = texture.shape[:2]
    u0, u1, v0, v1 = HEAD_RECT
    box = (u0 * columns, (1 - v1) * rows, u1 * columns, (1 - v0) * rows)
    picture = Image.fromarray(np.ascontiguousarray(texture[..., :3]))
    head = np.asarray(picture.resize(HEAD_TEXELS[::-1], Image.BICUBIC, box=box), np.float32) / 255.0
    body = np.asarray(picture.resize((BODY_TEXELS, BODY_TEXELS), Image.BOX), np.float32) / 255.0
    masks, rng = layout.masks, subject.rng(1)
    target = to_linear(subject.skin_srgb)
    head = to_linear(head)
    average = head[masks["tone"] > 0.5].mean(0)
    gain = target / np.maximum(average, 1e-4)
    body = to_linear(body) * gain
    head *= gain
    # keep the texture's relief but compress hue shifts far from the tone (dark ears, baked scalp stubble stay darker,
    # not redder)
    ratio = head / target
    grey = ratio.mean(-1, keepdims=True)
    head = target * (grey + 0.75 * (ratio - grey))

    fine, mid, coarse = noise(rng, HEAD_TEXELS, 2.0), noise(rng, HEAD_TEXELS, 7.0), noise(rng, HEAD_TEXELS, 40.0)
    head *= np.exp(subject.pores * (0.022 * fine + 0.014 * mid) + 0.012 * coarse)[..., None]
    redness = (subject.flush * masks["flush"] + 0.12 * subject.pores * (mid * 0.1 + coarse * 0.2))[..., None]
    head *= np.exp(redness * np.array([0.02, -0.34, -0.30], np.float32))
    if subject.freckles > 0:
        spots = smoothstep(1.4, 2.2, noise(rng, HEAD_TEXELS, 2.8)) * (
            masks["cheeks"] + 0.5 * masks["flush"] + 0.15 * masks["face"]
        ).clip(0, 1)
        head *= np.exp(-(subject.freckles * spots)[..., None] * np.array([0.35, 0.6, 0.8], np.float32))
    lips = (masks["lips"] * subject.lips_strength)[..., None]
    lip_shade = (head / np.maximum(target, 1e-4)).mean(-1, keepdims=True).clip(0.4, 1.3)
    head = head * (1 - lips) + lips * to_linear(subject.lips_srgb) * (0.35 + 0.65 * lip_shade)
    head = _paint_facial_hair(head, subject, masks, rng)
    if subject.hair != "bald":  # what shows between strands is hair-coloured, not bare
        cover = 0.8 * scalp_region(layout.position, subject.hairline + 0.012) * (1 - masks["ears"]) * layout.covered
        head = head * (1 - cover[..., None]) + cover[..., None] * 0.55 * hair_linear(subject)
    return _pack(head), _pack(body)


def _paint_facial_hair(head: np.ndarray, subject: Subject, masks: dict, rng: np.random.Generator) -> np.ndarray:
    """Stubble, or the shadow beneath a longer beard."""
    if subject.beard.style == "none":
        return head
    speckle = 0.65 + 0.35 * smoothstep(-0.6, 0.9, noise(rng, HEAD_TEXELS, 1.6)) + 0.12 * noise(rng, HEAD_TEXELS, 25.0)
    cover = (
        0.8 * subject.beard.density * masks["beard"] * masks.get("style_" + subject.beard.style, 1.0) * speckle
    ).clip(0, 0.92)[..., None]
    return head * (1 - cover) + cover * (0.8 * facial_hair_linear(subject) + 0.06 * head)


def hair_linear(subject: Subject) -> np.ndarray:
    """Linear colour (3,) of the hair, greyed."""
    colour, grey = to_linear(subject.hair_srgb), to_linear((0.66, 0.655, 0.64))
    return (1 - subject.hair_grey) * colour + subject.hair_grey * grey


def facial_hair_linear(subject: Subject) -> np.ndarray:
    """Linear colour (3,) of brows and beard: a little darker than the hair, greying less."""
    hair = to_linear(subject.hair_srgb)
    grey = to_linear((0.62, 0.61, 0.6))
    mix = 0.8 * subject.hair_grey
    return (1 - mix) * hair * 0.8 + mix * grey


def _pack(linear: np.ndarray) -> np.ndarray:
    rgb = (to_display(linear).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.concatenate([rgb, np.full(rgb.shape[:2] + (1,), 255, np.uint8)], -1)
