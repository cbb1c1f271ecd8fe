"""Paint one person's clothes: the fabric's folds from the asset, a colour, a woven or printed pattern, and a
contrasting shirt."""

import numpy as np
from PIL import Image

from .skin import noise, smoothstep, to_display, to_linear
from .subjects import Subject

TEXELS = 384


def paint_clothes(subject: Subject, texture: np.ndarray) -> np.ndarray:
    """Albedo texture of the subject's clothes.

    The asset's brightness relative to its median is kept as folds and seams; texels several times brighter than that
    (a shirt under a dark jacket, a collar) take the accent colour instead of the main one.

    Args: texture (H,W,3 or 4) uint8. Returns: (TEXELS,TEXELS,4) uint8, opaque.
    """
    picture = Image.fromarray(np.ascontiguousarray(texture[..., :3])).resize((TEXELS, TEXELS), Image.BOX)
    value = to_linear(np.asarray(picture, np.float32) / 255.0).mean(-1) + 0.002
    ratio = value / np.median(value)
    accent = smoothstep(3.0, 5.0, ratio)[..., None]
    folds = ratio.clip(0.35, 1.6) ** 0.7
    main = to_linear(subject.clothes_srgb) * folds[..., None]
    second = to_linear(subject.clothes_second_srgb) * folds[..., None]
    shirt = ratio > 4
    cover = pattern("plain" if shirt.any() else subject.clothes_pattern, subject.rng(6))[..., None]
    white = float(np.percentile(value[shirt], 70)) if shirt.any() else 1.0
    bright = to_linear(subject.clothes_accent_srgb) * (value / white).clip(0.3, 1.1)[..., None]
    linear = (1 - accent) * ((1 - cover) * main + cover * second) + accent * bright
    linear = linear * np.exp(0.05 * noise(subject.rng(7), (TEXELS, TEXELS), 2.0))[..., None]
    rgb = (to_display(linear).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.concatenate([rgb, np.full((TEXELS, TEXELS, 1), 255, np.uint8)], -1)


def pattern(kind: str, rng: np.random.Generator) -> np.ndarray:
    """How much of the second colour shows (TEXELS,TEXELS) in [0,1]: 'plain', 'stripes', 'checks', 'dots' or
    'melange'."""
    y, x = np.mgrid[0:TEXELS, 0:TEXELS].astype(np.float32)
    period = rng.uniform(6, 18)
    if kind == "stripes":
        axis = x if rng.random() < 0.5 else y
        return smoothstep(0.0, 0.25, np.sin(axis * (2 * np.pi / period)) - rng.uniform(-0.3, 0.5))
    if kind == "checks":
        across, along = (smoothstep(0.1, 0.3, np.sin(axis * (2 * np.pi / period))) for axis in (x, y))
        return 0.5 * (across + along)
    if kind == "dots":
        u, v = (x / period) % 1 - 0.5, ((y / period + 0.5 * (np.floor(x / period) % 2)) % 1) - 0.5
        return smoothstep(0.3, 0.22, np.hypot(u, v))
    if kind == "melange":
        return smoothstep(-0.5, 1.5, noise(rng, (TEXELS, TEXELS), 2.0)) * 0.6
    return np.zeros((TEXELS, TEXELS), np.float32)
