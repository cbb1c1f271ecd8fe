"""Public models that a configuration names by hub id: what is in the local cache, and getting the rest when asked.

Runs never download (``offline: true`` in the shipped configurations); the command ``models`` does, after it has said
what, from where and how much.
"""
import fnmatch
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import EnvironmentProblem
from .export.made_with import cached_snapshot, is_hub_id, named_models
from .optional import require

NEEDED = {
    "base": (
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
        "tokenizer/*", "scheduler/*",
    ),
    "controlnet": ("config.json", "diffusion_pytorch_model.safetensors"),
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
}  # fmt: skip
"""Files of each kind of model that `guidance.hpdm.assemble` reads."""


@dataclass(frozen=True)
class PublicModel:
    """A model on the hub: id, revision ("" is the newest), and which files are needed."""

    name: str
    revision: str
    role: str

    @property
    def id(self) -> str:
        """As a configuration writes it."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def is_cached(self) -> bool:
        """Whether every needed file is in the local cache."""
        folder = cached_snapshot(self.id)
        if folder is None:
            return False
        found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return all(any(fnmatch.fnmatch(name, pattern) for name in found) for pattern in NEEDED[self.role])


def public_models(system: dict[str, Any]) -> list[PublicModel]:
    """Models that a system's section names by hub id, each once."""
    found = []
    for *_, role, text in named_models(system):
        if is_hub_id(text):
            name, _, revision = text.partition("@")
            found.append(PublicModel(name, revision, role))
    return list(dict.fromkeys(found))


def check_cached(system: dict[str, Any], config: str = "") -> None:
    """Raises: EnvironmentProblem naming the models that are missing and the command that gets them.

    Args: config: what ``--config`` takes for it; a stranger may have written a name, so a shell must not obey it.
    """
    missing = [model.id for model in public_models(system) if not model.is_cached()]
    if missing:
        command = f"python launch_portrait.py models --config {shlex.quote(config or 'portrait')}"
        raise EnvironmentProblem(
            f"Not in the local cache: {', '.join(missing)}; a run downloads nothing. Get the rest with: {command} "
            "(or a configuration of yours that names these models), in this project's folder"
        )


def remote_files(model: PublicModel) -> tuple[str, dict[str, int], str]:
    """Revision, needed files with their sizes in bytes, and licence of a model, asked of the hub.

    Raises: EnvironmentProblem without a connection, for an unknown or gated model, or one that lacks a needed file.
    """
    hub = require("huggingface_hub", extra="hpdm")
    try:
        info = hub.HfApi().model_info(model.name, revision=model.revision or None, files_metadata=True)
    except Exception as error:  # the hub's own errors and those of its HTTP library, of which there are many
        raise EnvironmentProblem(
            f"The hub does not tell about {model.id} ({str(error).strip().splitlines()[0][:200]}); check the "
            "connection and the id, and for a gated model log in with: hf auth login"
        ) from error
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
    wanted = {n: s for n, s in sizes.items() if any(fnmatch.fnmatch(n, p) for p in NEEDED[model.role])}
    lacking = [p for p in NEEDED[model.role] if not any(fnmatch.fnmatch(n, p) for n in wanted)]
    if lacking:
        raise EnvironmentProblem(f"{model.id} has no {', '.join(lacking)}; another revision or model is needed.")
    licences = [tag.partition(":")[2] for tag in info.tags or [] if tag.startswith("license:")]
    return info.sha, wanted, ", ".join(licences) or "not stated"


def download(model: PublicModel) -> str:
    """Bring the needed files of the model's revision into the local cache; resumes. Returns the folder.

    Raises: EnvironmentProblem when it does not come.
    """
    hub = require("huggingface_hub", extra="hpdm")
    try:
        return hub.snapshot_download(
            model.name, revision=model.revision or None, allow_patterns=list(NEEDED[model.role])
        )
    except Exception as error:  # as above
        raise EnvironmentProblem(
            f"{model.id} did not come ({str(error).strip().splitlines()[0][:200]}); the same command goes on."
        ) from error


def get_models(system: dict[str, Any], say: Callable[[str], None], confirm: Callable[[str], bool]) -> bool:
    """Tell what a system needs and what of it is there; download the rest if confirmed.

    Returns: whether everything is there afterwards.
    """
    models = public_models(system)
    if not models:
        say("This configuration needs no public models.")
        return True
    missing = []
    for model in models:
        if model.is_cached():
            say(f"{model.id}: in the local cache")
            continue
        revision, files, licence = remote_files(model)
        size = sum(files.values())
        say(f"{model.id}: {size / 1e9:.2f} GB in {len(files)} files, revision {revision[:12]}, licence {licence}")
        missing.append((model, size))
    if not missing:
        return True
    from huggingface_hub.constants import HF_HUB_CACHE

    total = sum(size for _, size in missing)
    if not confirm(f"Download {total / 1e9:.2f} GB from the Hugging Face hub to {HF_HUB_CACHE}?"):
        return False
    for model, _ in missing:
        say(f"{model.id}: {download(model)}")
    return True
