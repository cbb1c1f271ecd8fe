"""Gradient agreement between views: known answers, invariances, what is chosen."""
import torch
from portrait_diffusion.noise.agreement import (
    ViewOfLatents,
    agreement,
    carried_gradient,
    keep_best,
    pair_scores,
    shuffled_control,
)
from portrait_diffusion.ops.cameras import get_rays

from .test_transport import SIZE, view


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def views(*azimuths):
    parts = [view(a) for a in azimuths]
    return ViewOfLatents(*(torch.cat(x) for x in zip(*parts, strict=True)))


def surface_field(v):
    """A smooth vector per place of the surface: the same from every view."""
    rays_o, rays_d = get_rays(v.c2w, v.fovy, SIZE, SIZE)
    points = rays_o + v.depth[..., None] * rays_d
    waves = torch.tensor([[9.0, 2, -4], [3, -8, 5], [-6, 7, 8], [5, 5, -9]])
    return torch.sin(points @ waves.t() + torch.arange(4.0)).permute(0, 3, 1, 2) * (v.depth > 0)[:, None]


def test_closed_forms():
    g = torch.randn(2, 4, 6, 6, generator=generator())
    ones = torch.ones(2, 1, 6, 6)
    torch.testing.assert_close(agreement(g, 3 * g, ones), torch.ones(2))
    torch.testing.assert_close(agreement(g, -0.1 * g, ones), -torch.ones(2))
    turned = torch.stack([-g[:, 1], g[:, 0], -g[:, 3], g[:, 2]], dim=1)  # orthogonal in every latent
    torch.testing.assert_close(agreement(g, turned, ones), torch.zeros(2), atol=1e-6, rtol=0)
    half = ones.clone()
    half[..., 3:] = 0
    mixed = torch.where(half > 0, g, -g)
    torch.testing.assert_close(agreement(g, mixed, half), torch.ones(2))
    assert bool(agreement(g, g, torch.zeros_like(ones)).isnan().all())


def test_gradients_that_live_on_the_surface_agree_and_noise_does_not():
    """Noise: 4 channels, so a cosine has variance 1/4; over m latents sigma = 0.5 / sqrt(m), here under 0.03."""
    v = views(0.0, 20.0)
    field = surface_field(v)
    noise = torch.randn(2, 4, SIZE, SIZE, generator=generator(1))
    pairs = torch.tensor([[0, 1], [1, 0]])
    true = pair_scores(torch.stack([field, noise]), v, pairs)
    assert true.shape == (2, 2) and float(true[0].min()) > 0.9 and float(true[1].abs().max()) < 0.12
    control = shuffled_control(field[None].expand(1, -1, -1, -1, -1), v, pairs, generator(2))
    assert float(control.abs().max()) < 0.3 * float(true[0].min())
    moved, valid = carried_gradient(field[:1], v.rows(torch.tensor([0])), v.rows(torch.tensor([1])))
    assert float(((moved - field[1:]).abs().mean(1, keepdim=True) * valid).sum() / valid.sum()) < 0.1


def test_views_from_opposite_sides_cannot_be_compared():
    v = views(0.0, 180.0)
    scores = pair_scores(surface_field(v)[None], v, torch.tensor([[0, 1]]))
    assert bool(scores.isnan().all())


def test_the_best_candidate_is_kept_and_the_anchor_in_doubt():
    nan = float("nan")
    scores = torch.tensor([[0.1, 0.5, nan, 0.2, nan], [0.3, 0.4, nan, 0.2, 0.1], [0.2, 0.6, nan, 0.1, nan]])
    assert keep_best(scores).tolist() == [1, 2, 0, 0, 1]
