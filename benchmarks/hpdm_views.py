"""Held-out views by HPDM with no, one and both conditions, with bootstrap intervals: does the second branch pay?

    python benchmarks/hpdm_views.py --model outputs/hpdm/hpdm --data TEST_DATA --out benchmarks/results/hpdm_views.json

Each view of each subject is made from its front view alone (`guidance.hpdm.assess.held_out`), with true geometry. The
intervals are percentile bootstraps over subjects, the unit that was drawn at random; pairs of kinds share resamples.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.evaluation.image import psnr  # noqa: E402
from portrait_diffusion.evaluation.stlpips import STLPIPS  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.guidance.hpdm.assess import KINDS, conditions_of, held_out  # noqa: E402
from portrait_diffusion.guidance.hpdm.sampling import sample  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import load_hpdm  # noqa: E402
from portrait_diffusion.multiview import MultiViewData, load_shards, read_manifest  # noqa: E402
from portrait_diffusion.priors.assess import BINS, bin_of  # noqa: E402
from portrait_diffusion.priors.train import default_device  # noqa: E402

RESAMPLES = 2000


def interval(values: torch.Tensor, seed: int = 0) -> list[float]:
    """95 % percentile bootstrap of the mean of values (N,) over N subjects: [low, mean, high]."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = values.double()[picks].mean(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return [round(x, 5) for x in (low, float(values.double().mean()), high)]


@torch.no_grad()
def measure(model, data: MultiViewData, perceptual, steps: int, batch: int = 32, kinds: tuple = KINDS) -> dict:
    """{(kind, bin): {metric: (N,) mean over the bin's views of each subject}}."""
    found: dict = {}
    for view in range(1, data.rgba.shape[1]):
        name = bin_of(float(data.azimuth[0, view]))
        for kind in kinds:
            columns: dict = {"psnr": [], "stlpips": []}
            for subjects in torch.arange(len(data), device=data.device).split(batch):
                truth = held_out(data, subjects, view)
                generator = torch.Generator(device=data.device).manual_seed(1000 * view + int(subjects[0]))
                made = sample(model, conditions_of(model, truth, kind), steps, generator=generator)
                columns["psnr"].append(psnr(made, truth.target).cpu())
                columns["stlpips"].append(perceptual(made, truth.target).float().cpu())
            for metric, parts in columns.items():
                found.setdefault((kind, name), {}).setdefault(metric, []).append(torch.cat(parts))
    return {key: {m: torch.stack(v).mean(dim=0) for m, v in values.items()} for key, values in found.items()}


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
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=int, help="use only so many subjects")
    parser.add_argument("--perceptual-weights", type=Path, help="ST-LPIPS AlexNet file; default: the package's")
    args = parser.parse_args(argv)
    device = default_device()
    model, data = load_hpdm(args.model).to(device), load_shards(args.data, device, args.limit)
    start = time.monotonic()
    found = measure(model, data, STLPIPS("alex", weights=args.perceptual_weights).to(device), args.steps)
    spec = next(iter(read_manifest(args.data).values()), {}).get("spec", {})
    result = {
        "what": "views from the front view alone, true geometry; [2.5 %, mean, 97.5 %] over subjects",
        "subjects": len(data), "split": spec.get("split"), "seed": spec.get("seed"), "steps": args.steps,
        "seconds": round(time.monotonic() - start, 1), "device": str(device), "torch": torch.__version__,
        **summary(found),
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
