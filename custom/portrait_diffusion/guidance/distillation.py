"""Score distillation as pure functions: weights, gradients by name, and the loss whose gradient they are.

Guidance scales here are the papers': eps_u + s (eps_c - eps_u), so 1 is the plain conditional model. threestudio's
Stable-Diffusion guidances compute eps_c + s (eps_c - eps_u), one less: `paper_scale` converts.
"""
from collections.abc import Callable

import torch
from torch import Tensor

WEIGHTINGS = ("sds", "uniform", "fantasia3d")
LOSSES = ("sds", "csd", "sdi", "ism")


def paper_scale(host_scale: float) -> float:
    """Guidance scale of the papers for one of threestudio's configurations: s + 1."""
    return host_scale + 1.0


def weighting(alphas_cumprod: Tensor, strategy: str) -> Tensor:
    """w(t) by name: ``sds`` 1 - abar (DreamFusion), ``uniform`` 1, ``fantasia3d`` sqrt(abar) (1 - abar).

    Args: alphas_cumprod (B,), abar at each row's timestep. Returns: (B, 1, 1, 1).
    Raises: ValueError for another name.
    """
    if strategy == "sds":
        w = 1 - alphas_cumprod
    elif strategy == "uniform":
        w = torch.ones_like(alphas_cumprod)
    elif strategy == "fantasia3d":
        w = alphas_cumprod.sqrt() * (1 - alphas_cumprod)
    else:
        raise ValueError(f"weighting_strategy is '{strategy}'; expected one of: {', '.join(WEIGHTINGS)}.")
    return w.view(-1, 1, 1, 1)


def distillation_gradient(predicted: Tensor, reference: Tensor, weight: Tensor, clip: float | None = None) -> Tensor:
    """g = w (eps_hat - eps_ref), not a number nowhere, clipped to [-clip, clip] if asked for; a constant.

    By name of the loss, eps_ref is
      ``sds``: the noise that was added (Poole et al., "DreamFusion", ICLR 2023, equation 3);
      ``csd``: the prediction without conditions, so that only the classifier's part of the guidance is left (Yu et al.,
        "Text-to-3D with Classifier Score Distillation", ICLR 2024, without its negative-prompt term);
      ``sdi``: the noise that DDIM inversion finds for the picture (Lukoianov et al., "Score Distillation via
        Reparametrized DDIM", NeurIPS 2024, section 4);
      ``ism``: the unconditional prediction one step of the inversion earlier (Liang et al., "LucidDreamer", CVPR 2024,
        section 3.2).

    Args: predicted, reference (B, C, h, w); weight (B, 1, 1, 1). Returns: (B, C, h, w) without a graph.
    """
    gradient = torch.nan_to_num(weight * (predicted - reference).detach())
    return gradient if clip is None else gradient.clamp(-clip, clip)


def distillation_loss(latents: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to `latents` is `gradient` over the batch size, as threestudio has it.

    0.5 |x - sg(x - g)|^2 / B: its value is 0.5 |g|^2 / B, which tells how far the model disagrees.
    """
    target = (latents - gradient).detach()
    return 0.5 * torch.nn.functional.mse_loss(latents, target, reduction="sum") / latents.shape[0]


@torch.no_grad()
def ddim_inversion(
    latents: Tensor, timestep: int, steps: int, alphas_cumprod: Tensor,
    predict: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """Noisy latents that deterministic sampling would turn back into these.

    From level s to the next t: x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps with (x0, eps) predicted at s; Song et al.,
    "Denoising Diffusion Implicit Models", ICLR 2021, section 4.3.

    Args:
        latents: (B, C, h, w), clean.
        timestep: last level, >= 1.
        steps: number of levels up to it.
        alphas_cumprod: (T,).
        predict: (noisy, timesteps (B,)) -> (clean, noise) of the model.
    Returns: latents at `timestep`; those one level earlier; and that level.
    """
    levels = torch.linspace(0, timestep, steps + 1).round().long().tolist()
    x, before = latents, latents
    for s, t in zip(levels[:-1], levels[1:]):
        clean, noise = predict(x, torch.full((len(x),), s, device=x.device))
        before = x
        x = alphas_cumprod[t].sqrt() * clean + (1 - alphas_cumprod[t]).sqrt() * noise
    return x, before, levels[-2]


@torch.no_grad()
def ddim_sampling(
    noisy: Tensor, timestep: int, steps: int, alphas_cumprod: Tensor,
    predict: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:  # fmt: skip
    """Clean latents that deterministic sampling makes of noisy ones; the formula of `ddim_inversion`, downwards.

    Args: noisy (B, C, h, w) at level `timestep`; steps: calls of `predict`, at most `timestep`; the others as there.
    Returns: (B, C, h, w), what the last call predicts.
    """
    levels = torch.linspace(timestep, 0, min(steps, timestep) + 1).round().long().tolist()[:-1]
    x = clean = noisy
    for s, t in zip(levels, [*levels[1:], None]):
        clean, noise = predict(x, torch.full((len(x),), s, device=x.device))
        if t is not None:
            x = alphas_cumprod[t].sqrt() * clean + (1 - alphas_cumprod[t]).sqrt() * noise
    return clean
