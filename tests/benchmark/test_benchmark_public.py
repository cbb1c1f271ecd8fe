"""The script that measures the public models' configurations at full size runs with tiny parts and adds its steps."""
import json
from pathlib import Path

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem
from portrait_diffusion.systems.stages import Schedule
from test_configs import SMALL

pytest.importorskip("diffusers"), pytest.importorskip("pytorch_lightning")
from benchmark.scripts import load_script  # noqa: E402

public_runs = load_script("public_runs")
PHOTO = Path(__file__).resolve().parents[2] / "examples" / "astronaut.png"


def stages(steps: int, milestone: int) -> dict:
    fade = [0, 0.5, 0.2, steps]
    return {"restore": {"steps": steps, "resolution": [32, 64], "milestones": [milestone], "max_step_percent": fade}}


def test_a_shortened_run_has_the_same_parts():
    told = public_runs.shortened(stages(600, 300), 0.01)
    assert told == [
        "system.stages.restore.steps=6", "system.stages.restore.milestones=[3]",
        "system.stages.restore.max_step_percent=[0, 0.5, 0.2, 6]",
    ]  # fmt: skip
    assert public_runs.shortened(stages(600, 300), 1e-6)[0].endswith("steps=4"), "two of each resolution"
    assert public_runs.shortened(stages(0, 0), 0.5) == []


def test_steps_count_to_their_resolution_and_the_first_of_each_apart():
    found = public_runs.phases({"restore": [9, 1, 1, 5, 2, 4]}, Schedule(stages(6, 3)), Schedule(stages(600, 200)))
    names = ("first s", "s", "of", "steps")
    assert [[part[name] for name in names] for part in found] == [[9, 1, 3, 200], [5, 3, 3, 400]]


def test_public_configurations_run_with_tiny_parts(tmp_path, monkeypatch, photo_prepared_once):
    monkeypatch.setattr(
        "portrait_diffusion.guidance.hpdm.assemble.embed_prompt", lambda base, prompt, offline: torch.zeros(1, 5, 16)
    )
    out = tmp_path / "public.json"
    told = ["system.renderer.num_samples_per_ray=8", "system.renderer.num_importance_samples=8",
            "system.restoration_resolution=8", "system.guidance.noise_sampler.resample_every=2",
            "system.stages.refine.resolution=[32,48]", "system.exporter.render_size=16",
            "system.exporter.mesh.resolution=24", "system.exporter.bake.texture_size=64",
            "system.exporter.turntable.frames=3", "system.exporter.turntable.height=32"]  # fmt: skip
    command = [str(PHOTO), "portrait-12gb:12", "--small", "--share", "0.001", "--out", str(out), "--set"]
    assert public_runs.main([*command, *SMALL, *told]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["configuration"] == "portrait-12gb" and row["status"] == "ok" and row["denoiser_rows"] > 0
    assert [(part["stage"], part["resolution"]) for part in row["phases"]] == [
        ("restore", 64), ("refine", 32), ("refine", 48),
    ]  # fmt: skip
    assert row["expected s"] > row["seconds"], "600 and 1200 steps take longer than six"


def test_what_the_export_lacks_is_told_before_the_run(tmp_path, monkeypatch):
    """Minutes on a GPU were lost to a package that only the last step asked for."""

    def no_ffmpeg():
        raise EnvironmentProblem("imageio[ffmpeg] is missing")

    monkeypatch.setattr("portrait_diffusion.preflight.find_ffmpeg", no_ffmpeg)
    monkeypatch.setattr(public_runs.PortraitPipeline, "run", lambda *parts: pytest.fail("it ran"))
    with pytest.raises(EnvironmentProblem, match="ffmpeg"):
        public_runs.main([str(PHOTO), "portrait-12gb", "--small", "--out", str(tmp_path / "public.json")])
