"""Drafts: what a prior makes of each subject's front view, seen from the subject's own cameras.

A data set of drafts has the shards, subjects and cameras of the data set it was made from. A multi-view model that is
to repair heads of a prior learns from both: it is told of the draft's geometry and renders, and answers with the truth.
A fit to a photo goes on to put the photo's colours onto the draft; with ``--fitted`` so do the drafts.

    launch_portrait.py render-drafts --data TRAIN --out TRAIN_DRAFTS --worsen 0.4 --fitted 0.75

Shards that are there are kept, so that a second call makes what is missing, also while TRAIN is still growing.
"""
import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import default_device
from ..errors import UsageError
from ..files import atomic_path, sha256_file, write_text
from ..multiview import DEPTH_SCALE, MultiViewData, load_shards, read_manifest, shard_paths
from ..ops.cameras import get_rays, project_points, world_to_head
from ..ops.canonical import BOX_RADIUS
from ..ops.differences import central_differences
from ..ops.smoothstep import smoothstep
from ..ops.triplane import DecoderWeights, decode_raw
from ..seeds import step_seed
from .assess import encode_first_view
from .augment import uniform
from .bundled import BundledPrior
from .render import half_precision, plane_features, render_planes

log = logging.getLogger("portrait_diffusion")
SAMPLES = 24
"""Samples a ray in each of the two passes."""
NORMAL_STEP = 0.008
"""Step of the finite differences behind normals, scene units."""
THICKNESS = (0.02, 0.1)
"""How far behind the draft's surface the photo's colours reach, scene units; the fit's detail stage has 0.07."""
FACING = (0.15, 0.4)
"""Cosine between surface and line of sight from which the photo counts, and from which it counts in full."""


def worsened(values: Tensor, amount: Tensor) -> Tensor:
    """Blend of each row with the next one. Args: values (B, ...); amount (B,) in [0, 1]."""
    return torch.lerp(values, values.roll(-1, dims=0), amount.view(-1, *[1] * (values.dim() - 1)))


@torch.no_grad()
def draft_planes(
    prior: BundledPrior, data: MultiViewData, rows: slice, worsen: float, generator: torch.Generator
) -> list[Tensor]:
    """Planes of subjects from their view 0 alone.

    A prior knows its training subjects better than it will know a stranger. To undo that, with `worsen` W+ of each
    subject is blended with another one's by up to that much, and one subject in eight loses its spatial features.
    """
    ws, features = encode_first_view(prior.encoder, data, rows)
    if worsen > 0:
        b = len(ws)
        ws = worsened(ws, uniform((b,), 0.0, worsen, generator, ws.device).to(ws))
        kept = (torch.rand(b, generator=generator, device=ws.device) >= 0.125).to(ws)
        features = {r: f * kept[:, None, None, None].to(f) for r, f in features.items()}
    with half_precision(data.device):
        planes = prior.generator.synthesis(ws, features)
    return [level.float() for level in planes]


@torch.no_grad()
def draft_view(planes: list[Tensor], decoder: DecoderWeights, c2w: Tensor, fovy: Tensor, size: int) -> dict:
    """One view of each of B heads in the integers of the shards.

    Args: planes of B heads; c2w (B, 4, 4); fovy (B,) radians; size in pixels.
    Returns: rgba (B, S, S, 4) uint8 straight; depth (B, S, S) int16; normal (B, S, S, 3) int8; depth and normals are 0
        where the head is less than half opaque.
    """
    rays_o, rays_d = get_rays(c2w, fovy, size, size)
    out = render_planes(planes, decoder, rays_o, rays_d, SAMPLES, SAMPLES, None)
    opacity, depth = out["opacity"][:, 0], out["depth"][:, 0]
    solid = opacity > 0.5

    def density(probes: Tensor) -> Tensor:
        coords = world_to_head(probes.flatten(1, -2)) / BOX_RADIUS
        return decode_raw(plane_features(planes, coords).float(), decoder)[..., 0].view(probes.shape[:-1])

    points = (rays_o + depth[..., None] * rays_d).flatten(1, 2)
    normals = -F.normalize(central_differences(density, points, NORMAL_STEP), dim=-1).view_as(rays_o)
    straight = (out["rgb"] / opacity[:, None].clamp(min=1e-3)).clamp(0, 1).permute(0, 2, 3, 1)
    rgba = torch.cat([straight, opacity[..., None]], dim=-1).clamp(0, 1)
    return {
        "rgba": (rgba * 255).round().to(torch.uint8),
        "depth": (depth * solid * DEPTH_SCALE).round().clamp(0, 32767).to(torch.int16),
        "normal": (normals * solid[..., None] * 127).round().to(torch.int8),
    }


