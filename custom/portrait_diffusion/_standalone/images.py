"""Tensors and arrays to 8-bit RGB images, and images to grids."""
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..optional import require


def to_numpy(data: Any) -> Any:
    """Tensors to arrays, also inside lists and dicts; numbers and arrays stay."""
    if isinstance(data, dict):
        return {key: to_numpy(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [to_numpy(value) for value in data]
    if hasattr(data, "detach"):
        data = data.detach().cpu()
        return data.float().numpy() if data.dtype.is_floating_point else data.numpy()
    return data


def _to_bytes(unit: np.ndarray) -> np.ndarray:
    return (unit.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def rgb_bytes(img: Any, data_format: str = "HWC", data_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """(H,W,3) or (H,W,1) or, with ``data_format="CHW"``, (3,H,W); clipped to `data_range` -> (H,W,3) uint8.

    Raises: ValueError for another shape or format.
    """
    array = np.asarray(to_numpy(img))
    if data_format not in ("HWC", "CHW"):
        raise ValueError(f"data_format must be 'HWC' or 'CHW', got '{data_format}'.")
    if array.ndim == 3 and data_format == "CHW":
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ValueError(f"An rgb image must have shape (H, W, 3) in {data_format} order, got {tuple(array.shape)}.")
    if array.dtype != np.uint8:
        low, high = data_range
        array = _to_bytes((np.nan_to_num(array.astype(np.float64)) - low) / (high - low))
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def grayscale_bytes(
    img: Any, data_range: tuple[float, float] | None = None, cmap: str | None = "jet"
) -> np.ndarray:
    """(H,W) or (H,W,1) values through a colour map -> (H,W,3) uint8.

    Args:
        data_range: values of the map's two ends; None takes the image's own, and a constant image becomes the low end.
        cmap: None (grey), ``"jet"``, or ``"magma"``, ``"spectral"`` (these two need matplotlib).

    Raises: ValueError for another shape or map.
    """
    array = np.asarray(to_numpy(img), dtype=np.float64)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise ValueError(f"A grayscale image must have shape (H, W) or (H, W, 1), got {tuple(array.shape)}.")
    finite = array[np.isfinite(array)]
    low, high = data_range or ((finite.min(), finite.max()) if finite.size else (0.0, 1.0))
    x = np.nan_to_num((array - low) / (high - low) if high > low else np.zeros_like(array)).clip(0.0, 1.0)[..., None]
    if cmap is None:
        return _to_bytes(np.repeat(x, 3, axis=-1))
    if cmap == "jet":  # piecewise linear: red, green, blue peak at 3/4, 1/2, 1/4
        return _to_bytes(1.5 - np.abs(4.0 * x - np.array([3.0, 2.0, 1.0])))
    names = {"magma": "magma", "spectral": "Spectral"}
    if cmap not in names:
        raise ValueError(f"cmap must be None, 'jet', 'magma' or 'spectral', got '{cmap}'.")
    table = require("matplotlib", extra="plots").colormaps[names[cmap]]
    return _to_bytes(table(x[..., 0])[..., :3])


def grid_bytes(rows: list[list[np.ndarray]], align: Any = "max", texts: list[str] | None = None) -> np.ndarray:
    """Join rows of (H,W,3) uint8 images, each resized first.

    Args:
        align: ``"max"`` or ``"min"`` over all images (heights and widths apart), a side length, or (height, width).
        texts: lines written into the upper left corner.

    Raises: ValueError for another `align`, for no image, or for rows of unequal length.
    """
    flat = [image for row in rows for image in row]
    if not flat or len({len(row) for row in rows}) != 1:
        raise ValueError("An image grid needs at least one image and rows of equal length.")
    if align in ("max", "min"):
        pick = max if align == "max" else min
        height, width = pick(i.shape[0] for i in flat), pick(i.shape[1] for i in flat)
    elif isinstance(align, int):
        height = width = align
    elif isinstance(align, tuple | list) and len(align) == 2:
        height, width = align
    else:
        raise ValueError(f"align must be 'max', 'min', a side length or (height, width), got {align!r}.")
    grid = np.concatenate([np.concatenate([_resize(i, height, width) for i in row], axis=1) for row in rows], axis=0)
    if texts:
        picture = Image.fromarray(grid)
        draw = ImageDraw.Draw(picture)
        for line, text in enumerate(texts):
            draw.text((4, 4 + 14 * line), text, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
        grid = np.asarray(picture)
    return grid


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
