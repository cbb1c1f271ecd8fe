"""The shipped ladder: every rung is valid, adds one thing, and says why it cannot run."""
import sys
from pathlib import Path

import pytest
import yaml
from portrait_diffusion.benchmark.budget import denoiser_rows
from portrait_diffusion.benchmark.ladder import HPDM_GUIDANCE, LADDER, changed, make_rungs, read_ladder, why_not
from portrait_diffusion.benchmark.measure import Scope
from portrait_diffusion.errors import UsageError

ROOT = Path(__file__).absolute().parents[2]
ORDER = ["init", "restoration", "sds-iid", "explicit", "implicit", "anchors", "full"]


@pytest.fixture(scope="module")
def rungs():
    return make_rungs(read_ladder(), rows=2000)


def test_the_ladder_is_what_the_method_adds_in_order(rungs):
    names = [rung.name for rung in rungs]
    assert names[: len(ORDER)] == ORDER
    assert [rung.after for rung in rungs][: len(ORDER)] == ["", *ORDER[:-1]]
    assert {"no-restoration", "no-explicit", "no-implicit", "no-mvnrs", "no-preservation"} <= set(names)
    assert {"csd", "sdi", "ism", "painted", "fixed-noise", "object-noise", "antipodal"} <= set(names)
    assert all(rung.adds for rung in rungs) and all(rung.after in ("", *names) for rung in rungs)


def test_rungs_cost_the_same_or_nothing(rungs):
    for rung in rungs:
        rows = denoiser_rows(rung.config["system"])
        assert rows == 0 if rung.name in ("init", "restoration") else 1900 <= rows <= 2000, rung.name
    short = make_rungs(read_ladder(), ["restoration", "sds-iid"], rows=600)
    lengths = {rung.name: rung.config["system"]["stages"]["restore"]["steps"] for rung in short}
    assert lengths["restoration"] == lengths["sds-iid"] == pytest.approx(200, abs=2)


def test_the_ladder_of_the_restoration_has_the_configuration_that_ships():
    rungs = make_rungs(read_ladder(ROOT / "benchmarks" / "ladders" / "restored.yaml"))
    init, restored, refined, opened, distilled = rungs
    for rung, name in ((init, "portrait-init"), (restored, "portrait-mini"), (distilled, "portrait-distilled")):
        config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert rung.config["system"] == config["system"] and rung.config["data"] == config["data"]
    assert opened.config["system"] == refined.config["system"] | {"detail_preservation": False}


def test_the_ladder_of_the_camera_differs_by_the_camera_alone():
    landmarks, network, mini_landmarks, mini = make_rungs(read_ladder(ROOT / "benchmarks" / "ladders" / "camera.yaml"))
    config = yaml.safe_load((ROOT / "configs" / "portrait-mini.yaml").read_text(encoding="utf-8"))
    assert mini.config["system"] == config["system"] == mini_landmarks.config["system"]
    assert network.config["system"] == landmarks.config["system"] and denoiser_rows(network.config["system"]) == 0
    rungs = (landmarks, network, mini_landmarks, mini)
    assert [rung.config["data"]["camera"] for rung in rungs] == ["landmarks", "network"] * 2


def test_profiles_are_valid():
    ladder = read_ladder()
    for profile in ladder["profiles"].values():
        assert Scope(**profile["scope"]).rows()[0] == 0 and profile["seeds"]
        assert make_rungs(ladder, profile.get("rungs"), profile["rows"])
    assert ladder["profiles"]["full"]["seeds"] == [0, 1, 2] and len(Scope().rows()) == 72


def test_a_model_is_named_for_the_rungs_that_use_one():
    for rung in make_rungs(read_ladder(), hpdm="outputs/hpdm"):
        guidance = rung.config["system"].get("guidance") or {}
        uses = rung.config["system"].get("guidance_type") == HPDM_GUIDANCE
        assert guidance.get("pretrained_model_name_or_path") == ("outputs/hpdm" if uses else None)


def test_a_rung_without_weights_says_why(monkeypatch, tmp_path):
    from portrait_diffusion.guidance import hpdm_guidance

    monkeypatch.setattr(hpdm_guidance, "BUNDLED", tmp_path / "none")
    rungs = {rung.name: rung for rung in make_rungs(read_ladder(), ["init", "full"])}
    assert why_not(rungs["init"]) == ""
    assert "HPDM weights are missing" in why_not(rungs["full"])


def test_the_benchmark_writes_no_videos_and_asks_for_nothing_that_does(monkeypatch):
    for missing in ("imageio_ffmpeg", "xatlas", "fast_simplification"):
        monkeypatch.setitem(sys.modules, missing, None)
    assert [why_not(rung) for rung in make_rungs(read_ladder(), ["init", "full"])] == ["", ""]


def test_mistakes_are_named(tmp_path):
    ladder = read_ladder()
    with pytest.raises(UsageError, match="no rung 'fulll'; there are init"):
        make_rungs(ladder, ["fulll"])
    ladder["rungs"]["odd"] = {"after": "later", "overrides": {}}
    with pytest.raises(UsageError, match="'odd' comes after 'later', which is no rung before it"):
        make_rungs(ladder)
    ladder["rungs"]["odd"] = {"after": "init", "adds": 1e-4, "overrides": {}}
    with pytest.raises(UsageError, match="`adds` of rung 'odd' is 0.0001, expected words; put it into quotes"):
        make_rungs(ladder)
    ladder["rungs"]["odd"] = "init"
    with pytest.raises(UsageError, match="Rung 'odd' is 'init', expected a name and a section"):
        make_rungs(ladder)
    ladder["rungs"]["odd"] = {"after": "init", "overrides": {"system.stages.restor.steps": 1}}
    with pytest.raises(UsageError, match="restor"):
        make_rungs(ladder)
    other = tmp_path / "ladder.yaml"
    other.write_text(yaml.safe_dump({"base": "portrait-mini", "rungs": {}}))
    with pytest.raises(UsageError, match="has no profiles, rungs"):
        read_ladder(other)
    assert LADDER.is_file()


def test_changes_leave_the_original_alone():
    plain = {"a": {"b": 1, "c": [1]}}
    out = changed(plain, {"a.b": 2, "d.e": {"f": 3}})
    assert out == {"a": {"b": 2, "c": [1]}, "d": {"e": {"f": 3}}} and plain == {"a": {"b": 1, "c": [1]}}
