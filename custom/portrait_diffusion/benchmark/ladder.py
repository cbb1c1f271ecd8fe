"""The rungs of the ladder: configurations by what they add, and why one cannot be run here."""
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, UsageError
from ..preflight import check_run
from ..schema import read_yaml
from ..settings import load_pipeline_config
from ..shipped import find_config
from .budget import factor_for, stretched_system

LADDER = Path(__file__).with_name("ladder.yaml")
HPDM_GUIDANCE = "portrait-diffusion-hpdm-guidance"


@dataclass
class Rung:
    """One row of the ladder.

    Attributes: name; adds: what it adds, in words; after: the rung that it is compared with, "" for the first; config:
        its whole configuration; cannot: why it cannot be run with so many denoiser rows, "" if it can.
    """

    name: str
    adds: str
    after: str
    config: dict
    cannot: str = ""


def changed(config: dict, changes: dict[str, Any]) -> dict:
    """A copy of a configuration with values at key paths replaced."""
    out = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = out
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = copy.deepcopy(value)
    return out


def read_ladder(path: Path = LADDER) -> dict:
    """Contents of a ladder file. Raises: UsageError for one without base or rungs."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(read_yaml(path))
    missing = [key for key in ("base", "profiles", "rungs") if not content.get(key)]
    if missing:
        raise UsageError(f"The ladder '{path}' has no {', '.join(missing)}; see the shipped one, {LADDER.name}.")
    return content


def make_rungs(ladder: dict, names: list[str] | None = None, rows: int | None = None, hpdm: str = "") -> list[Rung]:
    """Rungs of a ladder, checked.

    Args:
        ladder: of `read_ladder`.
        names: which; all by default.
        rows: denoiser rows for each rung that asks a denoiser; None leaves the stages as they are.
        hpdm: folder of an HPDM for rungs that use one; empty leaves what they say.
    Raises: UsageError for an unknown rung, a rung after none, or an invalid configuration.
    """
    from omegaconf import OmegaConf

    base = OmegaConf.to_container(read_yaml(find_config(ladder["base"])))
    plain: dict[str, dict] = {}
    for name, entry in ladder["rungs"].items():
        if not isinstance(name, str) or not isinstance(entry, dict):
            raise UsageError(f"Rung {name!r} is {entry!r}, expected a name and a section with adds, after, overrides.")
        for key in ("adds", "after"):
            if not isinstance(entry.get(key, ""), str):
                raise UsageError(f"`{key}` of rung '{name}' is {entry[key]!r}, expected words; put it into quotes.")
        after = entry.get("after", "")
        if after and after not in plain:
            raise UsageError(f"Rung '{name}' comes after '{after}', which is no rung before it.")
        plain[name] = changed(plain[after] if after else base, entry.get("overrides") or {})
    unknown = [name for name in names or () if name not in plain]
    if unknown:
        raise UsageError(f"The ladder has no rung '{unknown[0]}'; there are {', '.join(plain)}.")
    rungs = []
    for name in plain:
        if names and name not in names:
            continue
        config, cannot = copy.deepcopy(plain[name]), ""
        if hpdm and config["system"].get("guidance_type") == HPDM_GUIDANCE:
            config["system"]["guidance"]["pretrained_model_name_or_path"] = hpdm
        if rows is not None:
            paced = plain[ladder["rungs"][name].get("length_of", name)]["system"]
            try:
                config["system"] = stretched_system(config["system"], factor_for(paced, rows))
            except UsageError as error:
                cannot = str(error)
        config["name"] = name
        load_pipeline_config(config)
        entry = ladder["rungs"][name]
        rungs.append(Rung(name, entry.get("adds", ""), entry.get("after", ""), config, cannot))
    return rungs


def why_not(rung: Rung) -> str:
    """Why a rung cannot be run here; empty if it can."""
    if rung.cannot:
        return rung.cannot
    try:
        check_run(load_pipeline_config(rung.config)[0], exports=False)
    except EnvironmentProblem as problem:
        return str(problem)
    return ""
