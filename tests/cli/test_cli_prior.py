"""A prior's file that does not fit is refused before any work: one sentence, nothing written, no photo prepared."""
import shutil
from pathlib import Path

import pytest
import torch
from cli.cli_samples import PHOTO, files_below
from portrait_diffusion import cli, pipeline
from priors import published_pickles
from priors.published_pickles import write_published
from priors.published_samples import random_state, tiny_sizes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a photo, an EG3D checkpoint and its converted form; preparing a photo fails the test."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTO, tmp_path / "me.png")
    write_published(tmp_path / "net.pkl", "eg3d")
    assert cli.main(["convert-prior", "net.pkl"]) == 0
    monkeypatch.setattr(pipeline, "prepare_photo", lambda *a: pytest.fail("the photo was prepared"))
    return tmp_path


def refused(capsys, file: str, kind: str, *options: str) -> str:
    """The sentence of a run that must end with exit code 2 and leave the folder as it was."""
    capsys.readouterr()
    before = files_below(Path.cwd())
    prior = [f"system.prior.type={kind}", f"system.prior.checkpoint={file}"]
    code = cli.main(["--image", "me.png", "--out", "result", "--config", "portrait-init", *options, *prior])
    output = capsys.readouterr()
    assert code == 2 and output.out == "" and output.err.count("\n") == 1, output
    assert files_below(Path.cwd()) == before
    return output.err


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
@pytest.mark.parametrize("file", ["net.pkl", "net.safetensors"])
def test_the_type_must_be_the_files(folder, capsys, file, options):
    message = refused(capsys, file, "panohead", *options)
    assert f"{file} holds a generator of EG3D (FFHQ, rebalanced), but prior.type is 'panohead'; set " in message


@pytest.mark.parametrize(("file", "expected"), [
    ("net.pkl", "set prior.type to its kind, one of eg3d, panohead"),
    ("net.safetensors", "holds 'published-prior' weights, expected 'generator'; check the path and system.prior.type"),
])  # fmt: skip
def test_a_published_file_is_not_the_bundled_prior(folder, capsys, file, expected):
    assert expected in refused(capsys, file, "bundled")


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_whatever_is_known_without_the_numbers_is_said_before(folder, capsys, monkeypatch, options):
    data = (folder / "net.pkl").read_bytes()
    (folder / "cut.pkl").write_bytes(data[: len(data) // 2])
    assert "cut off" in refused(capsys, "cut.pkl", "eg3d", *options)
    assert "does not exist" in refused(capsys, "gone.pkl", "eg3d", *options)
    state = random_state(tiny_sizes("eg3d"))
    write_published(folder / "shape.pkl", "eg3d", state=state | {"decoder.net.2.bias": torch.zeros(3)})
    assert "'decoder.net.2.bias' of the eg3d checkpoint has shape" in refused(capsys, "shape.pkl", "eg3d", *options)
    arguments = published_pickles.tiny_arguments
    monkeypatch.setattr(published_pickles, "tiny_arguments", lambda family: arguments(family) | {"white_back": True})
    write_published(folder / "white.pkl", "eg3d")
    assert "over white" in refused(capsys, "white.pkl", "eg3d", *options)


def test_a_fitting_file_passes(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("numbers were read"))
    for file in ("net.pkl", "net.safetensors"):
        prior = ["system.prior.type=eg3d", f"system.prior.checkpoint={file}"]
        assert cli.main(["--image", "me.png", "--out", "result", "--config", "portrait-init", "--dry-run", *prior]) == 0
        assert file in capsys.readouterr().out and not (folder / "result").exists()
