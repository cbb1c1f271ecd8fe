"""Run the portrait pipeline over a folder of photos and score every result.

    python benchmarks/photos.py --config CONFIG.yaml --photos FOLDER --out benchmarks/results/NAME [--jobs 2]

Each photo is scored in a process of its own by `score_photo.py`; ``--jobs`` of them share the machine, each with its
part of the cores. Writes ``run.json`` (what the results belong to, the jobs and their threads too: they decide about
the times), ``photos.jsonl`` (one record a photo, appended as soon as it is done) and ``summary.json`` into that folder.
An interrupted run continues: photos whose contents are already recorded are skipped. Photos that the pipeline refuses
stay in the table as refusals, with the reason.
"""

import argparse
import json
import logging
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.benchmark.records import available_cores, commit, find_photos, versions  # noqa: E402
from portrait_diffusion.benchmark.runner import in_parallel  # noqa: E402
from portrait_diffusion.errors import EnvironmentProblem, OutOfMemory, PortraitError, UsageError  # noqa: E402
from portrait_diffusion.files import sha256_file, write_text  # noqa: E402

SCORER = ROOT / "benchmarks" / "score_photo.py"
_log = logging.getLogger("portrait_diffusion")


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


def score_in_process(config: Path, photo: Path, size: int, threads: int) -> dict:
    """Record of one photo, made by `score_photo.py` in a process with so many threads.

    Raises: the PortraitError that the process ended with; OutOfMemory if the system killed it.
    """
    command = [sys.executable, str(SCORER), str(config), str(photo), "--size", str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode == -signal.SIGKILL:
        raise OutOfMemory(f"The process for '{photo.name}' was killed, probably for lack of memory; use fewer --jobs.")
    for kind in (UsageError, EnvironmentProblem, OutOfMemory):
        if done.returncode == kind.exit_code:
            raise kind(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    raise PortraitError(f"The process for '{photo.name}' ended with exit code {done.returncode}:\n{done.stderr}")


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
        "peak_host_gb_max": max((r["peak_host_gb"] for r in ok if r["peak_host_gb"] is not None), default=None),
        "metrics": metrics,
    }


def run(
    config: Path, photos: Path, out: Path, size: int, command: str, jobs: int = 1, score: Callable = score_in_process
) -> dict:
    """Score all photos not yet recorded in ``out`` and write the summary.

    Args:
        config: pipeline configuration file.
        photos: folder of photos.
        out: folder of results; must belong to the same configuration, size, jobs and threads.
        size: side of the compared images in pixels, at least 32.
        command: recorded in the summary.
        jobs: photos at a time, at most the number of cores, which are shared out among them.
        score: ``score(config, photo, size, threads)`` -> record, see `score_in_process`.
    Returns: the summary.
    Raises: UsageError for no photos, a bad size or number of jobs, or an output folder of another run.
    """
    cores = available_cores()
    if not 1 <= jobs <= cores:
        raise UsageError(f"--jobs must be between 1 and {cores}, the number of cores; got {jobs}.")
    if size < 32:
        raise UsageError(f"--size must be at least 32 pixels; got {size}.")
    paths = find_photos(photos)
    threads = cores // jobs
    identity = {
        "config": config.name, "config_sha256": sha256_file(config), "size": size, "jobs": jobs, "threads": threads,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    header, lines = out / "run.json", out / "photos.jsonl"
    if header.is_file() and json.loads(header.read_text(encoding="utf-8")) != identity:
        raise UsageError(
            f"'{out}' holds results of another configuration, size or split of the cores; choose a new --out folder."
        )
    write_text(header, json.dumps(identity, indent=1) + "\n")

    # A photo counts as done by its contents; what was renamed or changed is scored again and replaces the old record.
    recorded = {(record["photo"], record["sha256"]): record for record in read_records(lines)}
    found = {path: recorded.get((path.name, sha256_file(path))) for path in paths}
    todo, revision = [path for path in paths if found[path] is None], commit()
    for path, record in in_parallel(lambda path: score(config, path, size, threads), todo, jobs):
        found[path] = {**record, "commit": revision}
        with lines.open("a", encoding="utf-8") as stream:  # only here, so that records never mix
            stream.write(json.dumps(found[path]) + "\n")
        _log.info("%s: %s, %.1f s", path.name, record["status"], record["seconds"])
    records = [found[path] for path in paths]

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


def _command(options: argparse.Namespace) -> str:
    """The command to repeat the run; paths outside the project are shortened to their last part."""

    def short(path: Path) -> str:
        path = path.absolute()
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name

    words = ["python", "benchmarks/photos.py"]
    for name in ("config", "photos", "out"):
        words += [f"--{name}", short(getattr(options, name))]
    return shlex.join([*words, "--size", str(options.size), "--jobs", str(options.jobs)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="pipeline configuration (YAML)")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of results, created or continued")
    parser.add_argument("--size", type=int, default=128, help="side of the compared images in pixels (default 128)")
    parser.add_argument("--jobs", type=int, default=1, help="photos at a time, sharing the cores (default 1)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if not options.config.is_file():
            raise UsageError(f"The configuration '{options.config}' does not exist.")
        command = _command(options)
        summary = run(options.config, options.photos, options.out, options.size, command, options.jobs)
    except PortraitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({key: summary[key] for key in ("photos", "ok", "refused", "failed", "seconds_median")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
