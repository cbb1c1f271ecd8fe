"""Ctrl-C in a real process: once leaves outputs and a checkpoint to go on from, twice quits; JSON lines, previews."""
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli.cli_samples import environment
from portrait_diffusion.interrupt import CtrlC, Stopped

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "system.inversion.latent_steps=2", "system.inversion.latent_size=32", "system.inversion.latent_samples=6",
    "system.inversion.novel_views=1", "system.inversion.novel_size=16", "system.inversion.detail_size=48",
    "system.inversion.detail_resolution=48", "system.inversion.lambda_perceptual=0", "system.exporter.render_size=16",
    "system.exporter.mesh.resolution=48", "system.exporter.mesh.target_faces=800",
    "system.exporter.bake.texture_size=64", "system.exporter.turntable.frames=3",
    "system.exporter.turntable.height=32", "system.exporter.view_azimuths_deg=[0]",
    "system.exporter.view_elevations_deg=[0]",
]  # fmt: skip


def start(out, steps):
    command = [sys.executable, str(ROOT / "launch_portrait.py"), "--image", str(ROOT / "examples" / "astronaut.png"),
               "--out", str(out), "--json", "--device", "cpu", "preview_every=50", *TINY,
               f"system.inversion.detail_steps={steps}"]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def read_until(process, stage, done):
    """Events up to the one that reports so many steps of a stage."""
    for line in process.stdout:
        event = json.loads(line)
        if event.get("stage") == stage and event["done"] >= done:
            return event
    pytest.fail(process.stderr.read()[-2000:])


@pytest.mark.slow
def test_once_stops_with_outputs_and_the_same_command_goes_on(tmp_path):
    process = start(tmp_path / "out", 100_000)
    event = read_until(process, "detail", 60)
    assert event["left_s"] > 0 and event["losses"]["rgb"] > 0 and event["memory_bytes"]["host"] > 10**8
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Ctrl-C again quits at once" in errors, errors[-2000:]
    result = json.loads(rest.splitlines()[-1])
    assert result["event"] == "result" and result["stopped"] is True
    assert all(Path(path).is_file() for paths in result["files"].values() for path in paths)
    names = {p.name for p in (tmp_path / "out" / "save").iterdir()}
    assert {"detail-50.png", "it0-0.png", "it0-photo.png"} <= names and "latent-2.png" not in names
    again = start(tmp_path / "out", 100_000)
    resumed = read_until(again, "detail", 0)
    again.kill(), again.communicate()
    assert resumed["done"] >= 60, "it goes on after the last step, not at the first"


@pytest.mark.slow
def test_twice_quits(tmp_path):
    process = start(tmp_path / "out", 100_000)
    read_until(process, "detail", 30)
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "again quits" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from the last checkpoint" in errors
    assert not (tmp_path / "out" / "report.html").exists() and list((tmp_path / "out" / "ckpts").glob("*.pt"))


def test_the_handler_of_before_comes_back_and_the_last_step_is_no_stop():
    before = signal.getsignal(signal.SIGINT)
    with CtrlC() as ctrl_c:
        ctrl_c.check(1, 2)
        signal.raise_signal(signal.SIGINT)
        assert ctrl_c.asked
        ctrl_c.check(2, 2)
        with pytest.raises(Stopped):
            ctrl_c.check(1, 2)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
