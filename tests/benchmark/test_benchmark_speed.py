"""The speed benchmarks run on a CPU and say what they measured."""
import json

import pytest
import torch

from benchmark.scripts import load_script

field_speed = load_script("field_speed")
render_speed = load_script("render_speed")
whole_runs = load_script("whole_runs")
measuring = load_script("measuring")


@pytest.fixture(autouse=True)
def precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_field_rows_have_times_and_bounds(tmp_path):
    out = tmp_path / "field.json"
    assert field_speed.main(["--out", str(out), "--points", "64", "128", "--resolution", "8", "--repeats", "1"]) == 0
    result = json.loads(out.read_text())
    assert {"command", "device", "commit", "libraries", "copy bandwidth GB/s"} <= set(result)
    small, large = (row for row in result["rows"] if row["implementation"] == "torch")
    assert small["points"] == 64 and large["flop"] == 2 * small["flop"] == 8 * 128 * 64 * (32 + 33)
    assert 0 < small["forward ms"] and 0 < small["ms at the bandwidth of a copy"]


def test_the_bytes_of_the_bound_are_counted_by_hand():
    found = field_speed.bounds(1000, 10, 2, True, 1e9)
    assert found["bytes"] == 1000 * (24 + 2 * 33 * 4 + 2 * 32 * 2) + 3 * 32 * 100 * (2 + 8)


@pytest.mark.slow
def test_render_rows_count_samples(tmp_path):
    out = tmp_path / "render.json"
    arguments = ["--out", str(out), "--views", "1", "--size", "16", "--heads", "1", "--repeats", "1"]
    assert render_speed.main(arguments) == 0
    rows = {row["samples"]: row for row in json.loads(out.read_text())["rows"]}
    even, grid = rows["96 even"], rows["grid 64, 24"]
    assert even["samples, training"] == 16 * 16 * 96 and grid["samples, training"] == 16 * 16 * 24
    assert grid["samples, evaluation"] < grid["samples, training"] and even["times as fast, evaluation"] == 1


def test_medians_and_bandwidth():
    calls = []
    assert measuring.median_ms(lambda: calls.append(1), torch.device("cpu"), 3, 2) >= 0 and len(calls) == 5
    assert measuring.copy_bandwidth(torch.device("cpu"), 1) > 1e6


def test_implementations_of_whole_runs():
    graphs = "system.renderer.cuda_graphs"
    assert f"{graphs}=True" in whole_runs.overrides_of("triton+graphs")
    plain = whole_runs.overrides_of("torch")
    expected = {f"{graphs}=False", "system.geometry.implementation=torch", "system.renderer.implementation=torch"}
    assert expected < set(plain)
    with pytest.raises(SystemExit, match=r"expected torch, triton or either with \+graphs, got 'triton\+speed'"):
        whole_runs.overrides_of("triton+speed")


@pytest.mark.slow
def test_whole_runs_are_timed_by_part_and_their_heads_compared(tmp_path):
    """On a CPU two runs of one implementation give the same head; another number of steps gives another one."""
    photo = whole_runs.ROOT / "examples" / "astronaut.png"
    mini = str(whole_runs.ROOT / "configs" / "portrait-mini.yaml")
    steps = ["system.inversion.latent_steps=1", "system.inversion.detail_steps=1"]
    options = ["--config", mini, "--implementations", "torch", "--size", "16"]
    assert whole_runs.main([str(photo), "--out", str(tmp_path / "runs.json"), *options, *steps]) == 0
    result = json.loads((tmp_path / "runs.json").read_text())
    assert result["PSNR dB"] == {"torch 2, torch 1": None} and str(photo) not in result["command"]
    assert all(row["seconds"] >= row["inversion"] > 0 for row in result["rows"])
    assert 0 < whole_runs.psnr(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)) == 20
