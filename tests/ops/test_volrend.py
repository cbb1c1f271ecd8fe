"""Volume rendering: conservation, closed forms, limits, samplers' distributions, gradients, geometry of the picture."""
import math

import pytest
import torch
from portrait_diffusion.ops import cameras as cam
from portrait_diffusion.ops import triplane as tp
from portrait_diffusion.ops import volrend as vr

F64 = torch.float64
R = cam.BOX_RADIUS


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_rays(azimuth: float, size: int, elevation: float = 0.0, dtype=F64):
    c2w = cam.orbit_c2w(torch.tensor([azimuth], dtype=dtype), elevation)
    rays_o, rays_d = cam.get_rays(c2w, cam.canonical_fovy(c2w), size, size)
    return rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)


def constant_field(density: float):
    return lambda p: (torch.full_like(p[..., :1], density), torch.full_like(p, 0.25))


def sphere_field(radius: float, centre=(0.0, 0.0, 0.0), density: float = 300.0, softness: float = 0.01):
    def field(points):
        distance = (points - points.new_tensor(centre)).norm(dim=-1, keepdim=True)
        return density * torch.sigmoid((radius - distance) / softness), torch.ones_like(points)

    return field


# --- the volume ---


def test_cylinder_matches_brute_force():
    g = gen()
    origins = 1.2 * torch.randn(400, 3, generator=g, dtype=F64)
    directions = torch.nn.functional.normalize(torch.randn(400, 3, generator=g, dtype=F64) - origins, dim=-1)
    near, far, hit = vr.ray_cylinder(origins, directions, 0.8)
    t = torch.linspace(0, 8, 8001, dtype=F64)
    inside = vr.inside_cylinder(origins[:, None] + t[:, None] * directions[:, None], 0.8)[..., 0]
    assert 20 < inside.any(-1).sum() < 380  # both kinds occur
    seen = inside.any(-1)
    assert torch.equal(seen & hit[:, 0], seen)  # whatever brute force finds is a hit; the reverse but for slivers
    assert ((far - near)[hit[:, 0] & ~seen] < 0.002).all()
    first = torch.where(inside, t, torch.inf).amin(-1)[seen]
    last = torch.where(inside, t, -torch.inf).amax(-1)[seen]
    torch.testing.assert_close(near[seen, 0], first, atol=0.0011, rtol=0)
    torch.testing.assert_close(far[seen, 0], last, atol=0.0011, rtol=0)


@pytest.mark.parametrize(
    "origin, direction, expected",
    [
        ((2, 0, 0), (-1, 0, 0), (1.5, 2.5)),  # square on to the axis
        ((0, 0, 2), (0, 0, -1), (1.5, 2.5)),  # along the axis, through the caps
        ((0, 0, 0), (0, 1, 0), (0.0, 0.5)),  # from inside
        ((2, 0, 0), (1, 0, 0), None),  # behind the origin
        ((2, 0, 0.6), (-1, 0, 0), None),  # above
        ((0.6, 0, 2), (0, 0, -1), None),  # beside, parallel to the axis
        ((2, 0.5, 0), (-1, 0, 0), None),  # touches only
    ],
)
def test_special_rays(origin, direction, expected):
    near, far, hit = vr.ray_cylinder(torch.tensor([origin], dtype=F64), torch.tensor([direction], dtype=F64), 0.5)
    assert hit.item() == (expected is not None)
    assert (near.item(), far.item()) == pytest.approx(expected or (0.0, 0.0))


