"""Runs rungs over items and seeds, in processes side by side; what is recorded is not run again."""
import contextlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, OutOfMemory, PortraitError, UsageError
from ..files import sha256_file, write_text
from ..pipeline import guidance_weights, run_key
from ..settings import load_pipeline_config
from .ladder import Rung, why_not
from .measure import Scope
from .records import Item, available_cores, commit, digest, find_photos, read_record, record_path
from .truth import check_group, group_of, set_hash, shard

MEASURES = 4
"""Increase when the same head gives other numbers."""
HEAD_DONE = re.compile(r": (ok|refused|failed), [\d.]+ s$")
"""What a process says of a head that it has made."""
RUNS = "runs.jsonl"
_log = logging.getLogger("portrait_diffusion")


@dataclass
class Plan:
    """What is run.

    Attributes: out: folder of results; items; seeds; rungs; set: folder of the synthetic set, None for photos alone;
        photos: folder of photos; size of the compared pictures; scope of the measurements; device, "" for the first GPU
        or the CPU; jobs: processes; clip, arcface, lpips: the user's weights (`evaluation.canonical`); not_run: rungs
        that cannot run here, and why; shard (k, n): only every n-th job, from the k-th on.
    """

    out: Path
    items: list[Item]
    seeds: list[int]
    rungs: list[Rung]
    set: Path | None = None
    photos: Path | None = None
    size: int = 128
    scope: Scope = Scope()
    device: str = ""
    jobs: int = 1
    clip: str = ""
    arcface: str = ""
    lpips: str = ""
    shard: tuple[int, int] = (1, 1)
    not_run: dict[str, str] = field(default_factory=dict)

    def photo_of(self, item: Item) -> Path:
        """The picture that a head is made of."""
        if item.data == "photos":
            return self.photos / item.name
        return shard(self.set, item.data, int(item.name), "photo").with_suffix(".png")


def items_of(folder: Path | None, groups: Sequence[str], photos: Path | None, limit: int | None) -> list[Item]:
    """Subjects and photos, at most `limit` of each kind; the subjects are checked against the record.

    Raises: UsageError for a set that is not there or differs, and for a folder without photos.
    """
    items = []
    for name in groups:
        count = min(group_of(name).subjects, limit or group_of(name).subjects)
        if folder is None:
            raise UsageError(f"Group '{name}' needs the synthetic set: --set FOLDER (made by render-benchmark).")
        there = sum(shard(folder, name, k).is_file() for k in range(count))
        if there < count:
            raise UsageError(f"'{folder}' has {there} of {count} subjects of '{name}'; run: render-benchmark {folder}.")
        check_group(folder, name, count)
        items += [Item(name, str(k)) for k in range(count)]
    if photos is not None:
        items += [Item("photos", path.name) for path in find_photos(photos)[:limit]]
    if not items:
        raise UsageError("There is nothing to evaluate: name --groups, or a folder of --photos.")
    return items


def view_size(folder: Path, item: Item) -> int:
    """Side of a subject's views, of the set's manifest."""
    manifest = next((folder / item.data / "views").glob("manifest_*.json"))
    return int(json.loads(manifest.read_text(encoding="utf-8"))["spec"]["size"])


def files_of(path: str) -> list[str]:
    """Hashes of a model's files, a folder's or one; none for an empty name and for names that are no path."""
    if path and Path(path).is_file():
        return [sha256_file(path)]
    return [sha256_file(p) for p in sorted(Path(path).rglob("*.safetensors"))] if path and Path(path).is_dir() else []


def without_paths(config: dict) -> dict:
    """A configuration without the folder of the denoiser, which `pipeline.guidance_weights` stands for."""
    guidance = {k: v for k, v in (config["system"].get("guidance") or {}).items() if "pretrained" not in k}
    return {**config, "system": {**config["system"], "guidance": guidance}}


def rung_key(rung: Rung) -> list:
    """What of a result's key is the same for all items: configuration and weights."""
    typed, raw = load_pipeline_config(rung.config)
    plain = without_paths(rung.config)
    weights = guidance_weights(rung.config["system"])
    return [plain["system"], plain["data"], run_key("", raw, typed.system.prior), weights]


def result_key(plan: Plan, own: list, item: Item, photo_sha256: str) -> str:
    """What a result belongs to: configuration and weights (`rung_key`), input, and the way of measuring."""
    source = photo_sha256 if item.data == "photos" else set_hash([item.data])
    canonical = [files_of(plan.clip), files_of(plan.arcface), files_of(plan.lpips)]
    return digest(own, source, MEASURES, plan.size, asdict(plan.scope), canonical)


def keys_of(plan: Plan, rungs: Sequence[Rung]) -> dict[tuple[Item, str], str]:
    """What a result of each item and rung has to belong to (`result_key`)."""
    own = {rung.name: rung_key(rung) for rung in rungs}
    hashes = {item: sha256_file(plan.photo_of(item)) for item in plan.items}
    return {(item, name): result_key(plan, key, item, hashes[item]) for item in plan.items for name, key in own.items()}


