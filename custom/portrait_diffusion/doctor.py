"""What this machine has, what it lacks, and the command that brings it. Exit code 0, or 3 if the main job can't run."""
import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import __version__, host
from .errors import EnvironmentProblem, PortraitError
from .files import sha256_file, write_text

WEIGHTS = Path(__file__).resolve().parent / "weights"
CHECKSUMS = WEIGHTS / "checksums.json"  # name below WEIGHTS -> {"bytes", "sha256"}; written by `record_checksums`
OLDEST_PYTHON = (3, 10)
FREE_BYTES = 10**9
# (import name, name on PyPI, extra that installs it, the main job needs it)
PACKAGES = (
    ("torch", "torch", "", True),
    ("numpy", "numpy", "", True),
    ("omegaconf", "omegaconf", "", True),
    ("requests", "requests", "", True),
    ("rich", "rich", "", True),
    ("PIL", "pillow", "photo", True),
    ("cv2", "opencv-python-headless", "photo", True),
    ("safetensors", "safetensors", "photo", True),
    ("scipy", "scipy", "export", True),
    ("skimage", "scikit-image", "export", True),
    ("trimesh", "trimesh", "export", True),
    ("xatlas", "xatlas", "export", True),
    ("fast_simplification", "fast-simplification", "export", True),
    ("imageio", "imageio", "video", True),
    ("imageio_ffmpeg", "imageio-ffmpeg", "export", True),
    ("pytorch_lightning", "pytorch-lightning", "stages", True),
    ("diffusers", "diffusers", "stages", True),
    ("huggingface_hub", "huggingface-hub", "stages", True),
    ("matplotlib", "matplotlib", "plots", False),
    ("tensorboard", "tensorboard", "train", False),
    ("transformers", "transformers", "sd", False),
    ("moderngl", "moderngl", "synthetic", False),
    ("anny", "anny", "synthetic", False),
)


class Check(NamedTuple):
    """One line of the table. status: ok, note (only something optional is missing) or FAIL. fix: a command or ""."""

    name: str
    status: str
    detail: str
    fix: str = ""


def examine() -> list[Check]:
    """All checks; none raises, none loads a model, none writes."""
    return [
        check_python(), Check("portrait-diffusion", "ok", f"{__version__} in {WEIGHTS.parent}"),
        Check("host", "ok", host.describe()), check_device(),
        *(check_package(*package) for package in PACKAGES),
        *check_weights(), *check_models(), check_ffmpeg(), check_egl(), check_disk(Path.cwd()),
    ]  # fmt: skip


def check_python() -> Check:
    """The interpreter's version."""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", "FAIL", version, "install Python 3.11")
    return Check("python", "ok", version)


def check_device() -> Check:
    """The accelerator that torch sees and whether this torch was built for it."""
    import torch

    if not torch.cuda.is_available():
        return Check("device", "ok", f"CPU, {torch.get_num_threads()} threads (torch {torch.__version__} sees no GPU)")
    major, minor = torch.cuda.get_device_capability()
    built = torch.cuda.get_arch_list()
    free, total = torch.cuda.mem_get_info()
    detail = f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    # code for X.Y runs on X.Z with Z >= Y; compute_ entries are compiled on the spot for anything newer
    usable = any(
        arch.startswith("compute_") or (int(arch[3:-1]) == major and int(arch[-1]) <= minor)
        for arch in (name.rstrip("af") for name in built) if arch.startswith(("sm_", "compute_"))
    )  # fmt: skip
    if not usable:
        detail += f"; sm_{major}{minor} is not among {', '.join(built)}"
        fix = "install the torch build for this GPU (pytorch.org); the CPU works too"
        return Check("device", "note", detail, fix)
    return Check("device", "ok", detail)


def check_package(module: str, package: str, extra: str, needed: bool) -> Check:
    """Whether a package can be found, by metadata alone."""
    if importlib.util.find_spec(module) is None:
        install = f"pip install '{package}'" + (f" (or: pip install -e '.[{extra}]')" if extra else "")
        return Check(package, "FAIL" if needed else "note", "not installed", install)
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "installed under another name"  # such as opencv-python instead of opencv-python-headless
    return Check(package, "ok", version)


