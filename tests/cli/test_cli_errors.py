"""Wrong input: one sentence that helps, the promised exit code, and nothing written."""
import errno
import shutil

import numpy as np
import pytest
from cli.cli_samples import PHOTO, files_below
from PIL import Image
from portrait_diffusion import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with one good photo."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTO, tmp_path / "me.png")
    return tmp_path


def refused(capsys, *arguments: str) -> str:
    """The sentence on stderr of a command that must fail with exit code 2 and print nothing else."""
    code = cli.main(arguments)
    output = capsys.readouterr()
    assert code == 2 and output.out == "", output
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and "Traceback" not in output.err
    return output.err


def test_a_misspelt_key_names_the_nearest(folder, capsys):
    message = refused(capsys, "--image", "me.png", "system.inversion.latent_step=3")
    assert "'system.inversion.latent_step'" in message and "'latent_steps'" in message
    assert message.startswith("error: The given key=value (on top of "), "the file is not to blame"
    assert files_below(folder) == ["me.png"]


def test_what_a_file_says_wrongly_is_told_of_the_file(folder, capsys):
    (folder / "mine.yaml").write_text("system: {inversion: {latent_step: 3}}\n")
    message = refused(capsys, "--image", "me.png", "--config", "mine.yaml", "seed=1")
    assert message.startswith("error: mine.yaml: unknown key 'system.inversion.latent_step'")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.size=big", "data.size"),
        ("system.inversion.latent_size=[1]", "system.inversion.latent_size"),
        ("system=3", "system"),
        ("system.geometry_type=portrait-diffusion-triplan", "nearest valid name is 'portrait-diffusion-triplane'"),
        ("system.renderer_type=portrait-diffusion-volum", "name is 'portrait-diffusion-volume-renderer'"),
        ("system.inversion.latent_steps=-1", "latent_steps"),
        ("system.stages.restore.loss.lambda_magic=1", "loss has no 'lambda_magic'"),
        ("system.stages.restore.steps=2.5", "steps must be a whole number"),
        ("system.stages.restore.known_azimuths=5", "known_azimuths must be a list"),
        ("system.extra_guidances=[a]", "extra_guidances[0] must be a section with a type"),
        ("system.extra_guidances=[{type: x, wait: 1}]", "extra_guidances[0] has no key 'wait'"),
        ("system.extra_guidances=[{type: x, stages: [last]}]", "extra_guidances[0].stages has no 'last'"),
        ("system.extra_guidances=[{type: no-guidance}]", "no class is registered as 'no-guidance'"),
        ("system.extra_guidances=[{type: portrait-diffusion-hpdm-guidance, guidance: {sead: 1}}]",
         "unknown key 'system.extra_guidances[0].guidance.sead'; the nearest valid name is 'seed'"),
        ("system.renderer.num_samples_per_ray=many", "system.renderer.num_samples_per_ray"),
        ("system.exporter.mesh.resolution=${nothing}", "system.exporter.mesh.resolution"),
    ],
)
def test_wrong_values_name_the_key(folder, capsys, override, expected):
    assert expected in refused(capsys, "--image", "me.png", override)
    assert files_below(folder) == ["me.png"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.png", None, "no file 'missing.png'"),
        ("empty.png", b"", "empty"),
        ("text.png", b"not a picture at all", "not an image"),
        ("cut.png", PHOTO.read_bytes()[:20000], "damaged"),
    ],
)
def test_unusable_photos(folder, capsys, name, content, expected):
    if content is not None:
        (folder / name).write_bytes(content)
    before = files_below(folder)
    assert expected in refused(capsys, "--image", name, "--out", "result")
    assert files_below(folder) == before


