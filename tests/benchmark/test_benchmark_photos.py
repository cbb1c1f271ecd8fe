"""A benchmark run over a folder: records, resuming, jobs in parallel, errors of the processes that score."""
import hashlib
import json
import threading

import pytest
from portrait_diffusion.errors import EnvironmentProblem, OutOfMemory, PortraitError, UsageError

from benchmark.scripts import BENCHMARKS, load_script

photos = load_script("photos")
SIZE = 64
PSNR = {"a.png": 20.0, "c.jpg": 24.0}


class Scorer:
    """Stands in for the process: refuses b.png, knows the PSNR of the others; collects its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, config, photo, size, threads):
        self.calls.append((photo.name, threads))
        digest = hashlib.sha256(photo.read_bytes()).hexdigest()
        record = {"photo": photo.name, "sha256": digest, "device": "CPU", "seconds": 2.0, "peak_host_gb": 0.5}
        if photo.name == "b.png":
            return record | {"status": "refused", "reason": "No face was found.", "peak_host_gb": 9.0}
        memory = {"a.png": 1.5, "c.jpg": 1.25}[photo.name]
        metrics = {"psnr_db": PSNR[photo.name], "sface_front": None}
        return record | {"status": "ok", "metrics": metrics, "reasons": {}, "peak_host_gb": memory}

    @property
    def names(self):
        return [name for name, _ in self.calls]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "available_cores", lambda: 6)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png", "c.jpg", "readme.txt"):
        (tmp_path / "photos" / name).write_bytes(name.encode())
    (tmp_path / "config.yaml").write_text("a: 1\n")
    return tmp_path


def run(workspace, score, size=SIZE, jobs=1):
    out = workspace / "results" / "first"
    return photos.run(workspace / "config.yaml", workspace / "photos", out, size, "python ...", jobs, score)


def read(workspace, name):
    return (workspace / "results" / "first" / name).read_text()


def test_a_run_records_and_keeps_refusals(workspace):
    score = Scorer()
    summary = run(workspace, score)
    assert score.calls == [("a.png", 6), ("b.png", 6), ("c.jpg", 6)]
    assert (summary["photos"], summary["ok"], summary["refused"], summary["failed"]) == (3, 2, 1, 0)
    assert summary["metrics"]["psnr_db"] == {"mean": 22.0, "median": 22.0, "count": 2}
    assert summary["metrics"]["sface_front"] == {"mean": None, "median": None, "count": 0}
    assert summary["seconds_median"] == 2.0 and summary["peak_host_gb_max"] == 1.5  # of heads, not of refusals
    assert {"commits", "devices", "versions", "command", "date"} <= set(summary)
    records = [json.loads(line) for line in read(workspace, "photos.jsonl").splitlines()]
    assert [record["photo"] for record in records] == ["a.png", "b.png", "c.jpg"]
    assert records[1]["status"] == "refused" and "No face" in records[1]["reason"]
    assert json.loads(read(workspace, "summary.json")) == summary


def test_an_interrupted_run_goes_on(workspace):
    summary = run(workspace, Scorer())
    lines = workspace / "results" / "first" / "photos.jsonl"
    whole = lines.read_text()
    lines.write_text(whole[: len(whole) - 40])  # killed while the last record was written
    (workspace / "photos" / "a.png").write_bytes(b"another picture")
    again = Scorer()
    resumed = run(workspace, again)
    assert again.names == ["a.png", "c.jpg"] and resumed["metrics"] == summary["metrics"]
    nothing_left = Scorer()
    assert run(workspace, nothing_left)["photos"] == 3 and nothing_left.calls == []


def test_a_damaged_line_in_the_middle_is_reported(workspace):
    run(workspace, Scorer())
    lines = workspace / "results" / "first" / "photos.jsonl"
    lines.write_text(lines.read_text().replace('{"photo": "b', '{"photo" "b'))
    with pytest.raises(UsageError, match="Line 2 .* is not JSON"):
        run(workspace, Scorer())


def test_results_of_different_runs_do_not_mix(workspace):
    run(workspace, Scorer())
    assert {"jobs": 1, "threads": 6, "size": SIZE}.items() <= json.loads(read(workspace, "run.json")).items()
    for change in ({"size": SIZE * 2}, {"jobs": 2}):
        with pytest.raises(UsageError, match="another configuration"):
            run(workspace, Scorer(), **change)
    (workspace / "config.yaml").write_text("a: 2\n")
    with pytest.raises(UsageError, match="another configuration"):
        run(workspace, Scorer())


def test_jobs_run_side_by_side_and_share_the_cores(workspace):
    together = threading.Barrier(3)

    class Meeting(Scorer):
        def __call__(self, *arguments):
            together.wait(timeout=30)  # breaks unless three run at the same time
            return super().__call__(*arguments)

    score = Meeting()
    summary = run(workspace, score, jobs=3)
    assert sorted(score.calls) == [("a.png", 2), ("b.png", 2), ("c.jpg", 2)]
    assert (summary["jobs"], summary["threads"]) == (3, 2)
    assert summary["metrics"]["psnr_db"]["mean"] == 22.0
    assert {"jobs": 3, "threads": 2}.items() <= json.loads(read(workspace, "run.json")).items()
    done = [json.loads(line)["photo"] for line in read(workspace, "photos.jsonl").splitlines()]
    assert sorted(done) == ["a.png", "b.png", "c.jpg"]


def test_never_more_than_the_given_number_of_jobs(workspace):
    for index in range(20):
        (workspace / "photos" / f"a{index}.png").write_bytes(b"%d" % index)
    lock, running, most = threading.Lock(), 0, 0

    def score(config, photo, size, threads):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.005)
        with lock:
            running -= 1
        digest = hashlib.sha256(photo.read_bytes()).hexdigest()
        record = {"photo": photo.name, "sha256": digest, "device": "CPU", "seconds": 1.0}
        return record | {"status": "refused", "reason": "x" * 9999}

    assert run(workspace, score, jobs=2)["refused"] == 23 and most == 2
    records = [json.loads(line) for line in read(workspace, "photos.jsonl").splitlines()]
    assert len({record["photo"] for record in records}) == len(records) == 23


def test_an_error_stops_the_run_and_keeps_what_is_done(workspace):
    score = Scorer()

    def second_fails(config, photo, size, threads):
        if photo.name == "b.png":
            raise EnvironmentProblem("weights missing")
        return score(config, photo, size, threads)

    with pytest.raises(EnvironmentProblem):
        run(workspace, second_fails)
    recorded = [json.loads(line)["photo"] for line in read(workspace, "photos.jsonl").splitlines()]
    assert recorded[0] == "a.png" and "b.png" not in recorded
    assert not (workspace / "results" / "first" / "summary.json").exists()
    again = Scorer()
    assert run(workspace, again)["ok"] == 2 and "a.png" not in again.names


@pytest.mark.parametrize("change, option", [({"jobs": 0}, "--jobs"), ({"jobs": 7}, "--jobs"), ({"size": 31}, "--size")])
def test_impossible_numbers_are_refused(workspace, change, option):
    with pytest.raises(UsageError, match=option):
        run(workspace, Scorer(), **change)
    assert not (workspace / "results").exists()


def test_a_folder_without_photos(workspace):
    for path in (workspace / "photos").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="holds no photos"):
        run(workspace, Scorer())


# The process of one photo


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("import sys; print('warning: x', file=sys.stderr); sys.exit('error: no')", PortraitError, "exit code 1"),
        ("import sys; print('warning: x\\nerror: no key', file=sys.stderr); sys.exit(2)", UsageError, "^no key$"),
        ("import sys; print('error: get it', file=sys.stderr); sys.exit(3)", EnvironmentProblem, "^get it$"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", OutOfMemory, "'a.png' was killed"),
        ("1 / 0", PortraitError, "(?s)exit code 1.*ZeroDivisionError"),
    ],
)
def test_how_a_process_ends(workspace, monkeypatch, script, kind, message):
    (workspace / "script.py").write_text(script)
    monkeypatch.setattr(photos, "SCORER", workspace / "script.py")
    with pytest.raises(PortraitError, match=message) as caught:
        photos.score_in_process(workspace / "config.yaml", workspace / "photos" / "a.png", SIZE, 1)
    assert type(caught.value) is kind


def test_a_real_process_has_its_threads_and_measures_its_memory(workspace, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    photo = workspace / "photos" / "a.png"  # no picture at all
    record = photos.score_in_process(BENCHMARKS.parent / "configs" / "portrait-mini.yaml", photo, SIZE, 1)
    assert record["status"] == "refused" and record["reason"].startswith("'a.png' is not an image")
    assert record["device"].startswith("CPU ") and record["device"].endswith(", 1 threads")
    assert 0.05 < record["peak_host_gb"] < 8 and record["peak_device_gb"] is None and record["seconds"] > 0
    assert record["sha256"] == hashlib.sha256(b"a.png").hexdigest()


# The command line


def test_the_command_line_reports_errors(workspace, capsys):
    arguments = ["--config", str(workspace / "none.yaml"), "--photos", str(workspace), "--out", str(workspace / "out")]
    assert photos.main(arguments) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_the_command_line_passes_everything_on(workspace, monkeypatch, capsys):
    score = Scorer()
    original = photos.run
    monkeypatch.setattr(photos, "run", lambda *arguments: original(*arguments, score))
    out = workspace / "results" / "first"
    arguments = ["--config", str(workspace / "config.yaml"), "--photos", str(workspace / "photos"), "--out", str(out)]
    assert photos.main([*arguments, "--jobs", "2", "--size", "48"]) == 0
    assert {"jobs": 2, "threads": 3, "size": 48}.items() <= json.loads(read(workspace, "run.json")).items()
    assert json.loads(read(workspace, "summary.json"))["command"].endswith("--size 48 --jobs 2")
    assert json.loads(capsys.readouterr().out)["ok"] == 2
