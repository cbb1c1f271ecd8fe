"""Held-out views by HPDM with no, one and both conditions, with bootstrap intervals: does the second branch pay?

    python benchmarks/hpdm_views.py --model outputs/hpdm/hpdm --data TEST_DATA --out benchmarks/results/hpdm_views.json

Each view of each subject is made from its front view alone (`guidance.hpdm.assess.held_out`), with true geometry, with
the bundled prior's answer to the front view, or with its inversion: latents fitted to that view, its camera given. The
intervals are percentile bootstraps over subjects, the unit that was drawn at random; pairs of kinds share resamples.
With `--pictures` what was made is kept, and used again if nothing that made it has changed: one machine can make the
pictures and another one score them.
"""
import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from measuring import circumstances  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.errors import EnvironmentProblem, UsageError  # noqa: E402
from portrait_diffusion.evaluation.identity import sface_embedding  # noqa: E402
from portrait_diffusion.evaluation.image import psnr  # noqa: E402
from portrait_diffusion.evaluation.statistics import bootstrap_interval  # noqa: E402
from portrait_diffusion.evaluation.stlpips import STLPIPS  # noqa: E402
from portrait_diffusion.files import atomic_path, write_text  # noqa: E402
from portrait_diffusion.guidance.hpdm.assess import KINDS, conditions_of, held_out  # noqa: E402
from portrait_diffusion.guidance.hpdm.sampling import sample  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import load_hpdm  # noqa: E402
from portrait_diffusion.inversion.camera import PhotoCamera  # noqa: E402
from portrait_diffusion.inversion.config import InversionConfig  # noqa: E402
from portrait_diffusion.inversion.engine import Inversion  # noqa: E402
from portrait_diffusion.inversion.start import load_perceptual  # noqa: E402
from portrait_diffusion.inversion.target import Target  # noqa: E402
from portrait_diffusion.multiview import MultiViewData, load_shards, read_manifest  # noqa: E402
from portrait_diffusion.priors.assess import BINS, bin_of  # noqa: E402
from portrait_diffusion.priors.bundled import BundledPrior  # noqa: E402
from portrait_diffusion.priors.drafts import drafts_of, heads_seen  # noqa: E402
from portrait_diffusion.priors.patches import over_white, premultiplied_images  # noqa: E402
from portrait_diffusion.synthetic.parts import LABELS  # noqa: E402

RESAMPLES = 2000
FACE_DEG = 60.0
"""Azimuth up to which identities are compared."""


def interval(values: torch.Tensor, seed: int = 0) -> list[float] | None:
    """95 % percentile bootstrap of the mean of values (N,) over N subjects: [low, mean, high].

    NaN, a missing value, is left out; None when all are missing.
    """
    found = bootstrap_interval(values, seed=seed, resamples=RESAMPLES, expanded=False)
    return None if found is None else [round(x, 5) for x in found]


@torch.no_grad()
def make_pictures(model, data: MultiViewData, drafts: MultiViewData | None, steps: int, batch: int = 64) -> dict:
    """{kind: (N, V - 1, 3, S, S) uint8}: views 1... of each subject from its view 0, by geometry of drafts if any."""
    made: dict = {kind: [] for kind in KINDS}
    for view in range(1, data.rgba.shape[1]):
        for kind in KINDS:
            parts = []
            for subjects in torch.arange(len(data), device=data.device).split(batch):
                told = held_out(data, subjects, view, drafts)
                generator = torch.Generator(device=data.device).manual_seed(1000 * view + int(subjects[0]))
                parts.append(sample(model, conditions_of(model, told, kind), steps, generator=generator))
            made[kind].append((torch.cat(parts) * 255).round().to(torch.uint8).cpu())
    return {kind: torch.stack(views, dim=1) for kind, views in made.items()}


