"""A real threestudio checkout to run in, named by THREESTUDIO_ROOT (tested: 28d9d80); it is only read.

The packages that threestudio imports must be installed (or on PYTHONPATH), except the CUDA ones, which
`real_threestudio.py` stands in for: beside requirements-dev.txt transformers, accelerate, nerfacc, 'libigl<2.6', wandb,
jaxtyping, typeguard, einops, envlight and ipython.
"""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = os.environ.get("THREESTUDIO_ROOT")
needs_checkout = [
    pytest.mark.slow,
    pytest.mark.skipif(not ROOT, reason="THREESTUDIO_ROOT is not set: no threestudio checkout to test with"),
]
REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "custom" / "portrait_diffusion"
PHOTO = REPOSITORY / "examples" / "astronaut.png"
NAMES = [
    "portrait-diffusion-datamodule", "portrait-diffusion-exporter", "portrait-diffusion-fixed-noise",
    "portrait-diffusion-hpdm-guidance", "portrait-diffusion-iid-noise", "portrait-diffusion-mvnrs-noise",
    "portrait-diffusion-no-material", "portrait-diffusion-object-noise", "portrait-diffusion-sd-guidance",
    "portrait-diffusion-system", "portrait-diffusion-triplane", "portrait-diffusion-volume-renderer",
    "portrait-diffusion-white-background",
]  # fmt: skip


def scratch_folder(tmp_path_factory) -> Path:
    """An empty folder with an empty `custom/`, to launch in; fails for a root without launch.py."""
    if not (Path(ROOT) / "launch.py").is_file():
        pytest.fail(f"THREESTUDIO_ROOT={ROOT} holds no launch.py; set it to the root of a threestudio checkout.")
    folder = tmp_path_factory.mktemp("run")
    (folder / "custom").mkdir()
    return folder


def start(scratch: Path, *arguments: str) -> subprocess.CompletedProcess:
    """threestudio's own launch.py with these arguments, on the CPU, in a process of its own."""
    environment = {
        **os.environ, "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    script = str(Path(__file__).with_name("real_threestudio.py"))
    return subprocess.run(
        [sys.executable, script, ROOT, *arguments],
        cwd=scratch, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def launch(scratch: Path, *arguments: str) -> str:
    """As `start`; all it printed, after it succeeded with every one of our names registered."""
    done = start(scratch, *arguments)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "IMPORT FAILED" not in output, output[-6000:]
    assert f"OUR NAMES {NAMES}" in output, output[-6000:]
    return output
