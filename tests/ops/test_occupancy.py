"""Empty-space skipping: the grid, the histogram made of it, and pictures rendered by it against plain quadrature."""
import pytest
import torch
from portrait_diffusion.ops import occupancy as oc
from portrait_diffusion.ops.volrend import composite, quantile_strata, render_rays, stratified_samples

RADIUS = 0.36
LIKE = torch.zeros(1, dtype=torch.float64)


def ball_density(points: torch.Tensor) -> torch.Tensor:
    """A ball of radius 0.2 with a soft rim, 1 cm of a head wide, at (0.05, 0, 0)."""
    centre = points.new_tensor([0.05, 0, 0])
    return 300 * torch.sigmoid((0.2 - (points - centre).norm(dim=-1, keepdim=True)) / 0.004)


def field(points: torch.Tensor) -> tuple:
    field.asked += points[..., 0].numel()
    return ball_density(points), 0.5 + points


def rays(side: int = 24) -> tuple:
    """Parallel rays along -x over the whole box, most of which miss the ball."""
    at = torch.linspace(-0.34, 0.34, side, dtype=torch.float64)
    z, y = torch.meshgrid(at, at, indexing="ij")
    origins = torch.stack([torch.ones_like(y), y, z], dim=-1).reshape(1, -1, 3)
    return origins, origins.new_tensor([-1.0, 0, 0]).expand_as(origins)


def test_the_grid_has_the_density_of_its_centres_by_z_y_x():
    grid = oc.density_grid(lambda p: p @ p.new_tensor([[1.0], [10.0], [100.0]]), RADIUS, 6, LIKE)
    step = 2 * RADIUS / 6
    for z, y, x in ((0, 0, 0), (5, 1, 3), (2, 4, 0)):
        centre = [-RADIUS + (i + 0.5) * step for i in (x, y, z)]
        assert float(grid[z, y, x]) == pytest.approx(centre[0] + 10 * centre[1] + 100 * centre[2])


def test_look_ups_are_linear_between_centres_and_zero_outside():
    grid = oc.density_grid(lambda p: 2 + p @ p.new_tensor([[1.0], [-2.0], [3.0]]), RADIUS, 8, LIKE)
    points = (torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5) * 1.7 * RADIUS
    expected = 2 + points @ points.new_tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(oc.grid_density(grid, points, RADIUS), expected)
    assert (oc.grid_density(grid, torch.full((3, 3), 2 * RADIUS, dtype=torch.float64), RADIUS) == 0).all()


def test_widened_takes_the_densest_neighbour():
    grid = torch.zeros(5, 5, 5)
    grid[2, 2, 2] = 7
    assert (oc.widened(grid)[1:4, 1:4, 1:4] == 7).all() and oc.widened(grid).sum() == 7 * 27


