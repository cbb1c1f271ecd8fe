"""Numbers and pictures of a prior: held-out subjects from one frontal image, and random heads."""
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import atomic_path
from ..multiview import MultiViewData
from ..ops.cameras import CANONICAL_FOVY_DEG, get_rays, orbit_c2w
from .alignment import encoder_input
from .networks import Encoder, Generator
from .patches import over_white, premultiplied_images
from .render import half_precision, render_planes

BINS = {"below45": (0, 45), "45to135": (45, 135), "back": (135, 181)}
"""Absolute azimuth in degrees; the input view is its own bin."""
SAMPLES = 48
"""Samples a ray in each of the two passes of the evaluation."""


def bin_of(azimuth_deg: float) -> str:
    """The name in `BINS` of an azimuth, any period."""
    angle = abs((azimuth_deg + 180) % 360 - 180)
    return next(name for name, (low, high) in BINS.items() if low <= angle < high)


def encode_first_view(encoder: Encoder, data: MultiViewData, rows: slice) -> tuple:
    """W+ and features of subjects from their view 0 alone."""
    image = premultiplied_images(data.rgba[rows, 0])
    colour, alpha = image[:, :3], image[:, 3:]
    azimuth, elevation = data.azimuth[rows, 0], data.elevation[rows, 0]
    x = encoder_input(colour, alpha, torch.ones_like(alpha), azimuth, elevation, encoder.spec.encoder_input)
    with half_precision(data.device):
        ws, _, features = encoder(x)
    return ws, features


@torch.no_grad()
def encode_all(encoder: Encoder, data: MultiViewData, batch: int = 16) -> Tensor:
    """W+ (N, num_ws, w_dim) of every subject's view 0."""
    starts = range(0, len(data), batch)
    return torch.cat([encode_first_view(encoder, data, slice(i, i + batch))[0].float() for i in starts])


def planes_of(generator: Generator, encoder: Encoder, data: MultiViewData, rows: slice) -> tuple:
    """Planes of subjects from their view 0 alone, and all their images (B, V, 4, S, S), premultiplied."""
    ws, features = encode_first_view(encoder, data, rows)
    with half_precision(data.device):
        planes = generator.synthesis(ws, features)
    return [level.float() for level in planes], premultiplied_images(data.rgba[rows])


def render_over_white(generator: Generator, planes: list[Tensor], c2w: Tensor, fovy: Tensor, size: int) -> Tensor:
    """(B, 3, size, size) deterministic renders over white, in [0, 1]."""
    rays_o, rays_d = get_rays(c2w, fovy, size, size)
    out = render_planes(planes, generator.decoder.weights(), rays_o, rays_d, SAMPLES, SAMPLES, None)
    return over_white(out["rgb"], out["opacity"]).clamp(0, 1)


@torch.no_grad()
def evaluate(
    generator: Generator, encoder: Encoder, data: MultiViewData, perceptual: nn.Module | None, size: int = 64,
    batch: int = 8,
) -> dict:
    """One frontal image in, no optimisation: PSNR over white at `size`² and ST-LPIPS at full size by absolute azimuth.

    View 0 of every subject is the input; it alone makes the bin "front". Mean of per-image values; without a
    `perceptual` there are no ``stlpips_`` entries.
    """
    factor = data.size // size
    scores: dict = {}
    for start in range(0, len(data), batch):
        rows = slice(start, start + batch)
        planes, images = planes_of(generator, encoder, data, rows)
        for view in range(images.shape[1]):
            fake = render_over_white(generator, planes, data.c2w[rows, view], data.fovy[rows, view], data.size)
            real = over_white(images[:, view, :3], images[:, view, 3:])
            mse = (F.avg_pool2d(fake, factor) - F.avg_pool2d(real, factor)).square().mean(dim=(1, 2, 3))
            psnr = -10 * torch.log10(mse.clamp(min=1e-10))
            columns = [psnr] if perceptual is None else [psnr, perceptual(fake, real).float()]
            for i in range(len(images)):
                name = "front" if view == 0 else bin_of(float(data.azimuth[start + i, view]))
                scores.setdefault(name, []).append([float(column[i]) for column in columns])
    result = {}
    for name, values in scores.items():
        for metric, digits, mean in zip(("psnr", "stlpips"), (3, 4), np.mean(values, axis=0)):
            result[f"{metric}_{name}"] = round(float(mean), digits)
    return result


@torch.no_grad()
def sample_sheet(
    generator: Generator, count: int, path: Path, truncation: float = 0.7, seed: int = 0, size: int = 128
) -> None:
    """Random heads seen from six sides, as one PNG."""
    device = generator.synthesis.const.device
    rng = torch.Generator(device=device).manual_seed(seed)
    z = torch.randn((count, generator.spec.latent_rank), generator=rng, device=device)
    planes = generator.synthesis(generator.random_heads(z, truncation), None)
    fovy = torch.full((count,), math.radians(CANONICAL_FOVY_DEG), device=device)
    columns = []
    for azimuth in (0.0, 35.0, 90.0, 180.0, 270.0, 325.0):
        c2w = orbit_c2w(torch.full((count,), azimuth, device=device), torch.zeros(count, device=device))
        columns.append(render_over_white(generator, planes, c2w, fovy, size))
    save_sheet(torch.cat(columns, dim=3), path)


@torch.no_grad()
def reconstruction_sheet(
    generator: Generator, encoder: Encoder, data: MultiViewData, count: int, path: Path
) -> None:
    """Held-out subjects: truth above result for the evaluation views; the first view is the input."""
    planes, images = planes_of(generator, encoder, data, slice(0, count))
    columns = []
    for view in range(images.shape[1]):
        fake = render_over_white(generator, planes, data.c2w[:count, view], data.fovy[:count, view], data.size)
        real = over_white(images[:, view, :3], images[:, view, 3:])
        columns.append(torch.cat([real, fake], dim=2))  # (count, 3, 2 S, S)
    save_sheet(torch.cat(columns, dim=3), path)


def save_sheet(rows: Tensor, path: Path) -> None:
    """(N, 3, H, W) in [0, 1], one below the other, to a PNG; atomically."""
    from PIL import Image

    sheet = torch.cat(list(rows.permute(0, 2, 3, 1)))
    with atomic_path(path) as partial:
        Image.fromarray((sheet * 255 + 0.5).byte().cpu().numpy()).save(partial)
