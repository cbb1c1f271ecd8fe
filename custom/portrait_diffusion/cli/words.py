"""What every command says and asks: its own name, warnings, failures, questions; photo and shared configuration."""
import logging
import sys
from pathlib import Path
from typing import TextIO

from ..errors import UsageError

log = logging.getLogger("portrait_diffusion")


def program() -> list[str]:
    """How this process was started, as the words to start it again."""
    started = sys.argv[0] or "launch_portrait.py"
    return ["python", started] if started.endswith(".py") else [Path(started).name]


def check_image(path: Path) -> None:
    """Decode a photo once, small: fails within a fraction of a second where the run would fail later.

    Raises: UsageError for a missing, empty, broken or foreign file.
    """
    from ..photo.load import load_photo

    load_photo(path, max_side=64)


def is_remote(text: str | None) -> bool:
    """Whether a configuration is named by URL."""
    return text is not None and "://" in text


def fetch_shared(text: str):
    """A remote configuration, valid by itself and without paths out of the working folder, see `remote`.

    Raises: UsageError, EnvironmentProblem.
    """
    from ..remote import check_paths, fetch_config
    from ..settings import load_pipeline_config

    found = fetch_config(text)
    _, plain = load_pipeline_config(found.content)
    check_paths(plain, text)
    return found


def confirmed(question: str, yes: bool, stream: TextIO | None = None) -> bool:
    """Ask on the terminal; `yes` answers, and the end of the input (Ctrl-D) means no.

    Args: stream: where the question goes, default the standard output.
    Raises: UsageError where nobody can be asked.
    """
    stream = stream or sys.stdout
    if yes:
        print(f"{question} yes (--yes)", file=stream)
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody can be asked here; add --yes to agree.")
    print(f"{question} [y/N] ", end="", file=stream, flush=True)
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        print(file=stream)
        return False


def fail(message: str, code: int, kind: str = "error: ") -> int:
    """Say it on the standard error; returns the exit code."""
    print(f"{kind}{message}", file=sys.stderr)
    return code


class _StderrHandler(logging.Handler):
    """Log lines to whatever ``sys.stderr`` is when they come: rich replaces it while its bars are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def show_warnings() -> None:
    """Warnings of the package go to the standard error from here on, once each."""
    if not any(isinstance(handler, _StderrHandler) for handler in log.handlers):
        log.addHandler(_StderrHandler(logging.WARNING))
