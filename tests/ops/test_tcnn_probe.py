"""The trial of tiny-cuda-nn: every way in which a build is broken, by fake packages tried in real processes."""
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from portrait_diffusion.ops import backends, tcnn_probe

CPU = torch.device("cpu")
WORKS = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom tcnn_emulation import Network\n"
QUICK = (  # not even torch is imported
    "import sys, types\ndevice = lambda name: types.SimpleNamespace(type='cpu')\n"
    "sys.modules['torch'] = types.SimpleNamespace(device=device)\n"
)
OTHERS = 'raise EnvironmentError("Could not find compatible tinycudann extension for compute capability 90.")'
FAKES = {
    "works": ("print('{')\n" + WORKS + "import atexit; atexit.register(print, 'goodbye')", "works", ""),
    "library": ('raise ImportError("libcudart.so.12: cannot open shared object file")', "import", "libcudart.so.12"),
    "capability": (OTHERS, "capability", "extension for compute capability 90"),
    "late": (
        QUICK + "def Network(*args):\n raise RuntimeError('CUDA error: no kernel image is available for execution')",
        "capability", "no kernel image",
    ),
    "networks": (QUICK + "def Network(*args):\n raise RuntimeError('not compiled')", "run", "not compiled"),
    "numbers": (WORKS + "Network.forward = lambda self, x: (x * self.params.mean()) @ x.new_ones(17, 4)", "run",
                "value: expected 0.0375"),
    "signal": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "crash", "SIGSEGV"),
    "abort": ("import os\nos._exit(134)", "crash", "exit code 134"),
    "silent": ("import os\nos._exit(0)", "crash", "exit code 0"),
}  # fmt: skip


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a fake `tinycudann` with a compiled file for compute capability 75, first on the path."""
    folder = tmp_path / "packages"
    for name in ("tinycudann", "tinycudann_bindings"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tcnn_probe, "capability", lambda device: "90")
    monkeypatch.setattr(tcnn_probe, "version", lambda: "2.0")

    def write(source: str, binary: bytes = b"compiled") -> None:
        (folder / "tinycudann" / "__init__.py").write_text(source)
        (folder / "tinycudann_bindings" / "_75_C.cpython-311-x86_64-linux-gnu.so").write_bytes(binary)
        importlib.invalidate_caches()
        tcnn_probe.broken.cache_clear()

    yield write
    tcnn_probe.broken.cache_clear()


@pytest.fixture
def trials(monkeypatch):
    """Answers for trials instead of processes, and the number of trials so far."""
    calls = []
    answers = {"next": {"kind": "works", "detail": ""}}

    def probe(device):
        calls.append(device)
        return dict(answers["next"])

    monkeypatch.setattr(tcnn_probe, "probe", probe)
    return answers, calls


# ---- the trial ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FAKES)
def test_each_kind_of_build_is_told_apart(name, package):
    source, kind, detail = FAKES[name]
    package(source)
    found = tcnn_probe.probe(CPU)
    assert found["kind"] == kind and detail in found["detail"], found


def test_a_trial_ends_after_its_time(package):
    package("import time; time.sleep(60)")
    assert tcnn_probe.probe(CPU, time_limit=0.5) == {"kind": "timeout", "detail": "0.5"}


# ---- the sentence ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, detail, expected", [
    ("import", "ImportError: libcudart.so.12", r"cannot be imported \(ImportError: libcudart.so.12\); it must be"),
    ("capability", "OSError: ...", "is built for compute capability 75, this GPU has 90; build it again here: "),
    ("crash", "SIGSEGV", r"crashes \(SIGSEGV\) in a small trial; it must be built with torch .* capability 90; build"),
    ("timeout", "180", "did not finish a small trial within 180 s; try again when the GPU is idle"),
    ("run", "RuntimeError: two\nlines.", r"fails in a small trial \(RuntimeError: two lines\); it must be built with"),
])  # fmt: skip
def test_what_is_wrong_is_one_sentence_with_the_fix(kind, detail, expected, package):
    package("")
    found = tcnn_probe.explain({"kind": kind, "detail": detail}, CPU)
    assert re.match(r"tinycudann 2\.0 " + expected, found), found
    assert "TCNN_CUDA_ARCHITECTURES=90 pip install --force-reinstall" in found and "\n" not in found


def test_the_choice_names_operation_and_reason(package, trials, monkeypatch):
    package("")
    trials[0]["next"] = {"kind": "crash", "detail": "SIGSEGV"}
    assert "is not installed" not in str(backends.missing("tcnn", torch.device("cuda")))
    with pytest.raises(backends.EnvironmentProblem, match="field: .*'tcnn' cannot be used: tinycudann 2.0 crashes"):
        backends.choose("field", "tcnn", torch.device("cuda"), ("torch", "tcnn"))


def test_a_cpu_is_refused_without_a_trial(package, trials):
    package("")
    assert "needs tensors on a CUDA device, got cpu" in backends.missing("tcnn", CPU)
    assert not trials[1]


# ---- what is remembered ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, trials_in_two_processes", [
    ("works", 1), ("crash", 1), ("capability", 1), ("import", 2), ("run", 2), ("timeout", 2),
])  # fmt: skip
def test_what_the_build_decides_is_remembered(kind, trials_in_two_processes, package, trials):
    package("")
    trials[0]["next"] = {"kind": kind, "detail": "7"}
    for process in range(2):
        tcnn_probe.broken.cache_clear()
        for _ in range(2):  # within a process every answer is
            reason = tcnn_probe.broken(CPU)
        assert (reason is None) == (kind == "works")
        earlier = process == 1 and trials_in_two_processes == 1 and reason is not None
        assert ("found earlier; delete" in str(reason)) == earlier
    assert len(trials[1]) == trials_in_two_processes


def test_a_new_build_is_tried_again(package, trials, monkeypatch):
    package("", b"one")
    trials[0]["next"] = {"kind": "crash", "detail": "SIGSEGV"}
    assert tcnn_probe.broken(CPU)
    trials[0]["next"] = {"kind": "works", "detail": ""}
    package("", b"another")
    assert tcnn_probe.broken(CPU) is None and len(trials[1]) == 2
    monkeypatch.setattr(torch, "__version__", "99.0")  # another torch may not load the same build
    tcnn_probe.broken.cache_clear()
    assert tcnn_probe.broken(CPU) is None and len(trials[1]) == 3
    monkeypatch.setattr(tcnn_probe, "capability", lambda device: "75")
    tcnn_probe.broken.cache_clear()
    assert tcnn_probe.broken(CPU) is None and len(trials[1]) == 4
    assert len(json.loads(tcnn_probe.cache_file().read_text())) == 4


@pytest.mark.parametrize("damage", ["", "{", "[1]", "null", "\xff", "wrong kind", "wrong type"])
def test_a_damaged_file_is_ignored_and_written_again(damage, package, trials):
    package("")
    path, known = tcnn_probe.cache_file(), tcnn_probe.key(CPU)
    path.parent.mkdir(parents=True)
    content = {"wrong kind": json.dumps({known: {"kind": "magic", "detail": ""}}), "wrong type": json.dumps({known: 3})}
    path.write_bytes(content.get(damage, damage).encode("latin-1"))
    assert tcnn_probe.broken(CPU) is None and len(trials[1]) == 1
    assert json.loads(path.read_text())[known]["kind"] == "works"
    assert [p.name for p in path.parent.iterdir()] == ["tcnn_probe.json"]


def test_a_folder_that_cannot_be_written_only_costs_another_trial(package, trials, monkeypatch, tmp_path):
    package("")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for count in (1, 2):
        tcnn_probe.broken.cache_clear()
        assert tcnn_probe.broken(CPU) is None and len(trials[1]) == count


def test_the_file_is_in_the_users_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tcnn_probe.cache_file() == tmp_path / "portrait_diffusion" / "tcnn_probe.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tcnn_probe.cache_file() == tmp_path / "home" / ".cache" / "portrait_diffusion" / "tcnn_probe.json"
