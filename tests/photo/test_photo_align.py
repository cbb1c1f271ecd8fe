"""Canonical crop: exact geometry, exact valid mask, no aliasing, correct alpha."""
import numpy as np
import pytest
import torch
from portrait_diffusion.errors import UsageError
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_CROP
from portrait_diffusion.ops.similarity import apply, inverse
from portrait_diffusion.photo.align import align_photo, cut_crop, resample, valid_mask


def similarity(scale: float, degrees: float, shift) -> np.ndarray:
    angle = np.radians(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([linear, np.asarray(shift, float)[:, None]], 1)


def blobs(points, height: int, width: int, sigma: float) -> torch.Tensor:
    """(H, W, 3) picture with a Gaussian blob at each point (continuous pixels)."""
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    value = sum(np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma**2)) for x, y in points)
    return torch.from_numpy(np.repeat(value[..., None], 3, 2)).float()


def blob_centre(picture: torch.Tensor, near, radius: int) -> np.ndarray:
    """Centroid of the picture about a point."""
    x, y = (int(value) for value in near)
    window = picture[y - radius : y + radius + 1, x - radius : x + radius + 1, 0].double()
    weight = window / window.sum()
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return np.array([x + 0.5 + float((weight.sum(0) * offset).sum()), y + 0.5 + float((weight.sum(1) * offset).sum())])


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0), (0.31, 17), (0.7, -35), (2.3, 8), (1.0, 180)])
def test_landmarks_land_on_their_canonical_places(scale, degrees):
    size = 256
    canonical = CANONICAL_LANDMARKS_CROP * size
    back = similarity(1 / scale, degrees, (0, 0))
    points = apply(back, canonical - size / 2) + [400, 380]
    photo = blobs(points, 760, 800, sigma=2.7 / scale)
    crop = align_photo(photo, points, size)
    assert np.allclose(apply(crop.photo_to_crop, points), canonical, atol=1e-9)
    for place in canonical:
        assert np.abs(blob_centre(crop.rgb, place, 12) - place).max() < 0.1  # 0.5 px are asked for


def test_similar_photos_give_the_same_crop():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 12, 12, generator=generator), size=(300, 300), mode="bicubic", align_corners=False
    )[0].clamp(0, 1)
    points = CANONICAL_LANDMARKS_CROP * 200 + 50
    reference = align_photo(smooth.permute(1, 2, 0), points, 128)
    for matrix in (similarity(2.0, 0, (0, 0)), similarity(1.3, 25, (150, 20)), similarity(0.6, -70, (30, 250))):
        turned = resample(smooth, matrix, 620)
        crop = align_photo(turned.permute(1, 2, 0).clamp(0, 1), apply(matrix, points), 128)
        both = (crop.valid * reference.valid)[..., 0] > 0
        assert (crop.rgb - reference.rgb).abs()[both].mean() < 0.004


def test_identity_is_exact():
    picture = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(resample(picture, similarity(1, 0, (0, 0)), 40), picture, atol=1e-5)
    shifted = resample(picture, similarity(1, 0, (3, -2)), 40)
    assert torch.allclose(shifted[:, :38, 3:], picture[:, 2:, :37], atol=1e-5)


def test_shrinking_does_not_alias():
    """A grating above the target's Nyquist limit must become flat grey; one well below it must survive."""
    u = torch.arange(512) + 0.5
    for period, low, high in ((5.0, 0.0, 0.02), (64.0, 0.33, 0.36)):
        grating = (0.5 + 0.5 * torch.sin(2 * np.pi * u / period)).expand(3, 512, 512)
        for degrees in (0, 30):
            matrix = similarity(1 / 8, degrees, (0, 0))
            matrix[:, 2] = 32 - matrix[:, :2] @ [256, 256]
            middle = resample(grating.contiguous(), matrix, 64)[:, 20:44, 20:44]
            assert low <= float(middle.std()) <= high


def test_shrinking_keeps_the_mean():
    picture = torch.rand(1, 512, 512, generator=torch.Generator().manual_seed(1))
    small = resample(picture, similarity(1 / 7.3, 0, (0, 0)), 70)
    assert float(small.mean()) == pytest.approx(float(picture.mean()), abs=1e-3)


def test_valid_mask_is_exact():
    matrix = similarity(1.7, 33, (40, -25))
    valid = valid_mask(matrix, (90, 70), 160)[..., 0].numpy() > 0
    back = inverse(matrix)
    for v in range(0, 160, 3):
        for u in range(160):
            x, y = back[:, :2] @ [u + 0.5, v + 0.5] + back[:, 2]
            assert valid[v, u] == (0 <= x <= 70 and 0 <= y <= 90)
    # area of the photo in the crop, where it lies inside: number of valid pixels within the rim's share
    whole = valid_mask(similarity(1.0, 30, (60, 20)), (50, 40), 160)
    assert float(whole.sum()) == pytest.approx(50 * 40, abs=90)


def test_outside_is_marked_and_takes_the_edge_colour():
    photo = torch.full((20, 30, 3), 0.25)
    crop = cut_crop(photo, similarity(1, 0, (10, 10)), 64)
    assert float(crop.valid.sum()) == 600
    assert torch.allclose(crop.rgb, torch.tensor(0.25), atol=1e-6)


def test_hidden_colour_does_not_bleed_through_alpha():
    rgb = torch.zeros(200, 200, 3)
    alpha = torch.zeros(200, 200)
    rgb[..., 1] = 1.0  # hidden green
    rgb[:, :101] = torch.tensor([0.8, 0.0, 0.0])
    alpha[:, :101] = 1
    crop = cut_crop(rgb, similarity(0.37, 12, (0, 0)), 64, alpha)
    seen = crop.alpha[..., 0] > 0.05
    assert seen.any() and float(crop.rgb[seen][:, 1].max()) < 0.01
    assert float((crop.rgb[seen][:, 0] - 0.8).abs().max()) < 0.01


def test_useless_landmarks_are_refused():
    with pytest.raises(UsageError):
        align_photo(torch.rand(10, 10, 3), np.zeros((5, 2)), 64)
    with pytest.raises(UsageError):
        align_photo(torch.rand(10, 10, 3), np.full((5, 2), np.nan), 64)
