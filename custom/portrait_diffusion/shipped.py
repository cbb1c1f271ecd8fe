"""The configurations that ship, by name."""
import difflib
from pathlib import Path

from .errors import UsageError

CONFIGS = Path(__file__).resolve().parent / "configs"


def find_config(text: str | None) -> Path | None:
    """File of ``--config``: a path, or the bare name of a shipped configuration; None stays None (the default).

    Raises: UsageError when there is neither.
    """
    if text is None or Path(text).is_file():
        return None if text is None else Path(text)
    shipped = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
    if text in shipped:
        return shipped[text]
    near = difflib.get_close_matches(Path(text).stem, shipped, n=1, cutoff=0.5) or sorted(shipped)
    raise UsageError(f"There is no configuration '{text}'; give a YAML file, or the name of a shipped one: {near[0]}.")
