"""Metrics of a head whose truth is known: perfect for the truth itself, worse for others, missing, never zero."""
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from portrait_diffusion.benchmark import measure
from portrait_diffusion.benchmark.measure import Nets, Scope
from portrait_diffusion.errors import UsageError
from portrait_diffusion.evaluation import identity

from benchmark.ball_heads import SIZE, render, truth_of


class Colour:
    """Stands in for a perceptual distance."""

    def features(self, picture):
        return picture

    def compare(self, a, b, mask):
        return ((a - b).abs().mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1e-8)

    def __call__(self, a, b, mask):
        return self.compare(a, b, mask)


NETS = Nets(perceptual={"alex": Colour()}, reasons={"clip_i": "no weights"})


@pytest.fixture(scope="module")
def truth():
    return truth_of()


def metrics(truth, **wrong):
    return measure.head_metrics(functools.partial(render, **wrong), truth, NETS, 3)[0]


@pytest.fixture(scope="module")
def perfect(truth):
    return metrics(truth)


def test_the_truth_itself_is_perfect(perfect):
    for name in ("input", *measure.BINS):
        assert perfect[f"ssim.{name}"] == pytest.approx(1) == perfect[f"iou.{name}"]
        assert perfect[f"depth_mm.{name}"] == pytest.approx(0, abs=1e-3)
        assert perfect[f"normal_deg.{name}"] == pytest.approx(0, abs=0.1)
        assert perfect[f"stlpips_alex.{name}"] == 0 == perfect[f"stlpips_hair.{name}"]
        assert perfect[f"laplacian_ratio.{name}"] == pytest.approx(1) == perfect[f"band_ratio_2.{name}"]
        assert perfect[f"psnr_db.{name}"] is None, "infinite: missing, not a number"
    assert perfect["chamfer"] == pytest.approx(0, abs=1e-6) and perfect["f1"] == 1
    assert perfect["self_warp_30"] == perfect["truth_warp_30"] < 0.05 and perfect["flicker_back"] < 0.01
    assert perfect["janus_rate"] == 0 and perfect["chroma_noise"] == perfect["chroma_noise_truth"]
    assert perfect["self_warp_30_truth"] == pytest.approx(perfect["self_warp_30"], abs=1e-6)


def test_what_cannot_be_known_is_missing_and_never_zero(perfect):
    assert perfect["clip_i"] is None and perfect["self_warp_15"] is None, "views are 30 degrees apart"
    assert perfect["sface.side"] is None and perfect["landmarks.side"] is None, "a ball has no face"
    assert measure.finite({"a": math.nan, "b.back": 1.0}, {"b": "x", "c": "y"}) == {"a": None, "b.back": 1.0, "c": None}


def test_wrong_heads_are_worse_where_they_are_wrong(truth, perfect):
    turned = metrics(truth, turned=0.5)
    assert turned["psnr_db.side"] < 25 and turned["stlpips_hair.back"] > 0.02
    assert turned["depth_mm.back"] == pytest.approx(0, abs=1e-3) and turned["chamfer"] == perfect["chamfer"]
    assert turned["self_warp_30"] == pytest.approx(perfect["self_warp_30"], rel=0.3), "it agrees with itself"
    assert turned["self_warp_30_truth"] == perfect["self_warp_30_truth"], "the true head is what it was"
    small = metrics(truth, radius=0.19)
    millimetres = 10 * measure.METRES_PER_UNIT
    assert small["chamfer"] == pytest.approx(millimetres, rel=0.15) and small["iou.back"] < 0.95
    big, less = 0.2, 0.19  # mean over the small disc of the difference of two half balls' heights
    heights = 2 / 3 * (big**3 - (big**2 - less**2) ** 1.5 - less**3) / less**2
    assert small["depth_mm.front"] == pytest.approx(1000 * measure.METRES_PER_UNIT * heights, rel=0.05)
    dull = metrics(truth, grey=0.5)
    assert dull["band_ratio_2.back"] == pytest.approx(0.25, rel=0.02)
    assert dull["laplacian_ratio.side"] == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize(
    ("azimuth", "name"),
    [(0, "front"), (30, "front"), (-30, "front"), (45, "side"), (75, "side"), (-76, "profile"), (105, "profile"),
     (106, "back"), (180, "back"), (-180, "back"), (345, "front"), (255, "profile")],
)  # fmt: skip
def test_bins_by_absolute_azimuth(azimuth, name):
    assert measure.bin_name(azimuth) == name