def check_weights(folder: Path = WEIGHTS, checksums: Path = CHECKSUMS) -> list[Check]:
    """The shipped weights against the sizes and checksums recorded beside them."""
    reinstall = "reinstall the package, or in a checkout: git checkout -- custom/portrait_diffusion/weights"
    try:
        recorded = json.loads(checksums.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [Check("weights", "FAIL", f"{checksums.name} can't be read: {error}", reinstall)]
    checks = []
    for name, expected in sorted(recorded.items()):
        path = folder / name
        if not path.is_file():
            checks.append(Check(f"weights/{name}", "FAIL", "missing", reinstall))
            continue
        size = path.stat().st_size
        if size != expected["bytes"] or (digest := sha256_file(path)) != expected["sha256"]:
            detail = f"{size} bytes, not the file that was shipped ({expected['bytes']} bytes)"
            checks.append(Check(f"weights/{name}", "FAIL", detail, reinstall))
        else:
            checks.append(Check(f"weights/{name}", "ok", f"{size / 2**20:.1f} MiB, sha256 {digest[:12]}"))
    return checks


def record_checksums(folder: Path = WEIGHTS, checksums: Path = CHECKSUMS) -> None:
    """Write the checksums of all weights below the folder; for those who change the shipped weights."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.safetensors"))}
    recorded = {name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for name, p in files.items()}
    write_text(checksums, json.dumps(recorded, indent=2) + "\n")


def check_models() -> list[Check]:
    """Model files that come inside other packages: face detector, face recogniser, perceptual metric."""
    from .evaluation.identity import sface_path
    from .evaluation.stlpips import WEIGHT_FILES, find_weights
    from .photo.detect import yunet_path

    def perceptual(net: str) -> Path:
        path = find_weights(net)
        if sha256_file(path) != WEIGHT_FILES[net][1]:
            fix = "pip install --force-reinstall --no-deps stlpips-pytorch==0.0.2"
            raise EnvironmentProblem(f"'{path}' differs from the tested one; run: {fix}")
        return path

    return [
        _file_check("face detector YuNet", yunet_path, True),
        _file_check("ST-LPIPS AlexNet", lambda: perceptual("alex"), True),
        _file_check("face recogniser SFace", sface_path, False),
        _file_check("ST-LPIPS VGG16", lambda: perceptual("vgg"), False),
    ]


def _file_check(name: str, locate: Callable[[], Path], needed: bool) -> Check:
    """A check around a function that returns a verified path or raises PortraitError with the remedy."""
    try:
        path = locate()
    except PortraitError as error:
        problem, _, fix = str(error).partition("; run: ")
        return Check(name, "FAIL" if needed else "note", problem, fix.rstrip("."))
    return Check(name, "ok", f"{path.name}, {path.stat().st_size / 2**20:.1f} MiB, checksum right")


def check_ffmpeg() -> Check:
    """The program that encodes the videos."""
    from .preflight import find_ffmpeg

    try:
        return Check("ffmpeg", "ok", Path(find_ffmpeg()).name)
    except PortraitError as error:
        return Check("ffmpeg", "FAIL", str(error), "pip install 'imageio[ffmpeg]'")
    except ModuleNotFoundError as error:  # a package of the main job; its own line says so
        return Check("ffmpeg", "FAIL", f"can't be looked for without '{error.name}'", "pip install -r requirements.txt")


def check_egl() -> Check:
    """Headless OpenGL, which rendering training data uses; nothing else does."""
    name = ctypes.util.find_library("EGL")
    try:
        found = name is not None and ctypes.CDLL(name) is not None
    except OSError:
        found = False
    if not found:
        fix = "apt-get install libegl1 libgl1-mesa-dri"
        return Check("EGL", "note", "no headless OpenGL: synthetic heads are drawn in software, far slower", fix)
    return Check("EGL", "ok", str(name))


def check_disk(folder: Path) -> Check:
    """Room for results where the command was started."""
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        return Check("disk", "note", f"{free / 1e9:.2f} GB free here", "a run needs 0.2 GB; choose --out elsewhere")
    return Check("disk", "ok", f"{free / 1e9:.0f} GB free here")


def format_table(checks: Sequence[Check]) -> str:
    """Aligned text, one check a line, the remedy below it."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<5} {check.name:<{width}}  {check.detail}")
        if check.fix:
            lines.append(f"{'':<5} {'':<{width}}  -> {check.fix}")
    return "\n".join(lines)


def verdict(checks: Sequence[Check]) -> tuple[str, int]:
    """Closing sentence and exit code."""
    failed = [check.name for check in checks if check.status == "FAIL"]
    notes = [check.name for check in checks if check.status == "note"]
    if failed:
        return f"The main job can't run here: {', '.join(failed)}.", EnvironmentProblem.exit_code
    return "The main job can run here." + (f" Optional parts are missing: {', '.join(notes)}." if notes else ""), 0
