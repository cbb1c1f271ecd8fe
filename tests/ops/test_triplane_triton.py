"""The Triton kernels against `ops.triplane.sample_planes`: values and gradients.

Needs a GPU (``pytest -m gpu``), or ``TRITON_INTERPRET=1`` with Triton installed, which runs the kernels on the CPU.
"""
import math
import os

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem
from portrait_diffusion.ops import triplane as tp

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="needs a CUDA device (none is visible)"),
]
DEVICE = torch.device("cpu") if INTERPRETED or not torch.cuda.is_available() else torch.device(0)


@pytest.fixture(scope="module")
def sampler():
    pytest.importorskip("triton", reason="needs the package triton, which comes with CUDA builds of torch")
    from portrait_diffusion.ops.triplane_triton import SampleTriplanes

    return SampleTriplanes.apply


def case(batch=2, channels=8, height=12, width=12, points=150, dtype=torch.float32, count=3, depth=None) -> tuple:
    """Planes and points, a quarter of them outside the box or in its outermost half texel."""
    g = torch.Generator().manual_seed(0)
    layers = [] if depth is None else [depth]
    planes = torch.randn(batch, count, channels, *layers, height, width, generator=g)
    coords = torch.rand(batch, points, 3, generator=g) * 2.5 - 1.25
    coords[:, 0] = torch.tensor([-1.0, 1.0, 0.0])  # corners and texel centres, hit exactly
    coords[:, 1] = torch.tensor([1 / width - 1, 1 - 1 / width, 1 / width])
    coords[:, 2] = 40.0
    return planes.to(DEVICE, dtype), coords.to(DEVICE)


@pytest.mark.parametrize("axes", [tp.PLANE_AXES, tp.EG3D_AXES, tp.PANOHEAD_AXES], ids=["ours", "eg3d", "panohead"])
@pytest.mark.parametrize("channels, points", [(32, 150), (1, 7), (4, 64), (8, 1)])
def test_values(sampler, axes, channels, points):
    planes, coords = case(channels=channels, points=max(points, 3))
    coords = coords[:, :points]
    got = sampler(planes, coords, axes, torch.float32)
    expected = tp.sample_planes(planes, coords, axes=axes)
    assert got.shape == expected.shape and got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("depth, channels", [(None, 8), (1, 8), (2, 8), (5, 8), (5, 5), (None, 3)])
