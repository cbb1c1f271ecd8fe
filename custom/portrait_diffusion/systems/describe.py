"""What our system tells its exporter, and the settings of a run as they can be shared."""
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ..export.share import shareable_config, write_share
from ..host import run_config
from ..photo.prepare import photo_weights


def settings_of(system: Any) -> dict[str, Any]:
    """Configuration of the run a system belongs to, ready to be shared, or its own section where the host has none."""
    files = dict(zip(("prior", "encoder"), system.prior_files()))
    config = run_config(system.trainer)
    if config is None:
        config = {"system": OmegaConf.to_container(OmegaConf.create(system.cfg), resolve=True)}
    return shareable_config(config, weights=files)[0]


def write_settings(system: Any) -> dict[str, Any]:
    """The settings, also as ``share.yaml`` beside the save folder, if the system writes anything."""
    settings = settings_of(system)
    if system._save_dir is not None and system.global_rank == 0:
        files = dict(zip(("prior", "encoder"), system.prior_files()))
        write_share(Path(system.get_save_dir()).parent / "share.yaml", settings, weights=files)
    return settings


@torch.no_grad()
def describe_head(system: Any) -> None:
    """Tell the system's exporter, if it listens, its renderer, the photo and what its camera sees, and the settings."""
    if not hasattr(system.exporter, "describe"):
        return
    known: dict[str, Any] = {"settings": system.settings or settings_of(system), "seeds": {"seed": system.cfg.seed}}
    if system.cfg.init:
        known["weights"] = dict(zip(("prior", "encoder"), system.prior_files()))
    if hasattr(system.renderer, "render"):
        known["render"] = system.renderer.render
    photo = getattr(system.trainer.datamodule, "photo_or_none", None)
    if photo is not None and system.cfg.init:
        known["photo"] = _photo_info(system, photo)
        known["weights"] |= photo_weights(photo.matte, system.trainer.datamodule.cfg.camera)
    system.exporter.describe(**known)


def _photo_info(system: Any, photo: Any) -> Any:
    """The photo as the report shows it, beside the head from the photo's own camera."""
    from ..export.bundle import PhotoInfo
    from ..files import sha256_file

    path = Path(system.trainer.datamodule.cfg.image_path)
    size = int(getattr(system.exporter.cfg, "render_size", 128))
    rays = (r.to(system.device) for r in system.photo_camera.rays(size))
    match = system._look(*rays)["comp_rgb"][0].cpu().numpy()
    return PhotoInfo(
        name=path.name, sha256=sha256_file(path), rgb=photo.rgb.numpy(), alpha=photo.alpha.numpy(),
        valid=photo.valid.numpy(), warnings=photo.warnings, match=match,
    )  # fmt: skip