def test_the_input_view_is_never_averaged_with_others():
    out = measure.binned({"m": [1.0, 3.0, math.nan, 5.0]}, [0, 0, 15, -30], [0, 20, 0, 0])
    assert out == {"m.input": 1.0, "m.front": 4.0, "m.side": None, "m.profile": None, "m.back": None}


def test_faces_are_compared_where_both_are_found(truth, monkeypatch):
    x = torch.tensor([0.6, 0.8]).numpy()
    face = identity.Face(torch.zeros(4).numpy(), torch.rand(5, 2).numpy(), 0.9)
    seen = iter([face, None, face, face] * 20)
    monkeypatch.setattr(measure, "sface_of", lambda picture, face: x)
    monkeypatch.setattr(measure, "largest_face", lambda picture: (picture, next(seen)))
    fresh = truth.rows(list(range(len(truth.cameras.azimuth))))  # nothing is known of its faces yet
    found = measure.face_metrics(truth.pictures, fresh, Nets(dlib=SimpleNamespace(of=lambda *face: x)))
    assert [math.isnan(v) for v in found["dlib_l2"][:3]] == [True, False, True] and found["dlib_l2"][1] == 0
    assert [math.isnan(v) for v in found["sface"][:3]] == [True, False, True]
    assert found["sface"][1] == pytest.approx(1) and found["landmarks"][1] == 0
    assert found["face_found"][1] == 1 and math.isnan(found["sface"][6]), "no face is looked for behind the head"


def test_turned_faces_are_set_against_the_photo_and_the_true_ones_likewise(truth, monkeypatch):
    front, turned = np.array([1.0, 0.0]), np.array([0.6, 0.8])
    monkeypatch.setattr(measure, "largest_face", lambda picture: (picture, SimpleNamespace(landmarks=None)))
    monkeypatch.setattr(measure, "sface_of", lambda picture, face: seen.pop(0))
    fresh = truth.rows(list(range(len(truth.cameras.azimuth))))
    seen = [front, turned, front]  # the photo, then the true head at +30 and -30 degrees
    own = measure.truth_metrics(fresh, NETS)
    assert own["sface_plus30_truth"] == pytest.approx(0.6) and own["sface_minus30_truth"] == pytest.approx(1)
    assert "self_warp_30_truth" in own and not any(name.startswith("psnr") for name in own)
    assert measure.truth_metrics(fresh, NETS) == own, "nothing is looked for twice"
    seen = [front, front]
    found = measure.turned_likeness(truth.pictures.rgb, truth.cameras, fresh.faces[0], NETS)
    assert found == {"sface_plus30": 1.0, "sface_minus30": 1.0}
    monkeypatch.setattr(measure, "largest_face", lambda picture: (picture, None))
    lost = measure.turned_likeness(truth.pictures.rgb, truth.cameras, fresh.faces[0], NETS)
    assert math.isnan(lost["sface_plus30"]), "missing where no face is found, not zero"


def test_missing_weights_have_reasons():
    nets = Nets.load("cpu", Scope(rings=1, every=2, vgg=False))
    assert nets.reasons["stlpips_vgg"] == "the profile leaves it out" and "vgg" not in nets.perceptual
    assert nets.reasons["self_warp_15"] == "the profile compares views 30 degrees apart"
    assert "truth_warp_lpips_30" not in nets.reasons
    assert {"clip_i", "clip_i_input", "lpips", "arcface_id"} <= set(nets.reasons)
    assert ("dlib_l2" in nets.reasons) == (nets.dlib is None)