def inverted(prior: BundledPrior, data: MultiViewData, latent_steps: int) -> MultiViewData:
    """Heads fitted to view 0 of every subject, from all of the subject's cameras; the detail grid is left out.

    Args: prior and data on one device; latent_steps: see `inversion.config.InversionConfig`.
    """
    net = load_perceptual(InversionConfig.lambda_perceptual, "the inversion's")
    settings = InversionConfig(latent_steps=latent_steps, detail_steps=0, camera_lr=0.0)

    def planes_of(rows: slice) -> list[torch.Tensor]:
        image = premultiplied_images(data.rgba[rows, 0])
        target = Target(image[:, :3], image[:, 3:], torch.ones_like(image[:, 3:]))
        camera = PhotoCamera(float(data.azimuth[rows.start, 0]), float(data.elevation[rows.start, 0]))
        return Inversion(prior, target, camera, settings, net).run().planes()

    return heads_seen(planes_of, prior.decoder, data, 1)


def kept_pictures(path: Path | None, key: str, make) -> dict:
    """Pictures of a file if it was made by the same settings, else made now and written there."""
    if path is not None and path.is_file():
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                raise UsageError(f"{path} was made from another model, data or steps; delete it or name another file.")
            return {kind: torch.from_numpy(file[kind]) for kind in KINDS}
    pictures = make()
    if path is not None:
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, key=np.array(key), **{kind: x.numpy() for kind, x in pictures.items()})
    return pictures


def hair_masks(data: MultiViewData) -> torch.Tensor | None:
    """(N, V, 1, S, S) 1 on hair, from the shards' labels; None where they have none."""
    return None if data.label is None else (data.label == LABELS["hair"])[:, :, None].float().cpu()


@torch.no_grad()
def measure(pictures: dict, data: MultiViewData, perceptual, hair: torch.Tensor | None, batch: int = 32) -> dict:
    """{(kind, bin): {metric: (N,) mean over the bin's views of each subject}}; hair over views with hair in the bin."""
    found: dict = {}
    for view in range(1, data.rgba.shape[1]):
        name = bin_of(float(data.azimuth[0, view]))
        for kind in KINDS:
            columns: dict = {}
            for subjects in torch.arange(len(data), device=data.device).split(batch):
                rows = subjects.cpu()
                truth, made = true_pictures(data, subjects, view), pictures[kind][rows, view - 1].to(data.device) / 255
                columns.setdefault("psnr", []).append(psnr(made, truth).cpu())
                columns.setdefault("stlpips", []).append(perceptual(made, truth).float().cpu())
                if hair is not None:
                    mask = hair[rows, view].to(data.device)
                    value = perceptual(made, truth, mask).float().cpu()
                    seen = hair[rows, view].mean(dim=(1, 2, 3)) > 0.01
                    columns.setdefault("stlpips_hair", []).append(torch.where(seen, value, torch.nan))
            for metric, parts in columns.items():
                found.setdefault((kind, name), {}).setdefault(metric, []).append(torch.cat(parts))
    return {key: {m: torch.stack(v).nanmean(dim=0) for m, v in values.items()} for key, values in found.items()}


def true_pictures(data: MultiViewData, subjects: torch.Tensor, view: int) -> torch.Tensor:
    """(B, 3, S, S) the true view over white."""
    images = premultiplied_images(data.rgba[subjects, view])
    return over_white(images[:, :3], images[:, 3:])


def identities(pictures: dict, data: MultiViewData) -> dict:
    """SFace cosine of made and true views within `FACE_DEG`: {kind: {sface: (N,), found: share of true faces}}."""
    views = [v for v in range(1, data.rgba.shape[1]) if abs(float(data.azimuth[0, v])) <= FACE_DEG]
    cosines: dict = {kind: torch.full((len(data), len(views)), torch.nan) for kind in KINDS}
    seen = torch.zeros(len(data), len(views))
    for i in range(len(data)):
        for k, view in enumerate(views):
            truth = sface_embedding(true_pictures(data, torch.tensor([i], device=data.device), view)[0]
                                    .permute(1, 2, 0).cpu())  # fmt: skip
            if truth is None:
                continue
            seen[i, k] = 1
            for kind in KINDS:
                made = sface_embedding(pictures[kind][i, view - 1].permute(1, 2, 0).contiguous().numpy())
                if made is not None:
                    cosines[kind][i, k] = float(truth @ made)
    return {
        kind: {"sface": c.nanmean(dim=1), "found": float((~c.isnan()).sum() / seen.sum()) if seen.any() else None}
        for kind, c in cosines.items()
    }


