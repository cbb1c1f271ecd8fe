"""Everything a run needs, checked before the first second of work is spent: packages, model files, weights."""
from pathlib import Path

import torch
from omegaconf import OmegaConf

from . import host
from .devices import is_out_of_memory
from .errors import EnvironmentProblem, OutOfMemory, UsageError
from .export.made_with import own_guidances
from .guidance.hpdm_guidance import check_model
from .models import check_cached
from .ops.backends import PACKAGES, missing
from .optional import require
from .schema import check_class
from .settings import PipelineConfig, PriorConfig, SystemConfig, prior_paths, stage_section
from .systems.stages import Schedule


def check_run(config: PipelineConfig, source: str = "", exports: bool = True) -> list[tuple[str, int]]:
    """Look for what this configuration will use; nothing large is kept.

    Args:
        source: what the user called the configuration (``--config``), for advice; default its own name.
        exports: whether mesh and video will be written.
    Returns: (file name, bytes) of the weights that will be read.
    Raises: EnvironmentProblem for a missing package, model file or weights file, with the command that brings it;
        UsageError for a file that is no such weights file, or of another kind of prior than the configuration names,
        and for settings that need a GPU where there is none.
    """
    from .evaluation.stlpips import find_weights
    from .photo.camera_estimate import check_camera_method
    from .photo.camera_net import WEIGHTS_FILE as CAMERA_WEIGHTS
    from .photo.camera_net import load_camera_net
    from .photo.detect import yunet_path
    from .photo.matte import choose_matte
    from .photo.matte_net import WEIGHTS_FILE, load_matte_net

    check_device(vars(config.system), host.get_device())
    require("cv2", extra="photo", package="opencv-python-headless")
    if exports:
        require("xatlas", extra="export")
        find_ffmpeg()
        if config.system.exporter.mesh.target_faces:
            require("fast_simplification", extra="export", package="fast-simplification")
    files = [yunet_path(), *check_prior_files(config.system.prior)]
    published = config.system.prior.type != "bundled"
    check_camera_method(config.data.camera)
    if config.data.camera == "network":
        load_camera_net()
        files.append(CAMERA_WEIGHTS)
    if choose_matte(config.data.matte) == "network":
        load_matte_net()
        files.append(WEIGHTS_FILE)
    if (config.system.published_fit if published else config.system.inversion).lambda_perceptual:
        files.append(find_weights("alex"))
    if Schedule(config.system.stages).total:
        require("pytorch_lightning", extra="train", package="pytorch-lightning")
        for kind, section in own_guidances(vars(config.system)):
            require("diffusers", extra="hpdm")
            if kind == "portrait-diffusion-hpdm-guidance":
                check_model(section.get("pretrained_model_name_or_path", "bundled"))
        for k, extra in enumerate(config.system.extra_guidances):
            values, place = OmegaConf.create(extra.get("guidance") or {}), f"system.extra_guidances[{k}]"
            check_class(extra["type"], values, source or config.name, f"{place}.type", f"{place}.guidance")
        check_cached(vars(config.system), source or config.name)
    return [(path.name, path.stat().st_size) for path in files]


def check_stages(system: SystemConfig) -> None:
    """Build the system of the stages once with an empty head, optimizer and schedule included, and drop it.

    That takes the memory that the configuration asks for: a shared one is agreed to before. After `check_run`.

    Raises: UsageError for what it would refuse after minutes of fitting; OutOfMemory.
    """
    if not Schedule(system.stages).total:
        return
    from .systems.portrait import PortraitSystem

    try:
        PortraitSystem({**stage_section(system), "seed": 0}).configure_optimizers()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sizes = f"system.restoration_resolution={max(8, system.restoration_resolution // 2)}"
        raise OutOfMemory(f"The head of the stages does not fit into memory; try smaller grids: {sizes}") from error


def check_device(system: dict, device: torch.device) -> None:
    """Look whether a device and the packages can do what a configuration's system asks for.

    Raises: EnvironmentProblem for an implementation that cannot run, with the reason and the fix; UsageError for a
        setting that needs a GPU.
    """
    for section, key in (("geometry", "implementation"), ("renderer", "implementation"), ("renderer", "estimator")):
        chosen = system[section].get(key, "auto")
        reason = missing(chosen, device) if chosen in PACKAGES else None
        if reason is not None:
            raise EnvironmentProblem(f"system.{section}.{key} '{chosen}' cannot be used: {reason}.")
    wanted = [("renderer.cuda_graphs", system["renderer"].get("cuda_graphs"))]
    for _, section in own_guidances(system):
        wanted += [(f"guidance.{key}", section.get(key)) for key in ("cuda_graphs", "compile")]
    for key, chosen in wanted:
        if chosen and device.type != "cuda":
            raise UsageError(f"system.{key} needs a GPU; set it to false to run on a CPU.")
    if any(chosen for key, chosen in wanted if key == "guidance.compile"):
        reason = missing("triton", device)  # which torch.compile takes
        if reason is not None:
            raise EnvironmentProblem(f"system.guidance.compile cannot be used: {reason}.")


def check_prior_files(prior: PriorConfig) -> tuple[Path, ...]:
    """Files of the prior that a configuration names: kind, names and shapes are compared, numbers are not read.

    Returns: their paths.
    Raises: EnvironmentProblem for a missing file of the bundled prior; UsageError for one that is no such weights file,
        and for a published prior's file that is missing, damaged or of another kind than `prior.type`.
    """
    from .priors.published.adapter import check_prior
    from .priors.storage import load_spec

    paths = prior_paths(prior)
    if prior.type != "bundled":
        check_prior(paths[0], prior.type)
        return paths
    for path, kind in zip(paths, ("generator", "encoder")):
        load_spec(path, kind)
    return paths


def find_ffmpeg() -> str:
    """Path of the ffmpeg program that the videos are encoded with. Raises: EnvironmentProblem if there is none."""
    package = require("imageio_ffmpeg", extra="export", package="imageio[ffmpeg]")
    try:
        return package.get_ffmpeg_exe()
    except RuntimeError as error:
        raise EnvironmentProblem(
            "No ffmpeg program was found for the video; run: pip install --force-reinstall imageio-ffmpeg (its wheels "
            "bring one), or set IMAGEIO_FFMPEG_EXE to yours."
        ) from error
