"""The text of the package: one file names the host, no hard-wired devices, no deprecated or ambiguous calls."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "custom" / "portrait_diffusion"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)
NAMES_THE_HOST = {"host.py"}
NAMES_CUDA = {"host.py", "_standalone/misc.py"}


def code_strings(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, text) of all string constants, docstrings left out."""
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(id(first.value))
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [(n.lineno, n.value) for n in constants if id(n) not in docstrings]


def identifiers(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, name) of everything named in code: imports, variables, attributes, arguments, definitions."""
    found = []
    for node in ast.walk(tree):
        for attribute in ("id", "attr", "arg", "name", "module", "asname"):
            name = getattr(node, attribute, None)
            if isinstance(name, str):
                found.append((getattr(node, "lineno", 0), name))
    return found


def names_the_host(source: str) -> list[int]:
    tree = ast.parse(source)
    return [line for line, word in code_strings(tree) + identifiers(tree) if "threestudio" in word.lower()]


def names_cuda(source: str) -> list[int]:
    """Lines that choose a device: "cuda", "cuda:0", f"cuda:{i}"; comparing a device's type with "cuda" is no choice."""
    tree = ast.parse(source)
    asked = [c for n in ast.walk(tree) if isinstance(n, ast.Compare) for c in [n.left, *n.comparators]]
    for constant in (c for c in asked if isinstance(c, ast.Constant)):
        constant.value = None
    return [line for line, word in code_strings(tree) if word == "cuda" or word.startswith("cuda:")]


def calls(source: str) -> set[str]:
    """Attribute calls as `a.b.c`, or `.c` for the last name of anything."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found |= {ast.unparse(node.func), f".{node.func.attr}"}
    return found


def test_the_scanners_find_what_they_look_for():
    bad = (
        '"""threestudio"""\nimport threestudio.x\n'
        'def f(t):\n    "cuda"\n    return t.to("cuda:0").cuda(), torch.cross(t, t)\n'
    )
    assert names_the_host(bad) == [2] and names_cuda(bad) == [5]
    assert {".cuda", "torch.cross"} <= calls(bad)
    assert names_the_host('x = "see threestudio"') == [1] and names_cuda('d = f"cuda:{i}"') == [1]
    assert "torch.cross" not in calls("torch.linalg.cross(a, b)") and names_cuda("torch.cuda.is_available()") == []
    assert names_cuda('t.device.type == "cuda"') == [] and names_cuda('f("cuda") == 1') == [1]


def test_the_package_is_found():
    assert {"__init__.py", "host.py", "schema.py"} <= {p.name for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_text(path):
    source, name = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
    if name not in NAMES_THE_HOST:
        assert names_the_host(source) == [], "only host.py may name threestudio in code"
    if name not in NAMES_CUDA:
        assert names_cuda(source) == [], "take the device from a tensor, or from host.get_device()"
    assert not {".cuda", "torch.cross"} & calls(source)
    if "class Config" in source:
        assert "from __future__ import annotations" not in source, "OmegaConf can't resolve nested Config classes then"
    assert not [folder for folder in ("work", "tmp", "root") if f"/{folder}/" in source], "no machine paths"


def test_the_custom_folder_holds_packages_only():
    entries = [p for p in PACKAGE.parent.iterdir() if p.name != "__pycache__"]
    assert not [p.name for p in entries if p.suffix == ".py"]
    assert all((p / "__init__.py").is_file() for p in entries if p.is_dir())


def test_importing_has_no_side_effects():
    """In a fresh interpreter: nothing heavy is loaded, nothing printed, no resolver registered."""
    code = (
        "import sys; import portrait_diffusion, portrait_diffusion.schema; from omegaconf import OmegaConf;"
        "print([m for m in ('pytorch_lightning','lightning','diffusers','transformers','cv2','scipy','skimage',"
        "'trimesh','matplotlib','imageio') if m in sys.modules], OmegaConf.has_resolver('add'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.strip() == "[] False", done.stdout + done.stderr
