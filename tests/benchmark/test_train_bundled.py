"""The plan by which the shipped models are trained: its commands exist, its steps come in order."""
import argparse
import threading

import pytest
from portrait_diffusion import cli

from .scripts import load_script

plan = load_script("train_bundled")
ARGS = ["--assets", "a", "--basis", "b", "--perceptual-weights", "p"]


class Parsed(Exception):
    """In the place of the work."""


def test_every_command_is_understood(tmp_path, monkeypatch):
    """Its options are parsed by the command itself, which is stopped right after."""
    seen = []
    monkeypatch.setattr(plan, "train_all", lambda args: seen.append(plan.commands(args)))
    assert plan.main([*ARGS, "--out", str(tmp_path)]) == 0
    real = argparse.ArgumentParser.parse_args

    def stop(parser, argv=None, namespace=None):
        real(parser, argv, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    heads = [words for words in seen[0].values() if words[0] == "render-dataset"]
    assert len(heads) == 3 and all(words[words.index("--turned") + 1] == "0.7" for words in heads)
    for name, words in seen[0].items():
        more = plan.budget(100.0) if name in ("autoencoder", "denoiser", "prior") else []
        with pytest.raises(Parsed):
            cli.COMMANDS[words[0]](words[1:] + more)
    with pytest.raises(SystemExit):
        cli.COMMANDS["train-hpdm"](["--no-such-option"])


@pytest.mark.parametrize(("gpus", "train"), [(1, ["hpdm"]), (2, ["hpdm"]), (2, ["hpdm", "prior"])])
def test_steps_come_in_order_and_share_the_time(tmp_path, monkeypatch, gpus, train):
    runs, lock = [], threading.Lock()

    def run(self, name, words, gpu=None, threads=2):
        with lock:
            runs.append((name, words, gpu))
        if name == "train":
            (tmp_path / "train").mkdir()
            (tmp_path / "train" / "train_00000.npz").touch()

    monkeypatch.setattr(plan.Machine, "run", run)
    monkeypatch.setattr(plan.time, "sleep", lambda s: None)
    command = [*ARGS, "--out", str(tmp_path), "--gpus", str(gpus), "--subjects", "50", "--seconds", "300"]
    command += ["--train", *train]
    assert plan.main(command) == 0
    names = [name for name, _, _ in runs]
    assert names[:3] == ["val", "test", "train"] and ("prior" in names) == ("prior" in train)
    assert names.index("denoiser") > max(names.index("autoencoder"), len(names) - 1 - names[::-1].index("drafts"))
    words, gpu = next((words, gpu) for name, words, gpu in runs if name == "denoiser")
    assert "--initial" not in words
    if "prior" in train:
        assert gpu == 1 and "--devices" not in words
    else:
        assert gpu is None and words[words.index("--devices") + 1] == str(gpus)
    assert 250 <= float(words[words.index("--total-seconds") + 1]) <= 275


def test_the_prior_beside_hpdm_needs_two_gpus(tmp_path, capsys):
    for options in (["--train", "prior"], ["--train", "hpdm", "prior", "--gpus", "1"]):
        with pytest.raises(SystemExit):
            plan.main([*ARGS, "--out", str(tmp_path), *options])
        assert "with two GPUs" in capsys.readouterr().err


def test_a_failing_step_names_its_log(tmp_path):
    machine = plan.Machine(tmp_path, 1)
    with pytest.raises(SystemExit, match="drafts failed; see .*drafts.log"):
        machine.run("drafts", ["render-drafts", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "o")])
    assert "No shards" in (tmp_path / "drafts.log").read_text()
    assert "drafts ends with 2" in (tmp_path / "steps.log").read_text()


def test_the_denoiser_goes_on_from_a_model(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(plan.Machine, "run", lambda self, name, words, *rest, **more: runs.append((name, words)))
    monkeypatch.setattr(plan, "rendered", lambda folder: 100)
    monkeypatch.setattr(plan.time, "sleep", lambda s: None)
    assert plan.main([*ARGS, "--out", str(tmp_path), "--initial", "model", "--seed", "7"]) == 0
    names, words = [name for name, _ in runs], dict(runs)
    assert "autoencoder" not in names and names[-1] == "denoiser"
    assert words["denoiser"][words["denoiser"].index("--initial") + 1] == "model"
    assert words["train"][words["train"].index("--seed") + 1] == "7" and "--seed" not in words["test"]
