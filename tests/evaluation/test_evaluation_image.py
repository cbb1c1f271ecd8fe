"""Image metrics against closed forms."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from portrait_diffusion.errors import UsageError
from portrait_diffusion.evaluation import image as m


@pytest.fixture
def picture():
    return torch.rand(2, 3, 40, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sinusoid(frequency: float, amplitude: float = 1.0, size: int = 128, diagonal: bool = False) -> torch.Tensor:
    x = torch.arange(size, dtype=torch.float64)
    phase = (x[:, None] + x) / math.sqrt(2) if diagonal else x.expand(size, size)
    return (0.5 + 0.25 * amplitude * torch.sin(2 * math.pi * frequency * phase))[None, None]


@pytest.mark.parametrize("offset, decibel", [(0.1, 20.0), (0.01, 40.0), (1.0, 0.0)])
def test_psnr_and_mae_of_a_constant_offset(offset, decibel):
    a = torch.zeros(2, 3, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(m.psnr(a, a + offset), torch.full((2,), decibel, dtype=torch.float64))
    torch.testing.assert_close(m.mae(a, a + offset), torch.full((2,), offset, dtype=torch.float64))


def test_psnr_of_identical_images_is_infinite(picture):
    assert torch.isinf(m.psnr(picture, picture)).all()


def test_masks_select_pixels_and_weigh_them(picture):
    other, mask = picture.clone(), torch.zeros(2, 1, 40, 36, dtype=torch.float64)
    mask[..., :20, :] = 1
    other[..., 20:, :] = 0  # outside the mask: ignored
    other[..., :20, :] += 0.1
    torch.testing.assert_close(m.psnr(picture, other, mask), torch.full((2,), 20.0, dtype=torch.float64))
    half = torch.full_like(mask, 0.5)
    torch.testing.assert_close(m.mae(picture, other, half), m.mae(picture, other))


def test_a_single_mask_serves_the_whole_batch(picture):
    mask = torch.rand(1, 1, 40, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    one, each = m.psnr(picture, picture.flip(0), mask), m.psnr(picture, picture.flip(0), mask.expand(2, -1, -1, -1))
    torch.testing.assert_close(one, each)
    torch.testing.assert_close(one[:1], m.psnr(picture[:1], picture[1:], mask))


def test_ssim_identity_symmetry_and_sign(picture):
    other = picture.flip(0)
    torch.testing.assert_close(m.ssim(picture, picture), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(m.ssim(picture, other), m.ssim(other, picture))
    assert (m.ssim(picture, 1 - picture) < 0).all()  # anti-correlated structure


def test_ssim_of_constants_is_the_luminance_term():
    a, b = torch.full((1, 1, 16, 16), 0.2, dtype=torch.float64), torch.full((1, 1, 16, 16), 0.6, dtype=torch.float64)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert m.ssim(a, b).item() == pytest.approx(expected, abs=1e-12)


def test_ssim_agrees_with_scikit_image(picture):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = picture[0], (picture[0] * 0.7 + 0.3 * picture[1])
    reference = metrics.structural_similarity(
        a.numpy(), b.numpy(), channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )[1]  # fmt: skip
    assert m.ssim(a[None], b[None]).item() == pytest.approx(np.mean(reference[:, 5:-5, 5:-5]), abs=1e-9)


def test_ssim_mask_picks_windows(picture):
    other = picture.clone()
    other[..., 20:] = 0
    mask = torch.zeros(2, 1, 40, 36, dtype=torch.float64)
    mask[..., :15] = 1  # windows up to column 14 + 5 see no changed pixel
    torch.testing.assert_close(m.ssim(picture, other, mask), torch.ones(2, dtype=torch.float64))
    assert (m.ssim(picture, other) < 0.9).all()


def test_silhouette_iou_of_known_boxes():
    a, b = torch.zeros(3, 1, 10, 10), torch.zeros(3, 1, 10, 10)
    a[0, :, :, :6] = 1
    b[0, :, :, 3:9] = 1  # 3 columns shared of 9
    a[1, :, :5] = 0.9
    b[1, :, :5] = 0.6  # equal after the threshold; image 2 is empty in both
    torch.testing.assert_close(m.silhouette_iou(a, b), torch.tensor([1 / 3, 1.0, 1.0]))
    mask = torch.zeros(3, 1, 10, 10)
    mask[..., 3:9] = 1
    assert m.silhouette_iou(a, b, mask=mask)[0].item() == pytest.approx(0.5)


def test_laplacian_variance_of_a_sinusoid():
    # The Laplacian multiplies a horizontal wave of frequency f by 2 cos(2 pi f) - 2; a sine has variance A^2 / 2.
    wave = sinusoid(1 / 8, size=130)
    expected = (2 * math.cos(2 * math.pi / 8) - 2) ** 2 * 0.25**2 / 2
    assert m.laplacian_variance(wave).item() == pytest.approx(expected, rel=1e-9)
    assert m.laplacian_variance_ratio(sinusoid(1 / 8, 0.5, 130), wave).item() == pytest.approx(0.25)


def test_specks_of_colour_are_those_of_chroma_alone():
    """Grey pictures have none, however sharp; a red wave has that of its chroma: weights 1 - r, -r, -r of its own."""
    wave = sinusoid(1 / 8, size=130)[:, :1]
    assert m.chroma_noise(wave.expand(1, 3, -1, -1)).item() == pytest.approx(0, abs=1e-12)
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64).expand(1, 1, 32, 32)
    assert m.chroma_noise(torch.cat([ramp, 0 * ramp, 1 - ramp], 1)).item() == pytest.approx(0, abs=1e-12)
    red = torch.cat([wave, 0 * wave, 0 * wave], 1)
    weight = 0.299
    chroma = ((1 - weight) ** 2 + 2 * weight**2) / 3
    expected = math.sqrt(m.laplacian_variance(wave).item() * chroma)
    assert m.chroma_noise(red).item() == pytest.approx(expected, rel=1e-3)
    mask = torch.zeros_like(wave)
    mask[..., 20:40, 20:40] = 1
    outside = red * (1 - mask) + 0.5 * mask
    assert m.chroma_noise(outside, mask).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(UsageError, match="3 channels"):
        m.chroma_noise(wave)
    with pytest.raises(UsageError, match="too thin"):
        m.chroma_noise(red, (torch.arange(130) == 5).to(wave).expand_as(wave))


def test_the_silhouette_is_not_read_as_detail():
    flat = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    flat[..., 8:24, 8:24] = 1
    mask = flat[:, :1]
    assert m.laplacian_variance(flat).item() > 0.1
    assert m.laplacian_variance(flat, mask).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("band, frequency", [(0, 3 / 32), (1, 3 / 16), (2, 3 / 8)])
def test_a_sinusoid_falls_into_its_radial_band(band, frequency, diagonal):
    energies = m.band_energies(sinusoid(frequency, diagonal=diagonal))[0]
    assert (energies[band] / energies.sum()).item() > 0.999


def test_band_ratio_is_the_squared_amplitude_ratio_per_band():
    truth = sinusoid(3 / 32) + sinusoid(3 / 16) + sinusoid(3 / 8)
    render = sinusoid(3 / 32) + sinusoid(3 / 16, 0.5) + sinusoid(3 / 8, 2)
    ratios = m.band_energy_ratios(render, truth)[0]
    torch.testing.assert_close(ratios, torch.tensor([1, 0.25, 4], dtype=torch.float64), rtol=0.01, atol=0)


def test_masked_bands_ignore_the_outside():
    mask = torch.zeros(1, 1, 128, 128, dtype=torch.float64)
    mask[..., 32:96, 32:96] = 1
    truth = sinusoid(3 / 8)
    render = truth * mask + torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(1)).double() * (1 - mask)
    torch.testing.assert_close(m.band_energies(render, mask), m.band_energies(truth, mask), rtol=1e-9, atol=1e-12)
    energies = m.band_energies(truth, mask)[0]
    assert (energies[2] / energies.sum()).item() > 0.999


def test_blur_lowers_high_bands_most():
    noise = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ratios = m.band_energy_ratios(F.avg_pool2d(noise, 3, 1, 1), noise)[0]
    assert 1 > ratios[0] > ratios[1] > ratios[2]


def test_gradients_flow(picture):
    a = picture[:1, :, :14, :14].clone().requires_grad_()
    b = picture[1:, :, :14, :14]
    assert torch.autograd.gradcheck(lambda x: (m.psnr(x, b), m.ssim(x, b)), a)


def test_wrong_input_is_named(picture):
    with pytest.raises(UsageError, match="one shape"):
        m.psnr(picture, picture[..., 1:])
    with pytest.raises(UsageError, match="mask must be"):
        m.mae(picture, picture, torch.ones(2, 3, 40, 36))
    with pytest.raises(UsageError, match="empty"):
        m.psnr(picture, picture, torch.zeros(2, 1, 40, 36))
    with pytest.raises(UsageError, match="odd window"):
        m.ssim(picture[..., :8, :8], picture[..., :8, :8])
    with pytest.raises(UsageError, match="too thin"):
        m.band_energies(picture, F.pad(torch.ones(2, 1, 4, 4), (16, 16, 18, 18)))
    with pytest.raises(UsageError, match="1 or 3 channels"):
        m.laplacian_variance(picture[:, :2])
