"""All forms of installation, in subprocesses with a stub `threestudio` and its loader's documented behaviour.

The package's own `__init__`, `host`, `errors`, `optional` and the repository's root file are the real ones; the modules
that register are replaced by ones without torch, so that a launch takes a fraction of a second. One test loads all.
"""
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "custom" / "portrait_diffusion"

STUB = {
    "__init__": """
        __modules__ = {}
        def register(name):
            def decorate(cls):
                if name in __modules__:
                    raise ValueError(f"Module {name} already exists! Names of extensions conflict!")
                __modules__[name] = cls
                return cls
            return decorate
        def find(name):
            return __modules__[name]
        def debug(*a): pass
        info = debug
        def warn(message, *a): print("WARN", message % a if a else message)
        """,
    "models/background/base": "class BaseBackground: pass",
    "models/exporters/base": """
        class Exporter:
            class Config: pass
        class ExporterOutput: pass
        """,
    "models/geometry/base": """
        class BaseGeometry: pass
        class BaseExplicitGeometry(BaseGeometry): pass
        class BaseImplicitGeometry(BaseGeometry):
            class Config: pass
        def contract_to_unisphere(x, bbox, unbounded=False): raise NotImplementedError
        """,
    "models/materials/base": "class BaseMaterial: pass",
    "models/mesh": "class Mesh: pass",
    "models/renderers/base": """
        class Renderer:
            class Config: pass
        class VolumeRenderer(Renderer): pass
        class Rasterizer(Renderer): pass
        """,
    "systems/base": """
        import dataclasses
        class BaseSystem:
            @dataclasses.dataclass
            class Config: pass
        class BaseLift3DSystem(BaseSystem): pass
        """,
    "systems/utils": "def parse_optimizer(config, model): pass\ndef parse_scheduler(config, optimizer): pass",
    "utils/base": """
        class Updateable: pass
        class BaseModule: pass
        class BaseObject:
            class Config: pass
        def update_if_possible(module, epoch, step): pass
        def update_end_if_possible(module, epoch, step): pass
        """,
    "utils/config": """
        class ExperimentConfig: pass
        def C_max(v): pass
        config_to_primitive = dump_config = load_config = parse_structured = C_max
        """,
    "utils/misc": "def C(*a): pass\ncleanup = find_last_path = get_device = get_rank = load_module_weights = C",
    "utils/saving": "class SaverMixin: pass",
}
GEOMETRY = """
from ..host import BaseImplicitGeometry, register
@register("portrait-diffusion-triplane")
class TriplaneGeometry(BaseImplicitGeometry): pass
"""
RENDERER = """
from ..host import VolumeRenderer, register
@register("portrait-diffusion-volume-renderer")
class PortraitVolumeRenderer(VolumeRenderer): pass
"""
GUIDANCE = """
from ..host import BaseObject, register
@register("portrait-diffusion-hpdm-guidance")
class HPDMGuidance(BaseObject): pass
"""
NOISE = """
from ..host import BaseObject, register
@register("portrait-diffusion-iid-noise")
class IIDNoise(BaseObject): pass
"""
# What the host's launcher does with custom/, as its documentation describes: failures are printed and passed over.
LAUNCH = """
import importlib.util, os, sys, traceback
import threestudio
def load(entries=None):
    for entry in entries or sorted(os.listdir("custom")):
        path = os.path.join("custom", entry)
        if os.path.isdir(path) and entry != "__pycache__" and not entry.endswith("_disabled"):
            try:
                spec = importlib.util.spec_from_file_location(entry, os.path.join(path, "__init__.py"))
                module = importlib.util.module_from_spec(spec)
                sys.modules[entry] = module
                spec.loader.exec_module(module)
            except Exception:
                traceback.print_exc(file=sys.stdout)
                print("IMPORT FAILED", entry)
"""
NAMES = [
    "portrait-diffusion-hpdm-guidance", "portrait-diffusion-iid-noise", "portrait-diffusion-triplane",
    "portrait-diffusion-volume-renderer",
]  # fmt: skip
REPORT = "print('NAMES', sorted(threestudio.__modules__))\n"


