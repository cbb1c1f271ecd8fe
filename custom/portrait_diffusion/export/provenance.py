"""provenance.json: what made a result - versions, git state, device, seeds, hashes, command, times, memory."""
import hashlib
import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..files import sha256_file, write_text

LIBRARIES = ("torch", "numpy", "scipy", "scikit-image", "trimesh", "xatlas", "fast-simplification", "imageio-ffmpeg",
             "pillow", "omegaconf", "pytorch-lightning")  # fmt: skip
PACKAGE_DIR = Path(__file__).absolute().parents[1]


def config_hash(config: Any) -> str:
    """SHA-256 of a configuration of plain values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def git_state(folder: Path = PACKAGE_DIR) -> dict[str, Any] | None:
    """``{"sha", "dirty"}`` of the repository that tracks this package; None without git or when it isn't tracked.

    A package copied into another project's ignored folder is not described by that project's commit.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def library_versions() -> dict[str, str | None]:
    """Installed version of each library that shapes the result; None when it is not installed."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def device_description(device: torch.device | str) -> dict[str, Any]:
    """Name and memory of the device that computed the result."""
    device = torch.device(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"type": device.type, "name": properties.name, "memory_bytes": properties.total_memory}
    return {"type": device.type, "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}


def peak_host_bytes() -> int | None:
    """Peak resident memory of this process so far; None where the system doesn't say.

    Linux keeps the peak of the running program in /proc. Its getrusage can report more: the peak of the process that
    started this program, where that was larger (``exec`` hands the value on).
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    if found:
        return int(found[1]) * 1024
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_memory(device: torch.device | str) -> dict[str, int | None]:
    """Peak bytes so far of this process, and of its tensors on a CUDA device; None where the system doesn't say."""
    device = torch.device(device)
    tensors = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"host_bytes": peak_host_bytes(), "device_bytes": tensors}


def without_home(text: str) -> str:
    """Replace the user's home folder by ``~``: results are shared, user names should not be."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def collect(
    *,
    config: Any,
    device: torch.device | str,
    seeds: Mapping[str, int] | None = None,
    photo_name: str | None = None,
    photo_sha256: str | None = None,
    weights: Mapping[str, str | Path] | None = None,
    timings_s: Mapping[str, float] | None = None,
    command: Sequence[str] | None = None,
    denoiser: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything needed to say how a result came about, as plain values for JSON.

    Args:
        config: full configuration of plain values; its hash goes in.
        seeds: name -> seed.  weights: name -> file; their SHA-256 go in, not their paths.
        timings_s: stage -> seconds.  command: argument list, default this process's.
        denoiser: what a diffusion model did: rows, the pictures it has seen; noise, see `noise.summary`.
    """
    from .. import __version__

    command = list(sys.argv if command is None else command)
    return {
        "package": "portrait_diffusion",
        "version": __version__,
        "git": git_state(),
        "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": without_home(shlex.join(command)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": library_versions(),
        "device": device_description(device),
        "seeds": dict(seeds or {}),
        "config_sha256": config_hash(config),
        "photo": {"name": photo_name, "sha256": photo_sha256},
        "weights_sha256": {name: sha256_file(path) for name, path in (weights or {}).items()},
        "timings_s": {name: round(float(seconds), 3) for name, seconds in (timings_s or {}).items()},
        "denoiser": dict(denoiser or {}),
        "peak_memory": peak_memory(device),
    }


def write_provenance(path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Write provenance.json, atomically."""
    write_text(path, json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
