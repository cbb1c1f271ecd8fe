"""Training batches of HPDM from multi-view data: a target view, what other views show of it, and the views themselves.

Each subject gives a target and R = 2 references: one from the front, as the photo is, and one from anywhere. Both are
also projected into the target. So that the model expects what refinement brings, the geometry is wrong by a smooth
error, parts of the projection are missing, and the reference that is no photo may be blurred and noisy. With drafts a
share of targets knows of the head what is known after the initialization: the photo, and a prior's answer to it.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...multiview import MultiViewData
from ...ops.projection import forward_project
from ...priors.augment import colour_jitter, turn_hue, uniform
from .conditions import angle_gate, explicit_image, geometry_maps
from .model import HPDM

FRONT_DEG = (32.0, 16.0)
"""Largest absolute azimuth and elevation of a view that stands for a photo."""


@dataclass
class BatchConfig:
    """How the conditions of a training batch are spoilt."""

    depth_error: float = 0.02
    """Largest standard deviation of the smooth error of depth, scene units."""
    hole: float = 0.5
    """Share of targets whose projection loses a rectangle."""
    lost_source: float = 0.15
    """Share of sources that are not projected at all."""
    spoilt: float = 0.5
    """Share of second references that are blurred and noisy, as renders of an unfinished head are."""
    jitter: float = 0.7
    """Share of subjects whose colours are changed, alike in all views."""
    hue: float = 0.4
    """Largest angle by which the hue of those is turned, radians: photos have hair and clothes of any colour."""
    drafted: float = 0.5
    """With drafts: share of targets that are told of a draft instead of the truth."""
    gate_floor: float = HPDM.gate_floor
    """What a reference counts at least, from any angle; trained models know where no face may be."""


@dataclass
class TrainBatch:
    """Pictures over white in [0, 1]; B targets with R references.

    Attributes:
        target: (B, 3, S, S). c2w: (B, 4, 4). explicit: (B, 11, S, S).
        references: (B, R, 3, S, S). geometry: (B, R, 7, S, S). reference_c2w: (B, R, 4, 4). gate: (B, R).
        depth: (B, S, S) true distances of the target; fovy (B,).
        begun: (B, 3, S, S) what painting the target would begin with: the draft's picture of it in rows that are told
            of a draft, the target itself in the others.
        drafted: (B,) 1 in rows that are told of a draft.
    """

    target: Tensor
    c2w: Tensor
    explicit: Tensor
    references: Tensor
    geometry: Tensor
    reference_c2w: Tensor
    gate: Tensor
    depth: Tensor
    fovy: Tensor
    begun: Tensor
    drafted: Tensor


def front_views(data: MultiViewData) -> Tensor:
    """(N, V) 1 where a view may stand for the photo; view 0 always may."""
    front = (data.azimuth.abs() <= FRONT_DEG[0]) & (data.elevation.abs() <= FRONT_DEG[1])
    front[:, 0].fill_(True)
    return front.float()


def choose_views(
    data: MultiViewData, subjects: Tensor, generator: torch.Generator, first: Tensor | None = None
) -> Tensor:
    """(B, 3) target, front reference and another reference of each subject; the target is never a reference.

    Args: first (B,) bool: rows whose front reference must be view 0.
    """
    b, views = len(subjects), data.rgba.shape[1]
    front = front_views(data)[subjects]
    draws = torch.rand((3, b, views), generator=generator, device=data.device)
    photo = (front * (draws[0] + 1e-3)).argmax(dim=1)
    photo = photo if first is None else torch.where(first, 0, photo)
    rest = torch.scatter(draws[1] + 1e-3, 1, photo[:, None], 0.0)
    target = rest.argmax(dim=1)
    other = torch.scatter(draws[2] + 1e-3, 1, torch.stack([photo, target], dim=1), 0.0).argmax(dim=1)
    return torch.stack([target, photo, other], dim=1)


def smooth_error(shape: tuple, generator: torch.Generator, device) -> Tensor:
    """(..., S, S) smooth random field of standard deviation near 1, from an 8 x 8 grid."""
    *lead, h, w = shape
    field = torch.randn((*lead, 8, 8), generator=generator, device=device)
    return F.interpolate(field.flatten(0, -3)[:, None], size=(h, w), mode="bicubic")[:, 0].view(shape)


def make_batch(
    data: MultiViewData, subjects: Tensor, generator: torch.Generator, config: BatchConfig, views: Tensor | None = None,
    drafts: MultiViewData | None = None,
) -> TrainBatch:  # fmt: skip
    """A batch of the given subjects (B,); all randomness from `generator` on the data's device.

    Args:
        views: (B, 1 + R) target and references, the photo first; None chooses them. Needs data with depth and normals.
        drafts: of the same subjects and cameras (`priors.drafts`). A share of rows is told of their geometry, and shown
            them for every reference but the photo, which then is view 0. The target stays true.
    """
    device, b = data.device, len(subjects)
    drafted = torch.zeros(b, dtype=torch.bool, device=device)
    if drafts is not None:
        drafted = torch.rand(b, generator=generator, device=device) < config.drafted
    views = choose_views(data, subjects, generator, None if drafts is None else drafted) if views is None else views
    r = views.shape[1] - 1
    rows = subjects[:, None].expand(-1, 1 + r)
    rgba = data.rgba[rows, views]
    distance, normals, solid = data.distance(rows, views), data.normal[rows, views], rgba[..., 3]
    true_depth = distance[:, 0]
    if drafts is not None:
        shown = drafts.rgba[rows, views]
        begun = _where(drafted, shown[:, :1], rgba[:, :1])
        rgba = torch.cat([rgba[:, :2], _where(drafted, shown[:, 2:], rgba[:, 2:]), begun], dim=1)
        solid = _where(drafted, shown[..., 3], solid)
        distance = _where(drafted, drafts.distance(rows, views), distance)
        normals = _where(drafted, drafts.normal[rows, views], normals)
    rgba, solid, normals = rgba.float() / 255.0, solid.float() / 255.0, normals.float() / 127.0
    strength = (torch.rand(b, generator=generator, device=device) < config.jitter).float()
    angle = config.hue * strength * uniform((b,), -1.0, 1.0, generator, device)
    rgb, alpha = turn_hue(rgba[..., :3], angle, torch.ones_like(angle)), rgba[..., 3]
    rgb = colour_jitter(rgb, strength, generator)
    pictures = (rgb * alpha[..., None] + 1 - alpha[..., None]).permute(0, 1, 4, 2, 3)
    begun, pictures = pictures[:, 1 + r :], pictures[:, : 1 + r]  # (B, 1 or 0, 3, S, S), (B, 1 + R, 3, S, S)
    c2w, fovy = data.c2w[rows, views], data.fovy[rows, views]

    amount = uniform((b, 1 + r, 1, 1), 0.0, config.depth_error, generator, device)
    wrong = distance + amount * smooth_error(distance.shape, generator, device) * (distance > 0)
    references = pictures[:, 1:].clone()
    references[:, -1] = _spoil(references[:, -1], config.spoilt, generator)

    kept = (torch.rand((b, r), generator=generator, device=device) >= config.lost_source).float()
    weights = (solid[:, 1:] > 0.5).float() * kept[..., None, None]
    projected, valid = forward_project(
        references, wrong[:, 1:], c2w[:, 1:], fovy[:, 1:], c2w[:, 0], fovy[:, 0], *distance.shape[-2:],
        weights=weights, subdivide=2,
    )  # fmt: skip
    valid = valid * _holes(b, distance.shape[-1], config.hole, generator, device)
    maps = geometry_maps(
        wrong.flatten(0, 1), normals.flatten(0, 1), solid.flatten(0, 1), c2w.flatten(0, 1), fovy.flatten()
    ).unflatten(0, (b, 1 + r))
    gate = config.gate_floor + (1 - config.gate_floor) * angle_gate(c2w[:, 0], c2w[:, 1:])
    return TrainBatch(
        pictures[:, 0], c2w[:, 0], explicit_image(projected, valid, maps[:, 0]), references, maps[:, 1:], c2w[:, 1:],
        gate, true_depth, fovy[:, 0], pictures[:, 0] if drafts is None else begun[:, 0], drafted.float(),
    )  # fmt: skip


def _where(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows (B,) bool of a, the others of b."""
    return torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b)


