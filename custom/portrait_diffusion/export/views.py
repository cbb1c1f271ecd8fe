"""Still views: RGBA pictures with straight (un-premultiplied) alpha, named by their direction."""
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..files import write_bytes
from .bake import to_uint8
from .renders import View, ViewRenderer


def view_name(azimuth_deg: float, elevation_deg: float) -> str:
    """File stem of a direction in whole degrees, azimuth in (-180, 180]: ``az-045_el+15``."""
    azimuth = round(azimuth_deg) % 360
    azimuth = azimuth - 360 if azimuth > 180 else azimuth
    return f"az{azimuth:+04d}_el{round(elevation_deg):+03d}"


def straight_rgba(view: View) -> np.ndarray:
    """(H,W,4) uint8: colour divided by opacity where there is any (else 0), and opacity."""
    colour = np.where(view.opacity > 1e-4, view.colour / np.maximum(view.opacity, 1e-4), 0.0)
    return to_uint8(np.concatenate([colour, view.opacity], -1))


def png_bytes(image: np.ndarray) -> bytes:
    """Encode (H,W,3) or (H,W,4) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def view_directions(azimuths_deg: Sequence[float], elevations_deg: Sequence[float]) -> list[tuple[float, float]]:
    """All (azimuth, elevation) pairs; raises UsageError when two share a file name or one is out of range."""
    pairs = [(float(a), float(e)) for e in elevations_deg for a in azimuths_deg]
    if any(not -89 <= e <= 89 for _, e in pairs):
        raise UsageError("View elevations must lie between -89 and 89 degrees.")
    names = [view_name(*p) for p in pairs]
    if len(set(names)) != len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise UsageError(f"Two views have the same name in whole degrees: {', '.join(twice)}.")
    return pairs


def write_view(folder: str | Path, renderer: ViewRenderer, azimuth_deg: float, elevation_deg: float) -> Path:
    """Render and write one view; returns its path ``folder/az+000_el+00.png``."""
    path = Path(folder) / f"{view_name(azimuth_deg, elevation_deg)}.png"
    write_bytes(path, png_bytes(straight_rgba(renderer.view(azimuth_deg, elevation_deg))))
    return path
