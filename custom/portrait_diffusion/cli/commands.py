"""The commands by name, each imported when it is asked for: a mistake in a word is told at once."""
import argparse
import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..optional import require
from .words import program


def render_command(argv: Sequence[str]) -> int:
    """Options and work: `cli.render.main`."""
    from .render import main as render

    return render(argv)


def models_command(argv: Sequence[str]) -> int:
    """Options and work: `cli.models.main`."""
    from .models import main as models

    return models(argv)


def doctor_parser() -> argparse.ArgumentParser:
    """Options of `doctor`."""
    return argparse.ArgumentParser(
        prog=f"{program()[-1]} doctor",
        description="Check packages, model files, weights and devices. Exit code 3 if the main job can't run here.",
        allow_abbrev=False,
    )


def doctor_command(argv: Sequence[str]) -> int:
    """Check the machine."""
    doctor_parser().parse_args(argv)
    from ..doctor import examine, format_table, verdict

    checks = examine()
    print(format_table(checks))
    text, code = verdict(checks)
    print(text)
    return code


def convert_prior_command(argv: Sequence[str]) -> int:
    """Options and work: `priors.published.convert.main`."""
    from ..priors.published.convert import main as convert

    return convert(list(argv), program()[-1])


def train_prior_command(argv: Sequence[str]) -> int:
    """Options and work: `priors.train.main`."""
    from ..priors.train import main as train

    return train(list(argv))


def render_drafts_command(argv: Sequence[str]) -> int:
    """Options and work: `priors.drafts.main`."""
    from ..priors.drafts import main as render

    return render(list(argv))


def render_dataset_command(argv: Sequence[str]) -> int:
    """Options and work: `synthetic.dataset.main`."""
    from ..synthetic.dataset import main as render

    return render(list(argv))


def train_matte_command(argv: Sequence[str]) -> int:
    """Options and work: `photo.train_matte.main`."""
    from ..photo.train_matte import main as train

    print(train(list(argv)))
    return 0


def train_camera_command(argv: Sequence[str]) -> int:
    """Options and work: `photo.train_camera.main`."""
    from ..photo.train_camera import main as train

    print(train(list(argv)))
    return 0


def train_hpdm_command(argv: Sequence[str]) -> int:
    """Options and work: `guidance.hpdm.train.main`."""
    require("diffusers", extra="hpdm")
    require("pytorch_lightning", extra="train", package="pytorch-lightning")
    from ..guidance.hpdm.train import main as train

    return train(list(argv))


def render_benchmark_command(argv: Sequence[str]) -> int:
    """Options and work: `benchmark.truth.main`."""
    from ..benchmark.truth import main as render

    return render(list(argv))


def evaluate_command(argv: Sequence[str]) -> int:
    """Options and work: `benchmark.evaluate.main`."""
    from ..benchmark.evaluate import main as evaluate

    return evaluate(argv)


COMMANDS = {
    "render": render_command,
    "doctor": doctor_command,
    "models": models_command,
    "convert-prior": convert_prior_command,
    "train-prior": train_prior_command,
    "render-dataset": render_dataset_command,
    "render-drafts": render_drafts_command,
    "train-matte": train_matte_command,
    "train-camera": train_camera_command,
    "train-hpdm": train_hpdm_command,
    "render-benchmark": render_benchmark_command,
    "evaluate": evaluate_command,
}
"""Name -> what it does with the words after it; without a name `run.run_command` makes a head."""


def check_words(words: Sequence[str]) -> None:
    """Answer bare words that can't be overrides with what was probably meant.

    Raises: UsageError.
    """
    for word in words:
        if "=" in word:
            continue
        if Path(word).is_file():
            raise UsageError(f"What is '{word}'? For a photo write: --image {shlex.quote(word)}.")
        near = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"the nearest command is '{near[0]}'" if near else f"the commands are {', '.join(COMMANDS)}"
        raise UsageError(f"'{word}' is neither key=value nor a command; {hint}.")
