"""Tri-plane sampling: which coordinate each plane reads, interpolation, pyramids, gradients; and the decoder."""
import math

import pytest
import torch
from portrait_diffusion.ops import triplane as tp

F64 = torch.float64


def centres(count: int) -> torch.Tensor:
    return (2 * torch.arange(count, dtype=F64) + 1) / count - 1


def coordinate_planes(size: int = 8, depth: int = 0) -> torch.Tensor:
    """Plane k holds in channels of its own the coordinates along columns, rows (and depth); 0 in the others."""
    shape = (depth, size, size) if depth else (size, size)
    axes = [centres(size).expand(shape), centres(size)[:, None].expand(shape)]
    if depth:
        axes.append(centres(depth)[:, None, None].expand(shape))
    planes = torch.zeros(1, 3, 3 * len(axes), *shape, dtype=F64)
    for k in range(3):
        planes[0, k, k * len(axes) : (k + 1) * len(axes)] = torch.stack(axes)
    return planes


@pytest.mark.parametrize(
    "axes, expected",
    [(tp.PLANE_AXES, "xyxzzy"), (tp.EG3D_AXES, "xyxzzx"), (tp.PANOHEAD_AXES, "xyxzyz")],
    ids=["ours", "eg3d", "panohead"],
)
def test_each_plane_reads_its_coordinates(axes, expected):
    coords = torch.tensor([[[0.1, 0.2, 0.3], [-0.5, 0.4, -0.7]]], dtype=F64)
    features = tp.sample_planes(coordinate_planes(), coords, reduce="sum", axes=axes)
    torch.testing.assert_close(features, coords[..., ["xyz".index(letter) for letter in expected]])


@pytest.mark.parametrize("axes, expected", [(tp.PLANE_AXES, "xyzxzyzyx"), (tp.PANOHEAD_AXES, "xyzxzyyzx")])
def test_each_grid_reads_three_coordinates(axes, expected):
    coords = torch.tensor([[[0.1, 0.2, 0.3], [-0.5, 0.4, -0.6]]], dtype=F64)
    features = tp.sample_planes(coordinate_planes(8, depth=4), coords, reduce="sum", axes=axes)
    torch.testing.assert_close(features, coords[..., ["xyz".index(letter) for letter in expected]])


def test_texel_centres_are_hit_exactly_and_outside_is_zero():
    g = torch.Generator().manual_seed(0)
    planes = torch.zeros(1, 3, 2, 4, 4, dtype=F64)
    planes[0, 0] = torch.randn(2, 4, 4, generator=g, dtype=F64)
    x, y = centres(4)[3], centres(4)[1]
    coords = torch.stack([x, y, torch.tensor(5.0, dtype=F64)])[None, None]
    torch.testing.assert_close(tp.sample_planes(planes, coords, "sum")[0, 0], planes[0, 0, :, 1, 3])
    outside = torch.tensor([[[1.26, 0, 0], [0, -1.26, 0], [3, 3, 3]]], dtype=F64)
    assert torch.equal(tp.sample_planes(planes, outside), torch.zeros(1, 3, 2, dtype=F64))


def test_layer_centres_of_a_grid_and_fading_beyond_them():
    planes = torch.zeros(1, 3, 1, 3, 2, 2, dtype=F64)
    planes[0, 0] = torch.tensor([1.0, 10.0, 100.0], dtype=F64)[:, None, None]
    z = torch.tensor([-2 / 3, 0, 2 / 3, 1.0, 4 / 3], dtype=F64)  # plane 0 has depth z
    coords = torch.stack([torch.zeros(5, dtype=F64), torch.zeros(5, dtype=F64), z], -1)[None]
    found = tp.sample_planes(planes, coords, "sum")[0, :, 0]
    torch.testing.assert_close(found, torch.tensor([1.0, 10, 100, 50, 0], dtype=F64))


@pytest.mark.parametrize("depth", [(), (3,)])
def test_a_single_plane_stands_for_a_level_whose_other_planes_are_zero(depth):
    g = torch.Generator().manual_seed(0)
    frontal = torch.randn(2, 1, 4, *depth, 6, 6, generator=g, dtype=F64)
    coords = torch.rand(2, 7, 3, generator=g, dtype=F64) * 2 - 1
    full = torch.cat([frontal, torch.zeros_like(frontal), torch.zeros_like(frontal)], dim=1)
    for reduce in ("mean", "sum"):
        torch.testing.assert_close(tp.sample_planes(frontal, coords, reduce), tp.sample_planes(full, coords, reduce))


