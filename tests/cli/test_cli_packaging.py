"""setup.py, the requirements files and the version agree with the code and with one another."""
import ast
import re
import runpy
import subprocess
import sys
import zipfile

import pytest
import setuptools
from cli.cli_samples import PACKAGE, REPOSITORY, environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from portrait_diffusion import __version__
from portrait_diffusion.shipped import CONFIGS

# import name -> name on PyPI, where they differ
PACKAGE_OF = {
    "cv2": "opencv-python-headless", "PIL": "pillow", "skimage": "scikit-image", "yaml": "pyyaml",
    "fast_simplification": "fast-simplification", "imageio_ffmpeg": "imageio", "pytorch_lightning": "pytorch-lightning",
    "dlib": "dlib-bin",
}  # fmt: skip
HOST_OR_DRIVER = {"threestudio", "triton", "tinycudann", "nerfacc"}
"""Never installed by us: the host, a part of torch's GPU builds, and what has to be compiled for the GPU at hand."""


def arguments_of_setup() -> dict:
    """What setup.py hands to setuptools."""
    seen: dict = {}
    original, setuptools.setup = setuptools.setup, lambda **arguments: seen.update(arguments)
    try:
        runpy.run_path(str(REPOSITORY / "setup.py"))
    finally:
        setuptools.setup = original
    return seen


def names(requirements) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def pinned(name: str) -> dict[str, str]:
    """Package -> version of a requirements file, included files too; every line must be an exact version."""
    versions = {}
    for line in (REPOSITORY / name).read_text().splitlines():
        line = line.strip()
        if line.startswith("-r "):
            versions |= pinned(line[3:])
        elif line and not line.startswith("#"):
            (specifier,) = Requirement(line).specifier
            assert specifier.operator == "==" and "*" not in specifier.version, line
            versions[canonicalize_name(Requirement(line).name)] = specifier.version
    return versions


def imported(path) -> set[str]:
    """Top-level names of the foreign packages that a file imports or asks `optional.require` for."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            found.add(node.args[0].value.split(".")[0])
    return {name for name in found if name not in sys.stdlib_module_names} - {"portrait_diffusion"}


def extras_named_in_code() -> set[str]:
    pattern = re.compile(r"extra=\"(\w+)\"|-e '?\.\[(\w+)\]")
    found = [match for path in PACKAGE.rglob("*.py") for match in pattern.findall(path.read_text(encoding="utf-8"))]
    return {name for pair in found for name in pair if name}


def test_the_version_has_one_source():
    assert arguments_of_setup()["version"] == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert f"[{__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()
    copies = [p for p in PACKAGE.rglob("*.py") if re.search(r"^__version__\s*=", p.read_text(encoding="utf-8"), re.M)]
    assert copies == [PACKAGE / "__init__.py"]


def test_every_extra_that_a_message_names_exists():
    named = extras_named_in_code()
    assert {"photo", "export", "eval", "synthetic"} <= named
    assert named <= set(arguments_of_setup()["extras_require"])


def test_an_extra_brings_the_packages_it_is_named_for():
    extras = {name: names(needs) for name, needs in arguments_of_setup()["extras_require"].items()}
    main_job = names(arguments_of_setup()["install_requires"])
    calls = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require" and node.keywords:
                extra = next(k.value.value for k in node.keywords if k.arg == "extra")
                module = node.args[0].value.split(".")[0]
                package = canonicalize_name(PACKAGE_OF.get(module, module))
                assert package in extras[extra] | main_job, f"{path}: {package} in {extra}"
                calls += 1
    assert calls > 20


def test_every_import_is_declared():
    arguments = arguments_of_setup()
    declared = names(arguments["install_requires"]).union(*(names(e) for e in arguments["extras_require"].values()))
    needed = {name for path in PACKAGE.rglob("*.py") for name in imported(path)} - HOST_OR_DRIVER
    assert {"torch", "numpy", "trimesh"} <= needed
    assert {canonicalize_name(PACKAGE_OF.get(name, name)) for name in needed} <= declared


def test_pins_lie_in_the_ranges():
    arguments = arguments_of_setup()
    core, extras = arguments["install_requires"], arguments["extras_require"]
    groups = {
        "requirements.txt": core,
        "requirements-dev.txt": [*core, *extras["dev"]],
        "requirements-synthetic.txt": [*core, *extras["synthetic"]],
    }
    for file, needs in groups.items():
        versions = pinned(file)
        assert names(needs) <= set(versions), file
        for need in map(Requirement, needs):
            assert need.specifier.contains(versions[canonicalize_name(need.name)]), (file, str(need))


def test_the_default_configurations_stages_need_nothing_more_than_the_main_job_installs():
    pipeline = (REPOSITORY / "configs" / "portrait-mini.yaml").read_text()
    assert "stages:" in pipeline and "portrait-diffusion-hpdm-guidance" in pipeline
    needed = {"pytorch-lightning", "diffusers", "huggingface-hub"}
    assert needed <= names(arguments_of_setup()["install_requires"]) and needed <= set(pinned("requirements.txt"))


def test_nothing_that_needs_a_compiler_or_replaces_torch():
    forbidden = {"torchvision", "xformers", "tiny-cuda-nn", "tinycudann", "nerfacc", "nvdiffrast", "lightning"}
    files = ["requirements.txt", "requirements-dev.txt", "requirements-synthetic.txt"]
    everything = set().union(*(pinned(file) for file in files))
    arguments = arguments_of_setup()
    for needs in (arguments["install_requires"], *arguments["extras_require"].values()):
        everything |= names(needs)
    assert not everything & forbidden


def test_the_configurations_at_the_root_are_copies_of_the_shipped_ones():
    shipped = {path.name: path.read_text() for path in CONFIGS.glob("*.yaml")}
    root = {path.name: path.read_text() for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert shipped and root == shipped


@pytest.mark.slow
def test_a_wheel_holds_everything_and_works(tmp_path):
    """Built without network, unpacked elsewhere, imported from there."""
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)]
    build = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("portrait_diffusion-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    wanted = {
        path.relative_to(PACKAGE.parent).as_posix()
        for pattern in ("*.py", "*.yaml", "*.safetensors", "*.json")
        for path in PACKAGE.rglob(pattern) if "__pycache__" not in path.parts
    }  # fmt: skip
    assert wanted <= packed and not [name for name in packed if name.startswith(("tests", "docs"))]
    assert any(name.endswith("LICENSE") for name in packed)
    code = "from portrait_diffusion import cli, doctor, shipped; print(cli.__file__); "
    code += "assert shipped.find_config('portrait-mini')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment(), "PYTHONPATH": str(tmp_path / "site")}, cwd=tmp_path,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and str(tmp_path / "site") in done.stdout, done.stderr