def photographed(
    view: Tensor, depth: Tensor, c2w: Tensor, fovy: Tensor, photo: Tensor, front: dict, photo_c2w: Tensor,
    photo_fovy: Tensor, thickness: Tensor,
) -> Tensor:  # fmt: skip
    """Straight colours of a view whose surface wears the photo where the photo's camera sees it, as a fit's do.

    The photo counts g = s_1 s_2 s_3: smooth falls from 1/2 to 1 thickness behind the draft's surface and over `FACING`,
    and where the photo's alpha is below 0.95. See `inversion.detail.visibility_gate`.

    Args:
        view: (B, S, S, 4) straight rgba in [0, 1]; depth (B, S, S) distances of it; c2w (B, 4, 4), fovy (B,).
        photo: (B, S, S, 4) straight rgba; front: the draft from the photo's camera, ``depth`` (B, S, S) and ``normal``
            (B, S, S, 3), 0 where it has nothing.
        thickness: (B,) scene units.
    Returns: (B, S, S, 3).
    """
    size = photo.shape[1]
    rays_o, rays_d = get_rays(c2w, fovy, *depth.shape[-2:])
    points = (rays_o + depth[..., None] * rays_d).flatten(1, 2)
    pixels, _ = project_points(points, photo_c2w, photo_fovy, size, size)
    grid = (pixels / size * 2 - 1).view(*depth.shape, 2)
    _, sight = get_rays(photo_c2w, photo_fovy, size, size)
    facing = -(front["normal"] * sight).sum(-1)
    solid = (front["depth"] > 0).to(facing)
    maps = torch.cat([photo[..., :3] * photo[..., 3:], photo[..., 3:], front["depth"][..., None],
                      (facing * solid)[..., None], solid[..., None]], dim=-1).permute(0, 3, 1, 2)  # fmt: skip
    seen = F.grid_sample(maps, grid, align_corners=False, padding_mode="zeros").permute(0, 2, 3, 1)
    colour = seen[..., :3] / seen[..., 3:4].clamp(min=1e-3)
    share = seen[..., 6].clamp(min=1e-3)
    distance = (points - photo_c2w[:, None, :3, 3]).norm(dim=-1).view_as(depth)
    behind = (distance - seen[..., 4] / share) / thickness[:, None, None]
    gate = (1 - smoothstep(behind, 0.5, 1.0)) * smoothstep(seen[..., 5] / share, *FACING)
    gate = gate * smoothstep(seen[..., 3], 0.5, 0.95) * (seen[..., 6] > 0.5) * (depth > 0)
    return torch.lerp(view[..., :3], colour, gate[..., None])


@torch.no_grad()
def wear_photo(views: list[dict], data: MultiViewData, rows: slice, fitted: float, generator: torch.Generator) -> None:
    """Put the photo, view 0 of the data, onto a share `fitted` of drafts; changes ``rgba`` of the views (integers)."""
    photo, device = data.rgba[rows, 0].float() / 255, data.device
    b = len(photo)
    chosen = (torch.rand(b, generator=generator, device=device) < fitted).float()
    strength = chosen * uniform((b,), 0.7, 1.0, generator, device)
    thickness = uniform((b,), *THICKNESS, generator, device)
    front = {"depth": views[0]["depth"].float() / DEPTH_SCALE, "normal": views[0]["normal"].float() / 127}
    for v, view in enumerate(views):
        rgba, depth = view["rgba"].float() / 255, view["depth"].float() / DEPTH_SCALE
        worn = photographed(
            rgba, depth, data.c2w[rows, v], data.fovy[rows, v], photo, front, data.c2w[rows, 0], data.fovy[rows, 0],
            thickness,
        )  # fmt: skip
        rgb = torch.lerp(rgba[..., :3], worn, strength[:, None, None, None])
        view["rgba"] = torch.cat([(rgb.clamp(0, 1) * 255).round().to(torch.uint8), view["rgba"][..., 3:]], dim=-1)


def heads_seen(
    planes_of: Callable[[slice], list[Tensor]], decoder: DecoderWeights, data: MultiViewData, batch: int,
    finish: Callable[[list[dict], slice], None] = lambda views, rows: None,
) -> MultiViewData:  # fmt: skip
    """One head for every subject of a data set, from all of the subject's cameras.

    Args: planes_of: planes of the heads of some rows; batch: subjects at a time; finish: may change their views.
    """
    parts: dict[str, list] = {"rgba": [], "depth": [], "normal": []}
    for start in range(0, len(data), batch):
        rows = slice(start, start + batch)
        planes = planes_of(rows)
        views = [
            draft_view(planes, decoder, data.c2w[rows, v], data.fovy[rows, v], data.size)
            for v in range(data.rgba.shape[1])
        ]
        finish(views, rows)
        for name, kept in parts.items():
            kept.append(torch.stack([view[name] for view in views], dim=1))
    made = {name: torch.cat(kept) for name, kept in parts.items()}
    return MultiViewData(**made, c2w=data.c2w, fovy=data.fovy, azimuth=data.azimuth, elevation=data.elevation)


