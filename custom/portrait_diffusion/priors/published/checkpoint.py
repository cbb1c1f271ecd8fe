"""A published or converted file as names, tensors and arguments, checked; nothing in it is executed."""
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...files import sha256_file
from ...ops.plane_layouts import AXES
from .families import FACTS, known_file
from .safe_pickle import SOURCE, Held, Record, read_pickle
from .sizes import sizes_of

MAX_BYTES = 4 << 30
DEEPEST = 32
DROPPED = "renderer."
"""Prefix of what is not needed: the pyramid's body model."""
KIND = "published-prior"


@dataclass
class Checkpoint:
    """What is in a file.

    Attributes:
        family: by the names of its tensors; state: published names to tensors, without the prefix ``renderer.``.
        arguments: rendering_kwargs, plain values; raw_resolution: of its volume-rendered images, None if not said.
        sha256: of the published file; path: where this came from; name: of the published file if its checksum is known.
    """

    family: str
    state: dict[str, Tensor]
    arguments: dict[str, Any]
    raw_resolution: int | None
    sha256: str
    path: Path
    name: str = ""
    notes: list[str] = field(default_factory=list)


def open_checkpoint(path: str | Path, expected: str | None = None) -> Checkpoint:
    """Read a published ``.pkl`` or a converted ``.safetensors`` (see `convert`).

    Args: expected: family that it must be of, or None.
    Raises: UsageError, one sentence, for files that are missing, damaged, of another kind or family.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"The prior's checkpoint '{path}' does not exist; docs/priors.md says where to get each file.")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path} has {path.stat().st_size >> 20} MiB, more than any published prior; {SOURCE}.")
    with open(path, "rb") as file:
        start = file.read(16)
    if start[:2] == b"PK":
        raise UsageError(
            f"{path} is a zip archive of torch.save, not the authors' .pkl of a whole generator; {SOURCE}."
        )
    found = _converted(path) if path.suffix == ".safetensors" else _published(path)
    if expected is not None and found.family != expected:
        raise UsageError(
            f"{path} is a {FACTS[found.family].title} generator, but prior.type is '{expected}'; set prior.type to "
            f"'{found.family}' or give another file."
        )
    return found


# ---- published pickles -------------------------------------------------------------------------------------------
def _published(path: Path) -> Checkpoint:
    generator = _generator_record(read_pickle(path), path)
    tensors = {name: held.tensor for name, held in _tensors(generator, path)}
    state = {name: value for name, value in tensors.items() if not name.startswith(DROPPED)}
    _check_values(state, path)
    family = _family(state, path)
    arguments = _arguments(generator.state)
    size = generator.state.get("neural_rendering_resolution")
    sha256 = sha256_file(path)
    known = known_file(sha256)
    notes = _axes_notes(generator, family)
    if known is None and FACTS[family].files:
        notes.append("its SHA-256 is none of the published files' (a fine-tuned or damaged file?)")
    return Checkpoint(family, state, arguments, size, sha256, path, known[1] if known else "", notes)


def _generator_record(root: Any, path: Path) -> Record:
    """The averaged generator in a pickle's contents: ``G_ema``, else ``G``, else the object itself."""
    if isinstance(root, dict):
        root = root.get("G_ema") or root.get("G")
    if not isinstance(root, Record) or not isinstance(root.state, dict):
        raise UsageError(f"{path} holds no generator under 'G_ema' or 'G'; {SOURCE}.")
    return root


