"""Samples by nerfacc's estimator: the chain of intervals, and pictures against plain quadrature.

Without a GPU the estimator is a stand-in in plain torch that steps and stops as nerfacc's documentation says; with one
and the package, `pytest -m gpu` takes the real one.
"""
import importlib.util
import sys
import types

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.ops import occupancy as oc
from portrait_diffusion.ops import occupancy_nerfacc as on
from portrait_diffusion.ops.volrend import render_rays
from portrait_diffusion.renderer.volume import PortraitVolumeRenderer

from .test_occupancy import RADIUS, ball_density, rays


class OccGridEstimator(torch.nn.Module):
    """Even steps whose middles lie in occupied cells, until the transmittance is too small."""

    def __init__(self, roi_aabb, resolution=128, levels=1):
        super().__init__()
        self.radius, self.edge = roi_aabb[3], resolution
        self.register_buffer("binaries", torch.zeros([levels] + [resolution] * 3, dtype=torch.bool))

    def sampling(self, rays_o, rays_d, sigma_fn, t_min, t_max, render_step_size, early_stop_eps):
        assert rays_o.dtype == torch.float32 and self.binaries.shape == (1, *[self.edge] * 3)
        number = torch.arange(int((t_max - t_min).max() / render_step_size) + 1)
        starts = t_min[:, None] + number * render_step_size
        ends = torch.minimum(starts + render_step_size, t_max[:, None])
        points = rays_o[:, None] + 0.5 * (starts + ends)[..., None] * rays_d[:, None]
        x, y, z = ((points / self.radius + 1) / 2 * self.edge).long().clamp(0, self.edge - 1).unbind(-1)
        inside = (points.abs() < self.radius).all(-1) & (starts < t_max[:, None])
        taken = inside & self.binaries[0, x, y, z]
        ray, at = taken.nonzero(as_tuple=True)
        optical = torch.zeros_like(starts)
        optical[ray, at] = sigma_fn(starts[ray, at], ends[ray, at], ray) * (ends - starts)[ray, at]
        taken &= (-(optical.cumsum(-1) - optical)).exp() >= early_stop_eps
        ray, at = taken.nonzero(as_tuple=True)
        return ray, starts[ray, at], ends[ray, at]


@pytest.fixture
def stand_in(monkeypatch):
    backend = types.SimpleNamespace(_C=object())
    monkeypatch.setitem(sys.modules, "nerfacc", types.SimpleNamespace(OccGridEstimator=OccGridEstimator))
    monkeypatch.setitem(sys.modules, "nerfacc.cuda", types.SimpleNamespace(_backend=backend))
    monkeypatch.setattr(on, "choose", lambda *args: "nerfacc")
    on.estimator.cache_clear()
    yield backend
    on.estimator.cache_clear()


# ---- the chain of intervals -----------------------------------------------------------------------------------------
def test_borders_by_hand():
    """Ray 0 has two steps, a gap and a step; ray 1 none; ray 2 one step."""
    ray = torch.tensor([0, 0, 0, 2])
    starts, ends = torch.tensor([1.0, 2, 5, 3]), torch.tensor([2.0, 3, 6, 4])
    found = on.step_borders(ray, starts, ends, torch.tensor([[0.5], [0.25], [0.125]]))
    expected = torch.tensor([[1.0, 2, 3, 5, 6], [0.25] * 5, [3, 4, 4, 4, 4]])
    assert torch.equal(found, expected)


def test_no_steps_at_all():
    none = torch.zeros(0)
    assert torch.equal(on.step_borders(none.long(), none, none, torch.ones(3, 1)), torch.ones(3, 2))
    assert on.step_borders(none.long(), none, none, torch.ones(0, 1)).shape == (0, 2)


def test_every_step_is_in_the_chain_and_nothing_overlaps():
    g = torch.Generator().manual_seed(0)
    taken = torch.rand(20, 50, generator=g) < 0.5
    ray, at = taken.nonzero(as_tuple=True)
    borders = on.step_borders(ray, at * 0.1, at * 0.1 + 0.1, torch.zeros(20, 1))
    assert (borders[:, 1:] >= borders[:, :-1]).all()
    for r, a in zip(ray.tolist(), at.tolist()):
        k = int((borders[r] - a * 0.1).abs().argmin())
        torch.testing.assert_close(borders[r, k : k + 2], torch.tensor([a * 0.1, a * 0.1 + 0.1]))


# ---- pictures -------------------------------------------------------------------------------------------------------
def counted(points):
    counted.asked += points[..., 0].numel()
    return ball_density(points), 0.5 + points


