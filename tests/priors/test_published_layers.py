"""Layers of the published generators against direct, slow forms of the same formulas."""
import math

import torch
import torch.nn.functional as F
from portrait_diffusion.ops.plane_layouts import fused_spheres, layout_features, sphere_coordinates
from portrait_diffusion.priors.published.layers import (
    SynthesisLayer,
    ToRGB,
    low_pass_kernel,
    modulated_conv,
    smooth_after_up,
    upsample2,
)
from portrait_diffusion.priors.published.marching import coarse_depths, fine_depths, march, rays_of_label
from portrait_diffusion.priors.published.pyramid import cross_plane
from portrait_diffusion.priors.published.sizes import RenderOptions

from priors.published_samples import tiny_generator

F64 = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=F64)


def test_upsampling_is_a_transposed_convolution_with_the_filter():
    x = randn(2, 3, 5, 5)
    kernel = 4 * low_pass_kernel().to(F64).expand(3, 1, 4, 4)
    torch.testing.assert_close(upsample2(x), F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=3))
    torch.testing.assert_close(upsample2(torch.ones(1, 1, 4, 4))[0, 0, 2:-2, 2:-2], torch.ones(4, 4))


def test_smoothing_is_a_convolution_with_the_filter():
    x = randn(2, 3, 9, 9)
    kernel = 4 * low_pass_kernel().to(F64).expand(3, 1, 4, 4)
    torch.testing.assert_close(smooth_after_up(x), F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, groups=3))


def test_modulation_by_filters_and_by_channels_is_the_same():
    x, weight, styles = randn(2, 4, 6, 6), randn(5, 4, 3, 3, seed=1), randn(2, 4, seed=2)
    for n in range(2):
        kernel = weight * styles[n][None, :, None, None]
        kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        direct = F.conv2d(x[n : n + 1], kernel, padding=1)
        torch.testing.assert_close(modulated_conv(x, weight, styles)[n : n + 1], direct)
        up = F.conv_transpose2d(x[n : n + 1], kernel.transpose(0, 1), stride=2)
        torch.testing.assert_close(modulated_conv(x, weight, styles, up=True)[n : n + 1], smooth_after_up(up))


def test_demodulated_filters_forget_the_size_of_styles():
    x, weight, styles = randn(1, 4, 6, 6), randn(5, 4, 3, 3, seed=1), randn(1, 4, seed=2)
    once, scaled = modulated_conv(x, weight, styles), modulated_conv(x, weight, 7 * styles)
    torch.testing.assert_close(once, scaled, rtol=1e-6, atol=1e-6)
    plain = modulated_conv(x, weight, styles, demodulate=False)
    assert not torch.allclose(plain, modulated_conv(x, weight, 7 * styles, demodulate=False))


def test_cross_plane_against_loops():
    planes = randn(6, 2, 4, 4)  # two items
    out = cross_plane(planes)
    assert out.shape == (6, 6, 4, 4)
    for item in range(2):
        p0, p1, p2 = planes[3 * item : 3 * item + 3]
        for row in range(4):
            for col in range(4):
                # mean along the last axis of a transposed plane, at a row: the mean of that column
                columns = [p[:, :, row].mean(dim=-1) for p in (p0, p1, p2)]
                rows = [p[:, col, :].mean(dim=-1) for p in (p0, p1, p2)]
                q0 = torch.cat([p0[:, row, col], columns[1], rows[2]])
                q1 = torch.cat([rows[0], p1[:, row, col], columns[2]])
                q2 = torch.cat([columns[0], rows[1], p2[:, row, col]])
                for k, q in enumerate((q0, q1, q2)):
                    torch.testing.assert_close(out[3 * item + k, :, row, col], q)


def test_a_3d_aware_layer_gives_each_plane_its_own_styles():
    layer = SynthesisLayer(6, 2, 5, 4, style_groups=3).to(F64)
    for k, p in enumerate(layer.parameters()):
        p.data = torch.randn(p.shape, generator=rng(k), dtype=F64)
    layer.noise_const.normal_(generator=rng(9))
    planes, w = randn(3, 6, 4, 4), randn(1, 5, seed=3)
    out = layer(planes, w)
    styles = layer.affine(w).view(3, 6)
    for k in range(3):
        y = modulated_conv(planes[k : k + 1], layer.weight, styles[k : k + 1])
        y = F.leaky_relu(y + layer.noise_const * layer.noise_strength + layer.bias[:, None, None], 0.2) * math.sqrt(2)
        torch.testing.assert_close(out[k : k + 1], y)


def test_gain_of_the_colour_head_counts_one_plane():
    head = ToRGB(108, 36, 8, style_groups=3)
    for p in head.parameters():
        torch.nn.init.ones_(p)
    with torch.no_grad():
        assert math.isclose(float(head.styles(torch.zeros(1, 8))[0, 0]), 1 / 6, rel_tol=1e-6)
        single = ToRGB(36, 3, 8)
        torch.nn.init.ones_(single.affine.weight)
        torch.nn.init.ones_(single.affine.bias)
        assert math.isclose(float(single.styles(torch.zeros(1, 8))[0, 0]), 1 / 6, rel_tol=1e-6)


def test_the_colour_head_is_its_affine_map():
    generator = tiny_generator("panohead")
    x, w = torch.randn(1, 8, 3, 3, generator=rng()), torch.randn(1, 8, generator=rng(1))
    with torch.no_grad():
        matrix, bias = generator.torgb.affine_map(w)
        direct = torch.einsum("oc,nchw->nohw", matrix, x) + bias[:, None, None]
        torch.testing.assert_close(generator.torgb(x, w), direct)


