"""HPDM, the hybrid-priors diffusion model: denoiser, Explicit-Branch, reference network, Implicit-Branch, autoencoder.

After "Towards High-Fidelity 3D Portrait Generation with Rich Details by Cross-View Prior-Aware Diffusion"
(arXiv 2411.10369): pictures projected from other views are the explicit condition, attention to reference texture and
geometry the implicit one, merged back through residual blocks. The paper gives no internals; ours are: denoiser =
`UNet2DConditionModel`, Explicit-Branch = `ControlNetModel` on `conditions.explicit_image`, reference network = a second
`ControlNetModel` of which only the inputs of its self-attentions are used, merge = `implicit.ImplicitBranch`.
"""
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from .cameras import CameraTokens
from .conditions import EXPLICIT_CHANNELS, GEOMETRY_CHANNELS, Conditions, References
from .implicit import ImplicitBranch, Recorder


@dataclass
class Prediction:
    """What the denoiser says of noisy latents, all (B, C, h, w): its output, the noise in them, the clean latents.

    `alone` is the noise that it sees without conditions, where that was computed on the way.
    """

    output: Tensor
    noise: Tensor
    clean: Tensor
    alone: Tensor | None = None


class HPDM(nn.Module):
    """The model as one module; its parts are ordinary diffusers models.

    Args:
        unet: denoiser.
        explicit: Explicit-Branch, made from the denoiser.
        reference: reference network, of the same block structure.
        implicit: merges, made for `explicit`; attached to it here.
        vae: autoencoder of pictures in [-1, 1].
        scheduler: noise schedule and what the denoiser predicts (``epsilon``, ``v_prediction`` or ``sample``).
        cameras: makes cross-attention tokens of cameras; None where the caller brings tokens (text).
    """

    gate_floor = 0.25
    """What a reference counts at least from any angle, as in training; untrained attention must close wholly."""
    rows_seen = 0
    """Pictures that the denoiser has been given."""

    def __init__(
        self, unet: UNet2DConditionModel, explicit: ControlNetModel, reference: ControlNetModel,
        implicit: ImplicitBranch, vae: AutoencoderTiny | AutoencoderKL, scheduler: DDIMScheduler,
        cameras: CameraTokens | None = None,
    ):  # fmt: skip
        super().__init__()
        self.unet, self.explicit, self.reference, self.implicit, self.vae = unet, explicit, reference, implicit, vae
        self.cameras, self.scheduler = cameras, scheduler
        self.recorder = Recorder(reference)
        implicit.attach(explicit)
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.clone(), persistent=False)

    @property
    def factor(self) -> int:
        """Side of a picture over that of its latents."""
        if isinstance(self.vae, AutoencoderTiny):
            return 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Side of the pictures that the denoiser was made for."""
        return self.unet.config.sample_size * self.factor

    def networks(self) -> list[nn.Module]:
        """What a step of distillation runs."""
        return [self.unet, self.explicit, self.reference, self.vae.encoder]

    # ---- pictures and latents ------------------------------------------------------------------------------------
    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (B, C, h, w) of pictures (B, 3, H, W) in [0, 1]; the mean of a variational autoencoder's."""
        out = self.vae.encode(2 * pictures.to(self.vae.dtype) - 1)
        latents = out.latents if isinstance(self.vae, AutoencoderTiny) else out.latent_dist.mode()
        return latents * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), near [0, 1], of latents (B, C, h, w)."""
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample / 2 + 0.5

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise; timesteps (B,)."""
        signal, spread = self.levels(timesteps)
        return signal * latents + spread * noise

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), each (B, 1, 1, 1)."""
        abar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    # ---- conditions ----------------------------------------------------------------------------------------------
    def bank(self, references: References) -> dict[str, Tensor]:
        """Tokens {name: (B, R, L, C)} of references, seen without noise at timestep 0: the same for every step."""
        b, r = references.latents.shape[:2]
        flat = [x.flatten(0, 1) for x in (references.latents, references.tokens, references.geometry)]
        latents, tokens, geometry = (x.to(self.reference.dtype) for x in flat)
        steps = torch.zeros(b * r, dtype=torch.long, device=latents.device)
        self.reference(latents, steps, tokens, geometry, return_dict=False)
        return {name: kept.unflatten(0, (b, r)) for name, kept in self.recorder.take().items()}

    # ---- denoising -----------------------------------------------------------------------------------------------
    def denoise(
        self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, explicit: Tensor | None = None,
        bank: dict[str, Tensor] | None = None, gate: Tensor | None = None, plain: int = 0,
    ) -> Tensor:
        """Raw output of the denoiser.

        Args:
            noisy: (B, C, h, w); timesteps: (B,), or (1,) for all rows; tokens: (B, L, D).
            explicit: (E, 11, H, W) for the B - plain last rows; where E is less, those rows are the same E noisy
                latents, timesteps and tokens again and again. None is an empty picture. Without it and without a bank
                the Explicit-Branch is not run.
            bank, gate: of `bank`, {name: (G, R, L, C)} and (G, R), for the last G rows; None is no implicit condition.
            plain: so many first rows see neither condition.
        """
        sample, tokens = noisy.to(self.unet.dtype), tokens.to(self.unet.dtype)
        if (explicit is None and bank is None) or plain == len(sample):
            return self.run_denoiser(sample, timesteps, tokens)
        if explicit is None:
            side = [s * self.factor for s in sample.shape[-2:]]
            explicit = sample.new_zeros(len(sample) - plain, self.explicit.config.conditioning_channels, *side)
        told = explicit.to(sample.dtype).repeat((len(sample) - plain) // len(explicit), 1, 1, 1)
        self.implicit.set(bank, gate)
        try:
            down, mid = self.explicit(
                sample[plain:], rows_of(timesteps, plain), tokens[plain:], told, return_dict=False
            )
        finally:
            self.implicit.set(None)
        if plain:
            down, mid = [behind_zeros(x, plain) for x in down], behind_zeros(mid, plain)
        return self.run_denoiser(
            sample, timesteps, tokens, down_block_additional_residuals=list(down), mid_block_additional_residual=mid
        )

    def run_denoiser(self, sample: Tensor, timesteps: Tensor, tokens: Tensor, **residuals) -> Tensor:
        """The network's output; its rows are counted. Args: sample (B, C, h, w), timesteps (B,) or (1,), tokens."""
        self.rows_seen += len(sample)
        return self.unet(sample, timesteps, tokens, **residuals).sample

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditions: Conditions, explicit_scale: float = 1.0,
        implicit_scale: float = 1.0, bank: dict[str, Tensor] | None = None,
    ) -> Prediction:
        """Noise and clean latents with classifier-free guidance for two conditions.

        eps = eps(0, 0) + s_1 [eps(c_1, 0) - eps(0, 0)] + s_2 [eps(c_1, c_2) - eps(c_1, 0)], the nesting of Brooks et
        al., "InstructPix2Pix", CVPR 2023, equation 3; scales are the papers' (1 is the plain conditional model). Of the
        three terms only those whose factor is not 0 are computed, in one batch.

        Args:
            noisy (B, C, h, w); timesteps (B,), or (1,) for all rows.
            conditions: where one of the two is None its term drops out.
            explicit_scale, implicit_scale: s_1 and s_2.
            bank: of `bank(conditions.references)`, to reuse over steps; None computes it.
        """
        references = conditions.references
        told = conditions.explicit is not None or conditions.plain_tokens is not None
        factors = guidance_factors(explicit_scale, implicit_scale, told, references is not None)
        if references is not None and bank is None and factors["both"] != 0:
            bank = self.bank(references)
        b, rows = len(noisy), [name for name, factor in factors.items() if factor != 0]
        plain = b * ("none" in rows)
        conditioned = [name for name in rows if name != "none"]
        explicit = conditions.explicit if conditioned else None
        gate = references.gate if "both" in rows and references is not None else None  # of the last B rows
        n = len(rows)
        unconditional = conditions.tokens if conditions.plain_tokens is None else conditions.plain_tokens
        tokens = torch.cat([unconditional if name == "none" else conditions.tokens for name in rows])
        steps = timesteps if len(timesteps) < b else timesteps.repeat(n)
        output = self.denoise(
            noisy.repeat(n, 1, 1, 1), steps, tokens, explicit, None if gate is None else bank, gate, plain
        )
        parts = dict(zip(rows, output.to(noisy.dtype).chunk(n), strict=True))
        found = self.interpret(sum(factors[name] * part for name, part in parts.items()), noisy, timesteps)
        if "none" in parts:
            found.alone = self.interpret(parts["none"], noisy, timesteps).noise
        return found

    def interpret(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Prediction:
        """Noise and clean latents from the denoiser's output, whatever it predicts.

        v = sqrt(abar) eps - sqrt(1 - abar) x: Salimans & Ho, "Progressive Distillation", ICLR 2022, appendix D.
        """
        signal, spread = (x.to(noisy) for x in self.levels(timesteps))
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return Prediction(output, output, (noisy - spread * output) / signal.clamp(min=1e-4))
        if kind == "v_prediction":
            return Prediction(output, signal * output + spread * noisy, signal * noisy - spread * output)
        if kind == "sample":
            return Prediction(output, (noisy - signal * output) / spread.clamp(min=1e-4), output)
        raise ValueError(f"the scheduler's prediction_type is '{kind}'; expected epsilon, v_prediction or sample")


def guidance_factors(explicit_scale: float, implicit_scale: float, explicit: bool, implicit: bool) -> dict[str, float]:
    """Factors of the outputs seen with no condition, the explicit one, and both; they add up to 1.

    Without an explicit condition s_1 has no effect: eps(0, 0) + s_2 [eps(0, c_2) - eps(0, 0)]. Likewise for s_2.
    """
    s1, s2 = (explicit_scale if explicit else None), (implicit_scale if implicit else None)
    if s1 is None and s2 is None:
        return {"none": 1.0, "explicit": 0.0, "both": 0.0}
    if s2 is None:
        return {"none": 1.0 - s1, "explicit": s1, "both": 0.0}
    if s1 is None:
        return {"none": 1.0 - s2, "explicit": 0.0, "both": s2}
    return {"none": 1.0 - s1, "explicit": s1 - s2, "both": s2}


def plain_attention(vae: AutoencoderTiny | AutoencoderKL) -> None:
    """Let an autoencoder's attention multiply matrices one by one, as a GPU does it fastest; the results are the same.

    Its one head has 512 channels: too many for flash attention, and the kernel that takes them instead needs 15 ms for
    the gradient of four pictures of 512² on an H200. The products hold L² numbers a picture, L pixels of the latents.
    """
    if isinstance(vae, AutoencoderKL):
        vae.set_attn_processor(AttnProcessor())


def rows_of(timesteps: Tensor, start: int) -> Tensor:
    """Timesteps (B - start,) of the rows from `start` on; one for all rows (1,) stays one."""
    return timesteps[start:] if len(timesteps) > 1 else timesteps


def behind_zeros(x: Tensor, rows: int) -> Tensor:
    """x (B, ...) behind so many rows of zeros."""
    return torch.cat([x.new_zeros(rows, *x.shape[1:]), x])


def build_mini(
    channels: tuple = (64, 128, 144), latent_channels: int = 4, vae_channels: int = 64, token_dim: int = 64,
    head_dim: int = 32, image_size: int = 128,
) -> HPDM:
    """A fresh small HPDM; the defaults are the bundled one's.

    Latents have a quarter of the picture's side; there are transformer blocks at that resolution, a half and a quarter.
    """
    factor = 4
    groups = 16 if all(c % 16 == 0 for c in channels) else 8
    unet = UNet2DConditionModel(
        sample_size=image_size // factor, in_channels=latent_channels, out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=channels, layers_per_block=1, cross_attention_dim=token_dim,
        attention_head_dim=[c // head_dim for c in channels], norm_num_groups=groups,
    )  # fmt: skip
    embedding = {"conditioning_embedding_out_channels": (16, 32, 64)}
    explicit = ControlNetModel.from_unet(unet, conditioning_channels=EXPLICIT_CHANNELS, **embedding)
    reference = ControlNetModel.from_unet(unet, conditioning_channels=GEOMETRY_CHANNELS, **embedding)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(vae_channels,) * 3, decoder_block_out_channels=(vae_channels,) * 3,
        num_encoder_blocks=(1, 3, 3), num_decoder_blocks=(3, 3, 1), latent_channels=latent_channels,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, clip_sample=False, set_alpha_to_one=True, steps_offset=1,
        timestep_spacing="trailing",
    )  # fmt: skip
    return HPDM(unet, explicit, reference, ImplicitBranch.like(explicit), vae, scheduler, CameraTokens(dim=token_dim))
