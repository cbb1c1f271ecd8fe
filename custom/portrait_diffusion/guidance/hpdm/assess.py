"""Numbers and pictures of an HPDM on held-out subjects: each view from a front reference, by kind of condition."""
from pathlib import Path

import torch
from torch import Tensor, nn

from ...evaluation.image import psnr
from ...multiview import MultiViewData
from ...priors.assess import bin_of, save_sheet
from .batches import BatchConfig, TrainBatch, make_batch
from .conditions import Conditions, References
from .model import HPDM
from .sampling import sample

CLEAN = BatchConfig(depth_error=0.0, hole=0.0, lost_source=0.0, spoilt=0.0, jitter=0.0, drafted=1.0)
KINDS = ("none", "explicit", "implicit", "hybrid")


def conditions_of(model: HPDM, batch: TrainBatch, kind: str = "hybrid") -> Conditions:
    """Conditions of a batch, or a part of them: none, explicit, implicit or hybrid (both)."""
    references = None
    if kind in ("implicit", "hybrid"):
        flat = batch.references.flatten(0, 1)
        latents = model.encode(flat).unflatten(0, batch.references.shape[:2])
        references = References(latents, batch.geometry, model.cameras(batch.reference_c2w), batch.gate)
    return Conditions(model.cameras(batch.c2w), batch.explicit if kind in ("explicit", "hybrid") else None, references)


def held_out(data: MultiViewData, subjects: Tensor, view: int, drafts: MultiViewData | None = None) -> TrainBatch:
    """Targets of one view with view 0, the front, as the only reference; nothing is spoilt, colours are as they are.

    With drafts their geometry is told instead of the true one.
    """
    views = torch.tensor([view, 0], device=data.device).expand(len(subjects), -1)
    generator = torch.Generator(device=data.device).manual_seed(0)
    return make_batch(data, subjects, generator, CLEAN, views, drafts)


@torch.no_grad()
def scores(
    model: HPDM, data: MultiViewData, autoencoder_only: bool = False, steps: int = 20,
    perceptual: nn.Module | None = None, kinds: tuple = KINDS, batch: int = 32,
) -> dict:  # fmt: skip
    """PSNR over white, and ST-LPIPS with a `perceptual`, by kind of condition and absolute azimuth of the view.

    With `autoencoder_only` that of encoding and decoding, as ``psnr_autoencoder``.
    """
    found: dict[str, list] = {}
    for view in range(0 if autoencoder_only else 1, data.rgba.shape[1]):
        for subjects in torch.arange(len(data), device=data.device).split(batch):
            truth = held_out(data, subjects, view)
            bins = [bin_of(azimuth) for azimuth in data.azimuth[subjects, view].tolist()]
            for kind in ("autoencoder",) if autoencoder_only else kinds:
                if autoencoder_only:
                    made = model.decode(model.encode(truth.target)).float().clamp(0, 1)
                else:
                    generator = torch.Generator(device=data.device).manual_seed(view)
                    made = sample(model, conditions_of(model, truth, kind), steps, generator=generator)
                values = {"psnr": psnr(made, truth.target)}
                if perceptual is not None:
                    values["stlpips"] = perceptual(made, truth.target).float()
                for metric, numbers in values.items():
                    for name, number in zip(bins, numbers.tolist(), strict=True):
                        key = f"{metric}_autoencoder" if autoencoder_only else f"{metric}_{kind}_{name}"
                        found.setdefault(key, []).append(number)
    return {key: round(sum(values) / len(values), 4) for key, values in found.items()}


@torch.no_grad()
def sheet(
    model: HPDM, data: MultiViewData, path: Path, autoencoder_only: bool = False, steps: int = 20, count: int = 6
) -> None:
    """Held-out subjects: truth above what was encoded and decoded, or sampled with both conditions; as PNG."""
    subjects = torch.arange(min(count, len(data)), device=data.device)
    columns = []
    for view in range(0, data.rgba.shape[1]):
        truth = held_out(data, subjects, view)
        if autoencoder_only:
            made = model.decode(model.encode(truth.target)).float().clamp(0, 1)
        else:
            generator = torch.Generator(device=data.device).manual_seed(view)
            made = sample(model, conditions_of(model, truth), steps, generator=generator)
        columns.append(torch.cat([truth.target, made], dim=2))
    save_sheet(torch.cat(columns, dim=3), path)
