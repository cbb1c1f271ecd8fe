"""The whole command, small: interrupted, continued, repeated, rendered again."""
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli.cli_samples import LAUNCHER, PHOTO, environment, files_below, launch
from PIL import Image
from portrait_diffusion import cli

SMALL = (
    "system.inversion.latent_steps=5", "system.inversion.latent_size=32", "system.inversion.latent_samples=8",
    "system.inversion.novel_views=2", "system.inversion.novel_size=16", "system.inversion.detail_steps=6",
    "system.inversion.detail_size=64", "system.inversion.detail_resolution=64", "system.inversion.checkpoint_every=1",
    "system.exporter.render_size=48", "system.exporter.mesh.resolution=64", "system.exporter.mesh.target_faces=2000",
    "system.exporter.bake.texture_size=256", "system.exporter.turntable.frames=4",
    "system.exporter.turntable.height=64",
    "system.exporter.view_azimuths_deg=[0,180]", "system.exporter.view_elevations_deg=[0]",
    "system.stages.restore.steps=4", "system.stages.restore.painted=2", "system.stages.restore.paint_steps=1",
    "system.stages.restore.resolution=[32]", "system.restoration_resolution=24",
)  # fmt: skip


def arguments(out) -> list[str]:
    return ["--image", str(PHOTO), "--out", str(out), "--seed", "3", *SMALL]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was interrupted once the fit had written a checkpoint, and then repeated to its end."""
    folder = tmp_path_factory.mktemp("full")
    out = folder / "result"
    process = subprocess.Popen(
        [sys.executable, str(LAUNCHER), *arguments(out)],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(out.glob("ckpts/*.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    interrupted = (process.returncode, stdout, stderr, files_below(out))
    return folder, out, interrupted, launch(*arguments(out), cwd=folder, timeout=600)


def test_an_interrupted_run_leaves_a_checkpoint_and_the_head_of_so_far(finished):
    _, out, (code, stdout, stderr, files), _ = finished
    assert code == 130 and "Traceback" not in stderr, stderr
    assert "Stopping after this step" in stderr and "fit the head: done" not in stderr
    again = next(line for line in stdout.splitlines() if line.startswith("again"))
    assert str(out) in again and "--seed 3" in again and str(out / "portrait.glb") in stdout
    assert any(name.startswith("ckpts/") for name in files) and {"portrait.glb", "report.html"} <= set(files)


def test_the_same_command_finishes_it(finished):
    _, out, _, done = finished
    assert done.returncode == 0, done.stderr
    for name in ("portrait.glb", "turntable.mp4", "report.html"):
        assert str(out / name) in done.stdout and (out / name).stat().st_size > 1000
    assert {"portrait.ply", "share.yaml", "provenance.json", "views/az+000_el+00.png"} <= set(files_below(out))
    assert "Traceback" not in done.stderr and "fit the head: done" in done.stderr
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["seeds"] == {"seed": 3} and "--seed 3" in provenance["command"]
    assert not [name for name in files_below(out) if name.endswith((".tmp", ".part")) or ".partial-" in name]


def test_once_more_makes_nothing_again(finished):
    folder, out, _, _ = finished
    before = {name: (out / name).stat().st_mtime_ns for name in ("portrait.glb", "turntable.mp4", "report.html")}
    done = launch(*arguments(out), "--quiet", cwd=folder, timeout=300)
    assert done.returncode == 0 and "fit the head" not in done.stderr
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}


def test_a_finished_head_is_rendered_from_new_directions(finished, monkeypatch):
    folder, out, _, _ = finished
    monkeypatch.chdir(folder)
    directions = ["--azimuths", "-20", "180", "--elevations", "10", "--size", "40", "--out", "extra"]
    assert cli.main(["render", "--run", str(out), *directions]) == 0
    assert files_below(folder / "extra") == ["az+180_el+10.png", "az-020_el+10.png"]
    front, back = (np.asarray(Image.open(path)) for path in sorted((folder / "extra").iterdir(), reverse=True))
    assert front.shape == back.shape == (40, 40, 4) and np.abs(front.astype(int) - back).mean() > 1
    assert front[..., 3].max() > 200 and front[0, 0, 3] < 50


@pytest.mark.slow
def test_the_same_seed_gives_the_same_head(finished, tmp_path):
    """Interrupted and continued or in one go: bit for bit the same planes."""
    folder, out, _, _ = finished
    done = launch(*arguments(tmp_path / "again"), "--quiet", cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    from portrait_diffusion.result import PortraitResult

    assert PortraitResult.load(out, "cpu").field_id() == PortraitResult.load(tmp_path / "again", "cpu").field_id()
