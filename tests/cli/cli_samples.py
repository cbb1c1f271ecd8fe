"""Inputs and helpers of the command-line tests."""
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "custom" / "portrait_diffusion"
PHOTO = REPOSITORY / "examples" / "astronaut.png"
LAUNCHER = REPOSITORY / "launch_portrait.py"


def launch(*arguments: str, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run launch_portrait.py in a process of its own."""
    return subprocess.run(
        [sys.executable, str(LAUNCHER), *arguments],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """The surroundings of a child process: one thread, no inherited Python settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def files_below(folder: Path) -> list[str]:
    """Everything in a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
