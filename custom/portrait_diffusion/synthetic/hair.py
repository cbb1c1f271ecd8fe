"""Hair of the asset pack: neutral textures to tint, and changes of cut, volume and wave."""

import numpy as np
from PIL import Image, ImageFilter

from .skin import smoothstep, to_display, to_linear
from .subjects import Subject

NEUTRAL = 0.25  # linear brightness that stands for "one" in a neutral texture
NEUTRAL_GAIN = 1.0 / NEUTRAL
CUTTABLE = ("long01",)  # styles whose length may be shortened


def neutral_strands(texture: np.ndarray, streaks: float = 0.0) -> np.ndarray:
    """Strip the colour of a strand texture and bring its brightness to NEUTRAL on average, with the strands' contrast
    kept.

    Args:
        texture: (H,W,4) uint8, straight alpha.
        streaks: strength of the fine streaks added along the strands (logarithm of brightness).
    Returns: the same shape and type, grey.
    """
    alpha = texture[..., 3].astype(np.float32) / 255.0
    colour = np.asarray(
        Image.fromarray(np.ascontiguousarray(texture[..., :3])).filter(ImageFilter.GaussianBlur(0.8)), np.float32
    )
    value = to_linear(colour / 255.0).mean(-1) + 0.012
    opaque = alpha > 0.3
    log = np.log(value)
    centre, spread = (float(log[opaque].mean()), float(log[opaque].std())) if opaque.any() else (0.0, 1.0)
    relative = np.exp(((log - centre) * min(1.0, 0.5 / max(spread, 1e-3))).clip(-1.3, 1.1))
    if streaks > 0:
        relative *= np.exp(streaks * strand_streaks(log * opaque).clip(-2.5, 2.5))
    relative /= relative[opaque].mean() if opaque.any() else 1.0
    return _grey(NEUTRAL * relative, texture[..., 3])


def strand_streaks(value: np.ndarray, length: int = 14, smoothing: float = 3.0) -> np.ndarray:
    """Fine streaks (H,W) of zero mean and unit variance along the strands seen in a picture (H,W).

    Line integral convolution (Cabral and Leedom 1993) of white noise along the direction of least change, the minor
    eigenvector of the structure tensor.
    """
    gy, gx = np.gradient(value)
    xx, yy, xy = (blur(a, smoothing) for a in (gx * gx, gy * gy, gx * gy))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2
    rows, columns = value.shape
    white = np.random.default_rng(0).standard_normal(value.shape).astype(np.float32)
    total = white.copy()
    for sign in (1.0, -1.0):
        y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
        direction = np.full(value.shape, sign, np.float32)
        previous = angle
        for _ in range(length):
            yi, xi = y.round().astype(int).clip(0, rows - 1), x.round().astype(int).clip(0, columns - 1)
            here = angle[yi, xi]
            direction = np.where(
                np.cos(here - previous) < 0, -direction, direction
            )  # a line has no sense: keep going the same way
            previous = here
            x, y = x + direction * np.cos(here), y + direction * np.sin(here)
            total += white[y.round().astype(int).clip(0, rows - 1), x.round().astype(int).clip(0, columns - 1)]
    total -= blur(total, 6.0)
    return total / max(float(total.std()), 1e-6)


