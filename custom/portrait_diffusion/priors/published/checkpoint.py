"""A published or converted file as names, tensors and arguments, checked; nothing in it is executed."""
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...files import sha256_file
from ...ops.plane_layouts import AXES
from .families import FACTS, known_file
from .plain_values import DEEPEST, plain, shown
from .safe_pickle import SOURCE, Held, Record, read_pickle
from .sizes import sizes_of

MAX_BYTES = 4 << 30
MOST_MODULES = 10_000
MOST_TENSORS = 10_000
LONGEST_NAME = 500
DROPPED = "renderer."
"""Prefix of what is not needed: the pyramid's body model."""
KIND = "published-prior"


@dataclass
class Checkpoint:
    """What is in a file.

    Attributes:
        family: by the names of its tensors; state: published names to tensors, without the prefix ``renderer.``.
        arguments: rendering_kwargs, plain values; raw_resolution: of its volume-rendered images, None if not said.
        sha256: of the published file, for a converted one as its header has it; empty if the numbers were not read.
        path: where this came from; name: of the published file if its checksum is known.
    """

    family: str
    state: dict[str, Tensor]
    arguments: dict[str, Any]
    raw_resolution: int | None
    sha256: str
    path: Path
    name: str = ""
    notes: list[str] = field(default_factory=list)


def open_checkpoint(path: str | Path, expected: str | None = None, numbers: bool = True) -> Checkpoint:
    """Read a published ``.pkl`` or a converted ``.safetensors`` (see `convert`).

    Args:
        expected: family that it must be of, or None.
        numbers: False reads names, shapes and arguments alone, in a fraction of the time: the tensors are on the device
            ``meta``, and nothing is said of checksums.
    Raises: UsageError, one sentence, for files that are missing, damaged, of another kind or family.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"The prior's checkpoint '{path}' is a folder; name the file in it.")
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
    found = _converted(path, numbers) if _is_safetensors(path, start) else _published(path, numbers)
    if expected is not None and found.family != expected:
        raise UsageError(
            f"{path} holds a generator of {FACTS[found.family].title}, but prior.type is '{expected}'; set "
            f"prior.type to '{found.family}' or give another file."
        )
    return found


def _is_safetensors(path: Path, start: bytes) -> bool:
    """Whether a file is of that kind, by its name or by its first bytes: the length of a header, then JSON."""
    length = int.from_bytes(start[:8], "little")
    return path.suffix == ".safetensors" or (start[8:9] == b"{" and length < path.stat().st_size)


# ---- published pickles -------------------------------------------------------------------------------------------
def _published(path: Path, numbers: bool) -> Checkpoint:
    generator = _generator_record(read_pickle(path, numbers), path)
    state = {name: held.tensor for name, held in _tensors(generator, path)}
    _check_values(state, path)
    family = _family(state, path)
    size = plain(generator.state.get("neural_rendering_resolution"))
    found = Checkpoint(family, state, _arguments(generator.state), size, "", path)
    if not numbers:
        return found
    found.sha256 = sha256_file(path)
    found.name, found.notes = _known_name(found.sha256, family), _axes_notes(generator, family)
    if not found.name and FACTS[family].files:
        found.notes.append("its SHA-256 is none of the published files' (a fine-tuned or damaged file?)")
    return found


def _known_name(sha256: str, family: str) -> str:
    """File name of a published file of a family, empty for another checksum."""
    known = known_file(sha256)
    return known[1] if known is not None and known[0] == family else ""


def _generator_record(root: Any, path: Path) -> Record:
    """The averaged generator in a pickle's contents: ``G_ema``, else ``G``, else the object itself."""
    if isinstance(root, dict):
        root = root.get("G_ema") or root.get("G")
    if not isinstance(root, Record) or not isinstance(root.state, dict):
        raise UsageError(f"{path} holds no generator under 'G_ema' or 'G'; {SOURCE}.")
    return root


