"""Files that appear whole or not at all.

Everything is written under a temporary name in the target's own folder, so on the same file system, and then renamed
over the target. A reader sees the old file or the new one, never a part; an error leaves the old one. A killed process
leaves ``.partial-PID-NAME`` behind, which `remove_partial_files` deletes.
"""
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

PARTIAL_PREFIX = ".partial-"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; on success it replaces ``path``, on any exception it is removed.

    Args: path: the final file; its folder is created.
    Raises: FileNotFoundError when the block wrote nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL_PREFIX}{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def leads_out(text: str) -> bool:
    """Whether a text, as written, is a path out of the folder it is read in: absolute on any system, or up, or home."""
    windows = PureWindowsPath(text)
    if "\0" in text or PurePosixPath(text).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        return True
    return bool(re.match(r"~[\w.-]*([/\\]|$)", text) or re.match(r"file:", text, re.IGNORECASE))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file with \\n line ends atomically."""
    write_bytes(path, text.encode("utf-8"))


def save_tensors(path: str | Path, tensors: dict, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically.

    Args: tensors: name -> contiguous tensor; metadata: texts for the header.
    Raises: OSError for a full disk or a folder that can't be written, which safetensors wraps in an error of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as partial:
        try:
            save_file(tensors, str(partial), metadata=metadata)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_partial_files(folder: str | Path) -> int:
    """Delete what a killed process left behind in ``folder`` and one level below; returns the number of files."""
    folder = Path(folder)
    stale = [*folder.glob(f"{PARTIAL_PREFIX}*"), *folder.glob(f"*/{PARTIAL_PREFIX}*")]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)
