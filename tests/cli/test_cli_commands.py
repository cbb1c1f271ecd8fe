"""Help, dry run, and what the main command does around a pipeline: output, interruption, lack of memory."""
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli.cli_samples import LAUNCHER, PHOTO, environment, files_below, launch
from portrait_diffusion import __version__, cli
from portrait_diffusion.cli.describe import describe_fit
from portrait_diffusion.cli.memory import smaller_setting
from portrait_diffusion.cli.run import make_head
from portrait_diffusion.errors import INTERRUPTED, UNREAD, OutOfMemory
from portrait_diffusion.progress import Quiet
from portrait_diffusion.settings import load_pipeline_config
from portrait_diffusion.shipped import CONFIGS, find_config

INIT = find_config("portrait-init")
PANOHEAD = ["system.prior.type=panohead", "system.prior.checkpoint=a.pkl"]


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and all(f"  {command} " in text for command in cli.COMMANDS)
    assert "key=value" in text and "--dry-run" in text


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0 and "usage:" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"portrait-diffusion {__version__}"


def test_help_loads_nothing_that_it_does_not_need():
    code = (
        "import runpy, sys\nsys.argv = ['launch_portrait.py', '--help']\n"
        f"try: runpy.run_path({str(LAUNCHER)!r}, run_name='__main__')\nexcept SystemExit: pass\n"
        "print([m for m in ('cv2', 'scipy', 'skimage', 'trimesh', 'rich', 'pytorch_lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_without_torch_the_launcher_says_what_to_install():
    code = f"import runpy, sys\nsys.modules['torch'] = None\nrunpy.run_path({str(LAUNCHER)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 3
    assert done.stderr == "error: The package 'torch' is not installed; run: pip install -r requirements.txt\n"


@pytest.mark.parametrize(
    "words,closed,unbuffered",
    [(["--help"], "stdout", ""), (["--image", str(PHOTO), "--dry-run"], "stdout", ""),
     (["models", "--config", "portrait-init"], "stdout", "1"), (["--image", "nothing.png"], "stderr", "")],
    ids=["help", "dry run", "unbuffered", "error"],
)  # fmt: skip
def test_output_that_nobody_reads(words, closed, unbuffered, tmp_path):
    """As `... | head -1` leaves it: exit code 141, and not a word about it."""
    read, write = os.pipe()
    os.close(read)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {closed: write}
    surroundings = environment() | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, str(LAUNCHER), *words], cwd=tmp_path, env=surroundings, timeout=120, **pipes)
    os.close(write)
    assert done.returncode == UNREAD == 141
    assert not done.stdout and not done.stderr and files_below(tmp_path) == []


def test_pipes_that_break_elsewhere_are_not_hidden(monkeypatch):
    def broken(argv):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setitem(cli.COMMANDS, "doctor", broken)
    with pytest.raises(BrokenPipeError):
        cli.main(["doctor"])


