"""The Gaussian of random heads: it has the mean and covariance of the latents it was fitted to."""
import torch
from portrait_diffusion.priors.latent_space import draw, fit_gaussian

F64 = torch.float64


def latents(count=200, rank=3) -> torch.Tensor:
    """(count, 2, 4) heads in a plane of `rank` directions off the origin."""
    g = torch.Generator().manual_seed(0)
    basis = torch.randn(rank, 8, generator=g)
    return (2 + torch.randn(count, rank, generator=g) @ basis).view(count, 2, 4)


def test_axes_reproduce_mean_and_covariance():
    ws = latents()
    mean, axes = fit_gaussian(ws, 8)
    assert mean.shape == (2, 4) and axes.shape == (8, 2, 4)
    torch.testing.assert_close(mean, ws.mean(dim=0), rtol=1e-5, atol=1e-5)
    flat = axes.flatten(1)
    torch.testing.assert_close(flat.t() @ flat, torch.cov(ws.flatten(1).t()), rtol=1e-4, atol=1e-4)
    gram = flat @ flat.t()
    torch.testing.assert_close(gram, torch.diag(gram.diag()), rtol=0, atol=1e-4)
    assert (gram.diag().diff() <= 1e-6).all(), "the longest first"


def test_fewer_heads_than_axes_leave_zeros():
    mean, axes = fit_gaussian(latents(3), 5)
    assert (axes[3:] == 0).all() and mean.isfinite().all() and axes.isfinite().all()
    assert float(axes[2].abs().max()) < 1e-5, "three points span two directions"


def test_the_mean_at_truncation_0_and_one_axis_at_a_time():
    mean, axes = fit_gaussian(latents(), 3)
    z = torch.eye(3)
    torch.testing.assert_close(draw(mean, axes, z, 0.0), mean.expand(3, 2, 4))
    torch.testing.assert_close(draw(mean, axes, z, 0.5), mean + 0.5 * axes)


def test_draws_have_the_spread_of_the_heads():
    """Variance along the longest axis of 4,000 draws: relative standard error sqrt(2 / 4000) = 2.2 %, 5 sigma 11 %."""
    mean, axes = fit_gaussian(latents(), 3)
    z = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    along = (draw(mean, axes, z) - mean).flatten(1) @ axes[0].flatten() / axes[0].norm()
    assert abs(float(along.var() / axes[0].square().sum()) - 1) < 0.11