def drafts_of(
    prior: BundledPrior, data: MultiViewData, worsen: float = 0.0, seed: int = 0, batch: int | None = None,
    fitted: float = 0.0,
) -> MultiViewData:  # fmt: skip
    """The prior's answer to view 0 of every subject, from all of the subject's cameras.

    Args: prior and data on one device; worsen in [0, 1], see `draft_planes`; batch: subjects at a time; fitted: share
        of subjects whose draft wears the photo, see `photographed`.
    """
    batch = batch or (16 if data.device.type == "cuda" else 1 if worsen == 0 else 4)
    generator = torch.Generator(device=data.device).manual_seed(seed)

    def planes_of(rows: slice) -> list[Tensor]:
        return draft_planes(prior, data, rows, worsen, generator)

    def finish(views: list[dict], rows: slice) -> None:
        if fitted > 0:
            wear_photo(views, data, rows, fitted, generator)

    return heads_seen(planes_of, prior.decoder, data, batch, finish)


def check_same_cameras(data: MultiViewData, drafts: MultiViewData) -> None:
    """Raises: UsageError when drafts do not belong to the data."""
    if drafts.rgba.shape != data.rgba.shape or not torch.allclose(drafts.c2w, data.c2w, atol=1e-5):
        raise UsageError(
            f"The drafts ({tuple(drafts.rgba.shape[:3])} subjects, views, pixels) were not made from the data "
            f"({tuple(data.rgba.shape[:3])}); make them with: render-drafts --data DATA --out DRAFTS."
        )
    if drafts.depth is None or drafts.normal is None:
        raise UsageError("The drafts have no depth or no normals; make them with render-drafts.")


def render_drafts(
    data_dir: Path, out: Path, worsen: float = 0.0, seed: int = 0, prior: BundledPrior | None = None,
    device: torch.device | str | None = None, fitted: float = 0.0,
) -> int:  # fmt: skip
    """Drafts of every shard in `data_dir` that `out` does not hold yet; returns how many were made.

    Raises: UsageError when `out` was made with other settings or weights, or `data_dir` holds no shard.
    """
    device = torch.device(device) if device else default_device()
    prior = (prior or BundledPrior()).to(device)
    made_by = {
        "what": "drafts", "worsen": worsen, "fitted": fitted, "seed": seed, "samples": SAMPLES,
        "weights": [sha256_file(path) for path in prior.files],
        "data": {name: manifest.get("digest") for name, manifest in read_manifest(data_dir).items()},
    }  # fmt: skip
    paths = shard_paths(data_dir)
    before = read_manifest(out).get("manifest_drafts")
    if before is not None and before != made_by:
        raise UsageError(f"{out} holds drafts of other data, weights or settings; delete it or name another folder.")
    write_text(out / "manifest_drafts.json", json.dumps(made_by, indent=1))
    todo, started = [path for path in paths if not (out / path.name).is_file()], time.monotonic()
    for k, path in enumerate(todo, 1):
        data = load_shards(path, device)
        index = int(path.stem.rsplit("_", 1)[1])
        drafts = drafts_of(prior, data, worsen, step_seed(seed, index), fitted=fitted)
        arrays = {name: getattr(drafts, name).cpu().numpy() for name in ("rgba", "depth", "normal", "c2w")}
        camera = torch.stack([data.azimuth, data.elevation, data.c2w[..., :3, 3].norm(dim=-1),
                              torch.rad2deg(data.fovy)], dim=-1)  # fmt: skip
        with atomic_path(out / path.name) as partial:
            np.savez(partial, camera=camera.cpu().numpy(), **arrays)
        log.info("drafts %d of %d, %.1f s", k, len(todo), time.monotonic() - started)
    return len(todo)


def main(argv: list | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="render-drafts", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with shards of subjects")
    parser.add_argument("--out", type=Path, required=True, help="folder for the drafts' shards")
    parser.add_argument("--worsen", type=float, default=0.0, help="0 to 1: make them as bad as a stranger's would be")
    parser.add_argument("--fitted", type=float, default=0.0, help="share of subjects whose draft wears the photo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior", type=Path, nargs=2, metavar=("PRIOR", "ENCODER"), help="default: the shipped pair")
    parser.add_argument("--device", help="torch device; default: a GPU if there is one")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in ("worsen", "fitted"):
        if not 0 <= getattr(args, name) <= 1:
            raise UsageError(f"--{name} must be between 0 and 1, got {getattr(args, name)}.")
    prior = BundledPrior(*(args.prior or ()))
    count = render_drafts(args.data, args.out, args.worsen, args.seed, prior, args.device, args.fitted)
    log.info("%d shards of drafts made in %s", count, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