def test_rays_that_miss_have_zero_results_and_finite_gradients():
    for compact in (True, False):
        origins = torch.tensor([[2.0, 0, 0], [2, 0, 0.6], [0.6, 0, 2], [2, 0, 0], [2, R, 0]], dtype=F64)
        origins.requires_grad_()
        directions = torch.tensor(
            [[1.0, 0, 0], [-1, 0, 0], [0, 0, -1], [-1, 0, 0], [-1, 0, 0]], dtype=F64
        ).requires_grad_()
        sigma = torch.tensor(3.0, dtype=F64).requires_grad_()
        out = vr.render_rays(
            lambda p, s=sigma: (s * torch.ones_like(p[..., :1]), p), origins, directions, R, 4, 4, compact=compact
        )
        for key in ("rgb", "opacity", "depth", "weights", "z_variance"):
            assert torch.equal(out[key][[0, 1, 2, 4]], torch.zeros_like(out[key][[0, 1, 2, 4]])), key
        assert out["opacity"][3] > 0.8
        sum(value.sum() for value in out.values()).backward()
        for gradient in (origins.grad, directions.grad, sigma.grad):
            assert torch.isfinite(gradient).all()


def test_only_hitting_rays_are_evaluated():
    rays_o, rays_d = image_rays(0, 16, elevation=90.0)  # from above: the corners miss the round cylinder
    rays_o = rays_o * 1.3
    hits = int(vr.ray_cylinder(rays_o, rays_d, R)[2].sum())
    assert 0 < hits < 256
    seen = []

    def field(points):
        seen.append(points.shape[0])
        return constant_field(1.0)(points)

    compact = vr.render_rays(field, rays_o, rays_d, R, 3, 2)
    assert seen == [hits * 3, hits * 2]
    full = vr.render_rays(field, rays_o, rays_d, R, 3, 2, compact=False)
    for key in ("rgb", "opacity", "depth", "z_variance", "weights"):
        torch.testing.assert_close(compact[key], full[key], msg=key)


def test_all_rays_missing_gives_an_empty_picture():
    origins, directions = torch.tensor([[3.0, 0, 0]]).expand(5, 3), torch.tensor([[1.0, 0, 0]]).expand(5, 3)
    out = vr.render_rays(constant_field(1.0), origins, directions, R, 4, 4)
    assert out["rgb"].shape == (5, 3) and out["weights"].shape == (5, 8)
    assert all((value == 0).all() for value in out.values())


# --- compositing ---


def random_samples(seed=0, shape=(6, 9)):
    g = gen(seed)
    density = 10 * torch.rand(*shape, 1, generator=g, dtype=F64)
    colour = torch.rand(*shape, 3, generator=g, dtype=F64)
    deltas = 0.2 * torch.rand(*shape, generator=g, dtype=F64)
    return density, colour, torch.cumsum(deltas, -1), deltas


def test_weights_sum_to_one_minus_transmittance():
    density, colour, t, deltas = random_samples()
    rgb, opacity, depth, weights = vr.composite(density, colour, t, deltas)
    transmittance = torch.exp(-(density[..., 0] * deltas).sum(-1, keepdim=True))
    torch.testing.assert_close(opacity, 1 - transmittance)
    torch.testing.assert_close(weights.sum(-1, keepdim=True), opacity)
    assert (weights >= 0).all() and (rgb <= opacity + 1e-12).all()
    assert (depth >= t[:, :1]).all() and (depth <= t[:, -1:]).all()


def test_composite_equals_the_recursive_over_operator():
    density, colour, t, deltas = random_samples(1)
    expected = torch.zeros(6, 3, dtype=F64)
    for i in reversed(range(9)):  # back to front
        alpha = 1 - torch.exp(-density[:, i] * deltas[:, i, None])
        expected = alpha * colour[:, i] + (1 - alpha) * expected
    torch.testing.assert_close(vr.composite(density, colour, t, deltas)[0], expected)


def test_limits_zero_density_opaque_first_sample_single_sample():
    density, colour, t, deltas = random_samples()
    rgb, opacity, depth, weights = vr.composite(0 * density, colour, t, deltas)
    assert (rgb == 0).all() and (opacity == 0).all() and (depth == 0).all() and (weights == 0).all()
    density[:, 0] = 1e9
    deltas[:, 0] = 0.1
    rgb, opacity, depth, weights = vr.composite(density, colour, t, deltas)
    torch.testing.assert_close(rgb, colour[:, 0])
    torch.testing.assert_close(depth, t[:, :1])
    assert torch.equal(weights[:, 1:], torch.zeros_like(weights[:, 1:]))
    two, half = torch.full((1, 1, 1), 2.0, dtype=F64), torch.full((1, 1), 0.5, dtype=F64)
    rgb, opacity, depth, _ = vr.composite(two, torch.ones(1, 1, 3, dtype=F64), half, half)
    assert opacity.item() == pytest.approx(1 - math.exp(-1))
    assert depth.item() == pytest.approx(0.5)


