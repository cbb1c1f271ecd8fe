"""HPDM's benchmarks: intervals, what is compared, and that each command runs on a tiny model."""
import functools
import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
from balls import add_normals, write_shards  # noqa: E402
from portrait_diffusion.errors import UsageError  # noqa: E402
from portrait_diffusion.guidance.hpdm.model import build_mini  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import save_hpdm  # noqa: E402
from portrait_diffusion.multiview import load_shards  # noqa: E402
from portrait_diffusion.priors.bundled import BundledPrior  # noqa: E402
from priors.samples import save_tiny_prior  # noqa: E402

from benchmark.scripts import load_script  # noqa: E402

equivariance, guidance_speed, hpdm_views = (
    load_script(name) for name in ("equivariance", "guidance_speed", "hpdm_views")
)


class Distance(torch.nn.Module):
    """In the place of ST-LPIPS."""

    def forward(self, a, b, mask=None):
        return (a - b).abs().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("hpdm")
    torch.manual_seed(0)
    model = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=32)
    return save_hpdm(model, path / "model"), add_normals(write_shards(path / "data", subjects=2, size=32))


def test_intervals_cover_as_often_as_they_say():
    """100 samples of 40 normal numbers: 95 % intervals hold the true mean in 84 or more of them, 5 sigma below 95."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for k in range(100):
        low, mean, high = hpdm_views.interval(torch.randn(40, generator=generator), seed=k)
        held += low <= 0 <= high
        assert low <= mean <= high
    assert held >= 84
    assert hpdm_views.interval(torch.tensor([0.3, 0.3, torch.nan])) == [0.3, 0.3, 0.3]
    assert hpdm_views.interval(torch.full((3,), torch.nan)) is None


def test_the_gain_is_over_side_and_back_views_and_relative():
    one, both = torch.tensor([0.1, 0.3]), torch.tensor([0.05, 0.15])
    found = {("explicit", name): {"stlpips": one} for name in ("below45", "45to135", "back")}
    found |= {("hybrid", name): {"stlpips": both} for name in ("45to135", "back")}
    found["hybrid", "below45"] = {"stlpips": torch.zeros(2)}
    row = hpdm_views.summary(found)["side and back, ST-LPIPS of explicit less hybrid, over explicit"]
    assert row["gain"][1] == pytest.approx(0.5) and row["explicit"][1] == pytest.approx(0.2)


def test_views_are_measured_by_command(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(hpdm_views, "STLPIPS", lambda *args, **kwargs: Distance())
    model, data = folders
    out, kept = tmp_path / "views.json", tmp_path / "pictures.npz"
    command = ["--model", str(model), "--data", str(data), "--out", str(out), "--steps", "1", "--pictures", str(kept)]
    assert hpdm_views.main(command) == 0
    result = json.loads(out.read_text())
    kinds = ("none", "explicit", "implicit", "hybrid")
    assert {f"{kind} back" for kind in kinds} <= set(result)
    assert result["none within 60"]["sface"] is None  # no faces are made: missing, not zero

    monkeypatch.setattr(hpdm_views, "make_pictures", lambda *args: pytest.fail("they were kept"))
    assert hpdm_views.main([*command, "--no-sface"]) == 0
    again = json.loads(out.read_text())
    assert again["hybrid back"] == result["hybrid back"] and "none within 60" not in again
    with pytest.raises(UsageError, match="pictures.npz was made from another model, data or steps"):
        hpdm_views.main([*command, "--limit", "1"])


def test_inverted_geometry_is_that_of_latents_fitted_to_the_front_view(folders, tmp_path, monkeypatch):
    """Heads of the shape of the data that fitting changes, and the same ones each time."""
    monkeypatch.setattr(hpdm_views, "load_perceptual", lambda *args: None)
    small = {"latent_size": 32, "latent_samples": 6, "novel_views": 2, "novel_size": 16, "detail_size": 48,
             "detail_resolution": 48}  # fmt: skip
    monkeypatch.setattr(hpdm_views.InversionConfig, "__init__",
                        functools.partialmethod(hpdm_views.InversionConfig.__init__, **small))  # fmt: skip
    data, prior = load_shards(folders[1], "cpu"), BundledPrior(*save_tiny_prior(tmp_path))
    answers = [hpdm_views.inverted(prior, data, steps) for steps in (0, 2, 2)]
    assert answers[1].rgba.shape == data.rgba.shape and answers[1].normal.shape == data.normal.shape
    assert torch.equal(answers[1].rgba, answers[2].rgba) and not torch.equal(answers[0].rgba, answers[1].rgba)


def test_hair_is_measured_where_there_is_hair(folders, tmp_path):
    """Only pixels that the labels call hair count, and subjects without hair in a view are missing there."""
    data = load_shards(folders[1], "cpu")
    for path in folders[1].glob("*.npz"):
        with np.load(path) as shard:
            arrays = dict(shard)
        assert hpdm_views.hair_masks(data) is None
        arrays["label"] = np.zeros(arrays["depth"].shape, np.uint8)
        arrays["label"][0, :, :8] = 2
        np.savez(tmp_path / path.name, **arrays)
    hair = hpdm_views.hair_masks(load_shards(tmp_path, "cpu"))
    assert hair.shape == (2, 4, 1, 32, 32) and hair[0, :, :, :8].all() and not hair[0, :, :, 8:].any()

    class Masked(torch.nn.Module):
        def forward(self, a, b, mask=None):
            weight = torch.ones_like(a[:, :1]) if mask is None else mask
            return ((a - b).abs() * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1e-6) / 3

    rows = torch.arange(2)
    truth = torch.stack([hpdm_views.true_pictures(data, rows, view) for view in (1, 2, 3)], dim=1)
    wrong = (truth * 255).round().to(torch.uint8)
    wrong[:, :, :, 8:] = 255 - wrong[:, :, :, 8:]  # outside the hair
    found = hpdm_views.measure(dict.fromkeys(("none", "explicit", "implicit", "hybrid"), wrong), data, Masked(), hair)
    for values in found.values():
        assert values["stlpips_hair"][0] < 0.005 and values["stlpips_hair"][1].isnan()
        assert (values["stlpips"] > 0.1).all()


def test_equal_noise_and_equal_views_agree(folders, tmp_path):
    """A view against itself: carried noise is the noise, so that the answers agree; independent noise does not."""
    model, data = hpdm_views.load_hpdm(folders[0]), load_shards(folders[1], "cpu")
    same = equivariance.disagreement(model, data, 0, 0, 500)
    assert same["carried"] < 0.5 * same["independent"] and same["latents themselves"] < 1e-3
    assert same["covered"] > 0.8
    out = tmp_path / "e.json"
    for name in ("a", "b"):
        command = ["--model", str(folders[0]), "--data", str(folders[1]), "--out", str(out), "--name", name]
        assert equivariance.main([*command, "--limit", "1"]) == 0
    curves = json.loads(out.read_text())
    assert set(curves) == {"a", "b"} and {row["yaw"] for row in curves["a"]["curve"]} == {10.0, 60.0}
    assert curves["b"]["command"].endswith("--name b --limit 1") and curves["b"]["subjects"] == 1
    lines = equivariance.table(curves).splitlines()
    assert len(lines) == 2 + 2 * 2 and lines[2].startswith("| a | 10° |") and lines[-1].startswith("| b | 60° |")


def test_the_table_of_equivariance_is_that_of_its_result_file(tmp_path, monkeypatch):
    assert equivariance.main(["--check"]) == 0
    page = tmp_path / "hpdm.md"
    text = equivariance.PAGE.read_text(encoding="utf-8")
    page.write_text(text.replace("| shipped | 15° | 0.", "| shipped | 15° | 1."))
    monkeypatch.setattr(equivariance, "PAGE", page)
    assert equivariance.main(["--check"]) == 1
    assert equivariance.main(["--pages"]) == 0 == equivariance.main(["--check"])
    with pytest.raises(SystemExit):
        equivariance.main([])


def test_the_guidance_is_timed(tmp_path, monkeypatch):
    out = tmp_path / "speed.json"
    assert guidance_speed.main(["--out", str(out), "--small", "--size", "32", "--views", "1", "--repeats", "1"]) == 0
    result = json.loads(out.read_text())
    assert result["full autoencoder"]["step"] > 0 and result["tiny autoencoder"]["denoiser alone"] > 0
    tiny = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=32)
    monkeypatch.setattr(guidance_speed, "build_mini", lambda image_size: tiny)
    command = ["--out", str(out), "--mini", "--size", "32", "--views", "1", "--repeats", "1"]
    assert guidance_speed.main(command) == 0 and json.loads(out.read_text())["mini"]["step"] > 0
