"""Running the ladder: what is done is not done again, what cannot be done says why, and processes are heard out."""
import json
import sys
import threading

import pytest
from portrait_diffusion.benchmark import runner
from portrait_diffusion.benchmark.ladder import Rung, make_rungs, read_ladder
from portrait_diffusion.benchmark.measure import Scope
from portrait_diffusion.benchmark.records import Item, read_record, record_path, write_record
from portrait_diffusion.benchmark.runner import Plan, items_of
from portrait_diffusion.errors import EnvironmentProblem, OutOfMemory, PortraitError, UsageError


class Worker:
    """Stands in for the process: writes a record for each rung and collects what it was asked."""

    def __init__(self, fail_at=None):
        self.asked, self.fail_at = [], fail_at

    def __call__(self, job, threads, heard):
        item = Item(**job["item"])
        for rung in job["rungs"]:
            asked = (item.name, job["seed"], rung["name"])
            if asked == self.fail_at:
                raise OutOfMemory("killed")
            self.asked.append(asked)
            record = {"status": "ok", "metrics": {"psnr_db.back": 20.0}, "reasons": {}, "key": rung["key"]}
            write_record(runner.Path(job["out"]), item, rung["name"], job["seed"], record)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "available_cores", lambda: 4)
    monkeypatch.setattr(runner, "why_not", lambda rung: "No HPDM." if rung.name == "full" else "")
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png", "notes.txt"):
        (tmp_path / "photos" / name).write_bytes(name.encode())
    rungs = make_rungs(read_ladder(), ["init", "restoration", "full"], rows=200)
    items = items_of(None, [], tmp_path / "photos", None)
    return Plan(tmp_path / "out", items, [0, 1], rungs, photos=tmp_path / "photos", scope=Scope(1, 2, 3, False))


def test_everything_is_run_once_and_collected_in_order(plan):
    worker = Worker()
    records = runner.run(plan, worker)
    wanted = [(n, s, r) for n in ("a.png", "b.png") for s in (0, 1) for r in ("init", "restoration")]
    assert sorted(worker.asked) == sorted(wanted) and plan.not_run == {"full": "No HPDM."}
    order = [(r["name"], r["rung"], r["seed"]) for r in records]
    assert order == [(n, r, s) for n in ("a.png", "b.png") for r in ("init", "restoration") for s in (0, 1)]
    lines = (plan.out / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    nothing = Worker()
    assert runner.run(plan, nothing) == records and nothing.asked == []


def test_an_interrupted_run_goes_on_where_it_stopped(plan):
    with pytest.raises(OutOfMemory):
        runner.run(plan, Worker(("b.png", 1, "restoration")))
    again = Worker()
    assert len(runner.run(plan, again)) == 8
    assert ("b.png", 1, "restoration") in again.asked and ("a.png", 0, "init") not in again.asked


@pytest.mark.parametrize("change", ["config", "photo", "scope", "size"])
def test_what_belongs_to_something_else_is_run_again(plan, change):
    runner.run(plan, Worker())
    expected = 8
    if change == "config":
        plan.rungs[0].config["system"]["inversion"]["latent_steps"] = 3
        expected = 4
    elif change == "photo":
        (plan.photos / "a.png").write_bytes(b"another")
        expected = 4
    elif change == "scope":
        plan.scope = Scope(1, 1, 3, False)
    else:
        plan.size = 64
    again = Worker()
    runner.run(plan, again)
    assert len(again.asked) == expected


def test_the_denoiser_counts_by_its_contents_not_by_its_folder(plan, tmp_path):
    (full,) = make_rungs(read_ladder(), ["full"], hpdm=str(tmp_path / "m"))
    keys = []
    for content, folder in ((b"1", "m"), (b"2", "m"), (b"2", "n")):
        (tmp_path / folder / "unet").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "unet" / "w.safetensors").write_bytes(content)
        full.config["system"]["guidance"]["pretrained_model_name_or_path"] = str(tmp_path / folder)
        keys.append(runner.result_key(plan, runner.rung_key(full), plan.items[0], "photo"))
    assert keys[0] != keys[1] == keys[2]


def test_records_of_something_else_are_not_collected(plan, caplog):
    runner.run(plan, Worker())
    plan.rungs[0].config["system"]["inversion"]["latent_steps"] = 3
    with caplog.at_level("WARNING", logger="portrait_diffusion"):
        left = runner.collect(plan)
    assert [r["rung"] for r in left] == ["restoration"] * 4 and "4 records of other" in caplog.text
    assert len((plan.out / "results.jsonl").read_text().splitlines()) == 4


def test_records_of_a_rung_that_cannot_run_here_are_taken_as_they_are(plan):
    write_record(plan.out, plan.items[0], "full", 1, {"status": "ok", "key": "of another machine"})
    assert [r["rung"] for r in runner.collect(plan)] == ["full"]


def test_jobs_run_side_by_side_and_share_the_cores(plan):
    together, threads = threading.Barrier(2), []

    class Meeting(Worker):
        def __call__(self, job, count, heard):
            threads.append(count)
            together.wait(timeout=30)  # breaks unless two run at the same time
            super().__call__(job, count, heard)

    plan.jobs = 2
    assert len(runner.run(plan, Meeting())) == 8 and threads == [2] * 4
    plan.jobs = 5
    with pytest.raises(UsageError, match="--jobs must be between 1 and 4"):
        runner.run(plan, Worker())


