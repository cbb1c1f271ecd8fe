"""What made a shared configuration: version, hashes of weights, revisions of public models; and what differs here."""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..guidance.hpdm_guidance import HPDMGuidance, is_own_model, model_folder
from ..guidance.sd_guidance import SDGuidance
from .provenance import sha256_file

MODEL = "pretrained_model_name_or_path"
OWN_GUIDANCES = {
    "portrait-diffusion-hpdm-guidance": getattr(HPDMGuidance.Config, MODEL),
    "portrait-diffusion-sd-guidance": getattr(SDGuidance.Config, MODEL),
}
"""Guidances whose model may be a hub id with a revision, ``user/name@revision``, and the model they take unasked."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_id(text: Any) -> bool:
    """Whether a model is named by hub id, ``user/name`` or ``user/name@revision``, and no such folder is here."""
    return isinstance(text, str) and bool(_HUB_ID.fullmatch(text)) and not Path(text).exists()


def own_guidances(system: Mapping[str, Any]) -> list[tuple[str, dict]]:
    """This package's guidances in a system's section, its own and the extra ones: (registered name, section).

    A class that is mixed from several (``main:a,b``) counts as the first one of them that is ours.
    """
    found = [(system.get("guidance_type"), system.get("guidance"))]
    extras = [extra for extra in system.get("extra_guidances") or [] if isinstance(extra, Mapping)]
    found += [(extra.get("type"), extra.get("guidance")) for extra in extras]
    named = [(next((part for part in re.split("[:,]", str(kind)) if part in OWN_GUIDANCES), ""), section or {})
             for kind, section in found]  # fmt: skip
    return [(kind, section) for kind, section in named if kind and isinstance(section, dict)]


def named_models(system: Mapping[str, Any]) -> list[tuple[dict, str, str, str]]:
    """Models that a system takes: (section, its key, ``base``, ``controlnet`` or ``vae``, the model's name).

    A model of our own brings its parts: beside it, others that a configuration still names are not used.
    """
    found = []
    for kind, section in own_guidances(system):
        base = section.get(MODEL, OWN_GUIDANCES[kind])
        found.append((section, MODEL, "base", base))
        if is_own_model(str(base)):
            continue
        controls = [control for control in section.get("controlnets") or [] if isinstance(control, dict)]
        found += [(control, "path", "controlnet", control.get("path")) for control in controls]
        found.append((section, "vae", "vae", section.get("vae")))
    return [entry for entry in found if isinstance(entry[-1], str) and entry[-1]]


def cached_snapshot(hub_id: str) -> Path | None:
    """Folder of a hub model in the local cache at its revision (else ``main``); None where there is none."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    name, _, revision = hub_id.partition("@")
    for file in ("model_index.json", "config.json"):
        path = try_to_load_from_cache(name, file, revision=revision or None)
        if isinstance(path, str):
            return Path(path).parent
    return None


def snapshot_facts(folder: Path) -> dict[str, Any]:
    """Revision of a snapshot in the hub's cache and SHA-256 of its weights.

    The cache names a large file's content by its SHA-256; what it names otherwise is read.
    """
    hashes = {}
    for path in sorted(folder.rglob("*.safetensors")):
        blob = path.resolve().name
        hashes[path.relative_to(folder).as_posix()] = blob if len(blob) == 64 else sha256_file(path)
    return {"revision": folder.name, "sha256": hashes}


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights below a model's folder, by their names from there."""
    files = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def made_with(config: Mapping[str, Any], weights: Mapping[str, str | Path] | None = None) -> dict[str, Any]:
    """Plain values for ``system.made_with``: version of this package, weights and models.

    Args: config: the whole configuration.  weights: name -> file that was used.
    """
    from .. import __version__

    models = []
    for *_, text in named_models(config.get("system") or {}):
        if is_hub_id(text):
            folder = cached_snapshot(text)
            models.append({"id": text.partition("@")[0], **(snapshot_facts(folder) if folder else {})})
        elif folder := model_folder(text):
            models.append({"id": Path(text).name, "sha256": folder_hashes(folder)})
    hashes = {name: sha256_file(path) for name, path in (weights or {}).items()}
    return {"version": __version__, "weights": hashes, "models": models}


def pin_revisions(config: dict[str, Any], made: Mapping[str, Any]) -> None:
    """Write the revision that was used behind each hub id of the configuration, in place."""
    revisions = {model["id"]: model.get("revision") for model in made["models"]}
    for holder, key, _, text in named_models(config.get("system") or {}):
        revision = revisions.get(text)
        if is_hub_id(text) and revision:
            holder[key] = f"{text}@{revision}"


def _made(config: Mapping[str, Any]) -> Mapping[str, Any]:
    made = (config.get("system") or {}).get("made_with") or {}
    return made if isinstance(made, Mapping) else {}


def version_differences(config: Mapping[str, Any]) -> list[str]:
    """A sentence where a shared configuration was made with another version of this package; no file is looked at."""
    from .. import __version__

    version = _made(config).get("version")
    if version is None or str(version) == __version__:
        return []
    return [
        f"it was made with portrait-diffusion {str(version)[:40]}, this is {__version__}: keys and results may "
        "differ; the changelog says how"
    ]


def differences(config: Mapping[str, Any], weights: Mapping[str, str | Path]) -> list[str]:
    """Sentences on what is not as it was where a shared configuration was made; none without its ``made_with``.

    Args: weights: name -> file that would be used here.
    """
    made, found = _made(config), version_differences(config)
    hashes = made.get("weights") if isinstance(made.get("weights"), Mapping) else {}
    for name, path in weights.items():
        if name in hashes and Path(path).is_file() and sha256_file(path) != hashes[name]:
            found.append(f"its {name} weights are not those of {Path(path).name} here: the head will differ")
    theirs = made.get("models") if isinstance(made.get("models"), list) else []
    known = {str(model.get("id")): model.get("sha256") for model in theirs if isinstance(model, Mapping)}
    for text in sorted({text for *_, text in named_models(config.get("system") or {})}):
        folder, name = model_folder(text), Path(text).name
        if folder is not None and name in known and folder_hashes(folder) != known[name]:
            found.append(f"its model '{name}' is not the one of that name here: the head will differ")
    return found
