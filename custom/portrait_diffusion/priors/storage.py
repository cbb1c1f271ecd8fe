"""Reading and writing prior weights: safetensors with the sizes in the header, half precision on disk, float32 in memory."""
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..errors import EnvironmentProblem, UsageError
from .networks import PriorSpec

MAX_BYTES = 512 * 1024 * 1024


def save_weights(module: nn.Module, path: str | Path, spec: PriorSpec, kind: str, info: dict | None = None) -> Path:
    """Write a network's state in half precision, with its sizes, atomically.

    Args:
        module: network to save.
        path: target, ending in ``.safetensors``.
        spec: sizes; stored as JSON in the header.
        kind: what the file holds (``"generator"``, ``"encoder"``); checked when loading.
        info: strings for the header (steps, date, data).
    Returns: the path.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().to(torch.float16).contiguous() for k, v in module.state_dict().items()}
    header = {"kind": kind, "spec": json.dumps(asdict(spec)), **{k: str(v) for k, v in (info or {}).items()}}
    temporary = path.with_suffix(".tmp")
    save_file(state, str(temporary), metadata=header)
    os.replace(temporary, path)
    return path


def read_header(path: str | Path) -> dict:
    """Metadata of a weights file. Raises EnvironmentProblem if it is missing, UsageError if it is not such a file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise EnvironmentProblem(f"Weights file not found: {path}; reinstall the package or give another path in the config.")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path} is {path.stat().st_size >> 20} MiB; bundled-prior weights are under {MAX_BYTES >> 20} MiB.")
    try:
        with safe_open(str(path), framework="pt") as handle:
            return dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file ({error}); download or train it again.") from error


def load_spec(path: str | Path, kind: str) -> PriorSpec:
    """Sizes stored in a weights file of the given kind."""
    header = read_header(path)
    if header.get("kind") != kind:
        raise UsageError(f"{path} holds '{header.get('kind')}' weights, expected '{kind}'; check the path in the config.")
    known = PriorSpec.__dataclass_fields__
    return PriorSpec(**{k: v for k, v in json.loads(header["spec"]).items() if k in known})


def load_weights(module: nn.Module, path: str | Path, kind: str) -> nn.Module:
    """Strictly load a network saved by `save_weights`. Raises UsageError when names or shapes differ."""
    from safetensors.torch import load_file

    load_spec(path, kind)
    state = {k: v.float() for k, v in load_file(str(path)).items()}
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if len(str(error).splitlines()) > 1 else str(error)
        raise UsageError(f"{path} does not fit the network: {first}") from error
    return module
