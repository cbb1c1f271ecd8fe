"""Everything a run needs, checked before the first second of work is spent: packages, model files, weights."""
import difflib

from . import host
from .errors import EnvironmentProblem, UsageError
from .optional import require
from .pipeline import PipelineConfig, prior_paths


def check_run(config: PipelineConfig) -> list[tuple[str, int]]:
    """Look for what this configuration will use; nothing large is loaded.

    Returns: (file name, bytes) of the weights that will be read.
    Raises: EnvironmentProblem for a missing package, model file or weights file, with the command that brings it;
        UsageError for a file that is no such weights file, or a class that isn't registered.
    """
    from .evaluation.stlpips import find_weights
    from .photo.detect import yunet_path
    from .photo.matte import choose_matte
    from .photo.matte_net import WEIGHTS_FILE, load_matte_net
    from .priors.storage import load_spec

    check_registered(config)
    require("cv2", extra="photo", package="opencv-python-headless")
    require("xatlas", extra="export")
    find_ffmpeg()
    if config.system.exporter.mesh.target_faces:
        require("fast_simplification", extra="export", package="fast-simplification")
    files = [yunet_path()]
    for path, kind in zip(prior_paths(config.system.prior), ("generator", "encoder")):
        load_spec(path, kind)
        files.append(path)
    if choose_matte(config.data.matte) == "network":
        load_matte_net()
        files.append(WEIGHTS_FILE)
    if config.system.inversion.lambda_perceptual:
        files.append(find_weights("alex"))
    return [(path.name, path.stat().st_size) for path in files]


def check_registered(config: PipelineConfig) -> None:
    """Whether the classes that the configuration names exist, also where it has no section of keys for them."""
    for key in ("geometry_type", "renderer_type"):
        name, known = getattr(config.system, key), host.registered_names()
        try:
            host.find(name)
        except (KeyError, ValueError) as error:
            near = ", ".join(difflib.get_close_matches(name, known, n=1, cutoff=0.5) or known)
            raise UsageError(f"system.{key}: no class is registered as '{name}'; there is: {near}.") from error


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