def _tensors(generator: Record, path: Path) -> Iterator[tuple[str, Held]]:
    """Parameters and persistent buffers of a module's record and of its children, by their published names.

    What is below `DROPPED` is not looked at. A module in many places counts in each: small pickles can hold vast trees.
    So do its tensors, and names are bounded: each is made of those of the modules around it.
    Raises: UsageError.
    """

    def joined(prefix: str, name: str) -> str:
        if len(prefix) + len(name) > LONGEST_NAME:
            raise UsageError(f"{path} has names longer than {LONGEST_NAME} letters; {SOURCE}.")
        return prefix + name

    left = [("", generator, 0)]
    modules = tensors = 0
    while left:
        prefix, record, depth = left.pop()
        modules += 1
        here = shown(prefix, 80) or "the generator"
        if depth > DEEPEST:
            raise UsageError(f"{path} nests modules deeper than {DEEPEST}; {SOURCE}.")
        if modules + len(left) > MOST_MODULES:
            raise UsageError(f"{path} has more than {MOST_MODULES} modules; {SOURCE}.")
        state = record.state if isinstance(record.state, dict) else {}
        skipped = state.get("_non_persistent_buffers_set")
        skipped = skipped if isinstance(skipped, set) else set()
        for kind in ("_parameters", "_buffers"):
            values = state.get(kind) or {}
            if not isinstance(values, dict):
                raise UsageError(f"{path}: '{kind}' of '{here}' is no dictionary; {SOURCE}.")
            tensors += len(values)
            if tensors > MOST_TENSORS:
                raise UsageError(f"{path} has more than {MOST_TENSORS} tensors; {SOURCE}.")
            for name, value in values.items():
                if value is None or (kind == "_buffers" and name in skipped):
                    continue
                if not isinstance(value, Held) or value.is_storage or not isinstance(name, str):
                    label = shown(name, 60) if isinstance(name, str) else "a nameless entry"
                    raise UsageError(f"{path}: '{label}' of '{here}' is no tensor; {SOURCE}.")
                yield joined(prefix, name), value
        children = state.get("_modules") or {}
        if not isinstance(children, dict):
            raise UsageError(f"{path}: the modules of '{here}' are no dictionary; {SOURCE}.")
        inner = [
            (joined(prefix, name) + ".", child, depth + 1) for name, child in islice(children.items(), MOST_MODULES)
            if isinstance(child, Record) and isinstance(name, str)
        ]  # fmt: skip
        left += reversed([item for item in inner if not item[0].startswith(DROPPED)])


def _check_values(state: dict[str, Tensor], path: Path) -> None:
    """Raise UsageError for numbers that are no floating point, or, where they have been read, not finite."""
    for name, value in state.items():
        if not value.is_floating_point():
            raise UsageError(
                f"{path}: '{shown(name, 80)}' holds {value.dtype} numbers, expected floating point; {SOURCE}."
            )
        if not value.is_meta and not torch.isfinite(value).all():
            raise UsageError(f"{path}: '{shown(name, 80)}' holds values that are not finite; download the file again.")


def _family(state: dict[str, Tensor], path: Path) -> str:
    try:
        return sizes_of({name: tuple(value.shape) for name, value in state.items()}).family
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


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
def _converted(path: Path, numbers: bool) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as handle:
            header = handle.metadata() or {}
            read = handle.get_tensor if numbers else lambda name: _unread(handle.get_slice(name))
            state = {name: read(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is no readable safetensors file ({error}); convert the .pkl again.") from error
    if header.get("kind") != KIND:
        raise UsageError(
            f"{path} was not written by convert-prior (kind '{str(header.get('kind'))[:40]}'); run: "
            "launch_portrait.py convert-prior FILE.pkl."
        )
    try:
        facts = json.loads(header["facts"])
        arguments, size, sha256 = plain(facts["arguments"]), plain(facts["raw_resolution"]), str(facts["sha256"])
        if not isinstance(arguments, dict):
            raise TypeError("arguments are no dictionary")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError("sha256 is none")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"The header of {path} cannot be used ({error}); convert the published file again.") from error
    _check_values(state, path)
    family = _family(state, path)
    return Checkpoint(family, state, arguments, size, sha256, path, _known_name(sha256, family))


def _unread(part: Any) -> Tensor:
    """A tensor of a safetensors file without its numbers."""
    dtype = torch.float32 if "F" in part.get_dtype() else torch.int64
    return torch.empty(part.get_shape(), dtype=dtype, device="meta")