def _light_package(folder: Path) -> Path:
    """The package with its real host glue and torch-free registering modules."""
    for name in ("__init__.py", "host.py", "errors.py", "optional.py", "references.py"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, folder / name)
    parts = {"geometry/triplane": GEOMETRY, "guidance/hpdm_guidance": GUIDANCE, "noise/samplers": NOISE,
             "guidance/sd_guidance": "", "noise/mvnrs": "", "data/portrait": "", "systems/portrait": "",
             "renderer/plain": "", "renderer/volume": RENDERER, "export/exporter": ""}  # fmt: skip
    for sub, text in parts.items():
        (folder / sub).parent.mkdir(exist_ok=True)
        (folder / sub).parent.joinpath("__init__.py").touch()
        (folder / f"{sub}.py").write_text(text)
    (folder / "ops").mkdir()
    for source in (PACKAGE / "ops").glob("*.py"):
        (folder / "ops" / source.name).touch()
    return folder


def _clone(folder: Path) -> Path:
    """A clone of the repository: the root file, and the package two levels down."""
    _light_package(folder / "custom" / "portrait_diffusion")
    shutil.copy(REPOSITORY / "__init__.py", folder / "__init__.py")
    return folder


@pytest.fixture
def root(tmp_path):
    """A folder with a stub threestudio, from whose root the launcher is started."""
    for name, text in STUB.items():
        path = tmp_path / "threestudio" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in (path.parent, *path.parent.parents):
            if parent == tmp_path:
                break
            (parent / "__init__.py").touch()
        path.write_text(textwrap.dedent(text))
    (tmp_path / "custom").mkdir()
    return tmp_path


def _run(root: Path, code: str, launcher: bool = True) -> str:
    """Run a script in a fresh interpreter whose path knows the stub but not the package."""
    script = root / "launch.py"
    script.write_text((LAUNCH if launcher else "") + textwrap.dedent(code))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=root, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _assert_registered_once(output: str) -> None:
    assert f"NAMES {NAMES}" in output and "IMPORT FAILED" not in output and "WARN" not in output, output


def test_copy(root):
    _light_package(root / "custom" / "portrait_diffusion")
    _assert_registered_once(_run(root, "load()\n" + REPORT))


def test_symbolic_link(root, tmp_path_factory):
    real = _light_package(tmp_path_factory.mktemp("elsewhere") / "a_folder_of_another_name")
    (root / "custom" / "portrait_diffusion").symlink_to(real)
    _assert_registered_once(_run(root, "load()\n" + REPORT))


def test_clone(root):
    _clone(root / "custom" / "my-clone")
    _assert_registered_once(_run(root, "load()\n" + REPORT))


def test_clone_without_the_root_file_would_fail(root):
    (_clone(root / "custom" / "my-clone") / "__init__.py").unlink()
    output = _run(root, "load()\n" + REPORT)
    assert "IMPORT FAILED my-clone" in output and "NAMES []" in output


@pytest.mark.parametrize("order", [["portrait_diffusion", "my-clone"], ["my-clone", "portrait_diffusion"]])
def test_copy_and_clone_together(root, order):
    _clone(root / "custom" / "my-clone")
    _light_package(root / "custom" / "portrait_diffusion")
    _assert_registered_once(_run(root, f"load({order})\n" + REPORT))


def test_clone_under_the_name_of_the_package(root):
    _clone(root / "custom" / "portrait_diffusion")
    output = _run(root, "load()\nprint('VERSION', sys.modules['portrait_diffusion'].__version__)\n" + REPORT)
    _assert_registered_once(output)
    assert "VERSION 0." in output


def test_two_copies_of_different_versions_are_reported(root):
    clone = _clone(root / "custom" / "my-clone") / "custom" / "portrait_diffusion" / "__init__.py"
    clone.write_text(clone.read_text().replace('__version__ = "0.1.0"', '__version__ = "0.0.7"'))
    _light_package(root / "custom" / "portrait_diffusion")
    output = _run(root, "load(['portrait_diffusion', 'my-clone', 'portrait_diffusion'])\n" + REPORT)
    assert f"NAMES {NAMES}" in output and "IMPORT FAILED" not in output
    # The clone's root file imports the package by name, which finds the copy: only loading both folders is a clash.
    assert "WARN" not in output
    (root / "other" / "portrait_diffusion").parent.mkdir()
    shutil.copytree(clone.parent, root / "other" / "portrait_diffusion")
    again = """
        sys.path.insert(0, 'other')
        import portrait_diffusion
        load(['portrait_diffusion'])
        """
    output = _run(root, textwrap.dedent(again) + REPORT)
    assert f"NAMES {NAMES}" in output and "IMPORT FAILED" not in output
    assert "WARN Two copies of portrait_diffusion are installed: 0.0.7 in" in output


