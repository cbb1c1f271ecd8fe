"""Resizing with and without deterministic algorithms."""
import pytest
import torch
import torch.nn.functional as F
from portrait_diffusion.ops.resize import resized


@pytest.mark.parametrize("size", [(64, 64), (17, 40), (12, 20), (5, 50)])
def test_both_ways_agree_in_value_and_gradient(deterministic, size):
    x = torch.rand(2, 3, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    pull = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for resize in (lambda: resized(x, size), lambda: F.interpolate(x, size, mode="bilinear", antialias=True)):
        value = resize()
        found.append((value.detach(), torch.autograd.grad(value, x, pull)[0]))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("on", [False, True])
def test_constant_pictures_stay_constant_and_pictures_of_that_size_stay_as_they_are(on):
    torch.use_deterministic_algorithms(on, warn_only=True)
    try:
        torch.testing.assert_close(resized(torch.full((1, 1, 9, 7), 0.3), (20, 3)), torch.full((1, 1, 20, 3), 0.3))
        x = torch.rand(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(resized(x, (6, 8)), x)
    finally:
        torch.use_deterministic_algorithms(False)
