"""The record of one photo: what counts as refused or failed, and that scoring costs neither time nor memory in it."""
import hashlib
from types import SimpleNamespace

import pytest
from portrait_diffusion.errors import EnvironmentProblem, UsageError

from benchmark.scripts import load_script

score_photo = load_script("score_photo")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "me.png"
    path.write_bytes(b"picture")
    return path


class Pipeline:
    """Raises what it is given, else returns a head without its own camera."""

    def __init__(self, error=None):
        self.error = error

    def run(self, path):
        if self.error:
            raise self.error
        return SimpleNamespace(render_fn="render", prepared="prepared")


def test_a_head_is_scored(photo, monkeypatch):
    seen = []

    def evaluate(*arguments):
        seen.append(arguments)
        return {"psnr_db": 20.0, "reasons": {"janus_rate": "none"}}

    monkeypatch.setattr(score_photo, "evaluate_portrait", evaluate)
    record = score_photo.score_photo(Pipeline(), photo, 64, {"alex": len})
    assert seen == [("render", "prepared", 64, None, {"alex": len})]
    assert record["status"] == "ok" and record["metrics"] == {"psnr_db": 20.0}
    assert record["reasons"] == {"janus_rate": "none"}
    assert record["photo"] == "me.png" and record["sha256"] == hashlib.sha256(b"picture").hexdigest()


def test_scoring_counts_neither_as_time_nor_as_memory(photo, monkeypatch):
    ran = scored = 0
    clock = SimpleNamespace(perf_counter=lambda: 10.0 + 2.5 * ran + scored)

    def run(path):
        nonlocal ran
        ran = 1
        return SimpleNamespace(render_fn="render", prepared="prepared")

    def evaluate(*arguments):
        nonlocal scored
        scored = 100
        return {"reasons": {}}

    def peak(device):
        return {"host_bytes": 1_500_000_000 + scored * 10**9, "device_bytes": None}

    monkeypatch.setattr(score_photo, "time", clock)
    monkeypatch.setattr(score_photo, "peak_memory", peak)
    monkeypatch.setattr(score_photo, "evaluate_portrait", evaluate)
    record = score_photo.score_photo(SimpleNamespace(run=run), photo, 64)
    assert scored and (record["seconds"], record["peak_host_gb"], record["peak_device_gb"]) == (2.5, 1.5, None)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (UsageError("No face was found."), "refused", "No face was found."),
        (MemoryError(), "failed", "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"), "failed", "memory"),
    ],
)
def test_what_becomes_a_record(photo, error, status, reason):
    record = score_photo.score_photo(Pipeline(error), photo, 64)
    assert record["status"] == status and reason in record["reason"]
    assert record["seconds"] >= 0 and record["peak_host_gb"] > 0 and "metrics" not in record


@pytest.mark.parametrize("error", [EnvironmentProblem("weights missing"), RuntimeError("shapes differ")])
def test_what_must_not_become_a_record(photo, error):
    with pytest.raises(type(error)):
        score_photo.score_photo(Pipeline(error), photo, 64)


def test_an_unfit_matte_is_a_refusal(photo, monkeypatch):
    def evaluate(*arguments):
        raise UsageError("The photo's matte is empty.")

    monkeypatch.setattr(score_photo, "evaluate_portrait", evaluate)
    record = score_photo.score_photo(Pipeline(), photo, 64)
    assert record["status"] == "refused" and "matte" in record["reason"] and "seconds" in record


def test_a_bad_configuration_ends_with_its_exit_code(tmp_path, photo, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("data: {sise: 3}\n")
    assert score_photo.main([str(config), str(photo)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "data.sise" in output.err
