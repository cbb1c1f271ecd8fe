"""Novel views directly from HPDM, with any scheduler of diffusers; for tests and previews."""
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from .conditions import Conditions
from .model import HPDM


@torch.no_grad()
def sample(
    model: HPDM, conditions: Conditions, steps: int = 20, explicit_scale: float = 1.0, implicit_scale: float = 1.0,
    noise: Tensor | None = None, generator: torch.Generator | None = None, scheduler: SchedulerMixin | None = None,
    size: int | None = None,
) -> Tensor:  # fmt: skip
    """Pictures of the views that `conditions` tell of.

    Args:
        conditions: of B views.
        steps: of the sampler.
        explicit_scale, implicit_scale: guidance scales, see `HPDM.predict`.
        noise: (B, C, h, w) start; None draws it from `generator`.
        scheduler: of diffusers, made from the model's; None is its own (DDIM). Stochastic ones draw from `generator`.
        size: side of the pictures; None is the denoiser's own.
    Returns: (B, 3, H, W) in [0, 1].
    """
    device, b = conditions.tokens.device, len(conditions.tokens)
    scheduler = scheduler or type(model.scheduler).from_config(model.scheduler.config)
    scheduler.set_timesteps(steps, device=device)
    if noise is None:
        side = model.unet.config.sample_size if size is None else size // model.factor
        shape = (b, model.unet.config.in_channels, side, side)
        noise = torch.randn(shape, generator=generator, device=device)
    latents = noise * scheduler.init_noise_sigma
    bank = None if conditions.references is None else model.bank(conditions.references)
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, t)
        batch_t = t.long().expand(b)
        output = model.predict(noisy, batch_t, conditions, explicit_scale, implicit_scale, bank).output
        latents = scheduler.step(output, t, latents).prev_sample
    return model.decode(latents).float().clamp(0, 1)
