"""share.yaml: the configuration with its overrides, fit to be given away - no timestamp, no paths that lead out."""
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from ..files import leads_out, write_text
from .made_with import made_with, pin_revisions

RUN_KEYS = ("timestamp", "use_timestamp", "trial_name", "trial_dir", "exp_dir", "n_gpus", "resume")
"""Top-level keys that name one run, not the experiment."""


def _shareable(value: Any, base: Path, where: str, cut: list[str]) -> Any:
    """A copy with absolute paths below ``base`` made relative; others that lead out, which a fetched configuration may
    not (`remote.check_paths`), are cut to their last part and noted in ``cut``."""
    if isinstance(value, Mapping):
        named = [(_shareable_text(str(key), base, where, cut), inner) for key, inner in value.items()]
        return {key: _shareable(inner, base, f"{where}.{key}" if where else key, cut) for key, inner in named}
    if isinstance(value, list | tuple):
        return [_shareable(v, base, f"{where}[{i}]", cut) for i, v in enumerate(value)]
    if isinstance(value, str | Path) and where != "description":
        return _shareable_text(str(value), base, where, cut)
    return value


def _shareable_text(text: str, base: Path, where: str, cut: list[str]) -> str:
    """The same of one text, a value or the key of a section."""
    if not leads_out(text):
        return text
    path, name = Path(text), PureWindowsPath(text).name  # splits at both kinds of slash
    if path.is_absolute() and path.is_relative_to(base) and ".." not in path.parts:
        return path.relative_to(base).as_posix()
    cut.append(where)
    return "" if name == ".." or leads_out(name) else name


def shareable_config(
    config: Mapping | DictConfig, overrides: Iterable[str] = (), base: str | Path = ".",
    weights: Mapping[str, str | Path] | None = None,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """The configuration with overrides merged in, without run keys, with relative paths inside ``base`` only.

    A configuration with a ``system`` gets ``system.made_with`` (see `made_with.made_with`), and the hub ids of its
    models the revisions that were used.

    Args: config: raw configuration, ``${...}`` stays as written.  overrides: ``a.b=c`` texts.  base: folder that
        relative paths start from.  weights: name -> file that was used, for their hashes.
    Returns: plain values, and the key paths whose folders were cut off.
    """
    merged = OmegaConf.merge(OmegaConf.create(config), OmegaConf.from_dotlist(list(overrides)))
    plain = OmegaConf.to_container(merged, resolve=False)
    cut: list[str] = []
    kept = {k: v for k, v in plain.items() if k not in RUN_KEYS}
    if isinstance(kept.get("system"), dict):
        made = made_with(kept, weights)
        pin_revisions(kept, made)
        kept["system"]["made_with"] = made
    return _shareable(kept, Path(base).absolute(), "", cut), cut


def write_share(
    path: str | Path, config: Mapping | DictConfig, overrides: Iterable[str] = (), base: str | Path = ".",
    weights: Mapping[str, str | Path] | None = None,
) -> None:  # fmt: skip
    """Write share.yaml, atomically. Args: see shareable_config."""
    plain, cut = shareable_config(config, overrides, base, weights)
    header = "# Configuration of this result, ready to share: overrides merged in, no timestamp, relative paths only.\n"
    if cut:
        header += f"# Folders were removed from these paths; put your own files there: {', '.join(cut)}\n"
    write_text(path, header + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))
