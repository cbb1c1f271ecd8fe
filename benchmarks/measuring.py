"""What the speed benchmarks share: times, the memory's bandwidth, and the circumstances of a run."""
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.export.provenance import device_description, git_state, library_versions  # noqa: E402


def median_ms(function: Callable, device: torch.device, repeats: int, warm_up: int = 3) -> float:
    """Median time of a call in ms; on a GPU between events, so that what the host does meanwhile counts only if it
    keeps the GPU waiting."""
    times = []
    for i in range(repeats + warm_up):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            spent = start.elapsed_time(end)
        else:
            begin = time.perf_counter()
            function()
            spent = 1000 * (time.perf_counter() - begin)
        if i >= warm_up:
            times.append(spent)
    return round(statistics.median(times), 4)


def copy_bandwidth(device: torch.device, mebibytes: int | None = None) -> float:
    """Bytes read plus written per second by a large copy in the device's memory."""
    size = (mebibytes or (1024 if device.type == "cuda" else 64)) << 20
    source = torch.rand(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / (median_ms(lambda: target.copy_(source), device, 10) / 1000)


def circumstances(device: torch.device, argv: list[str] | None) -> dict:
    """Device, commit, versions and command, for a result file; absolute paths are shortened to their last part."""
    words = map(str, sys.argv[1:] if argv is None else argv)
    arguments = [Path(word).name if Path(word).is_absolute() else word for word in words]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "device": device_description(device), "commit": git_state(), "libraries": library_versions(),
    }  # fmt: skip
