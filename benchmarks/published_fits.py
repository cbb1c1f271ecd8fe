"""Whole fits of published priors at full size to one photo: files, seconds, memory, and how near the head comes.

    python benchmarks/published_fits.py PHOTO eg3d panohead --out benchmarks/results/published_fits_h200.json

No published weights can be had here, so the generators are random: each is written as its authors' kind of pickle, read
and converted as a user would, and fitted by the pipeline with both tunings. Latent rows of random weights know no
heads; measured is that every part runs at full size, what it costs, and that tuning brings the photo back.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from measuring import circumstances  # noqa: E402
from portrait_diffusion import host  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.inversion.published_config import TUNINGS  # noqa: E402
from portrait_diffusion.pipeline import PortraitPipeline  # noqa: E402
from portrait_diffusion.priors.published.convert import convert  # noqa: E402
from portrait_diffusion.priors.published.sizes import FAMILIES, released  # noqa: E402
from priors.published_pickles import write_published  # noqa: E402
from priors.published_samples import random_state  # noqa: E402
from score_photo import score_photo  # noqa: E402


def converted(family: str, folder: Path) -> tuple[Path, dict]:
    """A random generator of the released size, pickled, read and converted: its file, and what that took."""
    pickled, file = folder / f"{family}.pkl", folder / f"{family}.safetensors"
    write_published(pickled, family, state=random_state(released(family)), resolution=128)
    start = time.perf_counter()
    facts = convert(pickled, file)
    seconds = time.perf_counter() - start
    size = round(pickled.stat().st_size / 1e6)
    pickled.unlink()
    return file, {"parameters": facts["parameters"], "pickle_mb": size, "convert_s": round(seconds, 1)}


def fitted(family: str, file: Path, photo: Path, tuning: str, size: int, overrides: list[str]) -> dict:
    """Cost and scores of a fit from the photo's file to the head, the opening of the prior's file included."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    fit = {"tuning": tuning, "size": size, "rays": size * size, "ray_chunk": size * size, "attempts": 1}
    settings = [f"system.published_fit.{key}={value}" for key, value in fit.items()]
    prior = [f"system.prior.type={family}", f"system.prior.checkpoint={file}", "preview_every=0"]
    pipeline = PortraitPipeline.from_config(ROOT / "configs" / "portrait-init.yaml", [*prior, *settings, *overrides])
    record = score_photo(pipeline, photo, size)
    kept = {key: record.get(key) for key in ("status", "reason", "seconds", "peak_host_gb", "peak_device_gb")}
    kept = {key: round(value, 2) if isinstance(value, float) else value for key, value in kept.items()}
    return {"tuning": tuning, **kept, "metrics": record.get("metrics")}


def main(argv: list[str] | None = None) -> int:
    """Print one line of JSON a fit, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, help="any picture that the main job takes")
    parser.add_argument("families", nargs="+", choices=FAMILIES)
    parser.add_argument("--tunings", nargs="+", default=["planes", "generator"], choices=TUNINGS)
    parser.add_argument("--size", type=int, default=128, help="side of the photo in the fit, all of its rays each step")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="of the configuration")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args(argv)
    rows = []
    for family in args.families:
        with tempfile.TemporaryDirectory() as folder:
            file, written = converted(family, Path(folder))
            for tuning in args.tunings:
                found = fitted(family, file, args.photo, tuning, args.size, args.set)
                rows.append({"family": family, **written, **found})
                print(json.dumps(rows[-1]), flush=True)
                result = {
                    "what": "whole fits of one photo by published priors at full size with random weights",
                    **circumstances(host.get_device(), argv), "rows": rows,
                }  # fmt: skip
                write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
