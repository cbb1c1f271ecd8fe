"""Whether the installed tiny-cuda-nn works on a GPU: tried once in a process of its own, as a broken build may crash.

Packages that compile at installation fail in more ways than by an import error: built for the GPU of another machine,
against another torch, or such that they load and then end the process (github.com/NVlabs/tiny-cuda-nn/issues/490, 230,
159). What the build alone decides - it works, it is for other GPUs, it crashes - is remembered in a file of the user's
cache directory, by the versions of package and torch, the GPU's compute capability, and names, sizes and times of the
compiled files: whoever reinstalls is asked again. What may pass (a library that is not found, a busy GPU) is not.
"""
import functools
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch

from ..files import write_text

LOG = logging.getLogger("portrait_diffusion")
TIME_LIMIT = 180.0
"""Seconds; a build with code for older GPUs alone is compiled on the spot, which takes a minute."""
REMEMBERED = ("works", "capability", "crash")
OTHER_GPU = re.compile(r"compatible tinycudann extension|no kernel image|invalid device function")
"""What tiny-cuda-nn (while it is imported) and CUDA (later) say of a build for other GPUs."""
PASS = """
import json, math, sys, warnings
warnings.simplefilter("ignore")
stage = "import"
try:
    import tinycudann
    import torch
    stage = "run"
    device = torch.device(sys.argv[1])
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # where the network's parameters are made
    network = tinycudann.Network(17, 4, {
        "otype": "FullyFusedMLP", "activation": "Softplus", "output_activation": "None", "n_neurons": 64,
        "n_hidden_layers": 1,
    })
    torch.nn.init.constant_(network.params, 1 / 256)
    x = torch.ones(256, 17, device=device, requires_grad=True)
    out = network(x).float()
    out.sum().backward()
    # 17 ones and 15 that the network adds: 1/8 in every hidden unit
    value, slope = math.log(1 + math.exp(1.25)) / 10, 1 / (1 + math.exp(-1.25))
    expected = (value / 4, slope / 256, slope * 4)
    found = (out, x.grad, network.params.grad[:64 * 17])
    for name, got, exact in zip(("value", "gradient of the input", "gradient of the weights"), found, expected):
        low, high = got.min().item(), got.max().item()
        if not (0.98 * exact < low and high < 1.02 * exact):
            raise ArithmeticError(f"{name}: expected {exact:.5f}, got {low:.5f} to {high:.5f}")
    print(json.dumps({"kind": "works", "detail": ""}))
except BaseException as error:
    print(json.dumps({"kind": stage, "detail": f"{type(error).__name__}: {error}"}))
"""
"""A small forward and backward pass; prints how far it came."""


@functools.cache
def broken(device: torch.device) -> str | None:
    """Why the installed tiny-cuda-nn does not work on a GPU, with the fix, or None when it does.

    The answer holds for this process (`broken.cache_clear()` forgets it) and, where the build decides, for the next.

    Args:
        device: a CUDA device.
    """
    known, path = key(device), cache_file()
    answer = _recall(path, known)
    remembered = answer is not None
    if answer is None:
        answer = probe(device)
        LOG.info("tiny-cuda-nn on %s: %s", device, answer["kind"])
        if answer["kind"] in REMEMBERED:
            _remember(path, known, answer)
    reason = explain(answer, device)
    return f"{reason} (found earlier; delete '{path}' to try again)" if reason and remembered else reason


def probe(device: torch.device, time_limit: float = TIME_LIMIT) -> dict[str, str]:
    """Try the package in another process.

    Returns: "kind", one of works, import (it fails), capability (built for other GPUs), run (the pass fails), crash
        (the process ended), timeout; and "detail", the error, the signal or the seconds.
    """
    # the packages that this process sees, without the current directory first
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", PASS, str(device)]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=time_limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"kind": "timeout", "detail": f"{time_limit:g}"}
    answer = _answer(next((line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), ""))
    if done.returncode or answer is None:
        names = {-known.value: known.name for known in signal.Signals}
        return {"kind": "crash", "detail": names.get(done.returncode, f"exit code {done.returncode}")}
    if OTHER_GPU.search(answer["detail"]):
        answer["kind"] = "capability"
    return answer


def explain(answer: dict[str, str], device: torch.device) -> str | None:
    """An answer of `probe` as one sentence with the fix, or None when the package works."""
    kind, detail = answer["kind"], " ".join(answer["detail"].split())[:300].rstrip(".")
    name, here = f"tinycudann {version()}", capability(device)
    built = f"torch {torch.__version__} and compute capability {here}"
    again = f"build it again here: {install(here)}"
    if kind == "works":
        return None
    if kind == "import":
        return f"{name} cannot be imported ({detail}); it must be built with {built}; {again}"
    if kind == "capability":
        found = ", ".join(capabilities()) or "others"
        return f"{name} is built for compute capability {found}, this GPU has {here}; {again}"
    if kind == "crash":
        return f"{name} crashes ({detail}) in a small trial; it must be built with {built}; {again}"
    if kind == "timeout":
        return f"{name} did not finish a small trial within {detail} s; try again when the GPU is idle, else {again}"
    return f"{name} fails in a small trial ({detail}); it must be built with {built}; {again}"


def install(capability: str) -> str:
    """The command that builds the package for a compute capability (pip would take its own copy of another build)."""
    return (
        f"TCNN_CUDA_ARCHITECTURES={capability} pip install --force-reinstall --no-deps --no-cache-dir "
        "--no-build-isolation 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch'"
    )


def capability(device: torch.device) -> str:
    """Compute capability as tiny-cuda-nn writes it: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


def version() -> str:
    """The installed version of tinycudann."""
    try:
        return importlib.metadata.version("tinycudann")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def extensions() -> list[Path]:
    """The compiled files: `tinycudann_bindings/_90_C*.so` and the like, one for each compute capability."""
    spec = importlib.util.find_spec("tinycudann_bindings")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    return sorted(f for folder in folders for f in folder.glob("_*_C*") if f.suffix in (".so", ".pyd"))


def capabilities() -> list[str]:
    """Compute capabilities that the compiled files are named for."""
    return sorted({found[1] for f in extensions() if (found := re.match(r"_(\d+)_C", f.name))}, key=int)


def key(device: torch.device) -> str:
    """What an answer depends on."""
    spec = importlib.util.find_spec("tinycudann")
    files = [*([Path(spec.origin)] if spec and spec.origin else []), *extensions()]
    files = [f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files]
    parts = f"tinycudann {version()}", f"torch {torch.__version__}", f"capability {capability(device)}", *files
    return ", ".join(parts)


def cache_file() -> Path:
    """Where answers are remembered: below `XDG_CACHE_HOME`, or ~/.cache where it is not set."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "portrait_diffusion" / "tcnn_probe.json"


def _answer(text: str) -> dict[str, str] | None:
    """A kind and a detail read from JSON, or None when it is something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    good = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("kind", "detail"))
    return found if good else None


def _answers(path: Path) -> dict:
    """All answers of a cache file; none when there is no such file or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _recall(path: Path, known: str) -> dict[str, str] | None:
    """The answer that is remembered for a key, or None."""
    answer = _answer(json.dumps(_answers(path).get(known)))
    return answer if answer is not None and answer["kind"] in REMEMBERED else None


def _remember(path: Path, known: str, answer: dict[str, str]) -> None:
    """Add an answer to a cache file; without the right to write there, the next process tries again."""
    try:
        write_text(path, json.dumps(_answers(path) | {known: answer}, indent=1) + "\n")
    except OSError as error:
        LOG.info("the trial of tiny-cuda-nn cannot be remembered: %s", error)