def test_an_opaque_wall_behind_a_thin_veil_keeps_the_veil():
    """In float32 the optical depth in front of a wall must not be lost against the wall's own."""
    density = torch.tensor([0.5, 1e12, 1.0])[:, None]
    _, opacity, _, weights = vr.composite(density, torch.ones(3, 1), torch.arange(3.0), torch.ones(3))
    veil = 1 - math.exp(-0.5)
    torch.testing.assert_close(weights, torch.tensor([veil, 1 - veil, 0.0]))
    assert opacity.item() == pytest.approx(1.0)


def test_outputs_and_gradients_are_finite_over_many_magnitudes():
    exponents = torch.linspace(-30, 30, 61)
    density = (10.0**exponents)[:, None, None].expand(61, 5, 1).clone().requires_grad_()
    out = vr.composite(density, torch.ones(61, 5, 3), torch.arange(5.0).expand(61, 5), torch.full((61, 5), 0.1))
    sum(value.sum() for value in out).backward()
    assert all(torch.isfinite(value).all() for value in out)
    assert torch.isfinite(density.grad).all()


def test_composite_stays_in_float32_under_autocast_and_half_input():
    density, colour, t, deltas = random_samples()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vr.composite(density.float(), colour.bfloat16(), t.float(), deltas.float())
    assert all(value.dtype == torch.float32 for value in out)
    torch.testing.assert_close(out[1], vr.composite(density, colour, t, deltas)[1].float(), atol=1e-6, rtol=1e-6)


def test_composite_gradients():
    density, colour, t, deltas = (x.requires_grad_() for x in random_samples(2, (2, 4)))
    assert torch.autograd.gradcheck(vr.composite, (density, colour, t.detach().requires_grad_(), deltas))


# --- samplers ---


