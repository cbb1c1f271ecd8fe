"""Schedules, device and rank, loading of weights, newest trial folder."""
import gc
import math
import os
from typing import Any

import torch

from ..errors import EnvironmentProblem, UsageError
from .config import schedule_knots

_forced_device: torch.device | None = None


def C(value: Any, epoch: int, global_step: int, interpolation: str = "linear") -> float:
    r"""Value of a schedule: v = v0 + (v1 - v0) t, t = clamp((s - s0) / (s1 - s0), 0, 1).

    Args:
        value: a number (returned as is) or an OmegaConf list, see `schedule_knots`; a segment that ends at an int
            counts global steps, at a float epochs; of several segments the one in force is chosen by global step.
        epoch, global_step: where training stands, from 0.
        interpolation: ``"linear"``, or ``"exp"`` for linear in the logarithm (positive values only).

    Raises: ValueError, TypeError, AssertionError as `schedule_knots`; ZeroDivisionError for a segment of length 0.
    """
    if isinstance(value, int | float):
        return value
    knots = schedule_knots(value)
    segment = 0
    for i in range(1, len(knots) - 1):
        if global_step >= knots[i][0]:
            segment = i
    (s0, v0), (s1, v1) = knots[segment], knots[segment + 1]
    now = epoch if isinstance(s1, float) else global_step
    t = min(max((now - s0) / (s1 - s0), 0.0), 1.0)
    if interpolation == "linear":
        return v0 + (v1 - v0) * t
    if interpolation == "exp":
        return math.exp(math.log(v0) * (1.0 - t) + math.log(v1) * t)
    raise ValueError(f"interpolation must be 'linear' or 'exp', got '{interpolation}'.")


def get_rank() -> int:
    """Index of this process on a multi-device run, 0 alone; read from the environment that launchers set."""
    for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if os.environ.get(key) is not None:
            return int(os.environ[key])
    return 0


def set_device(device: str | None) -> None:
    """Device on which modules made from now on are created; None chooses by availability again.

    Raises: UsageError if the name means no device of this torch, EnvironmentProblem for a GPU that is not there.
    """
    global _forced_device
    try:
        _forced_device = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"'{device}' is no device; use 'cpu', 'cuda' or 'cuda:0'.") from error
    if _forced_device is not None and _forced_device.type == "cuda":
        count = torch.cuda.device_count()
        if (_forced_device.index or 0) >= count:
            wanted, _forced_device = _forced_device, None
            raise EnvironmentProblem(
                f"The device '{wanted}' was asked for, but the CUDA GPUs that this torch sees are {count}; "
                "use --device cpu, or a torch built for CUDA and a working driver."
            )


def get_device() -> torch.device:
    """The device given to `set_device`, else this rank's GPU where there is one, else the CPU."""
    if _forced_device is not None:
        return _forced_device
    return torch.device(f"cuda:{get_rank()}") if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    """Wait for the other processes of a distributed run; returns at once without one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def cleanup() -> None:
    """Release memory that Python and the GPU allocator no longer need."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_module_weights(
    path: str,
    module_name: str | None = None,
    ignore_modules: list[str] | None = None,
    map_location: Any = None,
) -> tuple[dict[str, torch.Tensor], int, int]:
    """Read a checkpoint's tensors without running any code from it.

    Args:
        path: checkpoint file, a dict with ``state_dict, epoch, global_step``.
        module_name: keep only this module's entries, and drop ``module_name.`` from their names.
        ignore_modules: leave out the entries of these modules; not together with `module_name`.
        map_location: as torch.load; default `get_device()`.

    Returns: (state_dict, epoch, global_step).
    Raises: ValueError if both filters are given, UsageError if the file is no such checkpoint or has no such module.
    """
    if module_name is not None and ignore_modules:
        raise ValueError("module_name and ignore_modules exclude each other.")
    checkpoint = torch.load(path, map_location=map_location or get_device(), weights_only=True)
    missing = {"state_dict", "epoch", "global_step"} - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        raise UsageError(f"{path} is no training checkpoint: it lacks {', '.join(sorted(missing))}.")
    state_dict = checkpoint["state_dict"]
    if module_name is not None:
        prefix = f"{module_name}."
        state_dict = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        if not state_dict:
            roots = sorted({k.split(".")[0] for k in checkpoint["state_dict"]})
            raise UsageError(f"{path} holds no module '{module_name}'; it holds {', '.join(roots) or 'nothing'}.")
    elif ignore_modules:
        prefixes = tuple(f"{name}." for name in ignore_modules)
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(prefixes)}
    return state_dict, checkpoint["epoch"], checkpoint["global_step"]


def find_last_path(path: str) -> str:
    """Replace ``<prefix>LAST`` in a path by the folder whose name starts with the prefix and sorts last.

    The prefix is plain text: write ``tag@LAST``, because ``tagLAST`` also matches ``tag_two``. Spaces become '_'.

    Raises: IndexError if no folder matches.
    """
    if "LAST" not in path:
        return path
    before, after = path.replace(" ", "_").split("LAST", 1)
    folder, prefix = os.path.split(before)
    names = [n for n in os.listdir(folder or ".") if n.startswith(prefix) and os.path.isdir(os.path.join(folder, n))]
    if not names:
        raise IndexError(f"No folder in '{folder or '.'}' starts with '{prefix}', needed for '{path}'.")
    return os.path.join(folder, sorted(names)[-1]) + after