def test_a_record_is_found_by_its_key_only(tmp_path):
    item = Item("test", "3")
    write_record(tmp_path, item, "init", 0, {"key": "k", "status": "ok"})
    assert record_path(tmp_path, item, "init", 0) == tmp_path / "records" / "test-3" / "init-s0.json"
    assert read_record(tmp_path, item, "init", 0, "k")["name"] == "3"
    assert read_record(tmp_path, item, "init", 0, "other") is None is read_record(tmp_path, item, "init", 1, "k")


JOB = {"item": {"data": "test", "name": "3"}, "seed": 1}


def worker_says(monkeypatch, code):
    """A process that runs some Python in the place of the worker."""
    monkeypatch.setattr(runner, "worker_command", lambda: [sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("end", "error", "kind", "words"),
    [("sys.exit(2)", "error: bad photo", UsageError, "test 3, seed 1: bad photo"),
     ("sys.exit(3)", "error: no package", EnvironmentProblem, "no package"),
     ("os.kill(os.getpid(), 9)", "", OutOfMemory, "fewer --jobs"),
     ("sys.exit(1)", "Traceback\nValueError: odd", PortraitError, "exit code 1")],
)  # fmt: skip
def test_what_a_process_ends_with_is_told(end, error, kind, words, monkeypatch):
    worker_says(monkeypatch, f"import os, sys; sys.stderr.write({error!r} + chr(10)); sys.stderr.flush(); {end}")
    with pytest.raises(kind, match=words):
        runner.run_job(JOB, 1, print)


def test_a_process_gets_its_job_and_threads_and_is_heard_at_once(monkeypatch, tmp_path):
    code = f"""
import json, os, pathlib, sys, time
job = json.load(sys.stdin)
print("init: ok, 1.0 s", flush=True)
while not pathlib.Path({str(tmp_path / "heard")!r}).exists():
    time.sleep(0.01)
sys.stderr.write("x" * 200_000)  # more than a pipe holds
print(job["seed"], os.environ["OMP_NUM_THREADS"], "portrait" in os.environ["PYTHONPATH"] or "custom", flush=True)
"""
    worker_says(monkeypatch, code)
    lines = []

    def heard(line):
        lines.append(line)
        (tmp_path / "heard").touch()  # the process waits for it

    runner.run_job(JOB, 3, heard)
    assert lines[0] == "test 3, seed 1: init: ok, 1.0 s" and lines[1].startswith("test 3, seed 1: 1 3 ")


def test_heads_are_counted_as_they_get_done(plan, caplog):
    def start(job, threads, heard):
        heard(f"{job['item']['name']}, seed {job['seed']}: init: ok, 2.5 s")
        heard("a library's chatter")
        Worker()(job, threads, heard)

    with caplog.at_level("INFO", logger="portrait_diffusion"):
        runner.run(plan, start)
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == ["1 of 8: a.png, seed 0: init: ok, 2.5 s", "a library's chatter"]
    assert [line.split()[0] for line in said[::2]] == ["1", "2", "3", "4"]
    (made,) = runner.read_runs(plan.out)
    assert made["heads"] == 4 and made["seconds"] >= 0 and made["shard"] == [1, 1] and made["jobs"] == 1
    runner.run(plan, start)
    assert len(runner.read_runs(plan.out)) == 1, "nothing was made"


def test_what_an_interrupted_run_made_is_noted(plan):
    def start(job, threads, heard):
        if job["seed"]:
            raise OutOfMemory("killed")
        heard("init: ok, 2.5 s")

    with pytest.raises(OutOfMemory):
        runner.run(plan, start)
    assert runner.read_runs(plan.out)[0]["heads"] == 2


def test_shards_are_all_of_it_and_each_a_part(plan):
    parts = []
    for k in (1, 2, 3):
        plan.shard = (k, 3)
        worker = Worker()
        runner.run(plan, worker)
        parts.append({asked[:2] for asked in worker.asked})
    assert sorted(p for part in parts for p in part) == [(n, s) for n in ("a.png", "b.png") for s in (0, 1)]
    assert [len(part) for part in parts] == [2, 1, 1] and parts[0] == {("a.png", 0), ("b.png", 1)}
    plan.shard = (1, 1)
    assert len(runner.run(plan, Worker())) == 8


def test_whole_seeds_come_first(plan):
    assert [job["seed"] for job in runner.jobs_of(plan)] == [0, 0, 1, 1]


def test_opencv_keeps_to_the_share_of_a_process():
    """Else 16 processes on 16 cores run 256 of its threads."""
    import cv2
    import torch
    from portrait_diffusion.benchmark.worker import limit_threads

    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        torch.set_num_threads(1)
        cv2.setNumThreads(2)
        limit_threads()
        assert cv2.getNumThreads() == 1
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_nothing_to_do_is_said(tmp_path):
    with pytest.raises(UsageError, match="nothing to evaluate"):
        items_of(None, [], None, None)
    with pytest.raises(UsageError, match="needs the synthetic set"):
        items_of(None, ["test"], None, None)
    with pytest.raises(UsageError, match="has 0 of 2 subjects of 'test'; run: render-benchmark"):
        items_of(tmp_path, ["test"], None, 2)
    assert Rung("a", "b", "", {}).after == ""