def blur(picture: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur by three box blurs of cumulative sums, edges repeated."""
    half = max(1, int(round(radius * 0.9)))
    for _ in range(3):
        for axis in (0, 1):
            pad = [(half + 1, half) if k == axis else (0, 0) for k in (0, 1)]
            sums = np.cumsum(np.pad(picture, pad, mode="edge"), axis=axis, dtype=np.float64)
            high, low = np.arange(2 * half + 1, sums.shape[axis]), np.arange(sums.shape[axis] - 2 * half - 1)
            picture = (np.take(sums, high, axis) - np.take(sums, low, axis)) / (2 * half + 1)
    return picture.astype(np.float32)


def _grey(linear: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    value = (to_display(linear).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.stack([value, value, value, alpha], -1)


def shape_hair(positions: np.ndarray, faces: np.ndarray, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Change volume, mirror, wave and cut of a fitted hair mesh (n,3) in the head frame."""
    centre = np.array([0.0, 0.06, 0.0])
    p = centre + (positions - centre) * [subject.hair_volume, 1 + 0.6 * (subject.hair_volume - 1), subject.hair_volume]
    skull = (p - [0.0, 0.05, -0.03]) / [0.125, 0.17, 0.165]  # crowns that stand far off the skull are drawn in
    size = np.maximum(np.linalg.norm(skull, axis=1), 1e-6)
    drawn = np.where(size > 1.22, 1.22 + (size - 1.22) * 0.55, size) / size
    if subject.hair in CUTTABLE:
        p = p + (p - [0.0, 0.05, -0.03]) * ((drawn - 1) * smoothstep(0.06, 0.16, p[:, 1]))[:, None]
    if subject.hair_mirror:
        p = p * [-1, 1, 1]
        faces = faces[:, [0, 2, 1]]
    if subject.hair_cut > -0.5 and subject.hair in CUTTABLE:
        start, end = -0.02, float(p[:, 1].min())
        factor = min(1.0, (subject.hair_cut - start) / min(end - start, -0.01))
        low = p[:, 1] < start
        radius = np.maximum(np.hypot(p[:, 0], p[:, 2]), 1e-6)
        p[low, 1] = start + (p[low, 1] - start) * factor
        pull = (1 - factor) * smoothstep(0.1, -0.15, p[:, 1])
        p *= np.where(radius > 0.12, (0.12 + (radius - 0.12) * (1 - 0.7 * pull)) / radius, 1.0)[:, None] * [1, 0, 1] + [
            0,
            1,
            0,
        ]
    if subject.hair_wave > 0:
        rng = subject.rng(3)
        length = (0.05 - p[:, 1]).clip(0, 0.25) / 0.25
        phase, rate = rng.uniform(0, 6.28, 3), rng.uniform(30, 60)
        angle = np.arctan2(p[:, 0], p[:, 2])
        shift = np.sin(p[:, 1] * rate + 2.0 * np.sin(angle * 7 + phase[0]) + phase[1])
        flat = p * [1, 0, 1]
        p = (
            p
            + flat
            / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
            * (0.009 * subject.hair_wave * length * shift)[:, None]
        )
    return p, faces


def smooth_normals(positions: np.ndarray, normals: np.ndarray, own: float = 0.45) -> np.ndarray:
    """Mix mesh normals (their share: ``own``) with the direction outward from the head, so that thin strips are lit
    like the mass of hair they form."""
    axis = positions - [0.0, 1.0, 0.0] * positions.clip(-0.4, 0.05) - [0, 0.03, 0.0]
    outward = axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-6)
    sign = np.where((normals * outward).sum(1, keepdims=True) < 0, -1.0, 1.0)
    return (own * normals * sign + (1 - own) * outward).astype(np.float32)


def highlight(positions: np.ndarray, normals: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Strength in [0,1] (n,) of the band of reflected light across strands that hang down.

    Formula: Kajiya-Kay's ``(sin angle(t, h))^k`` with the viewer along the normal, so that the band belongs to the
        surface.
    """
    down = np.array([0.0, -1.0, 0.0])
    tangent = down - normals * (normals @ down)[:, None]
    tangent = tangent / np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-4)
    half = normals + light
    half = half / np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-4)
    sine2 = 1 - (tangent * half).sum(1) ** 2
    return (np.maximum(sine2, 0) ** 16 * (0.25 + 0.75 * np.maximum(0, normals @ light))).astype(np.float32)


def natural_iris(texture: np.ndarray) -> np.ndarray:
    """Tame the colours of an iris texture: (H,W,4) uint8 -> the same, less saturated, strong reds turned brown,
    sclera a little brighter."""
    rgb = texture[..., :3].astype(np.float32) / 255.0
    grey = rgb.mean(-1, keepdims=True)
    saturation = (rgb.max(-1, keepdims=True) - rgb.min(-1, keepdims=True)) / np.maximum(
        rgb.max(-1, keepdims=True), 1e-3
    )
    coloured = smoothstep(0.12, 0.35, saturation)
    calm = grey + 0.62 * (rgb - grey)
    red = smoothstep(0.2, 0.6, rgb[..., :1] - np.maximum(rgb[..., 1:2], rgb[..., 2:])) * coloured
    red = np.maximum(red, coloured * (rgb[..., :1] > 2.2 * rgb[..., 1:2]))
    brown = grey * np.array([1.35, 0.95, 0.62], np.float32)
    result = calm * (1 - red) + brown * red
    out = texture.copy()
    out[..., :3] = ((rgb * (1 - coloured) + result * coloured) * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return out