def _tensors(record: Record, path: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Held]]:
    """Parameters and persistent buffers of a module's record and of its children, by their published names."""
    if depth > DEEPEST:
        raise UsageError(f"{path} nests modules deeper than {DEEPEST}; {SOURCE}.")
    state = record.state if isinstance(record.state, dict) else {}
    skipped = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        values = state.get(kind) or {}
        if not isinstance(values, dict):
            raise UsageError(f"{path}: '{kind}' of '{prefix or 'the generator'}' is no dictionary; {SOURCE}.")
        for name, value in values.items():
            if value is None or (kind == "_buffers" and name in skipped):
                continue
            if not isinstance(value, Held) or value.is_storage or not isinstance(name, str):
                raise UsageError(f"{path}: '{prefix}{str(name)[:60]}' is no tensor; {SOURCE}.")
            yield f"{prefix}{name}", value
    children = state.get("_modules") or {}
    if not isinstance(children, dict):
        raise UsageError(f"{path}: the modules of '{prefix or 'the generator'}' are no dictionary; {SOURCE}.")
    for name, child in children.items():
        if isinstance(child, Record):
            yield from _tensors(child, path, f"{prefix}{name}.", depth + 1)


def _check_values(state: dict[str, Tensor], path: Path) -> None:
    for name, value in state.items():
        if not value.is_floating_point():
            raise UsageError(f"{path}: '{name[:80]}' holds {value.dtype} numbers, expected floating point; {SOURCE}.")
        if not torch.isfinite(value).all():
            raise UsageError(f"{path}: '{name[:80]}' holds values that are not finite; download the file again.")


def _family(state: dict[str, Tensor], path: Path) -> str:
    try:
        return sizes_of({name: tuple(value.shape) for name, value in state.items()}).family
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def plain(value: Any, depth: int = 0) -> Any:
    """Numbers, texts, lists and dictionaries as they are; anything else as None."""
    if depth > DEEPEST:
        return None
    if isinstance(value, dict):
        return {str(k)[:100]: plain(v, depth + 1) for k, v in value.items() if isinstance(k, str | int)}
    if isinstance(value, list | tuple):
        return [plain(v, depth + 1) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else None


def _arguments(state: dict) -> dict:
    """rendering_kwargs: the attribute, else the constructor's argument."""
    given = state.get("rendering_kwargs")
    if not isinstance(given, dict):
        arguments = state.get("_init_kwargs")
        given = arguments.get("rendering_kwargs") if isinstance(arguments, dict) else None
    return plain(given) if isinstance(given, dict) else {}


def _axes_notes(generator: Record, family: str) -> list[str]:
    """A note when the file says that its planes have other axes than its family's: compared, never adopted silently."""
    held: Any = generator
    for kind, name in (("_modules", "renderer"), ("plane_axes", None)):
        state = held.state if isinstance(held, Record) and isinstance(held.state, dict) else {}
        held = state.get(kind)
        held = held.get(name) if name and isinstance(held, dict) else held
    if not isinstance(held, Held) or tuple(held.tensor.shape) != (3, 3, 3):
        return []
    inverse = torch.linalg.inv_ex(held.tensor.double()).inverse
    wanted = torch.zeros(3, 3, 3, dtype=torch.float64)
    for plane, axes in enumerate(AXES[family]):
        for component, axis in enumerate(axes[:2]):
            wanted[plane, axis, component] = 1.0
    if torch.equal(inverse[:, :, :2].round(), wanted[:, :, :2]):
        return []
    return ["its planes have other axes than its family's: heads from it will look wrong"]


# ---- converted files ---------------------------------------------------------------------------------------------
def _converted(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as handle:
            header = handle.metadata() or {}
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is no readable safetensors file ({error}); convert the .pkl again.") from error
    if header.get("kind") != KIND:
        raise UsageError(
            f"{path} was not written by convert-prior (kind '{str(header.get('kind'))[:40]}'); run: "
            "launch_portrait.py convert-prior FILE.pkl."
        )
    try:
        facts = json.loads(header["facts"])
        arguments, size, sha256 = facts["arguments"], facts["raw_resolution"], str(facts["sha256"])
        if not isinstance(arguments, dict):
            raise TypeError("arguments are no dictionary")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"The header of {path} cannot be used ({error}); convert the published file again.") from error
    _check_values(state, path)
    return Checkpoint(_family(state, path), state, arguments, size, sha256, path, str(facts.get("name", ""))[:200])
