"""Prior weights: safetensors with the sizes in the header, half precision on disk, float32 in memory."""
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..errors import EnvironmentProblem, UsageError
from ..files import save_tensors
from .networks import PriorSpec

MAX_BYTES = 512 * 1024 * 1024
LARGEST = 2048
"""Upper limit of every size in a header."""


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
    path = Path(path)
    state = {k: v.detach().cpu().to(torch.float16).contiguous() for k, v in module.state_dict().items()}
    header = {"kind": kind, "spec": json.dumps(asdict(spec)), **{k: str(v) for k, v in (info or {}).items()}}
    save_tensors(path, state, header)
    return path


def read_header(path: str | Path) -> dict:
    """Metadata of a weights file. Raises EnvironmentProblem if it is missing, UsageError if it is not such a file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise EnvironmentProblem(f"Weights file not found: {path}; reinstall the package or give another path.")
    if path.stat().st_size > MAX_BYTES:
        size = path.stat().st_size >> 20
        raise UsageError(f"{path} has {size} MiB; weights of the bundled prior are under {MAX_BYTES >> 20} MiB.")
    try:
        with safe_open(str(path), framework="pt") as handle:
            return dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file ({error}); download or train it again.") from error


def load_spec(path: str | Path, kind: str) -> PriorSpec:
    """Sizes stored in a weights file of the given kind.

    Raises: UsageError if the file is of another kind or its sizes are missing, malformed or beyond `LARGEST`.
    """
    header = read_header(path)
    if header.get("kind") != kind:
        found = str(header.get("kind"))[:40]
        raise UsageError(f"{path} holds '{found}' weights, expected '{kind}'; check the path and system.prior.type.")
    try:
        values = json.loads(header["spec"])
        spec = PriorSpec(**{k: v for k, v in values.items() if k in PriorSpec.__dataclass_fields__})
        _check_sizes(spec)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"The sizes in the header of {path} cannot be used ({error}); train it again.") from error
    return spec


def _check_sizes(spec: PriorSpec) -> None:
    """Raise ValueError for sizes that no network of ours has, so that a hostile header cannot ask for all memory."""
    compound = ("channels", "encoder_channels", "injected", "frontal")
    numbers = {name: value for name, value in vars(spec).items() if name not in compound}
    numbers |= {f"channels[{r}]": c for r, c in spec.channels.items()}
    numbers |= {f"encoder_channels[{r}]": c for r, c in spec.encoder_channels.items()}
    for name, value in numbers.items():
        if not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise ValueError(f"{name} is {str(value)[:40]}, expected a whole number from 1 to {LARGEST}")
    if spec.mapping_layers > 16:
        raise ValueError(f"mapping_layers is {spec.mapping_layers}, expected at most 16")
    if spec.encoded_layers > spec.frontal_layers:
        raise ValueError(f"encoded_layers is {spec.encoded_layers}, expected at most the {spec.frontal_layers} layers")
    if spec.encoder_input != 256:
        raise ValueError(f"encoder_input is {spec.encoder_input}, expected 256: its layers are made for that")
    if spec.plane_resolution < 4 or spec.plane_resolution & (spec.plane_resolution - 1):
        raise ValueError(f"plane_resolution is {spec.plane_resolution}, expected a power of two from 4")
    missing = [f"channels[{r}]" for r in spec.resolutions if r not in spec.channels]
    missing += [f"encoder_channels[{2**i}]" for i in range(2, 8) if 2**i not in spec.encoder_channels]
    missing += [f"injected {r}" for r in spec.injected if r not in (8, 16, 32, 64) or r not in spec.channels]
    missing += [f"frontal {r}" for r in spec.frontal if r not in (8, 16, 32, 64, 128) or r not in spec.channels]
    missing += [f"both injected and frontal {r}" for r in spec.frontal if r in spec.injected]
    if missing:
        raise ValueError(f"there are no sizes for {', '.join(missing)}")


def load_weights(module: nn.Module, path: str | Path, kind: str) -> nn.Module:
    """Strictly load a network saved by `save_weights`.

    Raises: UsageError when the file is damaged, names or shapes differ, or a value is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    load_spec(path, kind)
    try:
        state = {k: v.float() for k, v in load_file(str(path)).items()}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file ({error}); download or train it again.") from error
    broken = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if broken:
        raise UsageError(f"{path} holds values that are not finite, in '{broken[0]}'; download or train it again.")
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if len(str(error).splitlines()) > 1 else str(error)
        raise UsageError(f"{path} does not fit the network: {first}") from error
    return module
