"""Running the ladder: what is done is not done again, what cannot be done says why, and processes are heard out."""
import json
import signal
import subprocess
import threading
from types import SimpleNamespace

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

    def __call__(self, job, threads):
        item = Item(**job["item"])
        for rung in job["rungs"]:
            asked = (item.name, job["seed"], rung["name"])
            if asked == self.fail_at:
                raise OutOfMemory("killed")
            self.asked.append(asked)
            record = {"status": "ok", "metrics": {"psnr_db.back": 20.0}, "reasons": {}, "key": rung["key"]}
            write_record(runner.Path(job["out"]), item, rung["name"], job["seed"], record)
        return {"told": item.name, "lines": []}


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


def test_jobs_run_side_by_side_and_share_the_cores(plan):
    together, threads = threading.Barrier(2), []

    class Meeting(Worker):
        def __call__(self, job, count):
            threads.append(count)
            together.wait(timeout=30)  # breaks unless two run at the same time
            return super().__call__(job, count)

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


@pytest.mark.parametrize(
    ("code", "error", "kind", "words"),
    [(2, "error: bad photo", UsageError, "test 3, seed 1: bad photo"),
     (3, "error: no package", EnvironmentProblem, "no package"),
     (-signal.SIGKILL, "", OutOfMemory, "fewer --jobs"),
     (1, "Traceback\nValueError: odd", PortraitError, "exit code 1")],
)  # fmt: skip
def test_what_a_process_ends_with_is_told(code, error, kind, words, monkeypatch):
    done = SimpleNamespace(returncode=code, stdout="", stderr=error)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    with pytest.raises(kind, match=words):
        runner.run_job(JOB, 1)


def test_a_process_gets_its_job_and_threads(monkeypatch):
    seen = {}

    def process(command, input, env, **kwargs):
        seen.update(json.loads(input), threads=env["OMP_NUM_THREADS"], module=command[-1])
        return SimpleNamespace(returncode=0, stdout="init: ok\n", stderr="")

    monkeypatch.setattr(subprocess, "run", process)
    assert runner.run_job(JOB, 3) == {"told": "test 3, seed 1", "lines": ["init: ok"]}
    assert seen == {**JOB, "threads": "3", "module": "portrait_diffusion.benchmark.worker"}


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
