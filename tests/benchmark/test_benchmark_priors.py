"""The scripts that time published priors and train the yardstick of the bundled one run and say what they measured."""
import json
from pathlib import Path

import torch
from portrait_diffusion.multiview import MultiViewData
from priors.published_samples import tiny_sizes

from benchmark.scripts import load_script

speed = load_script("published_prior_speed")
reference = load_script("reference_encoder")
fits = load_script("published_fits")
PHOTO = Path(__file__).resolve().parents[2] / "examples" / "astronaut.png"


def test_published_priors_are_timed_by_part(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "released", tiny_sizes)
    monkeypatch.setattr("portrait_diffusion.inversion.published.CHECK_SIZE", 16)
    monkeypatch.setattr(speed, "image_seconds", lambda prior, repeats: 0.5)  # its layers want full-size pictures
    out = tmp_path / "speed.json"
    arguments = ["eg3d", "--device", "cpu", "--rays", "64", "--latent", "2", "--tuning", "2", "--image"]
    assert speed.main([*arguments, "--tunings", "generator", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    (row,) = result["rows"]
    assert {"command", "device", "commit"} <= set(result)
    assert row["family"] == "eg3d" and row["image_s"] == 0.5
    assert all(row[name] > 0 for name in ("latent_step_s", "generator_step_s", "generator_peak_gb"))


def test_whole_fits_go_from_a_pickle_to_a_refusal(tmp_path, monkeypatch, photo_prepared_once):
    monkeypatch.setattr(fits, "released", tiny_sizes)
    out = tmp_path / "fits.json"
    settings = {"latent_steps": 1, "tuning_steps": 1, "samples": 4, "lambda_perceptual": 0}
    told = [f"system.published_fit.{key}={value}" for key, value in settings.items()]
    arguments = [str(PHOTO), "eg3d", "--size", "32", "--tunings", "planes", "--out", str(out), "--set"]
    assert fits.main([*arguments, *told, "system.published_fit.min_overlap=1"]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["family"] == "eg3d" and row["status"] == "refused" and "silhouette overlaps" in row["reason"]
    assert row["seconds"] > 0 and row["parameters"] > 1000 and row["metrics"] is None


def red_balls(count: int, views: int) -> MultiViewData:
    """Frontal pictures of a red disc, the same from everywhere."""
    grid = (torch.arange(128) - 63.5) / 64
    disc = (grid[:, None] ** 2 + grid[None] ** 2 < 0.25).to(torch.uint8) * 255
    rgba = torch.stack([disc, 0 * disc, 0 * disc, disc], dim=-1).expand(count, views, -1, -1, -1).contiguous()
    c2w = torch.eye(4).expand(count, views, 4, 4).clone()
    c2w[..., 2, 3] = 2.7
    azimuth = torch.zeros(count, views)
    return MultiViewData(rgba, None, c2w, torch.full((count, views), 0.2334), azimuth, azimuth.clone())


def test_the_yardstick_learns(monkeypatch):
    """A few steps on one picture take a good part of its loss away; its size is the reference's (15.7 million)."""
    with torch.device("meta"):
        assert 12e6 < sum(p.numel() for p in reference.PlainEncoder().parameters()) < 20e6
    small = {"WIDTHS": (8, 16, 16, 16, 16), "SIZE": 16, "SAMPLES": 12, "SUBJECTS": 2, "VIEWS": 1}
    for name, value in small.items():
        monkeypatch.setattr(reference, name, value)
    torch.manual_seed(0)
    model, data = reference.PlainEncoder(), red_balls(2, 1)
    rng = torch.Generator().manual_seed(0)
    before = reference.step_losses(model, data, rng).item()
    assert reference.train(model, data, seconds=600, seed=0, steps=40) == 40
    assert reference.step_losses(model, data, rng).item() < 0.9 * before
