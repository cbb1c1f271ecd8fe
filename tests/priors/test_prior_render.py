"""Rendering of a batch of heads, and the windows of the image plane that training looks through."""
import torch
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w, project_points, world_to_head
from portrait_diffusion.ops.canonical import BOX_RADIUS
from portrait_diffusion.ops.triplane import DecoderWeights, decode, decode_raw, init_decoder, sample_planes
from portrait_diffusion.ops.volrend import render_rays
from portrait_diffusion.priors.patches import (
    camera_condition,
    mirror_view,
    over_white,
    patch_rays,
    premultiplied_images,
)
from portrait_diffusion.priors.render import decode_half, render_planes

F64 = torch.float64


def cameras(*azimuths: float, dtype=torch.float32) -> tuple:
    azimuth = torch.tensor(azimuths, dtype=dtype)
    c2w = orbit_c2w(azimuth, azimuth / 20 - 3)
    return c2w, canonical_fovy(c2w).expand(len(c2w))


def test_render_planes_is_render_rays_of_each_head():
    g = torch.Generator().manual_seed(0)
    planes = [torch.randn(2, 3, 8, 16, 16, generator=g) * 3, torch.randn(2, 1, 8, 2, 16, 16, generator=g) * 3]
    weights = init_decoder(8, 16, g)
    c2w, fovy = cameras(20.0, -120.0)
    rays_o, rays_d = get_rays(c2w, fovy, 6, 6)
    got = render_planes(planes, tuple(weights), rays_o, rays_d, 8, 6, None)
    assert got["rgb"].shape == (2, 3, 6, 6) and got["opacity"].shape == got["depth"].shape == (2, 1, 6, 6)
    for i in range(2):
        def field(points, i=i):
            coords = world_to_head(points)[None] / BOX_RADIUS
            return decode(sample_planes([level[i : i + 1] for level in planes], coords)[0], weights)

        expected = render_rays(field, rays_o[i].flatten(0, 1), rays_d[i].flatten(0, 1), BOX_RADIUS, 8, 6)
        for key in got:
            image = expected[key].view(6, 6, -1).permute(2, 0, 1)
            torch.testing.assert_close(got[key][i], image, rtol=1e-4, atol=1e-5, msg=key)
    assert 0.05 < float(got["opacity"].mean()) <= 1


def test_render_planes_gives_gradients_to_planes_and_decoder():
    planes = torch.randn(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64).requires_grad_(True)
    weights = [w.to(F64).requires_grad_(True) for w in init_decoder(2, 4, torch.Generator().manual_seed(1))]
    rays_o, rays_d = get_rays(*cameras(30.0, dtype=F64), 2, 2)

    def image(planes, *weights):
        return render_planes([planes], weights, rays_o, rays_d, 6, 0, None)["rgb"]

    assert torch.autograd.gradcheck(image, (planes, *weights), atol=1e-5)


def test_decode_half_is_decode_raw_in_half_precision():
    """Bfloat16 has 8 bits of mantissa: three roundings of sums of 16 terms stay below 3 % of the largest output."""
    g = torch.Generator().manual_seed(0)
    weights, features = init_decoder(8, 16, g), torch.randn(50, 8, generator=g)
    half = decode_half(features.bfloat16(), weights)
    assert half.dtype == torch.float32
    full = decode_raw(features, DecoderWeights(*weights))
    assert float((half - full).abs().max()) < 0.03 * float(full.abs().max())


def test_patch_rays_are_windows_of_the_image():
    c2w, fovy = cameras(10.0, -75.0, 190.0, dtype=F64)
    everything_o, everything_d = get_rays(c2w, fovy, 16, 16)
    column, row = torch.tensor([0, 3, 8]), torch.tensor([0, 8, 5])
    rays_o, rays_d = patch_rays(c2w, fovy, torch.full((3,), 0.5, dtype=F64), torch.stack([column, row], 1) / 16, 8)
    for i in range(3):
        window = slice(row[i], row[i] + 8), slice(column[i], column[i] + 8)
        torch.testing.assert_close(rays_d[i], everything_d[i][window], rtol=0, atol=1e-14)
        torch.testing.assert_close(rays_o[i], everything_o[i][window], rtol=0, atol=1e-14)


def test_the_whole_frame_at_half_resolution_is_the_image_at_half_resolution():
    c2w, fovy = cameras(33.0, dtype=F64)
    rays_o, rays_d = patch_rays(c2w, fovy, torch.ones(1, dtype=F64), torch.zeros(1, 2, dtype=F64), 8)
    expected_o, expected_d = get_rays(c2w, fovy, 8, 8)
    torch.testing.assert_close(rays_d, expected_d, rtol=0, atol=1e-14)
    torch.testing.assert_close(rays_o, expected_o, rtol=0, atol=0)


def test_condition_is_continuous_around_the_head():
    one = torch.ones(1)
    a = camera_condition(180 * one, 10 * one, 0.5 * one, torch.tensor([[0.25, 0.1]]))
    b = camera_condition(-180 * one, 10 * one, 0.5 * one, torch.tensor([[0.25, 0.1]]))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    torch.testing.assert_close(a[0, 3:], torch.tensor([0.5, 0.25, 0.1]))
    assert not torch.allclose(a, camera_condition(170 * one, 10 * one, 0.5 * one, torch.zeros(1, 2)), atol=0.1)


def test_over_white():
    assert torch.equal(over_white(torch.tensor([0.2]), torch.tensor([0.5])), torch.tensor([0.7]))


def test_a_mirrored_view_sees_the_mirrored_head():
    """Points reflected at the plane y = 0 land in the mirrored column of the mirrored camera's image."""
    g = torch.Generator().manual_seed(0)
    c2w, fovy = cameras(20.0, -75.0, dtype=F64)
    points = torch.rand(2, 40, 3, generator=g, dtype=F64) * 0.4 - 0.2
    reflected = points * torch.tensor([1.0, -1.0, 1.0], dtype=F64)
    other = mirror_view(c2w, torch.tensor([True, False]))
    assert torch.equal(other[1], c2w[1])
    torch.testing.assert_close(torch.linalg.det(other[:, :3, :3]), torch.ones(2, dtype=F64))
    before, _ = project_points(points, c2w, fovy, 64, 64)
    after, _ = project_points(reflected, other, fovy, 64, 64)
    expected = torch.stack([64 - before[0, :, 0], before[0, :, 1]], dim=-1)
    torch.testing.assert_close(after[0], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other[:1], orbit_c2w(torch.tensor([-20.0], dtype=F64), torch.tensor([-2.0], dtype=F64)))


def test_premultiplied_images():
    rgba = torch.tensor([255, 0, 102, 51], dtype=torch.uint8).view(1, 1, 1, 4)
    torch.testing.assert_close(premultiplied_images(rgba).flatten(), torch.tensor([0.2, 0.0, 0.08, 0.2]))
