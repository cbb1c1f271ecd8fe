"""HPDM on disk: a folder with one sub-folder a part, each as diffusers writes it (config.json, safetensors).

The file ``model_index.json`` names the parts and their classes, as that of a diffusers pipeline does.
"""
import copy
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    UNet2DConditionModel,
)

from ...errors import EnvironmentProblem, UsageError
from ...files import write_text
from .cameras import CameraTokens
from .implicit import ImplicitBranch
from .model import HPDM

PARTS = {
    "unet": (UNet2DConditionModel,), "explicit": (ControlNetModel,), "reference": (ControlNetModel,),
    "implicit": (ImplicitBranch,), "vae": (AutoencoderTiny, AutoencoderKL), "cameras": (CameraTokens,),
}  # fmt: skip
NOTES = ("_name_or_path",)
"""What diffusers notes for itself in any part: where it was loaded from on this machine."""
TINY_NOTES = (*NOTES, "block_out_channels")
"""AutoencoderTiny notes a key, too, which it warns of at loading."""
INDEX = "model_index.json"
MAX_INDEX_BYTES = 64 * 1024


def save_hpdm(model: HPDM, folder: str | Path, half: bool = True) -> Path:
    """Write every part; `half` stores weights in half precision. Returns the folder.

    The index is written last: a folder without it is not finished.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    index = {"_class_name": "HPDM"}
    for name in PARTS:
        part = getattr(model, name)
        if part is None:
            continue
        stored = copy.deepcopy(part).half() if half else part
        stored.save_pretrained(folder / name, safe_serialization=True)
        _drop_keys(folder / name / "config.json", TINY_NOTES if isinstance(part, AutoencoderTiny) else NOTES)
        index[name] = type(part).__name__
    model.scheduler.save_pretrained(folder / "scheduler")
    write_text(folder / INDEX, json.dumps({**index, "scheduler": "DDIMScheduler"}, indent=1) + "\n")
    return folder


def _drop_keys(path: Path, keys: tuple) -> None:
    """Take out of a configuration what does not belong into a file for others."""
    config = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps({k: v for k, v in config.items() if k not in keys}, indent=2) + "\n")


def load_hpdm(folder: str | Path) -> HPDM:
    """Read a folder written by `save_hpdm`, as float32 on the CPU, in evaluation mode.

    Raises: EnvironmentProblem when the folder or a part is missing, UsageError when a part cannot be used.
    """
    folder = Path(folder)
    index = _read_index(folder)
    parts: dict = {"cameras": None}
    for name, kinds in PARTS.items():
        if name not in index:
            if name == "cameras":
                continue
            raise UsageError(f"{folder / INDEX} names no '{name}'; it is not a complete HPDM folder.")
        kind = next((k for k in kinds if k.__name__ == index[name]), None)
        if kind is None:
            allowed = " or ".join(k.__name__ for k in kinds)
            raise UsageError(f"{folder / INDEX} says '{name}' is a {str(index[name])[:40]}; expected {allowed}.")
        parts[name] = _load(kind, folder / name)
    scheduler = _load(DDIMScheduler, folder / "scheduler")
    try:
        return HPDM(**parts, scheduler=scheduler).eval()
    except ValueError as error:
        raise UsageError(f"The parts in {folder} do not fit together: {error}.") from error


def _read_index(folder: Path) -> dict:
    path = folder / INDEX
    if not path.is_file():
        raise EnvironmentProblem(
            f"No HPDM model in {folder} ({INDEX} is missing); give the folder that train-hpdm wrote, or reinstall the "
            "package for the bundled one."
        )
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("it is too large")
        index = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise UsageError(f"{path} cannot be read ({error}); expected the index of an HPDM folder.") from error
    return index


def _load(kind, folder: Path):
    """One part by diffusers' own loader: local files, safetensors only."""
    if not folder.is_dir():
        raise EnvironmentProblem(f"The HPDM part {folder} is missing; copy or train the model again.")
    options = {"local_files_only": True}
    if issubclass(kind, torch.nn.Module):
        options |= {"use_safetensors": True, "low_cpu_mem_usage": False, "torch_dtype": torch.float32}
    try:
        return kind.from_pretrained(str(folder), **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise UsageError(f"The HPDM part {folder} cannot be loaded as {kind.__name__}: {first}") from error
