"""The code follows the style that pyproject.toml sets for ruff."""
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed (requirements-dev.txt)")
def test_ruff_finds_nothing():
    # .ci/run puts its environment below the root; ruff knows .gitignore only inside a git checkout
    command = [sys.executable, "-m", "ruff", "check", ".", "--no-cache", "--output-format", "concise"]
    done = subprocess.run([*command, "--extend-exclude", ".venv-ci"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_beside_the_repository_stands_in_for_a_module():
    assert str(Path(__file__).absolute().parents[2]) not in sys.path
