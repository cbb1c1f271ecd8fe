"""ST-LPIPS against recorded numbers of the published implementation, and the properties of a distance."""
import importlib.util
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.evaluation import stlpips as module
from portrait_diffusion.evaluation.stlpips import STLPIPS, BlurPool, ConvBlurPool

pytestmark = pytest.mark.usefixtures("one_thread")
has_weights = importlib.util.find_spec("stlpips_pytorch") is not None
needs_weights = pytest.mark.skipif(not has_weights, reason="the package stlpips-pytorch is not installed")


@pytest.fixture(scope="module")
def alex():
    return STLPIPS("alex")


@pytest.fixture(scope="module")
def vgg():
    return STLPIPS("vgg")


def wave_pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth colourful picture and a shifted, weaker version with a fine pattern: no random numbers, no files."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")

    def picture(shift, gain, fine):
        channels = [torch.sin(6.0 * (k + 1) * (x + shift) + 4.0 * (2 - k) * y + k) for k in range(3)]
        ripple = fine * torch.sin(2.1 * torch.arange(width)) * torch.cos(1.7 * torch.arange(height))[:, None]
        return (0.5 + gain * torch.stack(channels) + ripple)[None].clamp(0, 1)

    return picture(0.0, 0.45, 0.0), picture(0.05, 0.3, 0.05)


def gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = int(4 * sigma + 0.5)
    taps = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    image = F.conv2d(F.pad(image, (radius,) * 4, mode="reflect"), taps, groups=3)
    return F.conv2d(image, taps.transpose(2, 3), groups=3)


# Output of stlpips-pytorch 0.0.2 itself, LPIPS(net, variant="shift_tolerant")(a, b, normalize=True), torch 2.13, CPU.
RECORDED = {
    ("alex", 32, 32): 0.085980,
    ("alex", 64, 64): 0.112588,
    ("alex", 65, 97): 0.169850,
    ("alex", 128, 128): 0.199018,
    ("vgg", 32, 32): 0.287731,
    ("vgg", 65, 97): 0.499358,
}


@needs_weights
@pytest.mark.parametrize("net, height, width", list(RECORDED))
def test_reproduces_the_published_implementation(net, height, width, request):
    a, b = wave_pair(height, width)
    assert request.getfixturevalue(net)(a, b).item() == pytest.approx(RECORDED[net, height, width], abs=1e-5)


@pytest.mark.parametrize("height, width", [(16, 16), (17, 16), (16, 19), (33, 21)])
def test_fused_convolution_equals_its_two_steps(height, width):
    generator = torch.Generator().manual_seed(4)
    convolution = torch.nn.Conv2d(3, 5, 11, padding=2).double()
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(5, 3, 11, 11, generator=generator))
        convolution.bias.copy_(torch.randn(5, generator=generator))
    fused = ConvBlurPool()
    fused.set_kernel(convolution.weight.detach(), convolution.bias.detach())
    x = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(fused(x), BlurPool()(convolution(x)), rtol=0, atol=1e-10)


def test_blur_pool_is_the_binomial_filter():
    x = torch.rand(1, 2, 9, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    taps = torch.tensor([1.0, 2, 1], dtype=torch.float64) / 4
    kernel = torch.outer(taps, taps).expand(2, 1, 3, 3)
    expected = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=2)
    torch.testing.assert_close(BlurPool()(x), expected)


@needs_weights
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_zero_for_identical_images_and_symmetric(net, request):
    distance = request.getfixturevalue(net)
    a, b = wave_pair(48, 40)
    assert distance(a, a).item() == 0
    assert distance(a, b).item() == pytest.approx(distance(b, a).item(), rel=1e-5)


@needs_weights
def test_batch_entries_are_independent(alex):
    a, b = wave_pair(48, 48)
    both = alex(torch.cat([a, b]), torch.cat([b, b]))
    assert both.shape == (2,)
    torch.testing.assert_close(both, torch.stack([alex(a, b)[0], torch.zeros(())]), rtol=1e-5, atol=1e-7)