def pictures(device: str, random: bool, empty: bool) -> tuple:
    origins, directions = (x.to(device) for x in rays())
    grid = oc.density_grid(ball_density, RADIUS, 48, torch.zeros(1, dtype=torch.float64, device=device))
    generator = torch.Generator(device).manual_seed(0) if random else None
    samples = on.marched_samples(grid, RADIUS, 400, empty, generator)
    counted.asked = 0
    got = render_rays(counted, origins, directions, RADIUS, 1, sample_fn=samples)
    asked, counted.asked = counted.asked, 0
    exact = render_rays(counted, origins, directions, RADIUS, 2000)
    return got, exact, asked, counted.asked


@pytest.mark.parametrize("random, empty", [(False, False), (True, False), (False, True)])
def test_the_picture_is_that_of_plain_quadrature(random, empty, stand_in):
    got, exact, asked, all_of_them = pictures("cpu", random, empty)
    for key, tolerance in (("opacity", 0.02), ("rgb", 0.02), ("depth", 0.01)):
        assert (got[key] - exact[key]).abs().mean() < tolerance, key
    assert got["rgb"].dtype == torch.float64
    assert asked < all_of_them / (5 if empty else 10)


def test_an_empty_grid_asks_for_one_empty_interval(stand_in):
    grid = torch.zeros(8, 8, 8)
    o, d = (x.float() for x in rays(4))
    t, edges = on.marched_samples(grid, RADIUS, 50, False)(o, d, torch.ones(1, 16, 1), torch.full((1, 16, 1), 1.5))
    assert t.shape == (1, 16, 1) and torch.equal(edges, torch.ones(1, 16, 2))


def test_the_renderer_trains_and_evaluates_by_it(stand_in):
    from renderer.test_volume import ball, renderer, views

    options = {"occupancy_resolution": 32, "estimator": "nerfacc", "num_marching_steps": 256}
    fine = renderer(ball(), num_samples_per_ray=1000, num_importance_samples=0).eval()(*views(2))
    assert (renderer(ball(), **options).eval()(*views(2))["comp_rgb"] - fine["comp_rgb"]).square().mean() < 1e-4
    module = renderer(ball(), **options).train()
    out = module(*views(2), generator=torch.Generator().manual_seed(0))
    again = module(*views(2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(out["comp_rgb"], again["comp_rgb"])
    out["comp_rgb"].sum().backward()
    grads = [p.grad for p in module.geometry.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)
    total = torch.zeros(out["opacity"].numel()).index_add(0, out["ray_indices"], out["weights"][:, 0])
    torch.testing.assert_close(total, out["opacity"].reshape(-1))


# ---- what is missing ------------------------------------------------------------------------------------------------
def test_without_a_gpu_or_the_package_the_reason_and_the_fix_are_told(monkeypatch):
    for installed, message in ((None, "not installed; run: pip install nerfacc"), (1, "a CUDA device, got cpu")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, installed=installed: installed)
        with pytest.raises(EnvironmentProblem, match=f"ray marching: .*{message}"):
            on.marched_samples(torch.zeros(4, 4, 4), RADIUS, 10, False)


def test_nerfacc_without_compiled_code_is_told(stand_in):
    stand_in._C = None
    with pytest.raises(EnvironmentProblem, match="nerfacc has no CUDA code.*or set renderer.estimator=occupancy"):
        on.marched_samples(torch.zeros(4, 4, 4), RADIUS, 10, False)


@pytest.mark.parametrize("config, message", [
    ({"estimator": "magic"}, "renderer.estimator must be occupancy or nerfacc, got 'magic'"),
    ({"estimator": "nerfacc"}, "nerfacc needs renderer.occupancy_resolution"),
    ({"estimator": "nerfacc", "occupancy_resolution": 8, "num_marching_steps": 0}, "num_marching_steps"),
])  # fmt: skip
def test_impossible_settings_are_usage_errors(config, message):
    with pytest.raises(UsageError, match=message):
        PortraitVolumeRenderer.Config(**config)


REAL = (
    "needs a CUDA device (none is visible)" if not torch.cuda.is_available()
    else "needs the package nerfacc (not installed)" if importlib.util.find_spec("nerfacc") is None else None
)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(REAL is not None, reason=str(REAL))
@pytest.mark.parametrize("random, empty", [(False, False), (True, False), (False, True)])
def test_the_package_renders_the_same_picture(random, empty):
    got, exact, asked, all_of_them = pictures("cuda", random, empty)
    for key, tolerance in (("opacity", 0.02), ("rgb", 0.02), ("depth", 0.01)):
        assert (got[key] - exact[key]).abs().mean() < tolerance, key
    assert asked < all_of_them / (5 if empty else 10)
