"""Image comparison metrics on tensors (B,C,H,W) in [0, 1], with optional per-pixel weights.

Every function returns one value per image, (B,) or (B,bands), on the device and in the dtype of its input. Masks are
(B,1,H,W) weights >= 0, for example a matte; pixels with weight 0 do not count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError

# Radial bands in cycles per pixel: one octave each, up to the Nyquist frequency of the axes.
BANDS = ((1 / 16, 1 / 8), (1 / 8, 1 / 4), (1 / 4, 1 / 2))
# ITU-R BT.601 luma.
LUMA = (0.299, 0.587, 0.114)
MASK_FEATHER = 4  # pixels: how far the spectral window stays inside the mask


def _check_pair(a: Tensor, b: Tensor, mask: Tensor | None) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise UsageError(f"Image metrics compare two tensors (B,C,H,W) of one shape; got {a.shape} and {b.shape}.")
    if mask is not None:
        if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[0] not in (1, len(a)) or mask.shape[2:] != a.shape[2:]:
            raise UsageError(f"The mask must be (B,1,H,W) or (1,1,H,W) for images {a.shape}; got {mask.shape}.")
        if not bool((mask.flatten(1).sum(1) > 0).all()):
            raise UsageError("The mask of at least one image is empty: there are no pixels to compare.")


def _weighted_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over channels and pixels, weighted by the mask: (B,C,H,W) -> (B,)."""
    if mask is None:
        return values.mean((1, 2, 3))
    mask = mask.to(values.dtype)
    return (values.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.expand(len(values), -1, -1, -1).sum((1, 2, 3))


def mae(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error, (B,) in [0, 1].

    Raises: UsageError for differing shapes or an empty mask.
    """
    _check_pair(a, b, mask)
    return _weighted_mean((a - b).abs(), mask)


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB for peak 1: -10 log10(mean squared error), (B,); +inf for identical images.

    Raises: UsageError for differing shapes or an empty mask.
    """
    _check_pair(a, b, mask)
    return -10 * torch.log10(_weighted_mean((a - b).square(), mask))


def _gaussian_window(size: int, sigma: float, like: Tensor) -> Tensor:
    offsets = torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2
    taps = torch.exp(-offsets.square() / (2 * sigma**2))
    return taps / taps.sum()


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity, Wang et al., IEEE TIP 2004, averaged over channels and pixels: (B,) in [-1, 1].

    (2 m_a m_b + C1)(2 s_ab + C2) / ((m_a^2 + m_b^2 + C1)(s_a^2 + s_b^2 + C2)) with Gaussian windows, C1 = 0.01^2,
    C2 = 0.03^2. Only windows that lie inside the image count; the mask weighs windows by their centre pixel.

    Args:
        a, b: (B,C,H,W) in [0, 1], H, W >= `window`.
        mask: optional (B,1,H,W).
        window: odd window width in pixels.
        sigma: standard deviation of the window in pixels.
    Raises: UsageError for differing shapes, images smaller than the window, or a mask empty at all window centres.
    """
    _check_pair(a, b, mask)
    if min(a.shape[2:]) < window or window % 2 == 0:
        raise UsageError(f"SSIM needs an odd window no larger than the image; got {window} for {a.shape}.")
    taps = _gaussian_window(window, sigma, a)
    channels = a.shape[1]

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(x, taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    if mask is not None:
        half = window // 2
        mask = mask[..., half : mask.shape[2] - half, half : mask.shape[3] - half]
        if not bool((mask.flatten(1).sum(1) > 0).all()):
            raise UsageError(f"SSIM is undefined here: the mask has no pixel {half} pixels away from the image border.")
    return _weighted_mean(luminance * structure, mask)


def silhouette_iou(alpha_a: Tensor, alpha_b: Tensor, threshold: float = 0.5, mask: Tensor | None = None) -> Tensor:
    """Intersection over union of two mattes (B,1,H,W) thresholded at `threshold`: (B,) in [0, 1]; not differentiable.

    Two empty silhouettes agree: 1. Pixels where `mask` is 0 (outside the photograph) are left out.
    Raises: UsageError for differing shapes.
    """
    _check_pair(alpha_a, alpha_b, mask)
    a, b = alpha_a > threshold, alpha_b > threshold
    if mask is not None:
        a, b = a & (mask > 0), b & (mask > 0)
    union = (a | b).sum((1, 2, 3))
    overlap = (a & b).sum((1, 2, 3)) / union.clamp_min(1)
    return torch.where(union > 0, overlap, torch.ones_like(overlap))


def _luma(image: Tensor) -> Tensor:
    if image.shape[1] == 1:
        return image
    if image.shape[1] != 3:
        raise UsageError(f"Sharpness metrics need 1 or 3 channels; got {image.shape[1]}.")
    return (image * image.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _laplacian(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """4-neighbour Laplacian of each channel, (B,C,H-2,W-2), and where it counts, (B,1,H-2,W-2); None is everywhere."""
    kernel = image.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    channels = image.shape[1]
    response = F.conv2d(image, kernel.expand(channels, 1, 3, 3), groups=channels)
    if mask is None:
        return response, None
    outside = (mask <= 0.5).to(image.dtype)
    inside = (F.conv2d(outside, (kernel != 0).to(image.dtype)) == 0).to(image.dtype).expand(len(image), -1, -1, -1)
    if bool((inside.flatten(1).sum(1) < 2).any()):
        raise UsageError("The mask is too thin for a sharpness measure: no pixel has all four neighbours inside it.")
    return response, inside


def laplacian_variance(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Variance of the 4-neighbour Laplacian of the luma inside the image: (B,), a classic focus measure.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000. Where a mask is given, only pixels
    inside it with all four neighbours (weight > 0.5) count, so the silhouette itself is not read as detail.
    Raises: UsageError when fewer than two such pixels exist.
    """
    _check_pair(image, image, mask)
    response, inside = _laplacian(_luma(image), mask)
    mean = _weighted_mean(response, inside).view(-1, 1, 1, 1)
    return _weighted_mean((response - mean).square(), inside)


def laplacian_variance_ratio(render: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Laplacian variance of the render divided by that of the truth: (B,); 1 = equally sharp, below 1 = blurrier."""
    _check_pair(render, truth, mask)
    return laplacian_variance(render, mask) / laplacian_variance(truth, mask)


def chroma_noise(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean square of the 4-neighbour Laplacian of the colours less their luma: (B,); 0 for grey, 0 for a ramp.

    Coloured specks, to which measures of luma are blind and learned distances nearly so. Pixels count as for
    `laplacian_variance`. Raises: UsageError when there are fewer than two of them, or other than 3 channels.
    """
    _check_pair(image, image, mask)
    if image.shape[1] != 3:
        raise UsageError(f"Specks of colour need 3 channels; got {image.shape[1]}.")
    response, inside = _laplacian(image - _luma(image), mask)
    return _weighted_mean(response.square(), inside).sqrt()


def _spectral_window(image: Tensor, mask: Tensor | None) -> Tensor:
    """Smooth window (B,1,H,W) that vanishes at the image border and outside the mask, against spectral leakage."""
    height, width = image.shape[2:]
    window = torch.outer(
        torch.hann_window(height, periodic=False, device=image.device, dtype=image.dtype),
        torch.hann_window(width, periodic=False, device=image.device, dtype=image.dtype),
    )[None, None]
    if mask is None:
        return window
    size = 2 * MASK_FEATHER + 1
    inside = 1 - F.max_pool2d(1 - mask.to(image.dtype), size, stride=1, padding=MASK_FEATHER)
    half = MASK_FEATHER // 2
    for _ in range(2):  # two boxes of total reach MASK_FEATHER: a tent that ends where the mask ends
        inside = F.avg_pool2d(inside, 2 * half + 1, stride=1, padding=half)
    return window * inside


def band_energies(
    image: Tensor, mask: Tensor | None = None, bands: tuple[tuple[float, float], ...] = BANDS
) -> Tensor:
    """Energy of the luma spectrum in radial frequency bands.

    |DFT(window * (luma - windowed mean))|^2 summed over low <= |f| < high; Hann window, times the feathered mask.

    Args:
        image: (B,1 or 3,H,W).
        mask: optional (B,1,H,W) in [0, 1].
        bands: (low, high) in cycles per pixel.
    Returns: (B,bands) energies.
    Raises: UsageError when the mask has no interior left after feathering by 4 pixels.
    """
    _check_pair(image, image, mask)
    luma = _luma(image)
    window = _spectral_window(luma, mask)
    weight = window.sum((1, 2, 3), keepdim=True)
    if bool((weight <= 0).any()):
        raise UsageError(f"The mask is too thin for band energies: nothing is left {MASK_FEATHER} pixels inside it.")
    luma = window * (luma - (window * luma).sum((1, 2, 3), keepdim=True) / weight)
    power = torch.fft.fft2(luma).abs().square()[:, 0]
    vertical = torch.fft.fftfreq(image.shape[2], device=image.device, dtype=image.dtype)
    horizontal = torch.fft.fftfreq(image.shape[3], device=image.device, dtype=image.dtype)
    radius = torch.hypot(vertical[:, None], horizontal[None, :])
    return torch.stack([(power * ((radius >= low) & (radius < high))).sum((1, 2)) for low, high in bands], dim=1)


def band_energy_ratios(
    render: Tensor, truth: Tensor, mask: Tensor | None = None, bands: tuple[tuple[float, float], ...] = BANDS
) -> Tensor:
    """Energy of the render divided by that of the truth in each radial band: (B,bands).

    1 = the same amount of detail, below 1 = lost detail, above 1 = added noise or sharpening. Says nothing about
    whether the detail is in the right place.
    """
    _check_pair(render, truth, mask)
    return band_energies(render, mask, bands) / band_energies(truth, mask, bands)