@pytest.mark.parametrize("random", [False, True])
def test_strata_hold_equal_shares_of_the_histogram(random):
    edges = torch.tensor([[0.0, 1, 2, 4, 5]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 0, 2, 1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0) if random else None
    t, strata = quantile_strata(edges, weights, 4, generator)
    torch.testing.assert_close(strata, torch.tensor([[0.0, 2, 3, 4, 5]], dtype=torch.float64))
    assert (t >= strata[..., :-1]).all() and (t <= strata[..., 1:]).all()
    if not random:
        torch.testing.assert_close(t, torch.tensor([[1.0, 2.5, 3.5, 4.5]], dtype=torch.float64))


def test_an_empty_grid_spreads_the_samples_evenly():
    rays_o, rays_d = rays(3)
    near, far = rays_o.new_full((1, 9, 1), 0.7), rays_o.new_full((1, 9, 1), 1.3)
    t, edges = oc.guided_samples(torch.zeros(16, 16, 16, dtype=torch.float64), RADIUS, 6)(rays_o, rays_d, near, far)
    expected = stratified_samples(near, far, 6)
    torch.testing.assert_close(t, expected[0])
    torch.testing.assert_close(edges, expected[1])


def test_hardly_anything_is_asked_behind_what_is_opaque():
    """A wall at x < 0, seen from +x: what lies deeper than the reach gets a part of the even share."""
    grid = oc.density_grid(lambda p: 1e4 * (p[:, :1] < 0), RADIUS, 64, LIKE)
    rays_o, rays_d = rays(1)
    near, far = rays_o.new_full((1, 1, 1), 0.64), rays_o.new_full((1, 1, 1), 1.36)
    t, _ = oc.guided_samples(grid, RADIUS, 100)(rays_o, rays_d, near, far)
    depth = t - 1.0  # behind the wall's face
    assert ((depth > 0.05).double().mean() < oc.UNIFORM_SHARE / 2) and ((depth.abs() < 0.05).double().mean() > 0.7)


def test_rays_that_see_nothing_are_told_apart():
    rays_o, rays_d = rays()
    grid = oc.density_grid(ball_density, RADIUS, 48, LIKE)
    seen = oc.sees_matter(oc.widened(grid), rays_o, rays_d, RADIUS)
    off = (rays_o[..., 1:]).norm(dim=-1, keepdim=True)
    opaque = off < 0.2 + 5 * 0.004
    assert seen[opaque].all() and not seen[off > 0.2 + 0.1].any()


def test_no_ray_through_an_occupied_cell_is_overlooked():
    """One cell of a grid at a time, and rays from all around through random places in it."""
    generator, edge = torch.Generator().manual_seed(0), 24
    for cell in torch.randint(5, edge - 5, (40, 3), generator=generator).tolist():
        grid = torch.zeros(edge, edge, edge, dtype=LIKE.dtype)
        grid[tuple(cell)] = 1.0
        inside = torch.rand(500, 3, generator=generator, dtype=LIKE.dtype)
        target = ((inside + torch.tensor(cell[::-1])) / edge * 2 - 1) * RADIUS
        away = torch.nn.functional.normalize(torch.randn(500, 3, generator=generator, dtype=LIKE.dtype), dim=-1)
        assert oc.sees_matter(oc.widened(grid), target - 3 * away, away, RADIUS).all()


def test_an_eighth_of_96_samples_a_ray_keeps_the_picture_to_60_db():
    rays_o, rays_d = rays()
    grid = oc.density_grid(ball_density, RADIUS, 64, LIKE)
    skip = ~oc.sees_matter(oc.widened(grid), rays_o, rays_d, RADIUS)

    def picture(*counts, **how) -> tuple:
        field.asked = 0
        out = render_rays(field, rays_o, rays_d, RADIUS, *counts, **how)
        return out["rgb"] + 1 - out["opacity"], field.asked

    truth, _ = picture(3000)
    asked_even = picture(96)[1]
    guided, asked = picture(1, sample_fn=oc.guided_samples(grid, RADIUS, 24), skip=skip)
    assert asked < asked_even / 8
    assert (guided - truth).square().mean() < 1e-6 and (guided - truth).abs().max() < 0.01


def test_intervals_add_up_and_skipped_rays_are_zero():
    rays_o, rays_d = rays()
    grid = oc.density_grid(ball_density, RADIUS, 32, LIKE)
    skip = ~oc.sees_matter(oc.widened(grid), rays_o, rays_d, RADIUS)
    out = render_rays(field, rays_o, rays_d, RADIUS, 1, sample_fn=oc.guided_samples(grid, RADIUS, 12), skip=skip)
    assert all((value[skip[..., 0]] == 0).all() for value in out.values())
    t, deltas = out["t"][~skip[..., 0]], out["deltas"][~skip[..., 0]]
    assert (t.diff(dim=-1) > 0).all()
    whole = render_rays(field, rays_o, rays_d, RADIUS, 12)["deltas"].sum(-1)[~skip[..., 0]]
    torch.testing.assert_close(deltas.sum(-1), whole)


def test_randomised_pictures_average_to_the_truth():
    """Stratified quadrature has no bias of first order in optical depth: a thin fog, seen many times."""
    rays_o, rays_d = rays(4)
    near, far = rays_o.new_full((1, 16, 1), 0.7), rays_o.new_full((1, 16, 1), 1.3)
    grid = oc.density_grid(lambda p: 1e-3 * ball_density(p), RADIUS, 32, LIKE)
    g, total = torch.Generator().manual_seed(0), 0.0
    sample = oc.guided_samples(grid, RADIUS, 4, g)
    for _ in range(400):
        t, edges = sample(rays_o, rays_d, near, far)
        points = rays_o[..., None, :] + t[..., None] * rays_d[..., None, :]
        total += (1e-3 * ball_density(points)[..., 0] * edges.diff(dim=-1)).sum(-1) / 400
    fine = stratified_samples(near, far, 20000)[0]
    points = rays_o[..., None, :] + fine[..., None] * rays_d[..., None, :]
    expected = 1e-3 * ball_density(points)[..., 0].mean(-1) * 0.6
    assert float((total - expected).abs().max() / expected.max()) < 0.03


def test_gradients_reach_the_field_and_not_the_grid():
    rays_o, rays_d = rays(6)
    grid = oc.density_grid(ball_density, RADIUS, 24, LIKE).requires_grad_(True)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    sample = oc.guided_samples(grid, RADIUS, 12)
    out = render_rays(
        lambda p: (scale * ball_density(p), torch.ones_like(p)), rays_o, rays_d, RADIUS, 1, sample_fn=sample
    )
    out["opacity"].sum().backward()
    assert grid.grad is None and torch.isfinite(scale.grad).all() and float(scale.grad.abs()) > 0


def test_composite_of_strata_is_exact_for_constant_density():
    edges = torch.linspace(0, 1, 9, dtype=torch.float64)[None]
    t, strata = quantile_strata(edges, torch.rand(1, 8, generator=torch.Generator().manual_seed(0)).double(), 5)
    density = torch.full((1, 5, 1), 3.0, dtype=torch.float64)
    opacity = composite(density, density, t, strata.diff(dim=-1))[1]
    torch.testing.assert_close(opacity, 1 - torch.exp(-3 * torch.ones_like(opacity)))