def test_strata_are_even_deterministic_and_random_within():
    near, far = torch.tensor([[1.0], [0.0]], dtype=F64), torch.tensor([[3.0], [0.0]], dtype=F64)
    t, edges = vr.stratified_samples(near, far, 4)
    torch.testing.assert_close(t, torch.tensor([[1.25, 1.75, 2.25, 2.75], [0, 0, 0, 0]], dtype=F64))
    torch.testing.assert_close(edges[0], torch.linspace(1, 3, 5, dtype=F64))
    a, b, c = (vr.stratified_samples(near, far, 4, gen(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert (a >= edges[:, :-1]).all() and (a <= edges[:, 1:]).all()


def kolmogorov_smirnov(values: torch.Tensor) -> float:
    """sqrt(n) times the largest distance between the empirical distribution and the uniform one on [0,1]."""
    values, n = values.flatten().sort().values, values.numel()
    steps = torch.arange(n + 1, dtype=values.dtype) / n
    return float(n**0.5 * torch.maximum((steps[1:] - values).max(), (values - steps[:-1]).max()))


KS_LIMIT = 1.95  # exceeded with probability 0.1 % (Kolmogorov distribution); seeds are fixed


def test_random_strata_are_uniform():
    n = 20000
    t = vr.stratified_samples(torch.zeros(n, 1, dtype=F64), torch.ones(n, 1, dtype=F64), 1, gen())[0]
    assert kolmogorov_smirnov(t) < KS_LIMIT


def test_importance_samples_follow_the_histogram():
    edges = torch.tensor([0.0, 0.1, 0.5, 0.6, 1.0, 2.0], dtype=F64)
    weights = torch.tensor([1.0, 4.0, 0.0, 3.0, 2.0], dtype=F64)
    n = 20000  # one sample on each of n rays: independent draws
    samples = vr.importance_samples(edges.expand(n, 6), weights.expand(n, 5), 1, gen())
    counts = torch.histogram(samples.flatten(), edges).hist
    expected = n * weights / weights.sum()
    assert counts[2] == 0
    occupied = expected > 0
    chi2 = ((counts - expected) ** 2 / expected)[occupied].sum()
    assert chi2 < 16.27  # 0.1 % point of chi-square with 3 degrees of freedom
    bins = torch.bucketize(samples.flatten(), edges).clamp(1, 5) - 1
    cdf = torch.cat([torch.zeros(1, dtype=F64), weights.cumsum(0)]) / weights.sum()
    u = cdf[bins] + (samples.flatten() - edges[bins]) / (edges[bins + 1] - edges[bins]) * (cdf[bins + 1] - cdf[bins])
    assert kolmogorov_smirnov(u) < KS_LIMIT


def test_samplers_would_be_caught_if_they_were_wrong():
    uniform = torch.rand(20000, generator=gen(), dtype=F64)
    assert kolmogorov_smirnov(uniform) < KS_LIMIT < kolmogorov_smirnov(uniform**1.05)


def test_deterministic_importance_samples_invert_the_distribution():
    edges = torch.tensor([[0.0, 1.0, 2.0]], dtype=F64)
    samples = vr.importance_samples(edges, torch.tensor([[1.0, 3.0]], dtype=F64), 4)
    torch.testing.assert_close(samples, torch.tensor([[0.5, 1 + 1 / 6, 1.5, 1 + 5 / 6]], dtype=F64))
    flat = vr.importance_samples(edges, torch.zeros(1, 2, dtype=F64), 2)
    torch.testing.assert_close(flat, torch.tensor([[0.5, 1.5]], dtype=F64))
    one_hot = vr.importance_samples(edges, torch.tensor([[0.0, 1.0]], dtype=F64), 8, gen())
    assert (one_hot >= 1).all() and (one_hot.diff() >= 0).all()


def test_importance_samples_are_detached_and_survive_empty_bins_of_zero_width():
    edges = torch.tensor([[1.0, 1.0, 1.0, 1.0]]).requires_grad_()
    samples = vr.importance_samples(edges, torch.rand(1, 3, generator=gen()).requires_grad_(), 5)
    assert not samples.requires_grad
    assert torch.equal(samples, torch.ones(1, 5))


def test_smoothed_weights_cover_neighbours_and_keep_the_floor():
    smooth = vr.smooth_weights(torch.tensor([[0.0, 0, 1, 0, 0]]), floor=0.01)
    torch.testing.assert_close(smooth, torch.tensor([[0.01, 0.51, 1.01, 0.51, 0.01]]))


def test_merge_sorts_positions_and_carries_values():
    g = gen()
    t_a, t_b = torch.rand(3, 4, generator=g).sort().values, torch.rand(3, 5, generator=g).sort().values
    t, values = vr.merge_samples(t_a, t_b, (t_a[..., None] * 2, t_b[..., None] * 2))
    assert (t.diff() >= 0).all() and torch.equal(values[..., 0], 2 * t)
    assert torch.equal(t.sort().values, torch.cat([t_a, t_b], -1).sort().values)


def test_interval_edges_tile_the_ray():
    t = torch.rand(4, 6, generator=gen(), dtype=F64).sort().values
    edges = vr.interval_edges(t, torch.zeros(4, 1, dtype=F64), torch.ones(4, 1, dtype=F64))
    torch.testing.assert_close(edges.diff().sum(-1), torch.ones(4, dtype=F64))
    assert (edges[:, :-1] <= t).all() and (edges[:, 1:] >= t).all()


# --- pictures ---


@pytest.mark.parametrize("n_fine, seed", [(0, None), (6, None), (6, 5)])
def test_constant_density_has_its_closed_form(n_fine, seed):
    """Opacity is 1 - exp(-sigma L) with L the chord of the cylinder, whatever the samples."""
    y = torch.tensor([0.0, 0.1, 0.3, 0.35], dtype=F64)
    origins = torch.stack([torch.full_like(y, 2.0), y, torch.zeros_like(y)], -1)
    directions = torch.tensor([[-1.0, 0, 0]], dtype=F64).expand(4, 3)
    out = vr.render_rays(constant_field(4.0), origins, directions, R, 5, n_fine, None if seed is None else gen(seed))
    chord = 2 * (R**2 - y**2).sqrt()
    torch.testing.assert_close(out["opacity"][:, 0], 1 - torch.exp(-4 * chord))
    torch.testing.assert_close(out["rgb"], 0.25 * out["opacity"].expand(4, 3))
    torch.testing.assert_close(out["deltas"].sum(-1), chord)


def test_expected_depth_and_variance_of_constant_density():
    origins, directions = torch.tensor([[2.0, 0, 0]], dtype=F64), torch.tensor([[-1.0, 0, 0]], dtype=F64)
    sigma, length = 6.0, 2 * R
    out = vr.render_rays(constant_field(sigma), origins, directions, R, 2000)
    tail = math.exp(-sigma * length)
    mean = 1 / sigma - length * tail / (1 - tail)
    second = (2 / sigma**2 - tail * (length**2 + 2 * length / sigma + 2 / sigma**2)) / (1 - tail)
    assert out["depth"].item() == pytest.approx(2 - R + mean, abs=1e-6)
    assert out["z_variance"].item() == pytest.approx((1 - tail) * (second - mean**2), abs=1e-6)


def test_a_sphere_looks_the_same_from_all_sides_and_has_the_projected_radius():
    size, radius = 32, 0.2
    ball = sphere_field(radius, density=2000.0, softness=0.001)
    views = [vr.render_rays(ball, *image_rays(a, size), R, 48, 48) for a in (0, 37, 90, 180, 271)]
    for view in views[1:]:
        torch.testing.assert_close(view["opacity"], views[0]["opacity"], atol=1e-9, rtol=0)
        torch.testing.assert_close(view["depth"], views[0]["depth"], atol=1e-9, rtol=0)
    # Its silhouette is a cone of half angle asin(r / d); the soft edge adds about 0.004 units, a fifth of a pixel.
    focal = 0.5 * size / math.tan(math.radians(cam.CANONICAL_FOVY_DEG) / 2)
    expected = focal * math.tan(math.asin(radius / cam.CANONICAL_DISTANCE))
    opacity = views[0]["opacity"].reshape(size, size)
    assert math.sqrt(opacity.sum().item() / math.pi) == pytest.approx(expected, abs=0.4)
    assert torch.allclose(opacity, opacity.flip(0)) and torch.allclose(opacity, opacity.flip(1))
    centre = views[0]["depth"].reshape(size, size)[size // 2, size // 2].item()
    assert centre == pytest.approx(cam.CANONICAL_DISTANCE - radius, abs=0.01)


@pytest.mark.parametrize("azimuth", [0.0, 120.0, 250.0])
def test_an_off_centre_ball_appears_where_its_centre_projects(azimuth):
    size, centre = 48, (0.08, -0.12, 0.15)
    out = vr.render_rays(sphere_field(0.06, centre), *image_rays(azimuth, size), R, 64, 32)
    weight = out["opacity"].reshape(size, size)
    index = torch.arange(size, dtype=F64) + 0.5
    found = torch.stack([(weight.sum(0) * index).sum(), (weight.sum(1) * index).sum()]) / weight.sum()
    c2w = cam.orbit_c2w(torch.tensor([azimuth], dtype=F64), 0.0)
    expected, _ = cam.project_points(
        torch.tensor([[centre]], dtype=F64), c2w, cam.canonical_fovy(c2w), size, size
    )
    torch.testing.assert_close(found, expected[0, 0], atol=0.15, rtol=0)


def test_second_pass_sharpens_a_thin_shell():
    """With the same number of evaluations importance sampling is closer to a finely sampled reference."""
    rays_o, rays_d = image_rays(0, 12)
    field = sphere_field(0.2, density=2000.0, softness=0.001)
    reference = vr.render_rays(field, rays_o, rays_d, R, 4000)["depth"]
    uniform = vr.render_rays(field, rays_o, rays_d, R, 64)["depth"]
    resampled = vr.render_rays(field, rays_o, rays_d, R, 32, 32)["depth"]
    assert (resampled - reference).abs().mean() < 0.5 * (uniform - reference).abs().mean()


def test_batches_of_fields_and_random_samples_are_reproducible():
    rays_o, rays_d = image_rays(20, 6)
    rays_o, rays_d = rays_o.expand(2, -1, 3), rays_d.expand(2, -1, 3)
    strength = torch.tensor([1.0, 8.0], dtype=F64)[:, None, None]

    def field(points):  # one density for each batch item
        return strength.expand(*points.shape[:-1], 1), torch.ones_like(points)

    out = vr.render_rays(field, rays_o, rays_d, R, 4, 4, gen(3))
    again = vr.render_rays(field, rays_o, rays_d, R, 4, 4, gen(3))
    assert all(torch.equal(out[key], again[key]) for key in out)
    alone = vr.render_rays(constant_field(8.0), rays_o[1], rays_d[1], R, 4)
    torch.testing.assert_close(out["opacity"][1], alone["opacity"])
    assert not torch.equal(out["t"][0], vr.render_rays(field, rays_o, rays_d, R, 4, 4, gen(4))["t"][0])


def planes_field(planes, weights):
    def field(points):
        return tp.decode(tp.sample_planes(planes, cam.world_to_head(points)[None] / R)[0], weights)

    return lambda points: tuple(value.reshape(points.shape[0], -1) for value in field(points))


def tiny_scene():
    planes = torch.randn(1, 3, 2, 4, 4, generator=gen(), dtype=F64)
    weights = [w.to(F64) for w in tp.init_decoder(2, 4, gen(1))]
    weights[3][0] = 3.0
    return planes, weights, *image_rays(30, 2, elevation=10.0)


def test_render_gradients_of_planes_decoder_and_rays():
    planes, weights, rays_o, rays_d = tiny_scene()

    def render(planes, rays_o, rays_d, *weights):
        out = vr.render_rays(planes_field(planes, weights), rays_o, rays_d, R, 3)
        return out["rgb"], out["opacity"], out["depth"]

    inputs = [x.clone().requires_grad_() for x in (planes, rays_o, rays_d, *weights)]
    assert torch.autograd.gradcheck(render, inputs)


def test_two_pass_gradients_are_those_at_fixed_sample_positions():
    """Fine positions are detached: the gradient equals that of compositing at the very same, frozen samples."""
    planes, weights, rays_o, rays_d = tiny_scene()
    planes.requires_grad_()
    out = vr.render_rays(planes_field(planes, weights), rays_o, rays_d, R, 3, 3)
    loss = out["rgb"].sum() + out["opacity"].sum() + out["depth"].sum()
    found = torch.autograd.grad(loss, planes)[0]
    t, deltas = out["t"].detach(), out["deltas"].detach()

    def frozen(planes):
        points = rays_o[:, None] + t[..., None] * rays_d[:, None]
        density, colour = planes_field(planes, weights)(points.reshape(-1, 3))
        return vr.composite(density.reshape(4, 6, 1), colour.reshape(4, 6, 3), t, deltas)

    rgb, opacity, depth, _ = frozen(planes)
    torch.testing.assert_close(rgb, out["rgb"])
    torch.testing.assert_close(found, torch.autograd.grad(rgb.sum() + opacity.sum() + depth.sum(), planes)[0])
    assert torch.autograd.gradcheck(frozen, planes)


def test_bad_sample_counts():
    rays = image_rays(0, 2)
    for counts in ((0, 4), (4, -1)):
        with pytest.raises(ValueError, match="n_coarse"):
            vr.render_rays(constant_field(1.0), *rays, R, *counts)
