"""Score distillation: closed forms of weights, gradient of the loss, guidance-scale conventions, inversion."""
import pytest
import torch
from portrait_diffusion.guidance.distillation import (
    WEIGHTINGS,
    ddim_inversion,
    ddim_sampling,
    distillation_gradient,
    distillation_loss,
    paper_scale,
    weighting,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_has_the_gradient_over_the_batch():
    latents, g = normal(3, 4, 5, 5).requires_grad_(True), normal(3, 4, 5, 5, seed=1)
    loss = distillation_loss(latents, g)
    torch.testing.assert_close(torch.autograd.grad(loss, latents)[0], g / 3)
    torch.testing.assert_close(loss.detach(), 0.5 * g.square().sum() / 3)
    assert float(distillation_loss(latents, torch.zeros_like(g)).detach()) == 0


def test_the_gradient_is_weight_times_difference_clipped_finite_and_constant():
    a, b = normal(2, 4, 3, 3).requires_grad_(True), normal(2, 4, 3, 3, seed=1)
    w = torch.tensor([0.5, 2.0], dtype=torch.float64).view(2, 1, 1, 1)
    g = distillation_gradient(a, b, w)
    torch.testing.assert_close(g, w * (a.detach() - b))
    assert not g.requires_grad
    assert float(distillation_gradient(a, b, w, 0.1).abs().max()) == pytest.approx(0.1)
    broken = a.detach().clone()
    broken[0, 0, 0, 0] = torch.nan
    assert float(distillation_gradient(broken, b, w)[0, 0, 0, 0]) == 0


def test_weights_by_name():
    abar = torch.tensor([0.0, 0.25, 1.0])
    assert weighting(abar, "sds").flatten().tolist() == [1.0, 0.75, 0.0]
    assert weighting(abar, "uniform").flatten().tolist() == [1.0, 1.0, 1.0]
    assert weighting(abar, "fantasia3d").flatten().tolist() == [0.0, 0.375, 0.0]
    assert all(weighting(abar, name).shape == (3, 1, 1, 1) for name in WEIGHTINGS)
    with pytest.raises(ValueError, match="magic"):
        weighting(abar, "magic")


def test_threestudios_scale_is_one_less_than_the_papers():
    conditional, unconditional, s = normal(8), normal(8, seed=1), 6.5
    threestudios = conditional + s * (conditional - unconditional)
    papers = unconditional + paper_scale(s) * (conditional - unconditional)
    torch.testing.assert_close(threestudios, papers)


def test_inversion_with_a_denoiser_that_is_right_adds_its_noise():
    """With (x0, eps) known the deterministic path is sqrt(abar) x0 + sqrt(1 - abar) eps at every level."""
    x0, eps, abar = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1), torch.linspace(1.0, 0.0, 101, dtype=torch.float64)
    seen = []

    def predict(noisy, steps):
        seen.append(steps.tolist())
        return x0, eps

    x, before, level = ddim_inversion(x0, 80, 4, abar, predict)
    assert seen == [[0, 0], [20, 20], [40, 40], [60, 60]] and level == 60
    torch.testing.assert_close(x, abar[80].sqrt() * x0 + (1 - abar[80]).sqrt() * eps)
    torch.testing.assert_close(before, abar[60].sqrt() * x0 + (1 - abar[60]).sqrt() * eps)


def test_sampling_with_a_denoiser_that_is_right_finds_the_picture():
    x0, eps, abar = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1), torch.linspace(1.0, 0.0, 101, dtype=torch.float64)
    noisy = abar[80].sqrt() * x0 + (1 - abar[80]).sqrt() * eps
    seen = []

    def predict(x, steps):
        """Knows the picture; reads the noise off."""
        t = int(steps[0])
        seen.append(t)
        return x0, (x - abar[t].sqrt() * x0) / (1 - abar[t]).sqrt()

    torch.testing.assert_close(ddim_sampling(noisy, 80, 4, abar, predict), x0)
    assert seen == [80, 60, 40, 20]
    seen.clear()
    ddim_sampling(noisy, 2, 8, abar, predict)
    assert seen == [2, 1], "never more calls than levels"


def test_sampling_undoes_inversion():
    """For Gaussian data the exact denoiser is linear; down the way that inversion went up, errors fall with the step.

    x0 ~ N(0, v): E[x0 | x_t] = a v x_t / (a^2 v + s^2), a = sqrt(abar), s^2 = 1 - abar.
    """
    abar, v, x = torch.linspace(1.0, 0.02, 1001, dtype=torch.float64), 0.5, normal(3, 2, 4, 4)

    def predict(noisy, steps):
        a, s2 = abar[steps[0]].sqrt(), 1 - abar[steps[0]]
        clean = a * v * noisy / (a**2 * v + s2)
        return clean, (noisy - a * clean) / s2.sqrt().clamp(min=1e-9)

    errors = []
    for steps in (50, 100, 200):
        up, _, _ = ddim_inversion(x, 800, steps, abar, predict)
        errors.append(float((ddim_sampling(up, 800, steps, abar, predict) - x).norm() / x.norm()))
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.05