def test_weights_of_the_user_take_a_reason_away(monkeypatch):
    loaded = []
    for name in ("ClipImages", "ArcFace", "Lpips"):
        monkeypatch.setattr(measure, name, lambda path, *device: loaded.append(path) or torch.nn.Identity())
    nets = Nets.load("cpu", Scope(rings=1, every=2, vgg=False), clip="a", arcface="b", lpips="c")
    assert loaded == ["a", "b", "c"] and None not in (nets.clip, nets.arcface, nets.lpips)
    assert not {"clip_i", "clip_i_input", "lpips", "arcface_id"} & set(nets.reasons)


def test_likeness_to_a_photo(truth, monkeypatch):
    """Recognisers that know a picture by its mean: views 0 and 30 are the photo, -30 is another."""
    face = identity.Face(torch.zeros(4).numpy(), torch.rand(5, 2).numpy(), 0.9)
    monkeypatch.setattr(measure, "sface_of", lambda picture, face: np.ones(1))
    monkeypatch.setattr(measure, "largest_face", lambda picture: (picture, face))

    means = SimpleNamespace(of=lambda picture, face: np.array([picture.mean() / 255]))
    sure = SimpleNamespace(of=lambda picture, face: np.ones(1))

    def unit(pictures):
        return torch.nn.functional.normalize(pictures.mean((2, 3)), dim=1)

    cameras = truth.cameras.rows([k for k in range(len(truth.cameras.azimuth)) if k in truth.cameras.level().values()])
    count, at = len(cameras.azimuth), cameras.level()
    views = torch.full((count, 3, 32, 32), 0.2)
    views[at[0]] = views[at[30]] = 0.6
    made = SimpleNamespace(rgb=views)
    photo = torch.full((1, 3, 32, 32), 0.6)
    nets = Nets(dlib=means, arcface=sure, clip=unit, lpips=lambda a, b: (a - b).abs().mean())
    found = measure.likeness_metrics(made, photo - 0.1, photo, cameras, nets)
    assert found["dlib_l2.front"] == found["dlib_l2.plus30"] == 0
    assert found["dlib_l2.minus30"] == pytest.approx(0.4, abs=0.01) and found["arcface_id.minus30"] == 1
    assert found["clip_i"] == pytest.approx(1) and found["lpips"] == pytest.approx(0.1)
    assert measure.likeness_metrics(made, photo, photo, cameras, Nets()) == {}


def test_scopes():
    assert Scope(rings=1, every=2).rows() == list(range(0, 24, 2)) and len(Scope(rings=3).rows()) == 72
    for wrong in ({"rings": 4}, {"every": 4}, {"film": 1}):
        with pytest.raises(UsageError, match="A scope has"):
            Scope(**wrong)


def test_the_photos_camera_is_measured(truth):
    from portrait_diffusion.inversion.camera import PhotoCamera

    view = truth.pictures.rgb[0].permute(1, 2, 0), truth.pictures.alpha[0].permute(1, 2, 0)
    prepared = SimpleNamespace(rgb=view[0], alpha=view[1], valid=torch.ones_like(view[1]))
    c = truth.cameras.rows([0])
    result = SimpleNamespace(
        prepared=prepared, camera=PhotoCamera(3.0, 4.0),
        render_input_fn=lambda h, w: render(c.c2w, c.fovy, h, w, grey=0.1),
    )  # fmt: skip
    found = measure.photo_metrics(result, SIZE, NETS)
    assert found["pose_deg"] == pytest.approx(5.0, abs=0.02) and 20 < found["photo_psnr_db"] < 60
    assert 0 < found["photo_stlpips_alex"] < 0.1