def test_levels_of_the_pyramid():
    generator = tiny_generator("pyramid")
    ws = torch.randn(2, generator.num_ws, 8, generator=rng())
    with torch.no_grad():
        levels = generator.planes(ws)
        again = generator.planes(ws[1:])
    assert [tuple(level.shape) for level in levels] == [(2, 3, 4, 3, 8, 8), (2, 3, 4, 3, 16, 16)]
    for level, alone in zip(levels, again):
        torch.testing.assert_close(level[1:], alone, rtol=1e-4, atol=1e-4)  # items do not mix


def test_sphere_coordinates():
    points = torch.eye(3, dtype=F64)
    front = torch.cat([points, -points])[[2, 5, 0, 1]]  # front, back, right, top
    a = sphere_coordinates(front, back=False)
    b = sphere_coordinates(front, back=True)
    torch.testing.assert_close(a[0, :2], torch.zeros(2, dtype=F64))  # the front is the middle of sphere A
    torch.testing.assert_close(b[1, :2], torch.zeros(2, dtype=F64))  # the back that of sphere B
    torch.testing.assert_close(a[..., 2], torch.full((4,), 2 / math.sqrt(3) - 1, dtype=F64))
    corner = sphere_coordinates(torch.ones(1, 3, dtype=F64), back=False)
    assert math.isclose(float(corner[0, 2]), 1.0, rel_tol=1e-12)
    random = torch.rand(500, 3, generator=rng(), dtype=F64) * 2 - 1
    for back in (False, True):
        assert sphere_coordinates(random, back).abs().max() <= 1
    at_origin = torch.zeros(1, 3, dtype=F64, requires_grad=True)
    sphere_coordinates(at_origin, False).sum().backward()
    assert torch.isfinite(at_origin.grad).all()


def test_each_sphere_holds_its_half():
    a, b = torch.full((1, 3, 2, 8, 8), 1.0, dtype=F64), torch.full((1, 3, 2, 8, 8), -1.0, dtype=F64)
    points = 0.5 * torch.tensor([[[0, 0, 1.0], [0, 0, -1.0], [1.0, 0, 0]]], dtype=F64)
    fused = fused_spheres([a, b], points)[0, :, 0]
    assert fused[0] > 0.99 and fused[1] < -0.99 and fused[2].abs() < 1


def test_one_layer_grids_fade_and_many_layers_do_not_touch_other_families():
    thin = torch.ones(1, 3, 2, 1, 8, 8, dtype=F64)
    middle = layout_features("panohead", [thin], torch.zeros(1, 1, 3, dtype=F64))
    off = layout_features("panohead", [thin], torch.full((1, 1, 3), 0.5, dtype=F64))
    torch.testing.assert_close(middle, torch.ones(1, 1, 2, dtype=F64))
    torch.testing.assert_close(off, torch.full((1, 1, 2), 0.75, dtype=F64))


def test_weights_and_transmittance():
    depth = torch.linspace(2, 3, 9, dtype=F64).expand(1, 4, 9)
    sigma = randn(1, 4, 9) * 5
    out = march(depth, sigma, torch.ones(1, 4, 9, 3, dtype=F64))
    density = F.softplus(0.5 * (sigma[..., 1:] + sigma[..., :-1]) - 1)
    transmitted = torch.exp(-(density * (depth[..., 1:] - depth[..., :-1])).sum(-1))
    torch.testing.assert_close(out["opacity"], 1 - transmitted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(out["feature"], out["opacity"][..., None].expand(-1, -1, 3))
    white = march(depth, sigma, torch.ones(1, 4, 9, 3, dtype=F64), white_back=True)
    torch.testing.assert_close(white["feature"], torch.ones(1, 4, 3, dtype=F64))


def test_fine_depths_go_where_the_weights_are():
    depth = torch.linspace(2, 3, 21).expand(1, 1, 21)
    weights = torch.zeros(1, 1, 20)
    weights[..., 9:11] = 5.0
    new = fine_depths(depth, weights, 32)
    inside = ((new > 2.4) & (new < 2.6)).float().mean()
    assert inside > 0.8 and (new >= 2).all() and (new <= 3).all()


def test_jitter_moves_samples_by_less_than_a_step():
    options = RenderOptions(coarse=5, ray_start=2.0, ray_end=3.0)
    like = torch.zeros(1, 2, 3)
    plain = coarse_depths(options, (1, 2), like, None)
    moved = coarse_depths(options, (1, 2), like, torch.full((1, 2, 5), 0.5))
    torch.testing.assert_close(moved - plain, torch.full((1, 2, 5), 0.125))
    assert plain[0, 0].tolist() == [2.0, 2.25, 2.5, 2.75, 3.0]


def test_rays_with_skew_project_back():
    c2w = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=F64))
    c2w[2, 3] = 2.7
    k = torch.tensor([[4.0, 0.3, 0.45], [0, 5.0, 0.55], [0, 0, 1]], dtype=F64)
    origin, direction = rays_of_label(torch.cat([c2w.flatten(), k.flatten()])[None], 3)
    camera = direction[0] @ torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=F64))
    pixels = camera @ k.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    centres = (torch.arange(3, dtype=F64) + 0.5) / 3
    torch.testing.assert_close(pixels[:, 0].view(3, 3), centres.expand(3, 3))
    torch.testing.assert_close(pixels[:, 1].view(3, 3), centres[:, None].expand(3, 3))
    torch.testing.assert_close(origin[0, 0], torch.tensor([0, 0, 2.7], dtype=F64))
