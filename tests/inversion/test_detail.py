"""The detail stage on a ball whose surface is known: what the photo's camera sees, what the detail grid may touch."""
import math

import pytest
import torch
from geometry.ball import BALL_RADIUS, ball
from portrait_diffusion.inversion.camera import PhotoCamera
from portrait_diffusion.inversion.detail import (
    FrontalSurface,
    build_cache,
    field_of,
    frontal_surface,
    render_cached,
    total_variation,
    visibility_gate,
)
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w, world_to_head
from portrait_diffusion.ops.canonical import BOX_RADIUS
from portrait_diffusion.ops.plane_layouts import PlaneFrame
from portrait_diffusion.ops.triplane import (
    DecoderWeights,
    add_detail,
    colour_activation,
    decode_raw,
    density_activation,
    sample_planes,
)
from portrait_diffusion.ops.volrend import composite, render_rays

SIZE, THICKNESS = 48, 0.07


@pytest.fixture(scope="module")
def head():
    """Planes and decoder of the ball (soft: about 0.03 thick), its frontal surface and the camera."""
    geometry = ball()
    planes = [geometry.planes[0].detach()]
    weights = DecoderWeights(*(w.detach() for w in geometry.decoder_weights()))
    camera = PhotoCamera().requires_grad_(False)
    rays = camera.rays(SIZE)
    return planes, weights, camera, rays, frontal_surface(planes, weights, BOX_RADIUS, *rays)


def gate_of(head, shape=(8, 64, 64), thickness=THICKNESS) -> torch.Tensor:
    return visibility_gate(head[4], head[2].pose(), shape, BOX_RADIUS, thickness, "cpu")


def raw_field(planes, weights, grid, scale=1.0):
    """Field of the prior with the detail grid added, straight from the definitions; `scale`: of its density."""
    def field(points):
        coords = world_to_head(points) / BOX_RADIUS
        raw = add_detail(decode_raw(sample_planes(planes, coords), weights), sample_planes(grid, coords, reduce="sum"))
        return scale * density_activation(raw[..., :1]), colour_activation(raw[..., 1:])

    return field


def test_the_frontal_surface_is_the_near_side_of_the_ball(head):
    rays_o, rays_d = (r[0] for r in head[3])
    surface = head[4]
    b = (rays_o * rays_d).sum(-1)
    root = b**2 - (rays_o**2).sum(-1) + BALL_RADIUS**2
    inner = root > (0.8 * BALL_RADIUS) ** 2  # facing cosine above 0.8
    depth = -b - root.clamp(min=0).sqrt()
    delay = (surface.depth - depth)[inner]  # light goes some way into a soft surface
    assert 0 < float(delay.min()) and float(delay.max()) < 0.05 and float(delay.std()) < 0.005
    assert (surface.opacity[inner] > 0.99).all() and (surface.opacity[root < -0.02] < 0.01).all()
    normal = (rays_o + depth[..., None] * rays_d) / BALL_RADIUS
    cosine = -(normal * rays_d).sum(-1)
    assert float((surface.facing - cosine)[inner].abs().max()) < 0.04


def test_depths_are_filled_in_within_the_volume(head):
    surface = head[4]
    assert surface.depth.isfinite().all() and 2.7 - BOX_RADIUS < float(surface.depth.min())
    assert float(surface.depth.max()) < 2.7 + BOX_RADIUS
    assert 0 <= float(surface.facing.min()) and float(surface.facing.max()) <= 1 + 1e-6


def test_an_empty_prior_leaves_the_gate_shut(head):
    planes, weights, camera, rays, _ = head
    empty = weights._replace(output_bias=torch.tensor([-1e6, 0.0, 0, 0]))
    surface = frontal_surface(planes, empty, BOX_RADIUS, *rays)
    assert (surface.opacity < 1e-3).all()
    assert (visibility_gate(surface, camera.pose(), (4, 8, 8), BOX_RADIUS, THICKNESS, "cpu") == 0).all()


