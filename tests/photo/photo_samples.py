"""Photographs for the tests of this folder."""
import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASTRONAUT = ROOT / "examples" / "astronaut.png"
PORTRAITS = ROOT.parent / "shared" / "data" / "portraits_cc0"


def portraits() -> list[dict]:
    """Rows of the portraits' index with a ``path``; skips the test where the photos are not at hand."""
    if not (PORTRAITS / "index.csv").is_file():
        pytest.skip(f"the CC0 portraits are not in '{PORTRAITS}'")
    with (PORTRAITS / "index.csv").open(newline="") as stream:
        return [dict(row, path=PORTRAITS / f"{row['id']}.jpg") for row in csv.DictReader(stream)]