def test_a_failed_import_can_be_retried_and_shows_its_own_error(root):
    package = _light_package(root / "custom" / "portrait_diffusion")
    (package / "renderer" / "volume.py").write_text("import no_such_library\n" + RENDERER)
    retry = f"""
        load()
        print('FIRST', sorted(threestudio.__modules__))
        load()
        open({str(package / "renderer" / "volume.py")!r}, 'w').write({RENDERER!r})
        importlib.invalidate_caches()
        load()
        for name in [n for n in sys.modules if n.startswith('portrait_diffusion')]:
            del sys.modules[name]
        load()
        geometry = sys.modules['portrait_diffusion.geometry.triplane'].TriplaneGeometry
        print('NEWEST', threestudio.find('portrait-diffusion-triplane') is geometry)
        """
    output = _run(root, textwrap.dedent(retry) + REPORT)
    assert f"FIRST {NAMES[:-1]}" in output
    assert output.count("No module named 'no_such_library'") == 2 and output.count("IMPORT FAILED") == 2
    assert "already exists" not in output and "NEWEST True" in output and f"NAMES {NAMES}" in output


def test_another_extension_with_our_name_is_an_error(root):
    _light_package(root / "custom" / "portrait_diffusion")
    code = "threestudio.register('portrait-diffusion-triplane')(type('Other', (), {}))\nload()\n"
    assert "Module portrait-diffusion-triplane already exists!" in _run(root, code + REPORT)


@pytest.mark.parametrize("form", ["copy", "clone", "link"])
def test_a_spawned_child_can_import_the_package(root, tmp_path_factory, form):
    if form == "copy":
        package = _light_package(root / "custom" / "portrait_diffusion")
    elif form == "clone":
        package = _clone(root / "custom" / "my-clone") / "custom" / "portrait_diffusion"
    else:
        package = _light_package(tmp_path_factory.mktemp("elsewhere") / "another_name")
        (root / "custom" / "portrait_diffusion").symlink_to(package)
    (package / "child.py").write_text("def work(queue):\n    queue.put(__name__)\n")
    host = package / "host.py"  # the child shall need no torch here, only the import path is examined
    host.write_text(host.read_text().replace("if IN_THREESTUDIO:", "if True:", 1))
    code = """
        if __name__ == "__main__":
            import multiprocessing
            load()
            from portrait_diffusion import child
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            process = context.Process(target=child.work, args=(queue,))
            process.start()
            process.join(60)
            print("CHILD", process.exitcode, queue.get(timeout=10) if process.exitcode == 0 else None)
        """
    assert "CHILD 0 portrait_diffusion.child" in _run(root, code)


def test_the_own_host_chosen_before_threestudio_says_so(root):
    package = _light_package(root / "custom" / "portrait_diffusion")
    shutil.copytree(PACKAGE / "_standalone", package / "_standalone", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""
        import sys
        sys.path.append({str(package.parent)!r})
        import portrait_diffusion
        assert not portrait_diffusion.host.IN_THREESTUDIO
        {{launch}}
        load()
        """
    output = _run(root, textwrap.dedent(code).format(launch=LAUNCH) + REPORT, launcher=False)
    assert "import threestudio first" in output and "IMPORT FAILED portrait_diffusion" in output
    assert "NAMES []" in output


def test_the_root_file_does_nothing_outside_the_host(root):
    clone = _clone(root / "custom" / "portrait_diffusion")
    code = f"""
        import importlib.util, sys
        before, path = set(sys.modules), list(sys.path)
        spec = importlib.util.spec_from_file_location("portrait_diffusion", {str(clone / "__init__.py")!r})
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        print("CHANGED", sorted(m for m in set(sys.modules) - before if "portrait" in m), sys.path == path)
        """
    assert "CHANGED [] True" in _run(root, code, launcher=False)


def test_the_complete_package_registers_with_the_stub_and_stays_light(root):
    (root / "custom" / "portrait_diffusion").symlink_to(PACKAGE)
    code = "load()\nprint('HEAVY', [m for m in ('diffusers', 'cv2', 'transformers') if m in sys.modules])\n"
    output = _run(root, "import torch\n" + code + REPORT)
    assert "HEAVY []" in output and "IMPORT FAILED" not in output
    assert all(name in output for name in NAMES)