def test_mean_is_a_third_of_sum_and_batches_do_not_mix():
    g = torch.Generator().manual_seed(0)
    planes = torch.randn(2, 3, 4, 6, 6, generator=g, dtype=F64)
    coords = torch.rand(2, 7, 3, generator=g, dtype=F64) * 2 - 1
    both = tp.sample_planes(planes, coords)
    torch.testing.assert_close(both, tp.sample_planes(planes, coords, "sum") / 3)
    alone = torch.cat([tp.sample_planes(planes[i : i + 1], coords[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(both, alone)


def test_depth_one_is_a_triplane():
    g = torch.Generator().manual_seed(0)
    planes = torch.randn(1, 3, 4, 6, 6, generator=g)
    coords = torch.rand(1, 9, 3, generator=g) * 2 - 1
    assert torch.equal(tp.sample_planes(planes[:, :, :, None], coords), tp.sample_planes(planes, coords))


def test_pyramid_levels_add_up_or_average_and_scale_linearly():
    g = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, 3, 4, *shape, generator=g, dtype=F64) for shape in ((8, 8), (4, 4), (3, 2, 2))]
    coords = torch.rand(1, 5, 3, generator=g, dtype=F64) * 2 - 1
    single = [tp.sample_planes(level, coords) for level in levels]
    torch.testing.assert_close(tp.sample_planes(levels, coords), sum(single))
    torch.testing.assert_close(tp.sample_planes(levels, coords, level_reduce="mean"), sum(single) / 3)
    torch.testing.assert_close(tp.sample_planes([2 * level for level in levels], coords), 2 * sum(single))


@pytest.mark.parametrize("depth", [(), (3,)])
def test_gradients_of_planes_and_coordinates(depth):
    g = torch.Generator().manual_seed(0)
    planes = torch.randn(2, 3, 2, *depth, 3, 4, generator=g, dtype=F64).requires_grad_()
    coords = (torch.rand(2, 4, 3, generator=g, dtype=F64) * 1.8 - 0.9).requires_grad_()
    assert torch.autograd.gradcheck(tp.sample_planes, (planes, coords))


def test_bad_shapes_and_reductions_are_named():
    planes, coords = torch.zeros(2, 3, 1, 2, 2), torch.zeros(2, 1, 3)
    for bad_planes, bad_coords, match in [
        (torch.zeros(3, 1, 2, 2), coords, "planes"),
        (torch.zeros(2, 2, 1, 2, 2), coords, "planes"),
        (planes, torch.zeros(1, 1, 3), "batch size 2"),
        (planes, torch.zeros(2, 1, 2), "coords"),
        ([], coords, "empty"),
    ]:
        with pytest.raises(ValueError, match=match):
            tp.sample_planes(bad_planes, bad_coords)
    with pytest.raises(ValueError, match="reduce"):
        tp.sample_planes(planes, coords, reduce="max")
    with pytest.raises(ValueError, match="level_reduce"):
        tp.sample_planes(planes, coords, level_reduce="max")


def test_decoder_matches_a_hand_computed_value():
    output = torch.tensor([[2.0], [0], [1], [-1]], dtype=F64)
    weights = (torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64), output, torch.zeros(4, dtype=F64))
    density, colour = tp.decode(torch.zeros(1, 1, dtype=F64), weights)
    hidden = math.log(2)  # softplus(0)
    assert density.item() == pytest.approx(math.log1p(math.exp(2 * hidden - 1)))
    sigmoid = [0.5, 2 / 3, 1 / 3]  # sigmoid(+-log 2) = 2/3, 1/3
    torch.testing.assert_close(colour[0], torch.tensor([1.002 * s - 0.001 for s in sigmoid], dtype=F64))


def test_decoder_ranges_gradients_and_determinism():
    weights = tp.init_decoder(5, 8, torch.Generator().manual_seed(0))
    again = tp.init_decoder(5, 8, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(weights, again))
    features = 1e4 * torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
    density, colour = tp.decode(features, weights)
    assert torch.isfinite(density).all() and (density >= 0).all()
    assert colour.min() >= -0.0011 and colour.max() <= 1.0011
    double = [w.to(F64).requires_grad_() for w in weights]
    x = torch.randn(3, 5, dtype=F64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *w: tp.decode(x, w), (x, *double))


def test_autocast_keeps_outputs_in_float32_and_close():
    g = torch.Generator().manual_seed(0)
    weights = tp.init_decoder(16, 64, g)
    planes, coords = torch.randn(1, 3, 16, 8, 8, generator=g), torch.rand(1, 50, 3, generator=g) * 2 - 1
    exact = tp.decode(tp.sample_planes(planes, coords), weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        density, colour = tp.decode(tp.sample_planes(planes, coords), weights)
    assert density.dtype == colour.dtype == torch.float32
    torch.testing.assert_close(density, exact[0], atol=0.03, rtol=0.03)
    torch.testing.assert_close(colour, exact[1], atol=0.02, rtol=0)
