"""The command ``models``: the public models that a configuration needs."""
import argparse
from collections.abc import Sequence

from ..errors import EnvironmentProblem
from ..shipped import find_config
from .commands import check_words
from .words import confirmed, fetch_shared, is_remote, program


def models_parser() -> argparse.ArgumentParser:
    """Options of `models`."""
    parser = argparse.ArgumentParser(
        prog=f"{program()[-1]} models", allow_abbrev=False,
        description="Say which public models a configuration needs and which are here; download the rest if you agree.",
    )  # fmt: skip
    parser.add_argument("--config", required=True, help="YAML file, name of a shipped one, or URL of a shared one")
    parser.add_argument("--yes", action="store_true", help="download without asking")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")
    return parser


def main(argv: Sequence[str]) -> int:
    """Public models of a configuration."""
    args = models_parser().parse_intermixed_args(argv)
    check_words(args.overrides)
    source = fetch_shared(args.config).content if is_remote(args.config) else find_config(args.config)
    from ..models import get_models
    from ..settings import load_pipeline_config

    _, plain = load_pipeline_config(source, args.overrides)
    done = get_models(plain["system"], print, lambda question: confirmed(question, args.yes))
    return 0 if done else EnvironmentProblem.exit_code
