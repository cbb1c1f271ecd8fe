"""Compositing and the grid's strata by Triton against torch in float64: values and gradients, limits, refusals.

Needs a GPU (``pytest -m gpu``), or ``TRITON_INTERPRET=1`` with Triton installed, which runs the kernels on the CPU.
"""
import os

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem
from portrait_diffusion.ops import occupancy as oc
from portrait_diffusion.ops import volrend as vr

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda") if CUDA else torch.device("cpu")
needs_kernels = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs a CUDA device (none is visible)")
RADIUS = 0.36


def samples(rays=130, count=9, colours=3, density=30.0, seed=0) -> list:
    """Density, colour, t, deltas; every third ray is empty, every fifth ends in an opaque sample."""
    g = torch.Generator().manual_seed(seed)
    sigma = density * torch.rand(rays, count, 1, generator=g)
    sigma[::3] = 0.0
    sigma[::5, count // 2] = 1e6
    deltas = 0.1 * torch.rand(rays, count, generator=g) + 0.001
    t = 2.4 + deltas.cumsum(-1) - deltas / 2
    return [x.to(DEVICE) for x in (sigma, torch.rand(rays, count, colours, generator=g), t, deltas)]


def values_and_gradients(inputs: list, implementation: str, wanted=(0, 1, 2, 3)) -> tuple:
    leaves = [x.detach().clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    out = vr.composite_rays(*leaves, implementation)
    g = torch.Generator().manual_seed(1)
    pulls = [torch.randn(x.shape, generator=g).to(x) for x in out]
    sum((x * pull).sum() for x, pull in zip(out, pulls)).backward()
    return [x.detach() for x in out], [leaf.grad for leaf in leaves if leaf.requires_grad]


def agree(got: list, expected: list, tolerance: float) -> None:
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape
        error = float((a - b).abs().max() / b.abs().max())
        assert error <= tolerance, (i, error)


@pytest.mark.gpu
@needs_kernels
class TestCompositing:
    @pytest.mark.parametrize(
        "rays, count, colours", [(1, 1, 1), (130, 9, 3), (257, 24, 3), (40, 65, 33), (128, 2, 64), (3, 1500, 3)]
    )
    def test_values_and_gradients(self, rays, count, colours):
        inputs = samples(rays, count, colours)
        if rays == 1:
            inputs[0] = torch.full_like(inputs[0], 7.0)
        got, expected = (
            values_and_gradients(x, name) for x, name in ((inputs, "triton"), ([x.double() for x in inputs], "torch"))
        )
        assert all(x.dtype == torch.float32 for x in got[0])
        if count > 1:
            agree(got[0][:4], expected[0][:4], 1e-5)
            agree(got[0][4:], expected[0][4:], 1e-4)
            agree(got[1], expected[1], 1e-4)
        else:  # the variance of a single sample and its gradient are 0
            agree(got[0][:4], expected[0][:4], 1e-5)
            agree(got[1][:2], expected[1][:2], 1e-4)

    def test_gradients_of_density_and_colour_alone(self):
        inputs = samples()
        got, expected = (values_and_gradients(inputs, name, (0, 1))[1] for name in ("triton", "torch"))
        agree(got, expected, 1e-4)

    def test_leading_axes_and_half_colours(self):
        density, colour, t, deltas = (x.unflatten(0, (2, 65)) for x in samples())
        leaf = colour.to(torch.float16).requires_grad_()
        out = vr.composite_rays(density, leaf, t, deltas, "triton")
        expected = vr.composite_rays(density, leaf.detach(), t, deltas, "torch")
        for a, b in zip(out, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        out[0].sum().backward()
        assert leaf.grad.dtype == torch.float16 and leaf.grad.shape == colour.shape

    def test_a_veil_before_a_wall_is_not_lost_and_nothing_is_behind_it(self):
        density = torch.tensor([[0.5, 1e12, 1.0]], device=DEVICE)[..., None].requires_grad_()
        t = torch.arange(3.0, device=DEVICE)[None]
        out = vr.composite_rays(density, torch.ones(1, 3, 1, device=DEVICE), t, torch.ones_like(t), "triton")
        veil = 1 - 2.718281828459045**-0.5
        torch.testing.assert_close(out[3].cpu(), torch.tensor([[veil, 1 - veil, 0.0]]))
        out[1].sum().backward()
        assert (density.grad[0, 1:] == 0).all()

    def test_outputs_and_gradients_are_finite_over_many_magnitudes(self):
        exponents = torch.linspace(-30, 30, 61, device=DEVICE)
        density = (10.0**exponents)[:, None, None].expand(61, 5, 1).clone().requires_grad_()
        t = torch.arange(5.0, device=DEVICE).expand(61, 5)
        out = vr.composite_rays(density, torch.ones(61, 5, 3, device=DEVICE), t, torch.full_like(t, 0.1), "triton")
        sum(value.sum() for value in out).backward()
        assert all(torch.isfinite(value).all() for value in out) and torch.isfinite(density.grad).all()
        thin = out[1][:20, 0].double()
        torch.testing.assert_close(thin, 0.5 * density[:20, 0, 0].double(), rtol=1e-5, atol=0)  # no digits are lost

    def test_no_rays(self):
        inputs = [x[:0] for x in samples()]
        assert [x.shape[0] for x in vr.composite_rays(*inputs, "triton")] == [0] * 5

    def test_whole_renders(self):
        rays_o, rays_d = rays(5)

        def field(points):
            return ball_density(points), 0.5 + points

        for counts in ((12, 0), (12, 12)):
            got, expected = (
                vr.render_rays(field, rays_o, rays_d, RADIUS, *counts, implementation=name)
                for name in ("triton", "torch")
            )
            for key in expected:
                torch.testing.assert_close(got[key], expected[key], atol=1e-4, rtol=1e-4, msg=key)


def ball_density(points: torch.Tensor) -> torch.Tensor:
    """A ball of radius 0.2 with a soft rim at (0.05, 0, 0)."""
    centre = points.new_tensor([0.05, 0, 0])
    return 300 * torch.sigmoid((0.2 - (points - centre).norm(dim=-1, keepdim=True)) / 0.01)


def rays(side: int) -> tuple:
    """From (1, 0, 0) towards the whole box."""
    at = torch.linspace(-0.3, 0.3, side)
    z, y = torch.meshgrid(at, at, indexing="ij")
    targets = torch.stack([torch.zeros_like(y), y, z], dim=-1).reshape(1, -1, 3)
    origins = torch.tensor([1.0, 0, 0]).expand_as(targets)
    return origins.to(DEVICE), torch.nn.functional.normalize(targets - origins, dim=-1).to(DEVICE)


@pytest.mark.gpu
@needs_kernels
class TestGuidedSamples:
    @pytest.mark.parametrize("count, random", [(1, False), (24, False), (24, True), (33, True)])
    def test_samples_and_borders(self, count, random):
        rays_o, rays_d = rays(9)
        near, far, _ = vr.ray_cylinder(rays_o, rays_d, RADIUS)
        grid = oc.density_grid(ball_density, RADIUS, 20, rays_o)
        found = []
        for name in ("triton", "torch"):
            generator = torch.Generator(DEVICE).manual_seed(3) if random else None
            wide = [x.double() for x in (grid, rays_o, rays_d, near, far)] if name == "torch" and not random else None
            given = wide or [grid, rays_o, rays_d, near, far]
            found.append(oc.guided_samples(given[0], RADIUS, count, generator, name)(*given[1:]))
        for got, expected in zip(*found, strict=True):
            assert got.shape == expected.shape
            torch.testing.assert_close(got.double(), expected.double(), atol=1e-4, rtol=0)
        t, strata = found[0]
        assert (strata.diff(dim=-1) >= 0).all()
        assert (t >= strata[..., :-1] - 1e-6).all() and (t <= strata[..., 1:] + 1e-6).all()
        assert torch.equal(strata[..., :1], near) and torch.equal(strata[..., -1:], far)

    def test_look_ups_equal_the_reference(self):
        rays_o, rays_d = rays(6)
        near, far, _ = vr.ray_cylinder(rays_o, rays_d, RADIUS)
        from portrait_diffusion.ops.occupancy_triton import weights_along

        grid = torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 5
        got = weights_along(grid, rays_o[0], rays_d[0], near[0], far[0], RADIUS)
        t, edges = vr.stratified_samples(near, far, 12)
        density = oc.grid_density(grid, rays_o[..., None, :] + t[..., None] * rays_d[..., None, :], RADIUS)
        expected = vr.composite(density[..., None], density[..., None], t, edges.diff(dim=-1))[3][0]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)

    def test_an_empty_grid_spreads_the_samples_evenly_and_misses_have_no_length(self):
        rays_o, rays_d = rays(3)
        near, far = (torch.full_like(rays_o[..., :1], x) for x in (0.7, 1.3))
        near[:, 0], far[:, 0] = 0.0, 0.0
        empty = torch.zeros(16, 16, 16, device=DEVICE)
        t, edges = oc.guided_samples(empty, RADIUS, 6, implementation="triton")(rays_o, rays_d, near, far)
        expected = vr.stratified_samples(near, far, 6)
        torch.testing.assert_close(t, expected[0])
        torch.testing.assert_close(edges, expected[1])


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_triton_on_a_cpu_says_what_it_needs(monkeypatch):
    from portrait_diffusion.ops import backends

    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(EnvironmentProblem, match="compositing.*needs tensors on a CUDA device, got cpu"):
        vr.composite_rays(*(x.cpu() for x in samples()), "triton")
    near, far = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    with pytest.raises(EnvironmentProblem, match="guided samples.*needs tensors on a CUDA device, got cpu"):
        oc.guided_samples(torch.zeros(4, 4, 4), RADIUS, 2, implementation="triton")(
            torch.zeros(1, 1, 3), torch.ones(1, 1, 3), near, far
        )


def test_what_the_kernels_cannot_take_is_named(monkeypatch):
    from portrait_diffusion.ops import backends

    monkeypatch.setattr(backends, "missing", lambda name, device: None)
    with pytest.raises(EnvironmentProblem, match="computes in float32, got float64; choose torch"):
        vr.composite_rays(*(x.double() for x in samples()), "triton")
    with pytest.raises(EnvironmentProblem, match="at most 64 colours, got 65; choose torch"):
        vr.composite_rays(*samples(colours=65), "triton")
    with pytest.raises(EnvironmentProblem, match="at most 4096 samples a ray, got 4097; choose torch"):
        vr.composite_rays(*samples(rays=1, count=4097), "triton")


def test_auto_is_the_reference():
    inputs = samples()
    for a, b in zip(vr.composite_rays(*inputs), vr.composite(*inputs)):
        assert torch.equal(a, b)