@needs_weights
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_face_calibration(net, request):
    """A 256-pixel head-and-shoulders crop of scikit-image's astronaut.

    Published calibration of the AlexNet variant on a portrait of a few hundred pixels: JPEG-50 .008, 2-px shift .019,
    JPEG-10 .081, blur sigma 1/3/6 .162/.588/.686, flip .41; this crop gives .009, .012, .087, .163/.578/.679, .35.
    """
    data = pytest.importorskip("skimage.data")
    cv2 = pytest.importorskip("cv2")
    face = np.ascontiguousarray(data.astronaut()[:256, 96:352])
    if net == "vgg":  # no published numbers: only the order is tested, at a size that is fast
        face = cv2.resize(face, (128, 128), interpolation=cv2.INTER_AREA)

    def jpeg(quality):
        return cv2.imdecode(cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)

    variants = {"jpeg50": jpeg(50), "jpeg10": jpeg(10), "shift": np.roll(face, 2, 1), "flip": face[:, ::-1]}
    variants |= {f"blur{s}": cv2.GaussianBlur(face, (0, 0), s) for s in (1, 3, 6)}
    tensors = {k: torch.from_numpy(v.copy()).permute(2, 0, 1)[None] / 255 for k, v in variants.items()}
    reference = torch.from_numpy(face).permute(2, 0, 1)[None] / 255
    distance = request.getfixturevalue(net)
    with torch.no_grad():
        d = {k: distance(reference, v).item() for k, v in tensors.items()}
    assert d["jpeg50"] < d["jpeg10"]
    assert d["shift"] < d["blur1"] < d["blur3"] < d["blur6"]
    if net == "alex":
        assert d["jpeg50"] == pytest.approx(0.008, abs=0.003)
        assert d["shift"] == pytest.approx(0.015, abs=0.006)
        assert d["jpeg10"] == pytest.approx(0.081, rel=0.2)
        assert [d["blur1"], d["blur3"], d["blur6"]] == pytest.approx([0.162, 0.588, 0.686], rel=0.05)
        assert d["flip"] == pytest.approx(0.41, rel=0.25)


@needs_weights
def test_monotone_in_blur_at_training_size(alex):
    a, _ = wave_pair(96, 96)
    a = (a + 0.1 * torch.rand(a.shape, generator=torch.Generator().manual_seed(6))).clamp(0, 1)
    distances = [alex(a, gaussian_blur(a, sigma)).item() for sigma in (0.5, 1, 2, 4)]
    assert distances == sorted(distances) and distances[-1] > 10 * distances[0]


@needs_weights
def test_masks(alex):
    a, b = wave_pair(64, 64)
    full = torch.ones(1, 1, 64, 64)
    torch.testing.assert_close(alex(a, b, full), alex(a, b), rtol=1e-5, atol=0)
    torch.testing.assert_close(alex(a, b, 0.3 * full), alex(a, b), rtol=1e-5, atol=0)
    left = full.clone()
    left[..., 32:] = 0
    mixed = torch.cat([a[..., :32], b[..., 32:]], dim=3)  # differs from a on the right only
    assert alex(a, mixed, left).item() < 0.35 * alex(a, mixed, 1 - left).item()
    assert alex(a, b, torch.zeros(1, 1, 64, 64)).item() == 0


@needs_weights
def test_distance_map_locates_the_difference(alex):
    a, b = wave_pair(64, 64)
    mixed = torch.cat([a[..., :32], b[..., 32:]], dim=3)
    where = alex.distance_map(a, mixed)
    assert where.shape == (1, 1, 64, 64) and (where >= 0).all()
    assert where[..., :16].mean() < 0.1 * where[..., 40:].mean()
    assert alex.distance_map(a, b).mean().item() == pytest.approx(alex(a, b).item(), rel=0.05)


