"""Makes and measures the heads of one item with one seed, rung after rung; started by `runner` as a process.

    python -m portrait_diffusion.benchmark.worker < JOB.json

The initialization is made once: all rungs of a job share it through its checkpoint. Time counts from the photo's file
to the finished head, the initialization's time included; measuring does not count.
"""
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch

from .. import host
from ..denormals import flushed_denormals
from ..deterministic import deterministic_algorithms
from ..devices import is_out_of_memory
from ..errors import PortraitError, UsageError
from ..evaluation.report_metrics import evaluate_portrait
from ..export.provenance import peak_memory
from ..files import atomic_path, write_text
from ..optional import require
from ..pipeline import PortraitPipeline, run_key
from ..result import PortraitResult, save_png
from ..synthetic.views import BENCHMARK_AZIMUTHS
from .measure import (
    Nets,
    Scope,
    consistency_metrics,
    film_metrics,
    finite,
    head_metrics,
    likeness_metrics,
    photo_metrics,
    photo_view,
    render_views,
    speck_metrics,
)
from .records import Item, write_record
from .truth import Cameras, Pictures, Truth, load_truth

SHOWN_AZIMUTHS = (0, 30, -30, 60, -60, 90, -90, 120, -120, 180)
"""Views of the gallery, level."""


def reset_peaks(device: torch.device) -> bool:
    """Start to count peak memory anew; False where the system can't, the host's peak is then that of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def device_name(device: torch.device) -> str:
    """The accelerator, or the processor with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = re.search(r"^model name\s*: (.*)$", _cpuinfo(), re.MULTILINE)
    return f"CPU {model[1] if model else 'unknown'}, {torch.get_num_threads()} threads"


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def save_strip(made: Pictures, cameras: Cameras, path: Path) -> None:
    """The gallery's views side by side as a PNG."""
    level = cameras.level()
    save_png(torch.cat([made.rgb[level[a % 360]].permute(1, 2, 0) for a in SHOWN_AZIMUTHS], dim=1), path)


def save_features(nets: Nets, pictures: torch.Tensor, path: Path) -> None:
    """Features for the Frechet distance, where the network is there."""
    if nets.features is not None:
        features = torch.cat([nets.features(part) for part in pictures.split(16)])
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, features=features.half().cpu().numpy())