def test_the_gate_is_open_before_the_surface_and_shut_behind_it(head):
    """On the optical axis: 1 up to the surface, 0 from thickness and half a layer behind it on, falling between."""
    layers = 72  # 1 cm of scene unit each
    gate = gate_of(head, (layers, 3, 3))[0, 0, 1, :, 1, 1]
    distance = 2.7 - ((torch.arange(layers) + 0.5) / layers * 2 - 1) * BOX_RADIUS
    behind = distance - head[4].depth[SIZE // 2, SIZE // 2]
    half_layer = BOX_RADIUS / layers
    assert (gate[behind < THICKNESS / 2] == 1).all() and (gate[behind > THICKNESS + half_layer] == 0).all()
    assert (gate.diff() >= 0).all(), "layers count from the back to the front"
    assert ((gate > 0.05) & (gate < 0.95)).any()


@pytest.mark.parametrize("layers", [16, 72])
@pytest.mark.parametrize("before", [0.0, 0.0225, 0.09])
def test_the_air_before_the_surface_is_shut_to_density_however_many_layers(head, layers, before):
    gate = visibility_gate(head[4], head[2].pose(), (layers, 3, 3), BOX_RADIUS, THICKNESS, "cpu", before=before)
    density, colour = gate[0, 0, 0, :, 1, 1], gate[0, 0, 1, :, 1, 1]
    distance = 2.7 - ((torch.arange(layers) + 0.5) / layers * 2 - 1) * BOX_RADIUS
    behind = distance - head[4].depth[SIZE // 2, SIZE // 2]
    assert (density[behind < -before] == 0).all() and (colour[behind < -before] == 1).all()
    settled = behind > THICKNESS / 2 - before  # the fade is over: density does what colour does
    assert torch.equal(density[settled], colour[settled]) and float(density.max()) > 0.5


def test_a_thicker_gate_reaches_no_less(head):
    thin, thick = (gate_of(head, (8, 16, 16), t) for t in (0.03, 0.09))
    assert (thick[:, :, 1:] >= thin[:, :, 1:] - 1e-6).all() and float((thick - thin).max()) > 0.5


def test_the_gate_closes_where_the_surface_turns_away(head):
    """With depth kept, the facing cosine alone decides: shut to 0.15, open from 0.4."""
    surface = head[4]
    gates = []
    for cosine in (0.1, 0.15, 0.275, 0.4, 1.0):
        facing = torch.full_like(surface.facing, cosine)
        turned = FrontalSurface(surface.depth, surface.opacity, facing)
        gates.append(visibility_gate(turned, head[2].pose(), (8, 16, 16), BOX_RADIUS, THICKNESS, "cpu")[:, :, 1])
    assert (gates[0] == 0).all() and float(gates[1].max()) < 1e-6
    torch.testing.assert_close(gates[2], 0.5 * gates[4], rtol=0, atol=1e-5)
    torch.testing.assert_close(gates[3], gates[4], rtol=0, atol=1e-5)
    turned = FrontalSurface(surface.depth, surface.opacity, torch.full_like(surface.facing, 0.5))
    pose = head[2].pose()
    later = visibility_gate(turned, pose, (8, 16, 16), BOX_RADIUS, THICKNESS, "cpu", facing_fade=(0.4, 0.6))[:, :, 1]
    torch.testing.assert_close(later, 0.5 * gates[4], rtol=0, atol=1e-5)


def test_colours_are_gated_alike_and_density_no_more(head):
    gate = gate_of(head)
    assert gate.shape == (1, 1, 4, 8, 64, 64) and 0 <= float(gate.min()) and float(gate.max()) <= 1
    assert torch.equal(gate[:, :, 1], gate[:, :, 2]) and torch.equal(gate[:, :, 1], gate[:, :, 3])
    assert (gate[:, :, 0] <= gate[:, :, 1]).all()


def test_nothing_outside_the_frame(head):
    planes, weights, _, _, _ = head
    camera = PhotoCamera(crop=(2.0, 0.0, 0.0)).requires_grad_(False)  # sees half of the frame
    surface = frontal_surface(planes, weights, BOX_RADIUS, *camera.rays(SIZE))
    gate = visibility_gate(surface, camera.pose(), (8, 32, 32), BOX_RADIUS, THICKNESS, "cpu")[0, 0, 1]
    half = 2.7 * math.tan(math.radians(13.374 / 2)) / 2  # half width of the frame at the origin
    x = ((torch.arange(32) + 0.5) / 32 * 2 - 1) * BOX_RADIUS
    outside = x.abs() > half * (2.7 + BOX_RADIUS) / 2.7
    assert (gate[..., outside] == 0).all() and (gate[:, outside] == 0).all() and float(gate.max()) == 1


def test_the_back_of_the_ball_is_out_of_reach(head):
    """As the renderer reads it, between layers: 1 on the near side, 0 from 125 degrees off the camera on."""
    gate = gate_of(head)
    angle = torch.deg2rad(torch.arange(0.0, 181.0, 5.0))
    points = BALL_RADIUS * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=-1)
    seen = sample_planes(gate, world_to_head(points)[None] / BOX_RADIUS, reduce="sum")[0, :, 1]
    assert (seen[angle < math.radians(50)] > 0.95).all() and (seen[angle > math.radians(124)] == 0).all()


def test_the_detail_grid_does_not_change_the_head_from_behind(head):
    """A grid as strong as it gets: the back view changes nowhere but in a ring at its outline, the front all over."""
    planes, weights, _, _, _ = head
    # full colour: raw 3 in place of 0
    strong = gate_of(head) * torch.tensor([0.0, 3.0, -3.0, 3.0]).view(1, 1, 4, 1, 1, 1)
    changes = []
    for azimuth in (0.0, 180.0):
        c2w = orbit_c2w(torch.tensor([azimuth]), torch.zeros(1))
        rays = [r.flatten(1, 2) for r in get_rays(c2w, canonical_fovy(c2w), SIZE, SIZE)]
        images = [
            render_rays(raw_field(planes, weights, grid), *rays, BOX_RADIUS, 24, 24)["rgb"].view(SIZE, SIZE, 3)
            for grid in (torch.zeros_like(strong), strong)
        ]
        changes.append((images[1] - images[0]).abs().amax(dim=-1))
    position = ((torch.arange(SIZE) + 0.5) / SIZE * 2 - 1) * 2.7 * math.tan(math.radians(13.374 / 2))
    distance = (position[:, None] ** 2 + position**2).sqrt()
    assert float(changes[0][distance < 0.8 * BALL_RADIUS].min()) > 0.4
    assert float(changes[1][distance < 0.75 * BALL_RADIUS].max()) < 0.01  # what shines through the ball


def cache_of(head, samples=12, shape=None, frame=None):
    planes, weights, _, rays, surface = head
    keep = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    keep[4:-4, 10:-6] = True
    return build_cache(planes, weights, BOX_RADIUS, *rays, surface, keep, samples, THICKNESS, 500, shape, frame), keep


def test_the_cache_holds_the_samples_of_its_pixels(head):
    planes, weights, _, (rays_o, rays_d), _ = head
    cache, keep = cache_of(head)
    assert torch.equal(cache.index, keep.flatten().nonzero()[:, 0])
    o, d = rays_o.reshape(-1, 3)[cache.index], rays_d.reshape(-1, 3)[cache.index]
    points = o[:, None] + cache.t[..., None] * d[:, None]
    torch.testing.assert_close(cache.coords, world_to_head(points) / BOX_RADIUS, rtol=0, atol=1e-6)
    density, colour = field_of(planes, weights, PlaneFrame())(points.reshape(1, -1, 3))
    density, colour = density.view(*cache.t.shape, 1), colour.view(*cache.t.shape, 3)
    _, opacity, depth, _ = composite(density, colour, cache.t, cache.deltas)
    torch.testing.assert_close(cache.opacity, opacity, rtol=0, atol=1e-5)
    torch.testing.assert_close(cache.depth, depth, rtol=0, atol=1e-4)
    assert (cache.t.diff(dim=-1) >= 0).all() and (cache.deltas >= 0).all() and cache.t.shape[1] == 12


def test_cached_samples_cover_the_ray_through_the_volume(head):
    """The intervals fill the cylinder: through its axis they sum to its diameter."""
    cache, _ = cache_of(head)
    middle = (cache.index == SIZE // 2 * SIZE + SIZE // 2).nonzero()[0, 0]
    assert float(cache.deltas[middle].sum()) == pytest.approx(2 * BOX_RADIUS, abs=1e-3)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("shape", [None, (1, 1, 4, 4, 12, 12), (1, 1, 4, 1, 8, 8)], ids=["unknown", "kept", "another"])
def test_cached_rendering_is_rendering_at_the_same_samples(head, shape, scale):
    """Whether what the samples read is looked up once, for grids of this shape, or each time; of any density."""
    planes, weights, _, (rays_o, rays_d), _ = head
    cache, _ = cache_of(head, shape=shape, frame=PlaneFrame(radius=BOX_RADIUS, density_scale=scale))
    grid = torch.randn(1, 1, 4, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([3, 700, 1100, 5, 250])
    got = render_cached(cache, rows, grid)
    ids = cache.index[rows]
    points = rays_o.reshape(-1, 3)[ids][:, None] + cache.t[rows][..., None] * rays_d.reshape(-1, 3)[ids][:, None]
    density, colour = raw_field(planes, weights, grid, scale)(points.reshape(1, -1, 3))
    shape = cache.t[rows].shape
    expected = composite(density.view(*shape, 1), colour.view(*shape, 3), cache.t[rows], cache.deltas[rows])
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_cached_rendering_without_detail_is_the_priors_picture(head):
    """Few samples at the right places against many all over the ray."""
    planes, weights, _, (rays_o, rays_d), _ = head
    cache, _ = cache_of(head, samples=24)
    rows = torch.arange(0, len(cache.index), 7)
    rgb, opacity, _ = render_cached(cache, rows, torch.zeros(1, 1, 4, 2, 4, 4))
    rays = (r.reshape(1, -1, 3)[:, cache.index[rows]] for r in (rays_o, rays_d))
    full = render_rays(field_of(planes, weights, PlaneFrame()), *rays, BOX_RADIUS, 96, 96)
    assert float((opacity - full["opacity"][0]).abs().mean()) < 0.01
    assert float((rgb - full["rgb"][0]).abs().mean()) < 0.01
    assert float((opacity - cache.opacity[rows]).abs().max()) < 0.01, "an empty grid keeps the prior's opacity"


@pytest.mark.parametrize("shape", [None, (1, 1, 4, 4, 24, 24)], ids=["looked up", "kept"])
def test_the_gradient_reaches_the_grid_where_rays_pass_and_nowhere_else(head, shape):
    cache, _ = cache_of(head, shape=shape)
    grid = torch.zeros(1, 1, 4, 4, 24, 24, requires_grad=True)
    row = (cache.index == SIZE // 2 * SIZE + SIZE // 2).nonzero()[:1, 0]
    rgb, opacity, _ = render_cached(cache, row, grid)
    (rgb.sum() + opacity.sum()).backward()
    touched = (grid.grad.abs().sum(dim=(0, 1, 2, 3)) > 0).nonzero()
    assert len(touched) > 0 and (touched - 11.5).abs().max() <= 1.5, "the four columns of texels at the optical axis"


def test_total_variation_of_a_ramp_and_a_constant():
    ramp = torch.arange(6.0)[None, :] * 0.5 + torch.arange(4.0)[:, None] * 2.0
    assert float(total_variation(ramp[None, None])) == pytest.approx(6 * 0.5 + 4 * 2.0)
    assert float(total_variation(torch.full((1, 2, 3, 4, 4), 7.0))) == 0.0


def test_total_variation_does_not_depend_on_the_number_of_columns_and_rows():
    def sampled(side):
        x = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        return torch.sin(2 * math.pi * x)[None, :] * torch.cos(2 * math.pi * x)[:, None]

    coarse, fine, finest = (float(total_variation(sampled(side))) for side in (40, 160, 640))
    assert coarse == pytest.approx(finest, rel=0.03)
    assert fine == pytest.approx(finest, rel=0.01)
    limit = 2 * 2 * math.pi * (2 / math.pi) ** 2  # twice the mean of |d/dx sin(2 pi x)| times that of |cos(2 pi y)|
    assert finest == pytest.approx(limit, rel=0.01)