def summary(found: dict) -> dict:
    """Intervals by kind and bin, and of hybrid over explicit ST-LPIPS on side and back views."""
    table = {f"{kind} {name}": {m: interval(v) for m, v in values.items()} for (kind, name), values in found.items()}
    far = [name for name in BINS if name != "below45"]
    if {("hybrid", n) for n in far} | {("explicit", n) for n in far} <= set(found):
        both, one = (sum(found[kind, n]["stlpips"] for n in far) / len(far) for kind in ("hybrid", "explicit"))
        table["side and back, ST-LPIPS of explicit less hybrid, over explicit"] = {
            "gain": interval((one - both) / one.mean()), "explicit": interval(one), "hybrid": interval(both),
        }  # fmt: skip
    return table


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="HPDM folder")
    parser.add_argument("--data", type=Path, required=True, help="held-out subjects, --sampling evaluation")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument(
        "--geometry", choices=("true", "prior", "inverted"), default="true",
        help="prior: of the encoder's answer to view 0; inverted: of latents fitted to it",
    )  # fmt: skip
    parser.add_argument("--latent-steps", type=int, default=40, help="of the inversion")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=int, help="use only so many subjects")
    parser.add_argument("--pictures", type=Path, help="npz file of what was made: written, or used if it is there")
    parser.add_argument("--no-sface", action="store_true", help="leave identities out")
    parser.add_argument("--perceptual-weights", type=Path, help="ST-LPIPS AlexNet file; default: the package's")
    args = parser.parse_args(argv)
    device = default_device()
    model, data = load_hpdm(args.model).to(device), load_shards(args.data, device, args.limit)
    spec = next(iter(read_manifest(args.data).values()), {}).get("spec", {})
    weights = b"".join(path.read_bytes() for path in sorted(args.model.rglob("*.safetensors")))
    made_by = {
        "model": hashlib.sha256(weights).hexdigest(), "geometry": args.geometry, "steps": args.steps,
        "subjects": len(data), "spec": spec,
    } | ({"latent_steps": args.latent_steps} if args.geometry == "inverted" else {})
    start = time.monotonic()

    def make() -> dict:
        drafts = None
        if args.geometry == "prior":
            drafts = drafts_of(BundledPrior().to(device), data)
        elif args.geometry == "inverted":
            drafts = inverted(BundledPrior().to(device), data, args.latent_steps)
        return make_pictures(model, data, drafts, args.steps)

    pictures = kept_pictures(args.pictures, json.dumps(made_by, sort_keys=True), make)
    perceptual = STLPIPS("alex", weights=args.perceptual_weights).to(device)
    table = summary(measure(pictures, data, perceptual, hair_masks(data)))
    if not args.no_sface:
        try:
            for kind, values in identities(pictures, data).items():
                table[f"{kind} within {FACE_DEG:.0f}"] = {"sface": interval(values["sface"]), "found": values["found"]}
        except EnvironmentProblem as problem:
            table["sface missing"] = str(problem)
    result = {
        "what": "views from the front view alone; [2.5 %, mean, 97.5 %] over subjects", "geometry": args.geometry,
        "model sha256": made_by["model"], "subjects": len(data), "split": spec.get("split"), "seed": spec.get("seed"),
        "views": data.rgba.shape[1] - 1, "latent steps": made_by.get("latent_steps"), "steps": args.steps,
        "seconds": round(time.monotonic() - start, 1), **circumstances(device, argv), **table,
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
