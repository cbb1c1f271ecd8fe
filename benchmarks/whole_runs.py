"""Seconds and memory of whole runs, one photo to a head, by implementation of the renders; and whether heads agree.

    python benchmarks/whole_runs.py PHOTO --out benchmarks/results/whole_runs_h200.json

`--implementations` names what field, compositing and samples are computed by: ``torch``, ``triton``, or either with
``+graphs``, which puts the stages' training renders into CUDA graphs. Every implementation runs `--repeats` times with
the same seed; the first run pays for starting the device. Export is not counted. Heads are compared by the PSNR of
eight level views: what two runs of one implementation differ by (atomic additions are not ordered) is the measure for
what two implementations may differ by.
"""
import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from measuring import circumstances  # noqa: E402
from portrait_diffusion import host  # noqa: E402
from portrait_diffusion.benchmark.measure import render_views  # noqa: E402
from portrait_diffusion.benchmark.truth import Cameras  # noqa: E402
from portrait_diffusion.evaluation import image  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.pipeline import PortraitPipeline  # noqa: E402

AZIMUTHS_DEG = tuple(range(0, 360, 45))


def overrides_of(name: str) -> list[str]:
    """Settings that make a run use an implementation, named as for ``--implementations``."""
    kernels, _, graphs = name.partition("+")
    if graphs not in ("", "graphs"):
        raise SystemExit(f"--implementations: expected torch, triton or either with +graphs, got '{name}'")
    names = [f"system.{part}.implementation={kernels}" for part in ("geometry", "renderer")]
    return [*names, f"system.renderer.cuda_graphs={bool(graphs)}", "preview_every=0"]


def one(config: str, overrides: list[str], photo: Path, size: int) -> tuple[dict, torch.Tensor]:
    """Times of a run, and (8, 3, size, size) views of its head."""
    cuda = host.get_device().type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = PortraitPipeline.from_config(config, overrides).run(photo, folder)
        row = {"seconds": time.perf_counter() - start, **result.timings}
    row = {name: round(value, 2) for name, value in row.items()}
    if cuda:
        row["peak GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    views = render_views(result.render_fn, Cameras.ring(AZIMUTHS_DEG, result.device), size).rgb
    return row, views.cpu()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """dB over all pixels of views (V, 3, S, S); None for equal ones: infinite, which JSON does not know."""
    found = float(image.psnr(*(torch.cat(list(views), dim=1)[None] for views in (a, b))))
    return round(found, 1) if math.isfinite(found) else None


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path, help="any picture that the main job takes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--config", default=str(ROOT / "configs" / "portrait-mini.yaml"))
    parser.add_argument("--implementations", nargs="+", default=["torch", "triton", "triton+graphs"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="side of the compared views, pixels")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    args = parser.parse_intermixed_args(argv)  # settings may follow options
    rows, views = [], []
    for repeat in range(args.repeats):
        for name in args.implementations:
            row, pictures = one(args.config, [*overrides_of(name), *args.overrides], args.photo, args.size)
            rows.append({"implementation": name, "run": repeat + 1, **row})
            views.append(pictures)
            print(rows[-1], flush=True)
    pairs = {
        f"{a['implementation']} {a['run']}, {b['implementation']} {b['run']}": psnr(views[i], views[j])
        for i, a in enumerate(rows) for j, b in enumerate(rows[:i])
    }  # fmt: skip
    result = {
        "what": "seconds of whole runs without export, the first one with the device's start; PSNR between heads, dB",
        **circumstances(host.get_device(), argv), "rows": rows, "PSNR dB": pairs,
    }
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
