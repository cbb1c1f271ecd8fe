"""Renders of fixed cameras of which the restoration grid alone changes.

Where a ray is sampled, and what planes, decoder and detail say there, is found once; a step then costs one look-up in
the restoration grid and the compositing. The detail stage of the initialization works so, too (`inversion.detail`).
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ..ops.triplane_gather import Rows, kept_tables
from ..ops.volrend import composite_rays
from .plain import PlainColour, WhiteBackground

PART = 49152
"""Points that the field is asked for at a time on a CPU: as many as its caches hold."""
MARGIN = 1 / 32
"""Pixels this near (share of the image's side) to ones that show something are rendered: the head may grow there."""


@dataclass
class KeptRays:
    """Rays of one view; P rays of pixels at and around the head, S samples each.

    Attributes:
        size: (H, W).
        index: (P,) flat pixel numbers.
        points: (P, S, 3) world space.
        rows: what the P * S points read in the restoration grid; None on a GPU, which looks them up as fast.
        raw: (P, S, 4) raw density and colour without the restoration grid.
        t, deltas: (P, S) distances and interval lengths, scene units.
    """

    size: tuple[int, int]
    index: Tensor
    points: Tensor
    rows: Rows | None
    raw: Tensor
    t: Tensor
    deltas: Tensor


def check_keeps(geometry, renderer) -> None:
    """Raise UsageError unless the restoration grid is all of the geometry that training changes, shown plainly."""
    if getattr(geometry, "restoration", None) is None or not hasattr(geometry, "raw_without_restoration"):
        raise UsageError("keep_samples needs portrait-diffusion-triplane with a restoration grid; set it to false.")
    plain = isinstance(renderer.material, PlainColour | None)
    white = isinstance(renderer.background, WhiteBackground | None)
    if not (plain and white and hasattr(renderer, "sample_places")):
        raise UsageError(
            "keep_samples needs portrait-diffusion-volume-renderer with portrait-diffusion-no-material and "
            "portrait-diffusion-white-background; set it to false."
        )
    if renderer.cfg.estimator != "occupancy":
        raise UsageError(
            f"keep_samples needs as many samples on every ray; renderer.estimator {renderer.cfg.estimator} has not; "
            "set it to occupancy."
        )
    changed = [name for name, p in geometry.named_parameters() if p.requires_grad and name != "restoration"]
    if changed:
        raise UsageError(
            f"keep_samples keeps all but the restoration grid, but the optimizer changes geometry.{changed[0]}; set "
            "optimizer.params to {geometry.restoration: {}}, or keep_samples to false."
        )


@torch.no_grad()
@kept_tables()
def keep_rays(geometry, renderer, rays_o: Tensor, rays_d: Tensor) -> list[KeptRays]:
    """Samples of views at the places that the head without its restoration grid asks for.

    Not those of the head as it is: a resumed run must find the same ones.

    Args: geometry (`TriplaneGeometry`), renderer (`PortraitVolumeRenderer`); rays_o, rays_d (B, H, W, 3) world space.
    """
    batch, height, width, _ = rays_o.shape
    with geometry.without_restoration():
        places = renderer.sample_places(rays_o.reshape(-1, 3), rays_d.reshape(-1, 3))
    t, deltas, seen = (x.view(batch, height * width, -1) for x in places)
    seen = seen.to(t).view(batch, 1, height, width)
    reach = max(1, round(MARGIN * max(height, width)))
    near = F.max_pool2d(seen, 2 * reach + 1, stride=1, padding=reach).view(batch, -1) > 0
    near &= deltas.sum(dim=-1) > 0  # rays that miss the cylinder stay empty
    views = []
    for k in range(batch):
        index = near[k].nonzero()[:, 0]
        o, d = rays_o[k].reshape(-1, 3)[index], rays_d[k].reshape(-1, 3)[index]
        points = o[:, None] + t[k, index, :, None] * d[:, None]
        parts = points.view(-1, 3).split(PART if points.device.type == "cpu" else geometry.cfg.isosurface_chunk)
        raw = torch.cat([geometry.raw_without_restoration(part) for part in parts])[:, :4]
        raw = raw.view(*points.shape[:2], 4)
        rows = geometry.restoration_rows(points.view(-1, 3)) if points.device.type == "cpu" else None
        views.append(KeptRays((height, width), index, points, rows, raw, t[k, index], deltas[k, index]))
    return views


def render_kept(geometry, views: list[KeptRays]) -> dict[str, Tensor]:
    """Views of one size over white, with gradients to the restoration grid alone.

    Returns: comp_rgb, comp_rgb_fg (B,H,W,3), opacity, depth, z_variance (B,H,W,1), as the renderer's.
    """
    points = torch.cat([view.points.reshape(-1, 3) for view in views])
    rows = None
    if all(view.rows is not None for view in views):
        rows = Rows(*(torch.cat(parts) for parts in zip(*(view.rows for view in views))))
    raw = geometry.restored(torch.cat([view.raw.reshape(-1, 4) for view in views]), points, rows)
    density, colour = geometry.activated(raw, points)
    t, deltas = (torch.cat([getattr(view, name) for view in views]) for name in ("t", "deltas"))
    density, colour = density.view(*t.shape, 1), colour.view(*t.shape, 3)
    rgb, opacity, depth, _, variance = composite_rays(density, colour, t, deltas, "torch")
    height, width = views[0].size
    pixels = torch.cat([view.index + k * height * width for k, view in enumerate(views)])

    def image(values: Tensor) -> Tensor:
        full = values.new_zeros(len(views) * height * width, values.shape[-1]).index_copy(0, pixels, values)
        return full.view(len(views), height, width, -1)

    rgb, opacity, depth, variance = map(image, (rgb, opacity, depth, variance))
    return {
        "comp_rgb": rgb + 1 - opacity, "comp_rgb_fg": rgb, "opacity": opacity, "depth": depth, "z_variance": variance,
    }  # fmt: skip
