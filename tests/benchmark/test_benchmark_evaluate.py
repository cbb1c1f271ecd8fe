"""The command as a user runs it: a small ladder on a photo, in real processes, twice."""
import argparse
import json
from pathlib import Path

import pytest
import torch
import yaml
from portrait_diffusion import cli
from portrait_diffusion.benchmark import evaluate, runner
from portrait_diffusion.benchmark.records import Item, write_record
from portrait_diffusion.errors import UsageError

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "astronaut.png"
SMALL = {
    "data.size": 128, "data.matte": "none", "system.inversion.latent_steps": 1, "system.inversion.latent_size": 32,
    "system.inversion.latent_samples": 6, "system.inversion.novel_views": 1, "system.inversion.novel_size": 16,
    "system.inversion.detail_steps": 0, "system.inversion.detail_size": 48, "system.inversion.detail_resolution": 48,
    "system.inversion.lambda_perceptual": 0, "system.restoration_resolution": 8,
    "system.renderer": {"num_samples_per_ray": 6, "num_importance_samples": 6},
}  # fmt: skip


def plan(*words):
    return evaluate.make_plan(evaluate.parser().parse_args(list(words)))


def test_the_command_line_makes_a_plan(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in "abcdef":
        (tmp_path / "photos" / f"{name}.png").write_bytes(b"x")
    made, told = plan(str(tmp_path / "out"), "--photos", str(tmp_path / "photos"), "--profile", "quick", "--seeds", "4")
    assert [item.name for item in made.items] == ["a.png", "b.png", "c.png", "d.png"] and made.seeds == [4]
    assert [rung.name for rung in made.rungs][:2] == ["init", "restoration"] and len(made.rungs) == 7
    assert made.scope.every == 2 and told["rows"] == 48 and told["size"] == 128
    full, _ = plan(str(tmp_path / "out"), "--photos", str(tmp_path / "photos"), "--subjects", "1", "--rungs", "init")
    assert full.seeds == [0, 1, 2] and len(full.items) == 1 and [r.name for r in full.rungs] == ["init"]
    with pytest.raises(UsageError, match="no profile 'slow'; there are full, quick"):
        plan("out", "--photos", str(tmp_path / "photos"), "--profile", "slow")
    assert cli.main(["evaluate", str(tmp_path / "out")]) == UsageError.exit_code


def test_the_recorded_command_is_that_of_the_whole():
    for words in (["out", "--shard", "1/2", "--jobs", "4"], ["out", "--shard=1/2", "--jobs", "4", "--collect"]):
        assert evaluate.command_of(words) == "python launch_portrait.py evaluate out --jobs 4"


def test_the_recorded_command_names_no_folders_outside():
    told = evaluate.command_of(["/data/out", "--set", "/data/set", "--jobs", "2"])
    assert told == "python launch_portrait.py evaluate out --set set --jobs 2"


def test_records_of_other_machines_are_summarised_without_a_run(tmp_path, monkeypatch, caplog):
    """Two records copied into a folder: numbers and tables of just these, and nothing is started."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(evaluate, "run", lambda plan: pytest.fail("nothing is to be run"))
    monkeypatch.setattr(runner, "result_key", lambda plan, own, item, photo_sha256: f"{item.name} as it is")
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name, psnr in (("a", 30.0), ("b", 34.0), ("c", None)):
        (photos / f"{name}.png").write_bytes(PHOTO.read_bytes())
        if psnr is not None:
            record = {"status": "ok", "seconds": 1.0, "denoiser_rows": 0, "metrics": {"photo_psnr_db": psnr}}
            record |= {"reasons": {}, "commit": "x", "device": "y", "key": f"{name}.png as it is"}
            write_record(out, Item("photos", f"{name}.png"), "init", 0, record)
    write_record(out, Item("photos", "c.png"), "init", 0, record | {"key": "c.png as it was"})
    command = ["evaluate", str(out), "--photos", str(photos), "--rungs", "init", "restoration", "--seeds", "0"]
    with caplog.at_level("WARNING", logger="portrait_diffusion"):
        assert cli.main([*command, "--collect"]) == 0
    assert "1 records of other configurations" in caplog.text
    found = json.loads((out / "ladder.json").read_text())["data"]["photos"]
    assert list(found["rungs"]) == ["init"] and found["items"] == 2
    assert found["rungs"]["init"]["numbers"]["photo_psnr_db"][1] == 32.0
    assert len((out / "results.jsonl").read_text().splitlines()) == 2 and (out / "tables.md").is_file()


@pytest.mark.slow
def test_a_small_ladder_from_photo_to_gallery(tmp_path, capsys):
    pytest.importorskip("pytorch_lightning"), pytest.importorskip("diffusers"), pytest.importorskip("matplotlib")
    from portrait_diffusion.guidance.hpdm.model import build_mini
    from portrait_diffusion.guidance.hpdm.storage import save_hpdm

    torch.manual_seed(0)
    tiny = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=32)
    model = str(save_hpdm(tiny, tmp_path / "hpdm"))
    stage = {"steps": 20, "resolution": [16], "guidance": 0.01, "loss": {"lambda_rgb": 1.0}}
    guidance = {"pretrained_model_name_or_path": model, "explicit_scale": 0, "implicit_scale": 0}
    guided = {"system.stages.refine": stage, "system.guidance": guidance}
    guided["system.guidance_type"] = "portrait-diffusion-hpdm-guidance"
    dear = {"system.stages.refine": {**stage, "painted": 50, "loss": {"lambda_painted": 1.0}}}
    ladder = {
        "base": "portrait-mini",
        "profiles": {"full": {"seeds": [0], "rows": 8, "scope": {"rings": 1, "every": 2, "film": 3, "vgg": False}}},
        "rungs": {
            "init": {"adds": "prior", "overrides": SMALL},
            "sds": {"after": "init", "adds": "distillation", "overrides": guided},
            "dear": {"after": "sds", "adds": "too many rows", "overrides": dear},
        },
    }  # fmt: skip
    (tmp_path / "ladder.yaml").write_text(yaml.safe_dump(ladder, sort_keys=False))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "astronaut.png").write_bytes(PHOTO.read_bytes())
    (tmp_path / "photos" / "empty.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    words = ["evaluate", str(out), "--photos", str(tmp_path / "photos"), "--ladder", str(tmp_path / "ladder.yaml"),
             "--size", "32", "--device", "cpu"]  # fmt: skip
    assert cli.main(words) == 0
    first = json.loads((out / "ladder.json").read_text())
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    by = {(r["name"], r["rung"]): r for r in records}
    assert by["empty.png", "init"]["status"] == "refused" and str(tmp_path) not in by["empty.png", "init"]["reason"]
    assert by["astronaut.png", "init"]["denoiser_rows"] == 0
    assert by["astronaut.png", "sds"]["denoiser_rows"] == first["rungs"]["sds"]["predicted_rows"] == 8
    assert by["astronaut.png", "sds"]["metrics"]["photo_psnr_db"] > 5
    assert by["astronaut.png", "sds"]["metrics"]["clip_i"] is None
    assert "8 denoiser rows are too few" in first["not_run"]["dear"]
    assert (out / "gallery" / "photos-astronaut.html").is_file() and (out / "tables.md").read_text().count("| sds |")
    lines = (out / "results.jsonl").read_text()
    assert cli.main(words) == 0 and (out / "results.jsonl").read_text() == lines, "nothing is run twice"
    (out / "records" / "photos-astronaut" / "sds-s0.json").unlink()
    assert cli.main(words) == 0
    again = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {(r["name"], r["rung"]): r.get("metrics") for r in again} == {k: r.get("metrics") for k, r in by.items()}


def test_a_shard_is_two_numbers():
    assert evaluate.shard("2/3") == (2, 3) and evaluate.parser().parse_args(["out"]).shard == (1, 1)
    for wrong in ("0/2", "3/2", "1", "a/b", "-1/2", "1/2/3"):
        with pytest.raises(argparse.ArgumentTypeError, match="K/N"):
            evaluate.shard(wrong)