def test_grids_and_the_frontal_plane_alone(sampler, count, depth, channels):
    planes, coords = case(count=count, depth=depth, channels=channels)
    weights = torch.randn(2, 150, channels, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    results = []
    for sample in (lambda p: sampler(p, coords, tp.PLANE_AXES, torch.float32), lambda p: tp.sample_planes(p, coords)):
        leaf = planes.clone().requires_grad_(True)
        value = sample(leaf)
        (value * weights).sum().backward()
        results.append((value.detach(), leaf.grad))
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert float(got.abs().max()) > 0.1


def test_points_outside_give_zero(sampler):
    planes, coords = case()
    assert (sampler(planes, coords, tp.PLANE_AXES, torch.float32)[:, 2] == 0).all()


def test_gradient_of_the_planes(sampler):
    planes, coords = case()
    weights = torch.randn(2, 150, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gradients = []
    for sample in (lambda p: sampler(p, coords, tp.PLANE_AXES, torch.float32), lambda p: tp.sample_planes(p, coords)):
        leaf = planes.clone().requires_grad_(True)
        (sample(leaf) * weights).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].shape == planes.shape and float(gradients[0].abs().max()) > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_adjoint(sampler):
    """Sampling is linear in the planes: <sample(P), W> = <P, sample^T(W)>, and points on one texel add up."""
    planes, coords = case()
    coords[:, 10:] = coords[:, 1:2]  # many points at one place
    weights = torch.randn(2, 150, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    leaf = planes.requires_grad_(True)
    value = (sampler(leaf, coords, tp.PLANE_AXES, torch.float32) * weights).sum()
    value.backward()
    torch.testing.assert_close((leaf.grad * planes.detach()).sum(), value.detach(), rtol=1e-4, atol=1e-3)


def test_half_precision_out_and_in(sampler):
    """Bfloat16 keeps 8 bits (interpreted kernels cut off instead of rounding); the gradient has the planes' type."""
    planes, coords = case()
    expected = tp.sample_planes(planes, coords)
    got = sampler(planes, coords, tp.PLANE_AXES, torch.bfloat16)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=2**-7, atol=1e-5)
    half = planes.bfloat16().requires_grad_(True)
    out = sampler(half, coords, tp.PLANE_AXES, torch.float32)
    torch.testing.assert_close(out, tp.sample_planes(half.detach().float(), coords), rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.isfinite().all()


def test_planes_that_are_not_contiguous_and_not_square(sampler):
    planes, coords = case(height=6, width=20)
    turned = planes.transpose(3, 4).contiguous().transpose(3, 4)
    got = sampler(turned, coords, tp.PLANE_AXES, torch.float32)
    torch.testing.assert_close(got, tp.sample_planes(planes, coords), rtol=1e-5, atol=1e-5)


def test_no_points(sampler):
    planes, coords = case()
    planes = planes.requires_grad_(True)
    out = sampler(planes, coords[:, :0], tp.PLANE_AXES, torch.float32)
    out.sum().backward()
    assert out.shape == (2, 0, 8) and (planes.grad == 0).all()


@pytest.mark.parametrize("change", ["two planes", "batch", "two coordinates"])
def test_shapes_that_the_kernels_cannot_read(sampler, change):
    planes, coords = case()
    planes, coords = {
        "two planes": (planes[:, :2], coords), "batch": (planes[:1], coords),
        "two coordinates": (planes, coords[..., :2]),
    }[change]  # fmt: skip
    with pytest.raises(ValueError, match="Triton sampler needs"):
        sampler(planes, coords, tp.PLANE_AXES, torch.float32)


def test_as_an_implementation_of_sampling():
    planes, coords = case()
    for options in ({}, {"reduce": "sum"}, {"level_reduce": "mean"}):
        got, expected = (tp.sample_planes([planes, 2 * planes], coords, implementation=i, **options)
                         for i in ("triton", "torch"))  # fmt: skip
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(EnvironmentProblem, match="no gradient with respect to coordinates; choose torch"):
        tp.sample_planes(planes, coords.requires_grad_(True), implementation="triton")


def gradient_of(sampler, planes, coords, pull) -> torch.Tensor:
    """Gradient of the planes for a gradient (B,N,C) of the samples."""
    leaf = planes.clone().requires_grad_(True)
    sampler(leaf, coords, tp.PLANE_AXES, torch.float32).backward(pull)
    return leaf.grad


def crowded(channels=8, depth=None) -> tuple:
    """Planes, points of which many fall on the same texels, and gradients over ten powers of ten."""
    planes, coords = case(height=4, width=4, points=3000, channels=channels, depth=depth)
    g = torch.Generator().manual_seed(1)
    pull = torch.randn(2, 3000, channels, generator=g) * 10 ** torch.empty(2, 3000, 1).uniform_(-10, 0, generator=g)
    return planes, coords, pull.to(DEVICE)


@pytest.mark.parametrize("channels, depth", [(8, None), (5, 3)])
def test_deterministic_gradients_do_not_depend_on_the_order_of_points(sampler, deterministic, channels, depth):
    planes, coords, pull = crowded(channels, depth)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    first = gradient_of(sampler, planes, coords, pull)
    assert torch.equal(first, gradient_of(sampler, planes, coords[:, order], pull[:, order]))
    assert float(first.abs().max()) > 0.1


def test_deterministic_gradients_are_at_least_as_exact(sampler, deterministic):
    planes, coords, pull = crowded()
    leaf = planes.cpu().double().requires_grad_(True)
    tp.sample_planes(leaf, coords.cpu().double(), implementation="torch").backward(pull.cpu().double())
    got = gradient_of(sampler, planes, coords, pull).cpu().double()
    assert float((got - leaf.grad).norm() / leaf.grad.norm()) < 2e-7


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e30])
def test_deterministic_gradients_of_any_size(sampler, deterministic, size):
    """The same digits at any size: the unit follows the largest gradient."""
    planes, coords, pull = crowded()
    expected, got = (gradient_of(sampler, planes, coords, p).double() for p in (pull, pull * size))
    assert float((got / size - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_deterministic_gradients_that_are_no_numbers_stay_none(sampler, deterministic, bad):
    planes, coords, pull = crowded()
    assert (gradient_of(sampler, planes, coords, torch.zeros_like(pull)) == 0).all()
    pull[0, 7, 3] = bad
    assert not gradient_of(sampler, planes, coords, pull).isfinite().any()


@pytest.mark.parametrize("count", [1, 2, 31, 32, 1000, 1_000_003, 2 * 1_000_003, 999_983, 3 * 2**20])
def test_the_order_of_points_takes_each_once(count):
    from portrait_diffusion.ops.triplane_triton import stride_of

    assert math.gcd(stride_of(count), count) == 1


def test_sums_in_fixed_point_cannot_overflow():
    from portrait_diffusion.ops.triplane_triton import fixed_point_unit

    for count in (1, 1000, 2**21):
        for largest in (1e-6, 0.7, 1.0, 3e4):
            unit = float(fixed_point_unit(torch.tensor([largest, -largest / 2]), count))
            assert 2**59 < count * torch.tensor(largest).item() * unit < 2**62
