"""Views of the head from given directions: the one place that calls the renderer, with a cache to resume from."""
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import PortraitError
from ..files import atomic_path
from ..ops.cameras import canonical_fovy, orbit_c2w

RenderFn = Callable[[Tensor, Tensor, int, int], dict[str, Tensor]]
"""render(c2w (B,4,4), fovy (B,) radians, height, width) -> comp_rgb_fg, opacity, comp_normal, ... (B,H,W,C)."""


class View(NamedTuple):
    """One rendered view, premultiplied.

    colour: (H,W,3) foreground times opacity.  opacity: (H,W,1).  normal: (H,W,3) (n+1)/2 times opacity, world frame.
    """

    colour: np.ndarray
    opacity: np.ndarray
    normal: np.ndarray

    def over(self, background: float = 1.0) -> np.ndarray:
        """Colour over a grey background, (H,W,3) in [0,1]."""
        return np.clip(self.colour + (1.0 - self.opacity) * background, 0.0, 1.0)

    def normal_over(self, background: float = 1.0) -> np.ndarray:
        """Normal picture over a grey background, (H,W,3) in [0,1]."""
        return np.clip(self.normal + (1.0 - self.opacity) * background, 0.0, 1.0)


def render_pose(render: RenderFn, c2w: Tensor, fovy: Tensor, size: int) -> View:
    """Render one camera. Args: c2w (4,4), fovy () or (1,) radians, size in pixels.

    Raises: PortraitError when a key is missing or a value is not finite.
    """
    with torch.no_grad():
        out = render(c2w[None], fovy.reshape(1), size, size)
    parts = []
    for key, channels in (("comp_rgb_fg", 3), ("opacity", 1), ("comp_normal", 3)):
        if key not in out or tuple(out[key].shape) != (1, size, size, channels):
            wanted, got = (1, size, size, channels), tuple(out[key].shape) if key in out else f"only {sorted(out)}"
            raise PortraitError(f"The renderer must return '{key}' of shape {wanted}, got {got}.")
        image = out[key][0].float().cpu().numpy()
        if not np.isfinite(image).all():
            raise PortraitError(f"The renderer's '{key}' is not finite; the optimisation has diverged.")
        parts.append(image)
    return View(*parts)


class ViewRenderer:
    """Renders orbit views at the canonical distance and field of view, each at most once.

    Args:
        render: see RenderFn.
        size: pixels.
        device: device of the cameras.
        cache_dir: folder for finished views, so that an interrupted export continues; None keeps them in memory only.
        fingerprint: what the views depend on besides the direction; other fingerprints' files are not used.
    """

    def __init__(self, render: RenderFn, size: int, device: torch.device | str = "cpu",
                 cache_dir: Path | None = None, fingerprint: str = ""):  # fmt: skip
        self.render, self.size, self.device = render, int(size), torch.device(device)
        self.cache_dir, self.fingerprint = cache_dir, fingerprint
        self.rendered = 0
        self._views: dict[tuple[float, float], View] = {}  # used without cache_dir only

    def view(self, azimuth_deg: float, elevation_deg: float) -> View:
        """The view from a direction, degrees (azimuth 0 = front, 90 = world +y)."""
        key = (round(float(azimuth_deg) % 360.0, 4) % 360.0, round(float(elevation_deg), 4) + 0.0)  # no -0.0
        path = self._path(key)
        view = self._load(path) if path else self._views.get(key)
        if view is None:
            c2w = orbit_c2w(torch.tensor(key[0], device=self.device), torch.tensor(key[1], device=self.device))
            view = render_pose(self.render, c2w, canonical_fovy(c2w), self.size)
            self.rendered += 1
            if path is None:
                self._views[key] = view
            else:
                with atomic_path(path) as partial, open(partial, "wb") as file:
                    np.savez(file, **{k: v.astype(np.float16) for k, v in view._asdict().items()})
        return view

    def _path(self, key: tuple[float, float]) -> Path | None:
        if self.cache_dir is None:
            return None
        name = hashlib.sha256(f"{self.fingerprint} {self.size} {key}".encode()).hexdigest()[:24]
        return Path(self.cache_dir) / f"{name}.npz"

    def _load(self, path: Path) -> View | None:
        if not path.is_file() or os.path.getsize(path) == 0:
            return None
        with np.load(path, allow_pickle=False) as data:
            return View(*(data[k].astype(np.float32) for k in View._fields))