class Job:
    """One item and seed."""

    def __init__(self, job: dict):
        self.out, self.item, self.seed = Path(job["out"]), Item(**job["item"]), job["seed"]
        self.rungs, self.photo, self.size = job["rungs"], Path(job["photo"]), job["size"]
        self.device = host.get_device()
        self.scope = Scope(**job["scope"])
        self.nets = Nets.load(self.device, self.scope, job["clip"], job["arcface"], job["lpips"])
        self.truth: Truth | None = None
        if job["set"]:
            whole = load_truth(Path(job["set"]), self.item.data, int(self.item.name), self.device)
            self.truth = whole.rows(self.scope.rows())
        self.folder = self.out / "work" / self.item.key / f"s{self.seed}"
        self.renders = self.out / "renders" / self.item.key

    def run(self) -> None:
        """All rungs; each leaves a record."""
        for rung in self.rungs:
            started = time.perf_counter()
            record = self.one(rung)
            record = {**record, "key": rung["key"], "commit": rung["commit"], "device": device_name(self.device)}
            write_record(self.out, self.item, rung["name"], self.seed, record)
            print(f"{rung['name']}: {record['status']}, {time.perf_counter() - started:.1f} s", flush=True)

    def one(self, rung: dict) -> dict:
        """The record of a rung: status and metrics, or why there are none."""
        torch.manual_seed(self.seed)
        config = {**rung["config"], "seed": self.seed, "preview_every": 0}
        if self.truth is not None:
            config["data"] = {**config["data"], "aligned": True, "matte": "auto"}
        knows_peak = reset_peaks(self.device)
        try:
            result = self.head(config)
        except UsageError as error:
            return {"status": "refused", "reason": str(error).replace(str(self.photo), self.photo.name)}
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return {"status": "failed", "reason": "out of memory"}
        costs = self.costs(result, peak_memory(self.device), knows_peak) | {"denoiser_rows": result.denoiser_rows}
        for checkpoint in (self.folder / "ckpts").glob("stages-*"):
            checkpoint.unlink()  # the head is finished; many of them would fill the disk
        metrics, reasons = self.measure(result, rung["name"])
        return {"status": "ok", **costs, "metrics": metrics, "reasons": reasons}

    def head(self, config: dict) -> PortraitResult:
        """The finished head of a configuration."""
        pipeline = PortraitPipeline.from_config(config)
        return pipeline.run(self.photo, self.folder)

    def costs(self, result: PortraitResult, peak: dict, knows_peak: bool) -> dict:
        """Time and peak memory of a head, the initialization's included, which are noted when it is made."""
        config = PortraitPipeline.from_config(result.raw_config).config
        key = run_key(result.photo_sha256, result.raw_config, config.system.prior)
        note = self.folder / f"initialization-{key}.json"
        own = {
            "peak_host_gb": peak["host_bytes"] / 1e9 if knows_peak and peak["host_bytes"] else None,
            "peak_device_gb": None if peak["device_bytes"] is None else peak["device_bytes"] / 1e9,
        }
        if not note.is_file():
            write_text(note, json.dumps({"seconds": result.timings["inversion"], **own}) + "\n")
        first = json.loads(note.read_text(encoding="utf-8"))
        peaks = {k: None if None in (v, first[k]) else max(v, first[k]) for k, v in own.items()}
        seconds = result.timings["photo"] + first["seconds"] + result.timings.get("stages", 0.0)
        return {"seconds": seconds, **peaks}

    def measure(self, result: PortraitResult, rung: str) -> tuple[dict, dict]:
        """Metrics, and why some are missing; leaves pictures and features."""
        reasons = dict(self.nets.reasons)
        if self.truth is not None:
            cameras = self.truth.cameras
            metrics, made = head_metrics(result.render_fn, self.truth, self.nets, self.scope.film)
            metrics |= photo_metrics(result, self.size, self.nets)
            self._keep(self.truth.pictures, cameras, "truth")
        else:
            cameras = Cameras.ring(BENCHMARK_AZIMUTHS[:: self.scope.every], self.device)
            nets = self.nets.perceptual if self.device.type == "cpu" else None  # the photo is compared on the CPU
            found = evaluate_portrait(result.render_fn, result.prepared, self.size, result.render_input_fn, nets)
            reasons |= found.pop("reasons")
            for name in ("psnr_db", "stlpips_alex"):  # of the photo's own camera, as of synthetic subjects
                found[f"photo_{name}"] = found.pop(name)
            made = render_views(result.render_fn, cameras, self.size)
            found |= likeness_metrics(made, *photo_view(result, self.size)[:2], cameras, self.nets)
            found |= consistency_metrics(made, cameras, self.nets) | speck_metrics(made, cameras)
            metrics = finite(found | film_metrics(result.render_fn, self.size, self.scope.film, self.device), reasons)
        self._keep(made, cameras, f"{rung}-s{self.seed}")
        prepared, shown = result.prepared, self.renders / "input.png"
        if not shown.is_file():
            save_png(prepared.rgb * prepared.alpha + 1 - prepared.alpha, shown)
        return metrics, {name: why for name, why in reasons.items() if metrics.get(name) is None}

    def _keep(self, made: Pictures, cameras: Cameras, name: str) -> None:
        if name != "truth" or not (self.renders / "truth.png").is_file():
            save_strip(made, cameras, self.renders / f"{name}.png")
            save_features(self.nets, made.rgb, self.renders / f"{name}.npz")


def limit_threads() -> None:
    """OpenCV keeps to torch's share of the cores, of which it else takes all, in each of the processes side by side."""
    require("cv2", extra="photo", package="opencv-python-headless").setNumThreads(torch.get_num_threads())


def main() -> int:
    """Job on the standard input; errors as one line on the standard error, exit code of `errors`."""
    try:
        job = json.load(sys.stdin)
        limit_threads()
        with flushed_denormals(), deterministic_algorithms():
            host.set_device(job["device"] or None)
            Job(job).run()
    except PortraitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