def jobs_of(plan: Plan) -> list[dict]:
    """Jobs of what is missing in the plan's shard, one an item and seed, seed after seed.

    Rungs that cannot run here are noted in ``plan.not_run``.
    """
    plan.not_run = {rung.name: reason for rung in plan.rungs if (reason := why_not(rung))}
    runnable = [rung for rung in plan.rungs if rung.name not in plan.not_run]
    wanted, revision = keys_of(plan, runnable), commit()
    jobs = []
    (first, step), each = plan.shard, itertools.product(plan.seeds, plan.items)
    for seed, item in itertools.islice(each, first - 1, None, step):
        keys = {rung.name: wanted[item, rung.name] for rung in runnable}
        missing = [
            {"name": rung.name, "config": rung.config, "key": keys[rung.name], "commit": revision}
            for rung in runnable
            if read_record(plan.out, item, rung.name, seed, keys[rung.name]) is None
        ]
        if missing:
            jobs.append({
                "out": str(plan.out), "item": asdict(item), "seed": seed, "rungs": missing,
                "photo": str(plan.photo_of(item)), "set": str(plan.set) if item.data != "photos" else "",
                "size": plan.size, "scope": asdict(plan.scope), "device": plan.device,
                "clip": plan.clip, "arcface": plan.arcface, "lpips": plan.lpips,
            })  # fmt: skip
    return jobs


def worker_command() -> list[str]:
    """Command of the process that makes and measures the heads of a job."""
    return [sys.executable, "-m", "portrait_diffusion.benchmark.worker"]


def run_job(job: dict, threads: int, heard: Callable[[str], None]) -> None:
    """One job in a process of its own with so many threads.

    Args: heard: told each line that the process prints, as soon as it does.
    Raises: the PortraitError that the process ended with; OutOfMemory if the system killed it.
    """
    packages = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    told = f"{job['item']['data']} {job['item']['name']}, seed {job['seed']}"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            worker_command(), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        with process:
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(json.dumps(job))
                for line in process.stdout:
                    heard(f"{told}: {line.rstrip()}")
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        said = errors.read()
    if process.returncode == 0:
        return
    if process.returncode == -signal.SIGKILL:
        raise OutOfMemory(f"The process for {told} was killed, probably for lack of memory; use fewer --jobs.")
    last = (said.strip().splitlines() or [""])[-1].removeprefix("error: ")
    for kind in (UsageError, EnvironmentProblem, OutOfMemory):
        if process.returncode == kind.exit_code:
            raise kind(f"{told}: {last}")
    raise PortraitError(f"The process for {told} ended with exit code {process.returncode}:\n{said[-4000:]}")


def in_parallel(work: Callable[[Any], Any], things: list, jobs: int) -> Iterator[tuple[Any, Any]]:
    """(thing, result) as each gets done, `jobs` at a time. The first error stops what has not begun and is raised."""
    pool = ThreadPoolExecutor(jobs)
    futures = {pool.submit(work, thing): thing for thing in things}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def run(plan: Plan, start: Callable[[dict, int, Callable[[str], None]], None] = run_job) -> list[dict]:
    """Run what is missing of the plan's shard and return all records of the plan that are there, in its order.

    Raises: UsageError for jobs out of range; what `run_job` raises.
    """
    cores = available_cores()
    if not 1 <= plan.jobs <= cores:
        raise UsageError(f"--jobs must be between 1 and {cores}, the number of cores; got {plan.jobs}.")
    threads, todo = cores // plan.jobs, jobs_of(plan)
    heads, done = sum(len(job["rungs"]) for job in todo), itertools.count(1)

    def heard(line: str) -> None:
        _log.info("%s%s", f"{next(done)} of {heads}: " if HEAD_DONE.search(line) else "", line)

    started = time.monotonic()
    try:
        for job, _ in in_parallel(lambda job: start(job, threads, heard), todo, plan.jobs):
            shutil.rmtree(plan.out / "work" / Item(**job["item"]).key / f"s{job['seed']}" / "save", ignore_errors=True)
    finally:
        note_run(plan, cores, next(done) - 1, time.monotonic() - started)
    return collect(plan)


def note_run(plan: Plan, cores: int, heads: int, seconds: float) -> None:
    """Add a run that made heads to ``runs.jsonl``: how long it took, and with what."""
    if heads:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        run = {"date": date, "heads": heads, "seconds": round(seconds, 1), "jobs": plan.jobs, "cores": cores,
               "shard": list(plan.shard)}  # fmt: skip
        plan.out.mkdir(parents=True, exist_ok=True)
        with open(plan.out / RUNS, "a", encoding="utf-8") as file:  # one line at a time: shards may share the folder
            file.write(json.dumps(run) + "\n")


def read_runs(out: Path) -> list[dict]:
    """The runs that made the heads of a folder (`note_run`), in order."""
    path = out / RUNS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def collect(plan: Plan) -> list[dict]:
    """All records of the plan's items, seeds and rungs that are there, and ``results.jsonl`` of them.

    Left out, and counted in a warning, are those that belong to another configuration, weights, input or way of
    measuring. Where a rung cannot run here, what it would belong to is not known: its records are taken as they are.
    """
    wanted = keys_of(plan, [rung for rung in plan.rungs if not why_not(rung)])
    records, others = [], 0
    for item, rung, seed in itertools.product(plan.items, plan.rungs, plan.seeds):
        path = record_path(plan.out, item, rung.name, seed)
        if rung.name in plan.not_run or not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if wanted.get((item, rung.name), record["key"]) == record["key"]:
            records.append(record)
        else:
            others += 1
    if others:
        _log.warning("%d records of other configurations, weights, inputs or ways of measuring are left out.", others)
    write_text(plan.out / "results.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    return records
