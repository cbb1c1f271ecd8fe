"""export.json: which artefacts are complete, from what they were made, and what their files must hash to."""
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import sha256_file, write_text
from .provenance import config_hash

NAME = "export.json"
VERSION = 1


class Manifest:
    """The record of finished artefacts in one output folder; a damaged or older record counts as empty.

    Args: folder: the output folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.artefacts: dict[str, dict[str, Any]] = {}
        try:
            data = json.loads((self.folder / NAME).read_text(encoding="utf-8"))
            if data.get("version") == VERSION and isinstance(data.get("artefacts"), dict):
                self.artefacts = {k: v for k, v in data["artefacts"].items() if isinstance(v, dict)}
        except (OSError, ValueError, AttributeError):
            pass  # nothing usable recorded: everything is made again

    def is_current(self, name: str, inputs: Any) -> bool:
        """True when the artefact was made from these inputs and all its files still have the recorded hashes."""
        entry = self.artefacts.get(name, {})
        files = entry.get("files")
        if entry.get("inputs_sha256") != config_hash(inputs) or not isinstance(files, dict) or not files:
            return False
        return all((self.folder / f).is_file() and sha256_file(self.folder / f) == sha for f, sha in files.items())

    def record(self, name: str, inputs: Any, paths: Iterable[Path], seconds: float, facts: dict | None = None) -> None:
        """Note a finished artefact and write the record. Args: paths below the folder; facts: plain values to keep."""
        self.artefacts[name] = {
            "inputs_sha256": config_hash(inputs),
            "files": {Path(p).relative_to(self.folder).as_posix(): sha256_file(p) for p in paths},
            "seconds": round(seconds, 3),
            "facts": facts or {},
        }
        write_text(self.folder / NAME, json.dumps({"version": VERSION, "artefacts": self.artefacts}, indent=2) + "\n")

    def facts(self, name: str) -> dict[str, Any]:
        """What was kept with an artefact."""
        return self.artefacts.get(name, {}).get("facts", {})

    def hashes(self, name: str) -> dict[str, str]:
        """File name -> SHA-256 of an artefact."""
        return self.artefacts.get(name, {}).get("files", {})

    def seconds(self) -> dict[str, float]:
        """Artefact -> seconds it took to make."""
        return {name: entry.get("seconds", 0.0) for name, entry in self.artefacts.items()}
