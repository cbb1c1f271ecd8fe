"""Mattes: network limits, weight files, GrabCut on a synthetic bust, choice of method."""
import logging

import numpy as np
import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.photo import matte, matte_net
from portrait_diffusion.photo.grabcut import portrait_prior, settle
from portrait_diffusion.photo.matte import choose_matte, estimate_alpha, grabcut_alpha, network_alpha
from portrait_diffusion.photo.matte_net import MatteNet, load_matte_net
from portrait_diffusion.photo.net_files import save_net


@pytest.fixture(scope="module")
def net() -> MatteNet:
    torch.manual_seed(0)
    return MatteNet().eval()


def bust(size: int = 256):
    """A drawn bust (head, neck, shoulders) with noise over a noisy ground of another colour; (S,S,3) and its mask."""
    centre = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(centre - 0.5, centre)
    mask = (u / 0.24) ** 2 + ((v - 0.5) / 0.36) ** 2 < 1
    mask |= (np.abs(u) < 0.1) & (v > 0.7)
    mask |= (v > 0.87) & (np.abs(u) < 0.35)
    hair = mask & (v < 0.27)
    noise = np.random.default_rng(0).normal(0, 0.03, (size, size, 3))
    picture = np.where(mask[..., None], [0.8, 0.6, 0.5], [0.2, 0.35, 0.6])
    picture = np.where(hair[..., None], [0.25, 0.15, 0.1], picture) + noise
    return torch.from_numpy(picture).float().clamp(0, 1), torch.from_numpy(mask)[..., None]


def test_network_size_and_output(net):
    assert sum(parameter.numel() for parameter in net.parameters()) <= 5_000_000
    with torch.no_grad():
        logits = net(torch.rand(2, 3, 256, 256), torch.ones(2, 1, 256, 256))
    assert logits.shape == (2, 1, 256, 256) and logits.isfinite().all()


def test_network_sees_nothing_outside_the_photo(net):
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 256, 256, generator=generator)
    valid = torch.ones(1, 1, 256, 256)
    valid[..., 180:] = 0
    other = torch.where(valid > 0, picture, torch.rand(1, 3, 256, 256, generator=generator))
    with torch.no_grad():
        assert torch.equal(net(picture, valid), net(other, valid))


def test_network_alpha_is_a_clean_alpha(net):
    picture, _ = bust(320)
    valid = torch.ones(320, 320, 1)
    valid[:40] = 0
    alpha = network_alpha(picture, valid, net)
    assert alpha.shape == (320, 320, 1) and 0 <= float(alpha.min()) and float(alpha.max()) <= 1
    assert float(alpha[:40].abs().max()) == 0
    # the mirror image gives the mirrored alpha
    mirrored = network_alpha(picture.flip(1), valid.flip(1), net).flip(1)
    assert torch.allclose(alpha, mirrored, atol=1e-3)


def test_weights_survive_the_file(net, tmp_path):
    save_net(net, tmp_path / "matte.safetensors", {"name": "test"})
    again = load_matte_net(tmp_path / "matte.safetensors")
    for before, after in zip(net.state_dict().values(), again.state_dict().values()):
        assert torch.equal(before.half().float(), after)
    assert (tmp_path / "matte.json").read_text().startswith("{")
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_bad_weight_files(tmp_path, monkeypatch):
    with pytest.raises(EnvironmentProblem, match="missing"):
        load_matte_net(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError, match="MatteNet"):
        load_matte_net(tmp_path / "bad.safetensors")
    monkeypatch.setattr(matte_net, "WEIGHTS_FILE", tmp_path / "none.safetensors")
    with pytest.raises(EnvironmentProblem):
        estimate_alpha(torch.rand(64, 64, 3), torch.ones(64, 64, 1), "network")


def test_auto_prefers_own_alpha_then_weights_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(matte, "WEIGHTS_FILE", tmp_path / "matte.safetensors")
    assert choose_matte("auto") == "grabcut"
    (tmp_path / "matte.safetensors").touch()
    assert choose_matte("auto") == "network"
    with caplog.at_level(logging.INFO, logger="portrait_diffusion"):
        assert choose_matte("auto", has_own_alpha=True, announce=True) == "own"
    assert len(caplog.records) == 1 and "own" in caplog.text
    assert choose_matte("grabcut", has_own_alpha=True) == "grabcut"
    with pytest.raises(UsageError, match="grabcut"):
        choose_matte("magic")


def test_grabcut_finds_a_drawn_bust_and_repeats():
    cv2 = pytest.importorskip("cv2")
    picture, mask = bust()
    valid = torch.ones(256, 256, 1)
    valid[:, :20] = 0
    alpha = grabcut_alpha(picture, valid)
    found, true = (alpha > 0.5) & (valid > 0), mask & (valid > 0)
    assert float((found & true).sum() / (found | true).sum()) > 0.97
    assert float(alpha[:, :20].max()) == 0
    cv2.setRNGSeed(123)
    assert torch.equal(grabcut_alpha(picture, valid), alpha)


def test_wide_doubts_are_settled_by_colour_and_narrow_ones_stay():
    cv2 = pytest.importorskip("cv2")
    picture, mask = bust()
    rgb, inside, true = picture.permute(2, 0, 1), torch.ones(1, 256, 256), mask.permute(2, 0, 1).float()
    alpha = true.clone()
    alpha[:, 100:160, 180:240] = 0.6  # beside the head: person and background
    alpha[:, 200:250, 128] = 0.3  # a line on the chest
    alpha[:, 20:24, 20:60] = 0.8  # a strand
    assert float(((alpha > 0.5) != (true > 0.5)).float()[:, 90:170, 170:250].mean()) > 0.3
    settled = settle(rgb, inside, alpha)
    assert float(((settled > 0.5) != (true > 0.5)).float()[:, 90:170, 170:250].mean()) < 0.01
    assert torch.equal(settled[:, :80], alpha[:, :80]) and torch.equal(settled[:, :, :150], alpha[:, :, :150])
    cv2.setRNGSeed(123)
    assert torch.equal(settle(rgb, inside, alpha), settled)
    for certain in (torch.full_like(alpha, 0.5), true):  # nothing to learn from, nothing to decide
        assert settle(rgb, inside, certain) is certain


def test_prior_is_symmetric_and_covers_the_landmarks():
    cv2 = pytest.importorskip("cv2")
    labels = portrait_prior(256)
    assert np.array_equal(labels, labels[:, ::-1])
    for u, v in ((0.40625, 0.46875), (0.59375, 0.46875), (0.4223, 0.6855), (0.5777, 0.6855)):
        assert labels[int(v * 256), int(u * 256)] == cv2.GC_FGD
    assert labels[0, 0] == cv2.GC_BGD


def test_none_keeps_all_of_the_photo():
    valid = (torch.rand(64, 64, 1) > 0.5).float()
    assert torch.equal(estimate_alpha(torch.rand(64, 64, 3), valid, "none"), valid)
