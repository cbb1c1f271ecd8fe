"""Box mean, guided filter and foreground estimation: closed forms and a known composite."""
import pytest
import torch
from portrait_diffusion.photo.foreground import estimate_foreground, sure_part
from portrait_diffusion.photo.guided_filter import box_mean, guided_filter


def random(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_box_mean_equals_a_plain_loop():
    picture = random(2, 9, 13)
    result = box_mean(picture, 2)
    for row in range(9):
        for column in range(13):
            window = picture[:, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            assert torch.allclose(result[:, row, column], window.mean((1, 2)))


def test_box_mean_limits():
    picture = random(1, 8, 8)
    assert torch.allclose(box_mean(picture, 0), picture)
    assert torch.allclose(box_mean(picture, 50), picture.mean().expand_as(picture))


def test_guided_filter_reproduces_affine_functions_of_the_guide():
    guide = random(3, 40, 40)
    target = (guide * torch.tensor([0.3, -0.2, 0.5]).view(3, 1, 1)).sum(0, keepdim=True) + 0.1
    assert torch.allclose(guided_filter(guide, target, 4, 1e-12).double(), target, atol=1e-5)


def test_guided_filter_with_infinite_eps_is_two_box_means():
    guide, target = random(3, 30, 30), random(1, 30, 30, seed=1)
    expected = box_mean(box_mean(target, 3), 3)
    assert torch.allclose(guided_filter(guide, target, 3, 1e9).double(), expected, atol=1e-6)


def test_guided_filter_keeps_constants_and_is_linear():
    guide, first, second = random(3, 20, 20), random(1, 20, 20, seed=1), random(1, 20, 20, seed=2)
    assert torch.allclose(guided_filter(guide, torch.full((1, 20, 20), 0.7), 3, 1e-3), torch.tensor(0.7), atol=1e-6)
    combined = guided_filter(guide, 2 * first - 3 * second, 3, 1e-3)
    separate = 2 * guided_filter(guide, first, 3, 1e-3) - 3 * guided_filter(guide, second, 3, 1e-3)
    assert torch.allclose(combined, separate, atol=1e-5)


def test_guided_filter_moves_a_wrong_edge_onto_the_edge_of_the_guide():
    guide = torch.zeros(3, 40, 40)
    guide[:, :, 20:] = 1
    target = torch.zeros(1, 40, 40)
    target[:, :, 22:] = 1
    filtered = guided_filter(guide, target, 6, 1e-4)
    assert torch.equal((filtered > 0.5).float(), guide[:1])


def test_guided_filter_gradients():
    guide, target = random(3, 6, 6).requires_grad_(), random(1, 6, 6, seed=1).requires_grad_()
    # the result is float32, so the tolerance is wide
    assert torch.autograd.gradcheck(
        lambda g, t: guided_filter(g, t, 2, 0.1), (guide, target), eps=1e-2, atol=5e-3, rtol=5e-2
    )


@pytest.fixture
def composite():
    """Reddish textured disc with a wide soft rim over a green ground."""
    size = 256
    v, u = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    alpha = torch.sigmoid((70 - ((u - 128) ** 2 + (v - 128) ** 2).sqrt()) / 4)[..., None]
    foreground = torch.stack([0.7 + 0.2 * torch.sin(u / 9), 0.2 + 0.1 * torch.sin(v / 13), 0.2 + 0 * u], -1)
    background = torch.stack([0.1 + 0 * u, 0.8 + 0.1 * torch.sin(u / 11), 0.2 + 0 * u], -1)
    return alpha * foreground + (1 - alpha) * background, alpha, foreground


def test_foreground_is_nearer_to_the_truth_than_the_photo(composite):
    picture, alpha, truth = composite
    estimate = estimate_foreground(picture, alpha)
    rim = ((alpha > 0.05) & (alpha < 0.95)).expand_as(picture)
    assert (estimate - truth).abs()[rim].mean() < 0.3 * (picture - truth).abs()[rim].mean()
    # it explains the picture no worse over a new ground: no green is left
    assert estimate[rim].view(-1, 3)[:, 1].max() < 0.5


def test_a_matte_that_is_too_wide_leaves_no_fringe(composite):
    picture, alpha, truth = composite
    wide = ((alpha - 0.1) * 4).clamp(0, 1)  # sure of pixels that are half background
    valid = torch.ones_like(alpha)
    rim = ((alpha > 0.3) & (alpha < 0.9)).expand_as(picture)
    fooled = (estimate_foreground(picture, wide, valid) - truth).abs()[rim].mean()
    careful = (estimate_foreground(picture, sure_part(wide, valid, margin=12), valid) - truth).abs()[rim].mean()
    assert careful < 0.4 * fooled


def test_the_sure_part_is_inside_and_does_not_shrink_from_the_photographs_border(composite):
    _, alpha, _ = composite
    valid = torch.ones_like(alpha)
    sure = sure_part(alpha, valid)
    assert (sure <= alpha).all() and float(sure.sum()) < float(alpha.sum())
    assert torch.equal(sure_part(torch.ones_like(alpha), valid), torch.ones_like(alpha))
    valid[200:] = 0
    assert torch.allclose(sure_part(valid.clone(), valid), valid)


def test_foreground_keeps_opaque_pixels_and_ignores_the_unknown(composite):
    picture, alpha, _ = composite
    estimate = estimate_foreground(picture, torch.ones_like(alpha))
    assert torch.allclose(estimate, picture, atol=1e-5)
    valid = torch.ones_like(alpha)
    valid[:, :100] = 0
    spoilt = picture.clone()
    spoilt[:, :100] = torch.tensor([0.0, 0.0, 1.0])
    first = estimate_foreground(picture, alpha, valid)[:, 100:]
    second = estimate_foreground(spoilt, alpha, valid)[:, 100:]
    assert torch.allclose(first, second, atol=1e-5)
    assert not estimate_foreground(picture, torch.zeros_like(alpha)).isnan().any()
