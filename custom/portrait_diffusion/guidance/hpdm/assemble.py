"""HPDM from public parts, without training: any Stable-Diffusion-1.5-shaped model, ControlNets, reference attention.

Explicit condition: ControlNets that know pictures (tile) or pictures with holes (inpaint) see the projection. Implicit
condition: the denoiser itself reads the references, noised to the same timestep, and its self-attentions attend to
their tokens as well as to their own (K, V = [self; bank]), closed by view angle. Text takes the place of camera tokens.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from ...errors import EnvironmentProblem, UsageError
from ...optional import require
from .attention import biased_attention, for_tokens, gate_bias
from .conditions import References
from .implicit import self_attentions
from .model import HPDM, behind_zeros, rows_of

LAYOUTS = ("tile", "inpaint")
EXTRAS = ("spatial_norm", "group_norm", "norm_q", "norm_k")
"""What the self-attentions of other model families may have."""


@dataclass
class Control:
    """One ControlNet: folder or hub id, what it expects (``tile``: holes filled; ``inpaint``: holes are -1), scale."""

    path: str
    layout: str = "inpaint"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UsageError(f"controlnets: layout is '{self.layout}'; expected one of: {', '.join(LAYOUTS)}.")


def fill_holes(rgb: Tensor, valid: Tensor) -> Tensor:
    """Colours (B, 3, H, W) with what is not valid (B, 1, H, W) filled from ever coarser means; mid-grey if nothing is.

    Pull-push: each level is the mean of the valid pixels of the one before, and fills only what is still open.
    """
    out, known = rgb * valid, valid
    weight, colour, size = valid, rgb * valid, rgb.shape[-2:]
    while min(weight.shape[-2:]) > 1:
        colour, weight = F.avg_pool2d(colour, 2), F.avg_pool2d(weight, 2)
        mean = F.interpolate(colour / weight.clamp(min=1e-6), size, mode="bilinear", align_corners=False)
        there = F.interpolate((weight > 0).to(weight), size, mode="nearest")
        out, known = out + mean * there * (1 - known), torch.maximum(known, there)
    return out + 0.5 * (1 - known)


def control_image(explicit: Tensor, layout: str) -> Tensor:
    """Input (B, 3, H, W) of a public ControlNet from `conditions.explicit_image` (B, 11, H, W)."""
    rgb, valid = explicit[:, :3] / 2 + 0.5, explicit[:, 3:4]
    return fill_holes(rgb, valid) if layout == "tile" else rgb * valid - (1 - valid)


class ReferenceAttention:
    """Lets a denoiser's self-attentions record their input, or attend to recorded tokens besides their own.

    Set `mode` to ``write``, ``read`` or None. Read are `bank` {name: (G, R L, C)}, or one row of it for all, and `bias`
    (G, R), which is added to the logits of each reference's tokens; they are for the last G rows, and the rows before
    attend to themselves alone.
    """

    def __init__(self, network: nn.Module):
        self.mode: str | None = None
        self.bank: dict[str, Tensor] = {}
        self.bias: Tensor | None = None
        for name, module in self_attentions(network).items():
            extras = [x for x in EXTRAS if getattr(module, x, None) is not None]
            if extras or module.residual_connection or module.rescale_output_factor != 1:
                raise UsageError(
                    f"The denoiser's {name} has {', '.join(extras) or 'a residual'}, which models of Stable Diffusion "
                    "1.5's shape do not have; set guidance.reference_attention to false."
                )
            module.set_processor(ReferenceProcessor(self, name, module.processor))


class ReferenceProcessor:
    """A self-attention's processor with the recording and the reading of `ReferenceAttention` around it."""

    def __init__(self, owner: ReferenceAttention, name: str, inner):
        self.owner, self.name, self.inner = owner, name, inner

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None, **kwargs):
        owner = self.owner
        if owner.mode == "write":
            owner.bank[self.name] = hidden_states
        if owner.mode != "read":
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        closed = len(hidden_states) - len(owner.bias)
        out = self._read(attn, hidden_states[closed:], owner.bank[self.name].to(hidden_states))
        if closed == 0:
            return out
        return torch.cat([self.inner(attn, hidden_states[:closed], None, None, **kwargs), out])

    def _read(self, attn, x: Tensor, bank: Tensor) -> Tensor:
        """Attention of x (G, N, C) to itself and to the bank (G or 1, R L, C), through the module's projections."""
        g, n, c = x.shape
        gates = self.owner.bias
        bias = torch.cat([gates.new_zeros(g, n), for_tokens(gates, bank.shape[1] // gates.shape[1])], dim=1)

        def heads(y: Tensor) -> Tensor:
            return y.view(g, -1, attn.heads, c // attn.heads).transpose(1, 2)

        def both(projection: nn.Module) -> Tensor:  # one bank for all rows goes through the projection once
            return heads(torch.cat([projection(x), projection(bank).expand(g, -1, -1)], dim=1))

        out = biased_attention(heads(attn.to_q(x)), both(attn.to_k), both(attn.to_v), bias)
        return attn.to_out[0](out.transpose(1, 2).reshape(g, n, c))


class AssembledHPDM(HPDM):
    """The interface of `HPDM` around public parts.

    Args:
        unet, vae, scheduler: of a Stable-Diffusion-shaped model.
        controls: (ControlNet, layout, scale) each; none is no explicit condition.
        tokens: (1, L, D) of the prompt.
        plain_tokens: (1, L, D) of the empty or negative prompt.
        reference_attention: False is no implicit condition.
    """

    gate_floor = 0.0

    def __init__(
        self, unet: UNet2DConditionModel, vae: AutoencoderKL | AutoencoderTiny, scheduler: DDIMScheduler,
        controls: list[tuple[ControlNetModel, str, float]], tokens: Tensor, plain_tokens: Tensor,
        reference_attention: bool = True,
    ):  # fmt: skip
        nn.Module.__init__(self)
        self.unet, self.vae, self.scheduler = unet, vae, scheduler
        self.controls = nn.ModuleList([control for control, _, _ in controls])
        self.layouts = [(layout, scale) for _, layout, scale in controls]
        self.attention = ReferenceAttention(unet) if reference_attention else None
        self._noise: tuple | None = None
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.clone(), persistent=False)
        self.register_buffer("tokens", tokens.clone(), persistent=False)
        self.register_buffer("plain_tokens", plain_tokens.clone(), persistent=False)

    def networks(self) -> list[nn.Module]:
        """See `HPDM.networks`."""
        return [self.unet, *self.controls, self.vae.encoder]

    def cameras(self, c2w: Tensor) -> Tensor:
        """The prompt's tokens (..., L, D), the same for every camera (..., 4, 4)."""
        return self.tokens[0].expand(*c2w.shape[:-2], *self.tokens.shape[1:])

    def plain(self, c2w: Tensor) -> Tensor:
        """Tokens (..., L, D) of the row that sees no condition."""
        return self.plain_tokens[0].expand(*c2w.shape[:-2], *self.plain_tokens.shape[1:])

    def bank(self, references: References) -> dict[str, Tensor]:
        """The references' latents and tokens: what they are read as depends on the timestep, so nothing is kept."""
        return {"latents": references.latents, "tokens": references.tokens}

    def denoise(
        self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, explicit: Tensor | None = None,
        bank: dict[str, Tensor] | None = None, gate: Tensor | None = None, plain: int = 0,
    ) -> Tensor:
        """Raw output of the denoiser, see `HPDM.denoise`."""
        sample, tokens = noisy.to(self.unet.dtype), tokens.to(self.unet.dtype)
        residuals: dict = {}
        if explicit is not None and len(self.controls) and plain < len(sample):
            # the ControlNets see no reference: rows that differ in these alone are the same to them
            seen, again = slice(plain, plain + len(explicit)), (len(sample) - plain) // len(explicit)
            steps = timesteps[seen] if len(timesteps) > 1 else timesteps
            down, mid = self._control(sample[seen], steps, tokens[seen], explicit)
            down, mid = [x.repeat(again, 1, 1, 1) for x in down], mid.repeat(again, 1, 1, 1)
            residuals = {
                "down_block_additional_residuals": [behind_zeros(x, plain) for x in down],
                "mid_block_additional_residual": behind_zeros(mid, plain),
            }
        if bank is None or self.attention is None or plain == len(sample):
            return self.run_denoiser(sample, timesteps, tokens, **residuals)
        self._write(bank, rows_of(timesteps, len(sample) - len(gate)), gate)
        self.attention.mode = "read"
        try:
            return self.run_denoiser(sample, timesteps, tokens, **residuals)
        finally:
            self.attention.mode, self.attention.bank, self.attention.bias = None, {}, None

    def _control(self, sample: Tensor, timesteps: Tensor, tokens: Tensor, explicit: Tensor) -> tuple:
        """Sum of all ControlNets' residuals."""
        total = None
        for control, (layout, scale) in zip(self.controls, self.layouts, strict=True):
            picture = control_image(explicit, layout).to(sample.dtype)
            down, mid = control(sample, timesteps, tokens, picture, conditioning_scale=scale, return_dict=False)
            total = (down, mid) if total is None else ([a + b for a, b in zip(total[0], down)], total[1] + mid)
        return total

    def _write(self, bank: dict[str, Tensor], timesteps: Tensor, gate: Tensor) -> None:
        """Let the denoiser read the references at the rows' timesteps, with the same noise on every call.

        Rows with one timestep and the same references (one row, or one expanded to all) read them once.
        """
        latents, tokens = bank["latents"], bank["tokens"]
        if len(timesteps) == 1 and (len(latents) == 1 or latents.stride(0) == 0):
            latents, tokens = latents[:1], tokens[:1]
        b, r = latents.shape[:2]
        flat = latents.flatten(0, 1).float()
        steps = timesteps.expand(b).repeat_interleave(r, output_size=b * r)
        noised = self.add_noise(flat, self._noise_like(flat), steps).to(self.unet.dtype)
        self.attention.mode = "write"
        try:
            self.run_denoiser(noised, steps, tokens.flatten(0, 1).to(noised))
        finally:
            self.attention.mode = None
        self.attention.bank = {
            name: x.unflatten(0, (b, r)).flatten(1, 2) for name, x in self.attention.bank.items()
        }
        self.attention.bias = gate_bias(gate)

    def _noise_like(self, latents: Tensor) -> Tensor:
        """The references' noise (1, C, h, w), drawn once on the CPU so that every device has the same."""
        key = (latents.shape[1:], latents.device)
        if self._noise is None or self._noise[0] != key:
            drawn = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0))
            self._noise = key, drawn.to(latents)[None]
        return self._noise[1]


def embed_prompt(base: str, prompt: str, offline: bool) -> Tensor:
    """(1, L, D) of a prompt by the CLIP text encoder in a model's folder or hub repository.

    Raises: EnvironmentProblem when transformers is missing; UsageError when the encoder cannot be loaded.
    """
    transformers = require("transformers", extra="sd")
    tokenizer = _part(transformers.CLIPTokenizer, base, "tokenizer", offline)
    encoder = _part(transformers.CLIPTextModel, base, "text_encoder", offline).eval()
    words = tokenizer(
        prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return encoder(words.input_ids)[0]


def assemble(
    base: str, controlnets: list[Control], vae: str | None = None, reference_attention: bool = True, prompt: str = "",
    negative_prompt: str = "", offline: bool = False,
) -> AssembledHPDM:  # fmt: skip
    """Load public parts as float32 on the CPU, in evaluation mode.

    Args:
        base: folder or hub id of a Stable-Diffusion-1.5-shaped model in diffusers' format.
        controlnets: explicit conditions.
        vae: folder or hub id of another autoencoder, such as a tiny one; None is the base model's.
        reference_attention: the implicit condition.
        prompt, negative_prompt: what the views show, and what the row without conditions is told.
        offline: local folders and the local cache only.
    Raises: EnvironmentProblem or UsageError naming the part that is missing or wrong.
    """
    unet = _part(UNet2DConditionModel, base, "unet", offline)
    if vae is None:
        autoencoder = _part(AutoencoderKL, base, "vae", offline)
    else:
        autoencoder = _part(AutoencoderTiny, vae, None, offline)
    scheduler = _part(DDIMScheduler, base, "scheduler", offline)
    controls = [(_part(ControlNetModel, c.path, None, offline), c.layout, c.scale) for c in controlnets]
    for (control, _, _), config in zip(controls, controlnets, strict=True):
        if control.config.cross_attention_dim != unet.config.cross_attention_dim:
            raise UsageError(
                f"The ControlNet {config.path} is of another model family than {base}: its text width is "
                f"{control.config.cross_attention_dim}, the denoiser's {unet.config.cross_attention_dim}."
            )
    tokens, plain = (embed_prompt(base, text, offline) for text in (prompt, negative_prompt))
    return AssembledHPDM(unet, autoencoder, scheduler, controls, tokens, plain, reference_attention).eval()


def _part(kind, path: str, subfolder: str | None, offline: bool):
    """One part by its library's own loader. Args: path: folder, hub id, or hub id@revision."""
    options: dict = {"local_files_only": offline}
    name, _, revision = path.partition("@")
    if revision and not Path(path).exists():
        options["revision"] = revision
    else:
        name = path
    if subfolder is not None:
        options["subfolder"] = subfolder
    if issubclass(kind, nn.Module):
        options["use_safetensors"] = True
    what = f"{subfolder or kind.__name__} of '{path}'"
    try:
        return kind.from_pretrained(name, **options)
    except OSError as error:
        first = str(error).strip().splitlines()[0][:200]
        way = "a hub id whose files are in the local cache (or offline: false)" if offline else (
            "a hub id and a network connection"
        )
        raise EnvironmentProblem(
            f"The {what} was not found ({first}); give a folder in diffusers' format with safetensors, or {way}."
        ) from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise UsageError(f"The {what} cannot be used as {kind.__name__}: {first}") from error
