"""Provenance and the shareable configuration."""
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from portrait_diffusion.export.provenance import (
    PACKAGE_DIR,
    collect,
    config_hash,
    git_state,
    peak_host_bytes,
    sha256_file,
    write_provenance,
)
from portrait_diffusion.export.share import shareable_config, write_share
from portrait_diffusion.remote import check_paths


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_config_hash_ignores_order_but_not_values():
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": [1, 2], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_provenance_is_complete_and_plain(tmp_path):
    weights = tmp_path / "prior.safetensors"
    weights.write_bytes(b"weights")
    record = collect(
        config={"a": 1}, device="cpu", seeds={"torch": 7}, photo_name="me.jpg", photo_sha256="00",
        weights={"prior": weights}, timings_s={"invert": 12.34567},
        command=["portrait", str(Path.home() / "my photo.jpg")], denoiser={"rows": 8, "noise": {}},
    )  # fmt: skip
    write_provenance(tmp_path / "provenance.json", record)
    back = json.loads((tmp_path / "provenance.json").read_text())
    assert back == record
    assert back["libraries"]["torch"] and back["python"].startswith("3.") and back["device"]["type"] == "cpu"
    assert back["weights_sha256"] == {"prior": hashlib.sha256(b"weights").hexdigest()}
    assert back["seeds"] == {"torch": 7} and back["photo"] == {"name": "me.jpg", "sha256": "00"}
    assert back["config_sha256"] == config_hash({"a": 1}) and back["timings_s"] == {"invert": 12.346}
    assert str(tmp_path) not in json.dumps(back)
    assert str(Path.home()) not in back["command"] and "my photo.jpg" in back["command"]
    assert back["peak_memory"]["host_bytes"] is None or back["peak_memory"]["host_bytes"] > 1e7
    assert back["denoiser"] == {"rows": 8, "noise": {}}
    assert set(back) >= {"version", "git", "created_utc", "platform"}


PEAKS = """
import sys
sys.path.append(sys.argv[1])
from portrait_diffusion.export.provenance import peak_host_bytes
before = peak_host_bytes()
held = bytearray(b"1") * 200_000_000
del held
print(before, peak_host_bytes())
"""


@pytest.mark.skipif(peak_host_bytes() is None, reason="this system doesn't tell the peak memory of a process")
def test_peak_memory_is_the_processes_own():
    """It keeps what was freed again, and doesn't take over what the parent process held."""
    held = np.ones(500_000_000, np.uint8)
    command = [sys.executable, "-c", PEAKS, str(PACKAGE_DIR.parent)]
    before, after = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert 1e8 < after - before < 3e8
    assert 1e7 < before < peak_host_bytes() - 0.6 * held.nbytes  # both have loaded the same libraries


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_git_state_of_tracked_changed_and_untracked_packages(tmp_path):
    assert git_state(tmp_path) is None
    (tmp_path / "package").mkdir()
    file = tmp_path / "package" / "__init__.py"
    file.write_text("")
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path / "package") is None  # inside a repository that doesn't track it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = git_state(tmp_path / "package")
    assert len(clean["sha"]) == 40 and clean["dirty"] is False
    file.write_text("changed")
    assert git_state(tmp_path / "package") == {"sha": clean["sha"], "dirty": True}


CONFIG = {
    "name": "portrait", "timestamp": "@20260101-120000", "trial_dir": "outputs/x", "seed": 0,
    "data": {"image": "photos/me.jpg", "size": 256},
    "system": {"lr": 0.01, "lr_end": "${system.lr}", "betas": [0.9, 0.99]},
}  # fmt: skip


def test_share_round_trip(tmp_path):
    write_share(tmp_path / "share.yaml", CONFIG, ["system.lr=0.02", "data.size=512"])
    text = (tmp_path / "share.yaml").read_text()
    back = OmegaConf.load(tmp_path / "share.yaml")
    assert "2026" not in text and set(back) == {"name", "seed", "data", "system"}
    assert back.system.lr == 0.02 and back.system.lr_end == 0.02 and back.data.size == 512
    assert yaml.safe_load(text)["system"]["lr_end"] == "${system.lr}"
    again, cut = shareable_config(yaml.safe_load(text))
    assert again == yaml.safe_load(text) and cut == []
    assert CONFIG["system"]["lr"] == 0.01  # the input stays as it was


def test_a_description_stays_as_it_is():
    text = "~3 minutes on a laptop/desktop, for photos/selfies, see /docs"
    assert shareable_config({"description": text}) == ({"description": text}, [])


def test_same_config_gives_the_same_file(tmp_path):
    write_share(tmp_path / "a.yaml", CONFIG)
    write_share(tmp_path / "b.yaml", {**CONFIG, "timestamp": "@another"})
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


@pytest.mark.parametrize(
    "path, expected, is_cut",
    [
        ("{base}/photos/me.jpg", "photos/me.jpg", False),
        ("/srv/private/me.jpg", "me.jpg", True),
        ("C:\\Users\\me\\me.jpg", "me.jpg", True),
        ("~/me.jpg", "me.jpg", True),
        ("../private/me.jpg", "me.jpg", True),
        ("{base}/photos/../../private/me.jpg", "me.jpg", True),
        ("photos/..", "", True),
        ("C:me.png", "me.png", True),
        ("\\me.png", "me.png", True),
        ("file:x", "", True),
        ("~", "", True),
        ("/", "", True),
        ("~3 minutes for a photo", "~3 minutes for a photo", False),
        ("and so on...", "and so on...", False),
        ("photos/me.jpg", "photos/me.jpg", False),
        ("a prompt / with a slash", "a prompt / with a slash", False),
    ],
)
def test_no_paths_lead_out(tmp_path, path, expected, is_cut):
    path = path.replace("{base}", str(tmp_path))
    plain, cut = shareable_config({"data": {"images": [path]}}, [f"other={path}"] if " " not in path else [], tmp_path)
    assert plain["data"]["images"] == [expected]
    check_paths(plain, "what a stranger would fetch")
    assert ("data.images[0]" in cut) == is_cut
    keyed, cut = shareable_config({"data": {"of": {path: {"scale": 2}}}}, base=tmp_path)
    assert keyed == {"data": {"of": {expected: {"scale": 2}}}} and ("data.of" in cut) == is_cut
    check_paths(keyed, "what a stranger would fetch")
    write_share(tmp_path / "share.yaml", {"data": {"images": [path], path: 1}}, base=tmp_path)
    text = (tmp_path / "share.yaml").read_text()
    assert str(tmp_path) not in text and "private" not in text and "Users" not in text