@needs_weights
def test_cached_target_and_unit_features(alex):
    a, b = wave_pair(64, 48)
    features = alex.features(b)
    assert [f.shape[1] for f in features] == [64, 192, 384, 256, 256]
    for f in features:
        norms = f.square().sum(1).sqrt()
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-5)
    torch.testing.assert_close(alex.compare(alex.features(a), features), alex(a, b))


@needs_weights
def test_gradient_matches_a_finite_difference():
    distance = STLPIPS("alex").double()
    a, b = (x.double() for x in wave_pair(32, 32))
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(distance(a, b).sum(), a)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        slope = (distance(a + step * direction, b) - distance(a - step * direction, b)).item() / (2 * step)
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-4)
    assert not any(p.requires_grad for p in distance.parameters())


@needs_weights
def test_descent_reduces_the_distance(alex):
    target, _ = wave_pair(32, 32)
    image = torch.full_like(target, 0.5).requires_grad_()
    features = alex.features(target)
    optimiser = torch.optim.Adam([image], lr=0.02)
    distances = []
    for _ in range(15):
        distance = alex.compare(alex.features(image), features).sum()
        optimiser.zero_grad()
        distance.backward()
        optimiser.step()
        distances.append(distance.item())
    assert distances[-1] < 0.5 * distances[0]


@needs_weights
def test_black_images_have_finite_gradients(alex):
    a = torch.zeros(1, 3, 32, 32, requires_grad=True)
    alex(a, wave_pair(32, 32)[0]).sum().backward()
    assert torch.isfinite(a.grad).all()


@needs_weights
def test_bfloat16_autocast_is_close(alex):
    """Without oneDNN, whose bfloat16 convolution of the first layer differs from call to call on some processors."""
    a, b = wave_pair(64, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.backends.mkldnn.flags(enabled=False):
        distance = alex(a, b)
    assert distance.dtype == torch.float32
    assert distance.item() == pytest.approx(alex(a, b).item(), rel=0.05)


@needs_weights
def test_explicit_path_and_altered_file(alex, tmp_path):
    copy = tmp_path / "anything.pth"
    shutil.copy(module.find_weights("alex"), copy)
    a, b = wave_pair(32, 32)
    torch.testing.assert_close(STLPIPS("alex", weights=copy)(a, b), alex(a, b))
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    with pytest.raises(EnvironmentProblem, match="SHA-256"):
        STLPIPS("alex", weights=copy)


def test_missing_weights_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="pip install 'stlpips-pytorch"):
        STLPIPS("alex")
    with pytest.raises(EnvironmentProblem, match="does not exist"):
        STLPIPS("alex", weights=tmp_path / "none.pth")


def test_unknown_network():
    with pytest.raises(UsageError, match="'alex' and 'vgg'"):
        STLPIPS("squeeze")


@needs_weights
def test_wrong_shapes_are_named(alex):
    a, b = wave_pair(64, 64)
    with pytest.raises(UsageError, match=">= 32"):
        alex(a[..., :31], b[..., :31])
    with pytest.raises(UsageError, match="one shape"):
        alex(a, b[..., :60])
    with pytest.raises(UsageError, match="mask"):
        alex(a, b, torch.ones(1, 1, 32, 32))


@pytest.mark.parametrize("size", [(33, 48), (64, 64)])
def test_deterministic_padding_and_pooling_are_the_same_function(size):
    """Values and gradients of the network as with PyTorch's own reflection padding."""
    metric = STLPIPS()
    found = []
    for on in (False, True):
        a, b = (torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
        torch.use_deterministic_algorithms(on, warn_only=True)
        try:
            value = metric(a.requires_grad_(True), b).mean()
            value.backward()
        finally:
            torch.use_deterministic_algorithms(False)
        found.append((value.detach(), a.grad))
    for usual, other in zip(*found, strict=True):
        torch.testing.assert_close(other, usual, rtol=1e-4, atol=1e-7)