def test_the_launcher_passes_the_exit_code_on(tmp_path):
    done = launch("--image", "nothing.png", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: There is no file") and files_below(tmp_path) == []


def test_dry_run_shows_the_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTO, tmp_path / "me.png")
    arguments = ["--image", "me.png", "--dry-run", "--seed", "7", "system.inversion.latent_steps=12", "--aligned"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "12 steps" in text and "seed: 7" in text and "aligned: true" in text and "prior.safetensors" in text
    assert "outputs/portrait-mini/me" in text and "nothing was written" in text
    assert "stages  restore 120 steps, guided by portrait-diffusion-hpdm-guidance (bundled)\n" in text
    assert files_below(tmp_path) == ["me.png"]


def test_dry_run_tells_that_a_run_would_be_continued(tmp_path, capsys):
    assert cli.main(["--image", str(PHOTO), "--out", str(tmp_path), "--dry-run"]) == 0
    assert "would be continued" in capsys.readouterr().out


def test_the_plan_of_a_published_prior_names_its_own_steps():
    def plan(*words):
        return describe_fit(load_pipeline_config(INIT, [*PANOHEAD, *words])[0].system)

    assert plan() == "panohead, 150 steps at 64 px, then 300 on its planes; at most 2 starts"
    assert plan("system.published_fit.tuning=none") == "panohead, 150 steps at 64 px; at most 2 starts"


@pytest.mark.parametrize("name", [None, "portrait-mini"])
def test_the_shipped_configuration_can_be_named(name):
    path = find_config(name)
    assert path is None if name is None else path == CONFIGS / "portrait-mini.yaml"


class FakePipeline:
    """Reports a few stages, then does what it was told."""

    stopped = False

    def __init__(self, action):
        self.action, self.evaluated, self.saved = action, False, None
        self.config, self.raw_config = load_pipeline_config()

    def run(self, image, out, progress):
        progress("photo", 1, 1, {})
        progress("latent", 1, 2, {"rgb": 0.5})
        self.action()
        return self

    def evaluate(self):
        self.evaluated = True

    def save(self, out, progress, command):
        self.saved = command
        progress("mesh", 0, 2, {})
        names = {"glb": "portrait.glb", "turntable": "turntable.mp4", "report": "report.html"}
        return SimpleNamespace(files={key: [out / name] for key, name in names.items()})


def make(pipeline, tmp_path, metrics=False):
    command = ["python", "launch_portrait.py", "--image", "my face.png"]
    return make_head(pipeline, PHOTO, tmp_path / "out", Quiet(), command, metrics)


def test_a_finished_run_prints_where_things_are(tmp_path, capsys):
    pipeline = FakePipeline(lambda: None)
    assert make(pipeline, tmp_path, metrics=True) == 0
    output = capsys.readouterr()
    for name in ("portrait.glb", "turntable.mp4", "report.html"):
        assert str(tmp_path / "out" / name) in output.out
    assert "python launch_portrait.py --image 'my face.png'" in output.out and output.err == ""
    assert pipeline.evaluated and pipeline.saved[-1] == "my face.png"


def test_an_interrupted_run_says_how_to_go_on(tmp_path, capsys):
    def interrupt():
        raise KeyboardInterrupt

    assert make(FakePipeline(interrupt), tmp_path) == 130
    output = capsys.readouterr()
    assert output.out == "" and output.err.endswith("python launch_portrait.py --image 'my face.png'\n")


def allocate_with_torch():
    torch.empty(10**15)


def allocate_with_numpy():
    np.empty(10**16)


def raise_from_a_device():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("allocate", [allocate_with_torch, allocate_with_numpy, raise_from_a_device])
def test_lack_of_memory_names_a_smaller_setting(tmp_path, allocate):
    with pytest.raises(OutOfMemory, match="system.inversion.latent_size=32") as caught:
        make(FakePipeline(allocate), tmp_path)
    assert caught.value.exit_code == 4 and "'latent'" in str(caught.value)


def test_another_runtime_error_is_not_called_lack_of_memory(tmp_path):
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        make(FakePipeline(fail), tmp_path)


def test_smaller_settings_of_stages_are_smaller():
    """Also of the look around in one, and of a stage with one view."""
    config, _ = load_pipeline_config(INIT.with_name("portrait-mini.yaml"), [])
    before = config.system.stages["restore"]
    for stage in ("restore", "paint"):
        smaller, _ = load_pipeline_config(
            INIT.with_name("portrait-mini.yaml"), smaller_setting(stage, config).split()
        )
        after = smaller.system.stages["restore"]
        assert after["painted"] == before["painted"] // 2
    config, _ = load_pipeline_config(INIT, ["system.stages.refine={steps: 5, views: 1}"])
    assert "mesh.resolution" in smaller_setting("refine", config)


@pytest.mark.parametrize(("stage", "prior"), [
    *((stage, []) for stage in ("photo", "preview", "latent", "detail", "mesh", "glb", "views", "metrics")),
    *((stage, PANOHEAD) for stage in ("preview", "latent", "tuning", "mesh")),
])  # fmt: skip
def test_smaller_settings_are_valid_and_smaller(stage, prior):
    config, _ = load_pipeline_config(INIT, prior)
    overrides = smaller_setting(stage, config).split()
    assert ("published_fit" in overrides[0]) == (prior != [] and stage != "mesh")
    smaller, _ = load_pipeline_config(INIT, [*prior, *overrides])
    for override in overrides:
        path = override.split("=")[0].split(".")
        before, after = config, smaller
        for key in path:
            before, after = getattr(before, key), getattr(after, key)
        assert 0 < after < before, override


def test_commands_pass_their_arguments_on(monkeypatch):
    from portrait_diffusion.photo import train_camera, train_matte
    from portrait_diffusion.priors import train
    from portrait_diffusion.synthetic import dataset

    seen = []
    for module, result in ((train, 0), (dataset, 3), (train_matte, "weights"), (train_camera, "file")):
        monkeypatch.setattr(module, "main", lambda arguments, result=result: (seen.append(arguments), result)[1])
    assert cli.main(["train-prior", "--data", "a"]) == 0
    assert cli.main(["render-dataset", "b"]) == 3
    assert cli.main(["train-matte", "--out", "c"]) == 0
    assert cli.main(["train-camera", "--out", "d"]) == 0
    assert seen == [["--data", "a"], ["b"], ["--out", "c"], ["--out", "d"]]


def test_a_stopped_run_writes_its_outputs_and_says_that_it_goes_on(tmp_path, capsys):
    pipeline = FakePipeline(lambda: None)
    pipeline.stopped = True
    assert make(pipeline, tmp_path) == INTERRUPTED and pipeline.saved is not None
    assert "goes on where this stopped" in capsys.readouterr().out
