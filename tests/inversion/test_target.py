"""The photo as a target: resizing, validity, removal of the fitted similarity."""
import numpy as np
import pytest
import torch
from portrait_diffusion.inversion.camera import PhotoCamera
from portrait_diffusion.inversion.target import Target, target_from_photo, uncropped
from portrait_diffusion.ops.cameras import project_points


def photo(size=48, seed=0) -> Target:
    g = torch.Generator().manual_seed(seed)
    alpha = torch.rand(1, 1, size, size, generator=g)
    return Target(torch.rand(1, 3, size, size, generator=g) * alpha, alpha, torch.ones(1, 1, size, size))


def with_border(target: Target, rubbish: float) -> Target:
    """The left and lower part of the photo are unknown and hold anything."""
    valid = target.valid.clone()
    valid[..., :7] = 0
    valid[:, :, 31:] = 0
    unknown = 1 - valid
    return Target(target.rgb * valid + rubbish * unknown, target.alpha * valid + rubbish * unknown, valid)


def test_whole_factors_are_exact_averages():
    target = photo(48).resized(16)
    full = photo(48)
    for name in ("rgb", "alpha"):
        blocks = getattr(full, name).unflatten(2, (16, 3)).unflatten(4, (16, 3)).mean(dim=(3, 5))
        torch.testing.assert_close(getattr(target, name), blocks)
    assert target.size == 16 and (target.valid == 1).all()


def test_the_same_size_is_the_same_target():
    target = photo()
    assert target.resized(48) is target


@pytest.mark.parametrize("size", [16, 20, 31, 64, 96, 131])
def test_unknown_pixels_change_nothing_that_is_valid(size):
    a, b = (with_border(photo(48), rubbish).resized(size) for rubbish in (0.0, 1.0))
    assert torch.equal(a.valid, b.valid) and set(a.valid.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(a.rgb * a.valid, b.rgb * b.valid) and torch.equal(a.alpha * a.valid, b.alpha * b.valid)
    share = float(a.valid.mean())
    assert 0.35 < share <= 31 / 48 * 41 / 48 + 1e-6, "valid shrinks by a pixel or two, and never grows"


def test_valid_pixels_are_made_from_valid_pixels_alone():
    """A photo that is grey where it is known is exactly as grey in all valid pixels: nothing else is mixed in."""
    grey = torch.full((1, 3, 48, 48), 0.5)
    target = with_border(Target(grey, grey[:, :1], torch.ones(1, 1, 48, 48)), 0.0)
    for size in (16, 31, 64, 131):
        other = target.resized(size)
        known = other.rgb[other.valid.expand(-1, 3, -1, -1) > 0]
        torch.testing.assert_close(known, torch.full_like(known, 0.5), rtol=0, atol=1e-5)


def test_enlarging_keeps_range_and_the_photos_own_edge():
    large = photo(16).resized(50)
    assert (large.valid == 1).all(), "the edge of the crop is not the edge of the photo"
    assert 0 <= float(large.rgb.min()) and float(large.rgb.max()) <= 1
    constant = Target(torch.full((1, 3, 16, 16), 0.3), torch.full((1, 1, 16, 16), 0.6), torch.ones(1, 1, 16, 16))
    torch.testing.assert_close(constant.resized(50).rgb, torch.full((1, 3, 50, 50), 0.3))


def test_target_from_photo_is_premultiplied_and_empty_where_nothing_is_known():
    rng = np.random.default_rng(0)
    rgb, alpha = rng.random((32, 32, 3)).astype(np.float32), rng.random((32, 32, 1)).astype(np.float32)
    valid = np.ones((32, 32, 1), np.float32)
    valid[20:] = 0
    target = target_from_photo(rgb, alpha, valid, 32)
    assert target.rgb.shape == (1, 3, 32, 32) and target.rgb.dtype == torch.float32
    np.testing.assert_allclose(target.rgb[0].permute(1, 2, 0).numpy(), rgb * alpha * valid, rtol=1e-6)
    assert (target.rgb[:, :, 20:] == 0).all() and (target.alpha[:, :, 20:] == 0).all()
    half = target_from_photo(rgb, alpha, valid, 16)
    np.testing.assert_allclose(half.alpha[0, 0, :10], alpha[:20, :, 0].reshape(10, 2, 16, 2).mean((1, 3)), rtol=1e-5)


def dot(size: int, u: float, v: float) -> torch.Tensor:
    """Round dot centred at unit coordinates (u, v)."""
    centres = (torch.arange(size) + 0.5) / size
    return torch.exp(-((centres[None] - u) ** 2 + (centres[:, None] - v) ** 2) / (2 * 0.03**2))[None, None]


def test_uncropped_shows_what_the_plain_camera_would():
    """A point seen by the cropped camera at one place is, after the correction, where the plain camera has it."""
    point = torch.tensor([[[0.1, 0.04, 0.06]]])
    fitted, plain = PhotoCamera(0.0, 0.0, (1.15, -0.06, 0.04)), PhotoCamera()
    where = [project_points(point, *c.pose()[:2], 1, 1, c.pose()[2])[0][0, 0].detach() for c in (fitted, plain)]
    picture = dot(96, *where[0].tolist())
    out = uncropped(Target(picture.expand(-1, 3, -1, -1), picture, torch.ones_like(picture)), fitted.pose()[2].detach())
    centres = (torch.arange(96) + 0.5) / 96
    found = torch.stack([out.alpha[0, 0].sum(0) @ centres, out.alpha[0, 0].sum(1) @ centres]) / out.alpha.sum()
    torch.testing.assert_close(found, where[1], rtol=0, atol=1e-3)


def test_uncropped_marks_what_the_crop_does_not_show():
    target = photo(32)
    still = uncropped(target, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(still.rgb, target.rgb, rtol=0, atol=1e-5)
    magnified = uncropped(target, torch.tensor([[2.0, 0.0, 0.0]]))  # the crop is the middle of what was there
    assert (magnified.valid[:, :, 9:23, 9:23] == 1).all() and float(magnified.valid.mean()) < 0.3
    assert (magnified.valid[:, :, :7] == 0).all() and (magnified.rgb[:, :, :7] == 0).all()
    a, b = (uncropped(with_border(photo(48), x), torch.tensor([[0.9, 0.02, 0.0]])) for x in (0.0, 1.0))
    assert torch.equal(a.rgb, b.rgb) and torch.equal(a.alpha, b.alpha), "what is unknown changes nothing"