def test_photos_without_a_usable_face(folder, capsys):
    """No face, and one of about 30 pixels: one sentence each, and no output folder."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    small = Image.new("RGB", (512, 512), (120, 120, 120))
    small.paste(Image.open(PHOTO).convert("RGB").resize((128, 128)), (190, 190))
    small.save(folder / "small.png")
    before = files_below(folder)
    assert "face" in refused(capsys, "--image", "noise.png", "--out", "result")
    assert "64" in refused(capsys, "--image", "small.png", "--out", "result")
    assert files_below(folder) == before


def test_the_photo_of_the_configuration_is_checked_too(folder, capsys):
    assert "no file 'gone.png'" in refused(capsys, "data.image_path=gone.png")


def test_no_photo_at_all(folder, capsys):
    assert "--image" in refused(capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["doctr"], "'doctor'"),
        (["me.png"], "--image me.png"),
        (["something"], "neither key=value nor a command"),
        (["--image", "me.png", "--config", "portrait-mni"], "portrait-mini"),
        (["--image", "me.png", "--config", "own.yaml"], "no configuration 'own.yaml'"),
        (["--image", "me.png", "--out", "me.png"], "is a file"),
        (["--image", "me.png", "=3"], "malformed key"),
        (["render", "--run", "nowhere"], "'nowhere'"),
        (["render", "--run", "."], "portrait.safetensors"),
        (["render", "--run", ".", "--size", "4"], "--size"),
        (["render", "--run", ".", "--elevations", "95"], "elevations"),
        (["render", "--run", ".", "--azimuths", "nan"], "finite"),
        (["render", "--run", ".", "--device", "abacus"], "'abacus'"),
        (["--image", "me.png", "--device", "abacus"], "'abacus'"),
        (["train-prior", "--data", "nowhere", "--out", "result"], "nowhere"),
    ],
)
def test_other_mistakes(folder, capsys, arguments, expected):
    assert expected in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [["--imag", "me.png"], ["--image"], ["--seed", "x"], ["render"], ["doctor", "x"]],
)
def test_unknown_options_leave_with_code_2(folder, capsys, arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2 and files_below(folder) == ["me.png"]
    assert "usage:" in capsys.readouterr().err


def test_a_broken_configuration_file_names_its_line(folder, capsys):
    (folder / "bad.yaml").write_text("data:\n  size: [512\n")
    assert "bad.yaml, line 3" in refused(capsys, "--image", "me.png", "--config", "bad.yaml")


def test_a_missing_weights_file_is_found_before_the_run(folder, capsys):
    code = cli.main(["--image", "me.png", "system.prior.checkpoint=gone.safetensors"])
    assert code == 3 and "gone.safetensors" in capsys.readouterr().err
    assert files_below(folder) == ["me.png"]


@pytest.mark.parametrize(
    ("override", "code", "expected"),
    [
        ("system.geometry.implementation=triton", 3, "system.geometry.implementation 'triton' cannot be used"),
        ("system.geometry.implementation=tcnn", 3, "system.geometry.implementation 'tcnn' cannot be used"),
        ("system.renderer.implementation=triton", 3, "system.renderer.implementation 'triton' cannot be used"),
        ("system.renderer.estimator=nerfacc", 3, "system.renderer.estimator 'nerfacc' cannot be used"),
        ("system.renderer.cuda_graphs=true", 2, "system.renderer.cuda_graphs needs a GPU"),
        ("system.guidance.cuda_graphs=true", 2, "system.guidance.cuda_graphs needs a GPU"),
        ("system.guidance.compile=true", 2, "system.guidance.compile needs a GPU"),
        ("system.extra_guidances=[{type: portrait-diffusion-hpdm-guidance, guidance: {compile: true}}]", 2,
         "guidance.compile needs a GPU"),
    ],
)  # fmt: skip
def test_what_the_device_cannot_do_is_found_before_the_run(folder, capsys, monkeypatch, override, code, expected):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for last in ([], ["--dry-run"]):
        assert cli.main(["--image", "me.png", "--device", "cpu", override, *last]) == code
        assert expected in capsys.readouterr().err and files_below(folder) == ["me.png"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("system.optimizer.params={geometry.restorations: {}}", "optimizer.params names 'geometry.restorations'"),
        ("system.optimizer.name=Adann", "Unknown optimizer 'Adann'"),
        ("system.optimizer.args.lrr=1", "got an unexpected keyword argument 'lrr'"),
        ("system.optimizer.args.lr=-1", "optimizer Adam cannot be made with {'args': {'lr': -1, "),
        ("system.optimizer.params.geometry={}", "some parameters appear in more than one parameter group"),
        ("system.scheduler.args.total=3", "scheduler LinearLR cannot be made with {'args': {'start_factor': 1.0, "),
        ("system.scheduler.interval=batch", "scheduler.interval must be 'step' or 'epoch', got 'batch'"),
        ("system.optimizer.params={geometry.planes: {}}", "the optimizer changes geometry.planes"),
    ],
)
def test_what_the_stages_refuse_is_found_before_the_fit(folder, capsys, override, expected):
    for last in ([], ["--dry-run"]):
        assert cli.main(["--image", "me.png", "--device", "cpu", override, *last]) == 2
        assert expected in capsys.readouterr().err and files_below(folder) == ["me.png"]


def test_what_a_stage_without_steps_asks_for_is_not_asked_for(folder, capsys):
    stages = ["system.stages.restore.steps=0", "system.stages.refine.steps=1"]
    words = [*stages, "system.optimizer.params={geometry.planes: {}}"]
    assert cli.main(["--image", "me.png", "--device", "cpu", *words, "--dry-run"]) == 0
    assert files_below(folder) == ["me.png"]


def test_grids_that_do_not_fit_into_memory_are_found_before_the_fit(folder, capsys):  # 128 PB: no machine maps it
    assert cli.main(["--image", "me.png", "--device", "cpu", "system.restoration_resolution=200000"]) == 4
    assert "try smaller grids: system.restoration_resolution=100000" in capsys.readouterr().err
    assert files_below(folder) == ["me.png"]


def test_a_folder_that_can_not_be_written(folder, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "result/portrait.glb")

    monkeypatch.setitem(cli.COMMANDS, "doctor", full)
    assert cli.main(["doctor"]) == 3
    message = capsys.readouterr().err
    assert message == "error: 'result/portrait.glb' can't be read or written: No space left on device.\n"


def test_a_missing_package_is_an_environment_problem_but_a_bug_of_ours_is_not(monkeypatch, capsys):
    def lacks(name):
        def command(arguments):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

        return command

    monkeypatch.setitem(cli.COMMANDS, "doctor", lacks("skimage.measure"))
    assert cli.main(["doctor"]) == 3
    assert "'skimage.measure' is not installed" in capsys.readouterr().err
    monkeypatch.setitem(cli.COMMANDS, "doctor", lacks("portrait_diffusion.nothing"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["doctor"])