def _spoil(pictures: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Blur and noise for a share of pictures (B, 3, S, S), as an unfinished head looks."""
    b, device = len(pictures), pictures.device
    soft = F.avg_pool2d(F.pad(pictures, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    amount = uniform((b, 1, 1, 1), 0.0, 1.0, generator, device)
    noise = 0.05 * torch.randn(pictures.shape, generator=generator, device=device)
    chosen = (torch.rand((b, 1, 1, 1), generator=generator, device=device) < share).float()
    return torch.lerp(pictures, (torch.lerp(pictures, soft, amount) + amount * noise).clamp(0, 1), chosen)


def _holes(b: int, size: int, share: float, generator: torch.Generator, device) -> Tensor:
    """(B, 1, S, S) mask of 1, with a random rectangle of 0 in a share of rows."""
    position = (torch.arange(size, device=device) + 0.5) / size
    corner = torch.rand((b, 2, 1), generator=generator, device=device)
    extent = uniform((b, 2, 1), 0.1, 0.5, generator, device)
    within = ((position - corner).abs() < extent / 2).float()  # (B, 2, S)
    chosen = (torch.rand((b, 1, 1), generator=generator, device=device) < share).float()
    return (1 - chosen * within[:, 0, :, None] * within[:, 1, None])[:, None]
