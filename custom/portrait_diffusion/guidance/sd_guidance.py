"""Plain latent-diffusion guidance with a pluggable noise sampler, registered as ``portrait-diffusion-sd-guidance``."""
from dataclasses import dataclass
from typing import Any

from ..host import C, register
from .distillation import paper_scale
from .hpdm_guidance import HPDMGuidance


@register("portrait-diffusion-sd-guidance")
class SDGuidance(HPDMGuidance):
    """A Stable-Diffusion-shaped model without references or projections: the baseline, same samplers and losses.

    Comparing it with the HPDM guidance, or two samplers in it, changes one thing.
    """

    @dataclass
    class Config(HPDMGuidance.Config):
        pretrained_model_name_or_path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # folder or hub id
        guidance_scale: Any = 100.0  # as the host's Stable-Diffusion guidances count: the papers' scale less one
        reference_attention: bool = False  # no references here

    cfg: Config

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the schedules; text is what the row with conditions knows, so its scale is the explicit one."""
        super().update_step(epoch, global_step, on_load_weights)
        self.scales = paper_scale(C(self.cfg.guidance_scale, epoch, global_step)), 1.0
