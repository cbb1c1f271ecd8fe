"""Losses of the stages: closed forms and limits."""
import math

import pytest
import torch
from portrait_diffusion.ops.volrend import composite
from portrait_diffusion.systems import losses


def test_opacity_is_cheapest_at_its_ends():
    assert losses.opaque(torch.full((4,), 0.5)) == pytest.approx(math.log(2), rel=1e-5)
    for end in (0.0, 1.0):
        assert losses.opaque(torch.full((4,), end)) < 0.01
    assert losses.sparsity(torch.zeros(3)) == pytest.approx(0.1) and losses.sparsity(torch.ones(3)) > 1


def test_the_spread_of_a_surface_is_the_variance_of_its_depth_where_it_is_solid():
    t, deltas = torch.linspace(1, 3, 4001), torch.full((4001,), 2 / 4000)
    for thickness in (0.05, 0.2):  # an exponential falls off with its mean as standard deviation
        density = (t > 1.5).float()[:, None] / thickness
        _, opacity, depth, weights = composite(density, torch.zeros(4001, 3), t, deltas)
        variance = (weights * (t - depth) ** 2).sum(-1, keepdim=True)
        found = losses.spread(variance.view(1, 1, 1, 1), opacity.view(1, 1, 1, 1))
        assert float(found) == pytest.approx(thickness**2, rel=0.05)
    variance, opacity = torch.tensor([4.0, 2.0, 100.0]).view(1, 3, 1, 1), torch.tensor([1.0, 0.6, 0.4]).view(1, 3, 1, 1)
    assert float(losses.spread(variance, opacity)) == 3.0 and float(losses.spread(variance, 0 * opacity)) == 0.0


def test_a_tilted_plane_is_not_crooked_and_an_edge_costs_no_more_than_its_limit():
    ramp = (2 + 0.01 * torch.arange(8.0) + 0.02 * torch.arange(8.0)[:, None])[None, ..., None]
    solid = torch.ones_like(ramp)
    assert losses.crooked_depth(ramp, solid) < 1e-5
    edge = torch.where(torch.arange(8) < 4, 2.0, 3.0).expand(1, 8, 8)[..., None]
    assert losses.crooked_depth(edge, solid) == pytest.approx(0.02 * 2 / 6, rel=1e-5)
    assert losses.crooked_depth(edge, torch.zeros_like(edge)) == 0


def test_variation_of_a_ramp_and_size_of_a_grid():
    grid = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 4)
    assert losses.total_variation(grid) == 1 and losses.size(2 * torch.ones(2, 2)) == 4
    assert losses.total_variation(grid.transpose(2, 4)) == 1


def test_variation_of_colour_sees_no_density_and_no_lightness():
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, 1, 4, 4, 4)
    density, light = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    grey = torch.cat([density, light, light, light], dim=2)
    assert losses.chroma_variation(grey) < 1e-6 < losses.total_variation(grey)
    # red less the mean of the colours: 2/3 of a step of one along the width, the others -1/3: a mean of 4/9
    red = torch.arange(4.0).expand(shape)
    coloured = grey + torch.cat([7 * red, red, 0 * red, 0 * red], dim=2)
    assert losses.chroma_variation(coloured) == pytest.approx(4 / 9, rel=1e-5)
    coloured.requires_grad_(True)
    (slope,) = torch.autograd.grad(losses.chroma_variation(coloured), coloured)
    assert slope[:, :, 0].abs().max() == 0 and slope[:, :, 1:].sum(2).abs().max() < 1e-7
    assert slope[:, :, 1:].abs().max() > 0
