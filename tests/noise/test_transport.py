"""Noise transport: exactness, whiteness with stated false-alarm rates, correlation between views, determinism."""
import math

import pytest
import torch
from portrait_diffusion.noise.transport import latent_depth, radial_spectrum, subdivide, transport
from portrait_diffusion.ops.cameras import get_rays, orbit_c2w

FOVY = torch.tensor([math.radians(14.0)])
SIZE = 32


def view(azimuth, size=SIZE, batch=1, radii=(0.24, 0.28, 0.2)):
    """c2w, fovy and depth of an ellipsoid, (B, ...)."""
    c2w = orbit_c2w(torch.tensor([float(azimuth)]), torch.zeros(1))
    rays_o, rays_d = get_rays(c2w, FOVY, size, size)
    scale = 1 / torch.tensor(radii)
    o, d = rays_o * scale, rays_d * scale
    a, b, c = d.square().sum(-1), (o * d).sum(-1), o.square().sum(-1) - 1
    root = b.square() - a * c
    depth = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, 0)
    return c2w.expand(batch, -1, -1), FOVY.expand(batch), depth.expand(batch, -1, -1)


def carry(noise, azimuth, generator, start=0.0, known=True, **options):
    """`transport` from an ellipsoid's view at `start` to that at `azimuth`."""
    b = len(noise)
    c2w, fovy, depth = view(start, noise.shape[-1], b)
    target_c2w, _, target_depth = view(azimuth, noise.shape[-1], b)
    return transport(
        noise, depth, c2w, fovy, target_c2w, fovy, target_depth if known else None, generator, **options
    )


def test_cells_add_up_and_are_white():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, 16, 16, generator=g)
    cells = subdivide(x, 4, g)
    sums = torch.nn.functional.avg_pool2d(cells, 4) * 16 / 4
    torch.testing.assert_close(sums, x, rtol=1e-4, atol=1e-4)
    assert abs(float(cells.mean())) < 4 / math.sqrt(cells.numel())
    assert abs(float(cells.square().mean()) - 1) < 4 * math.sqrt(2 / cells.numel())
    for axis in (2, 3):  # neighbours, within and across blocks; 4 sigma
        n = cells.shape[axis]
        product = cells.narrow(axis, 0, n - 1) * cells.narrow(axis, 1, n - 1)
        assert abs(float(product.mean())) < 4 / math.sqrt(product.numel())


def test_the_same_view_keeps_its_noise():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, SIZE, SIZE, generator=g)
    moved, carried = carry(x, 0.0, g)
    assert float(carried.mean()) > 0.9 * float((view(0)[2] > 0).float().mean())
    torch.testing.assert_close(moved * carried, x * carried, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("azimuth", [7.0, 30.0, 75.0])
def test_carried_noise_is_white(azimuth, known):
    """Over 400 draws of 32 x 32 (0.4 million numbers); 4 sigma each, a false alarm in 1 of 10,000 checks."""
    g = torch.Generator().manual_seed(2)
    moved, carried = carry(torch.randn(1, 400, SIZE, SIZE, generator=g), azimuth, g, known=known, k=4)
    n = moved.numel()
    assert abs(float(moved.mean())) < 4 / math.sqrt(n)
    assert abs(float(moved.square().mean()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((moved**3).mean())) < 4 * math.sqrt(15 / n)
    assert abs(float((moved**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2)):
        a, b = moved[..., : SIZE - dy, : SIZE - dx], moved[..., dy:, dx:]
        assert abs(float((a * b).mean())) < 4 / math.sqrt(a.numel())
    # a frequency's power is exponential: the lowest bin has 12 independent ones, sigma 1 / sqrt(12 * 400) = 0.014
    spectrum = radial_spectrum(moved)
    assert float((spectrum - 1).abs().max()) < 4 * 0.0145
    inside = carried.expand_as(moved) > 0
    assert abs(float(moved[inside].square().mean()) - 1) < 4 * math.sqrt(2 / int(inside.sum()))


def test_near_views_share_their_noise_and_far_ones_share_less():
    """Correlation of a carried picture with the source's noise seen at the same surface points.

    Carried there and back: what returns is compared with what left. Each way mixes neighbouring cells, so the bound is
    on the square of the one-way correlation.
    """
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 200, SIZE, SIZE, generator=g)
    found = []
    for azimuth in (5.0, 15.0, 45.0):
        there, first = carry(x, azimuth, g)
        back, second = carry(there, 0.0, g, start=azimuth)
        both = (second[0, 0] > 0) & (view(0)[2][0] > 0)
        a, b = back[:, :, both], x[:, :, both]
        found.append((float((a * b).mean()), float(first.mean())))
    assert found[0][0] > found[1][0] > found[2][0] > 0.1
    assert found[0][1] >= found[1][1] > found[2][1]


def test_a_shift_by_whole_pixels_moves_noise_exactly():
    """A plane parallel to the image and a camera moved sideways by whole pixels: integer translation, correlation 1."""
    size, distance = 24, 2.7
    c2w = orbit_c2w(torch.zeros(1), torch.zeros(1))
    rays_o, rays_d = get_rays(c2w, FOVY, size, size)
    depth = distance / -(rays_d * c2w[:, None, None, :3, 2]).sum(-1)
    pixel = 2 * math.tan(float(FOVY) / 2) * distance / size
    moved_c2w = c2w.clone()
    moved_c2w[:, :3, 3] -= 3 * pixel * c2w[:, :3, 0]
    g = torch.Generator().manual_seed(4)
    x = torch.randn(1, 2, size, size, generator=g)
    moved, carried = transport(x, depth, c2w, FOVY, moved_c2w, FOVY, generator=g, k=5)
    assert float(carried[..., 3:].min()) == 1 and float(carried[..., :3].max()) == 0
    torch.testing.assert_close(moved[..., 3:], x[..., :-3], rtol=1e-3, atol=1e-3)


def test_the_generator_decides():
    x = torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    a, b, c = (carry(x, 20.0, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    before = x.clone()
    fresh = torch.full_like(x, 7.0)
    moved, carried = carry(x, 20.0, torch.Generator().manual_seed(1), fresh=fresh)
    assert torch.equal(x, before) and bool((moved[(carried == 0).expand_as(moved)] == 7.0).all())


def test_nothing_is_carried_without_a_surface_or_behind_it():
    g = torch.Generator().manual_seed(6)
    x = torch.randn(1, 4, SIZE, SIZE, generator=g)
    c2w, fovy, depth = view(0)
    assert float(transport(x, torch.zeros_like(depth), c2w, fovy, c2w, fovy, generator=g)[1].sum()) == 0
    assert float(carry(x, 180.0, g)[1].sum()) == 0 and float(carry(x, 180.0, g, known=False)[1].sum()) == 0


def test_latent_depth_takes_the_nearest_surface():
    depth = torch.full((1, 8, 8), 3.0)
    depth[:, :4, 2:] = 2.0
    depth[:, 4:, 4:] = 0.0
    depth[0, 4, 4] = 2.5
    pooled = latent_depth(depth, 4)
    assert pooled.tolist() == [[[2.0, 2.0], [3.0, 0.0]]]
    rough = 2.0 + 0.01 * torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(latent_depth(rough, 8), rough.mean().view(1, 1, 1))
