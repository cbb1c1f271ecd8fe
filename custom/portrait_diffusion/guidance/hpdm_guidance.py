"""HPDM as a guidance of the host, registered as ``portrait-diffusion-hpdm-guidance``."""
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import EnvironmentProblem, UsageError
from ..host import BaseObject, C, find, register
from ..noise.samplers import NoiseRequest
from ..ops.cameras import CANONICAL_DISTANCE, canonical_fovy, orbit_c2w
from ..ops.resize import resized
from ..optional import require
from ..seeds import step_seed
from .distillation import (
    LOSSES,
    WEIGHTINGS,
    ddim_inversion,
    ddim_sampling,
    distillation_gradient,
    distillation_loss,
    weighting,
)

BUNDLED = Path(__file__).resolve().parents[1] / "weights" / "hpdm"


def model_folder(name_or_path: str) -> Path | None:
    """Folder of the shipped model or of a local one; None for a hub id."""
    folder = BUNDLED if name_or_path == "bundled" else Path(name_or_path)
    return folder if name_or_path and folder.is_dir() else None


def is_own_model(name_or_path: str) -> bool:
    """Whether this is the shipped model or a folder of train-hpdm, which bring their own parts; else of SD's shape."""
    folder = model_folder(name_or_path)
    return name_or_path == "bundled" or (folder is not None and not (folder / "text_encoder").is_dir())


def check_model(name_or_path: str) -> None:
    """Whether the shipped model is there if it is meant; for those who want to know before they compute anything.

    Raises: EnvironmentProblem.
    """
    if name_or_path == "bundled" and not BUNDLED.is_dir():
        raise EnvironmentProblem(
            "The shipped HPDM weights are missing; reinstall the package, or train a model (train-hpdm) and give its "
            "folder as guidance.pretrained_model_name_or_path."
        )


@register("portrait-diffusion-hpdm-guidance")
class HPDMGuidance(BaseObject):
    """Score distillation with the multi-view diffusion model; called as threestudio's guidances are.

    What is known of the head is given by `set_views` (the photo, renders); until then, and in systems that know nothing
    of it, the model is told the camera alone.
    """

    @dataclass
    class Config(BaseObject.Config):
        pretrained_model_name_or_path: str = "bundled"  # the shipped one, a folder of train-hpdm, or an SD-1.5 model
        controlnets: list = field(default_factory=list)  # with an SD-1.5 model: {path, layout: tile|inpaint, scale}
        reference_attention: bool = True  # with an SD-1.5 model: its self-attention also sees the references
        vae: Any = None  # with an SD-1.5 model: folder or hub id of a tiny autoencoder; null is the model's own
        prompt: str = "portrait photo of a person"  # with an SD-1.5 model and no prompt processor
        negative_prompt: str = ""  # likewise
        view_dependent_prompting: bool = True  # with a prompt processor
        offline: bool = False  # local folders and the local cache only
        explicit_scale: Any = 1.0  # s_1, weight of what other views show; 1 is the plain conditional model
        implicit_scale: Any = 1.0  # s_2, weight of the references
        gate_floor: Any = None  # what a reference counts at least, from any angle; null: 0.25 if trained, else 0
        loss_type: str = "sds"  # sds, csd, sdi or ism
        weighting_strategy: str = "sds"  # w(t): sds, uniform or fantasia3d
        min_step_percent: Any = 0.02  # of the timesteps; may be a schedule
        max_step_percent: Any = 0.98
        grad_clip: Any = None  # largest entry of the gradient; may be a schedule; None does not clip
        half_precision_weights: bool = True  # on a GPU; a CPU computes in full precision
        one_timestep: bool = False  # one for all views of a step, so that an SD-1.5 model reads the references once
        cuda_graphs: bool = False  # the denoiser's kernels as one graph: a GPU, constant scales
        compile: bool = False  # the networks by torch.compile: a GPU, a minute or more at first
        inversion_steps: int = 8  # of sdi and ism: denoiser calls a step
        noise_sampler_type: str = "portrait-diffusion-iid-noise"  # where the noise comes from (sds, csd)
        noise_sampler: dict = field(default_factory=dict)
        seed: int = 0  # of timesteps and noise
        max_items_eval: int = 4  # pictures in the evaluation of guidance_eval

        def __post_init__(self) -> None:
            for key, allowed in (("loss_type", LOSSES), ("weighting_strategy", WEIGHTINGS)):
                if getattr(self, key) not in allowed:
                    raise UsageError(
                        f"guidance.{key} is '{getattr(self, key)}'; expected one of: {', '.join(allowed)}."
                    )

    cfg: Config

    def configure(self) -> None:
        model = self._load()
        half = self.cfg.half_precision_weights and torch.device(self.device).type != "cpu"
        # hidden from nn.Module and from the checkpoint: the guidance is fixed
        self._model = model.to(self.device, torch.bfloat16 if half else torch.float32).requires_grad_(False)
        self._model.alphas_cumprod = model.scheduler.alphas_cumprod.to(self.device)  # in full precision
        if torch.device(self.device).type == "cuda":
            from .hpdm.model import plain_attention

            plain_attention(self._model.vae)
        for key in ("compile", "cuda_graphs"):
            if getattr(self.cfg, key) and torch.device(self.device).type != "cuda":
                raise UsageError(f"guidance.{key} needs a GPU; set it to false to run on a CPU.")
        if self.cfg.compile:
            from .hpdm.compiled import compile_networks

            compile_networks(self._model.networks())
        self._graphed = None
        if self.cfg.cuda_graphs:
            from .hpdm.graphed import GraphedPredict

            self._graphed = GraphedPredict(self._model)
        self.noise_sampler = find(self.cfg.noise_sampler_type)(self.cfg.noise_sampler)
        self.generator = torch.Generator(device=self.device).manual_seed(self.cfg.seed)
        self._known = None
        self._rows_before = 0
        self.update_step(0, 0)

    @property
    def denoiser_rows(self) -> int:
        """Pictures that the denoiser has seen, of the whole run."""
        return self._rows_before + self._model.rows_seen

    def _load(self):
        require("diffusers", extra="hpdm")
        c, path = self.cfg, self.cfg.pretrained_model_name_or_path
        check_model(path)
        if is_own_model(path):
            from .hpdm.storage import load_hpdm

            return load_hpdm(model_folder(path))
        from .hpdm.assemble import Control, assemble

        try:
            controls = [Control(**control) for control in c.controlnets]
        except TypeError as error:
            raise UsageError(f"guidance.controlnets: {error}; expected path, layout and scale in each.") from error
        return assemble(path, controls, c.vae, c.reference_attention, c.prompt, c.negative_prompt, c.offline)

    @property
    def model(self):
        """The diffusion model (`hpdm.model.HPDM`), without gradients."""
        return self._model

    def _predict(self, *args: Any):
        """`HPDM.predict`, as a graph if configured."""
        return self._model.predict(*args) if self._graphed is None else self._graphed(*args)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the schedules; what a step draws is a function of seed and step, so that runs resume exactly."""
        c = self.cfg
        self.generator.manual_seed(step_seed(c.seed, global_step))
        self.set_min_max_steps(*(C(v, epoch, global_step) for v in (c.min_step_percent, c.max_step_percent)))
        self.scales = C(c.explicit_scale, epoch, global_step), C(c.implicit_scale, epoch, global_step)
        self.grad_clip = None if c.grad_clip is None else C(c.grad_clip, epoch, global_step)

    def set_min_max_steps(self, min_step_percent: float, max_step_percent: float) -> None:
        """Timesteps until the next `update_step`, as shares of all in [0, 1]."""
        steps = self._model.scheduler.config.num_train_timesteps
        self.min_step = max(1, int(steps * min_step_percent))
        self.max_step = min(steps - 1, int(steps * max_step_percent))
        if self.min_step > self.max_step:
            raise UsageError(
                f"guidance.min_step_percent gives timestep {self.min_step}, above max_step_percent's {self.max_step}."
            )

    def state_dict(self) -> dict:
        """Tensors and plain values with which another guidance of the same settings goes on bit for bit."""
        views = None if self._known is None else dict(vars(self._known.views))
        rows = self.denoiser_rows
        return {"views": views, "noise_sampler": self.noise_sampler.state_dict(), "denoiser_rows": rows}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`."""
        from .hpdm.views import Views

        self.set_views(None if state["views"] is None else Views(**state["views"]))
        self.noise_sampler.load_state_dict(state["noise_sampler"])
        self._rows_before = state.get("denoiser_rows", 0) - self._model.rows_seen

    def set_views(self, views) -> None:
        """What is known of the head from now on (`hpdm.views.Views`, on any device), or None for nothing."""
        if views is None:
            self._known = None
            return
        from .hpdm.views import KnownViews

        self._known = KnownViews(self._model, views.to(self.device, torch.float32), self.cfg.gate_floor)

    def __call__(
        self, rgb: Tensor, prompt_utils: Any = None, elevation: Tensor | None = None, azimuth: Tensor | None = None,
        camera_distances: Tensor | None = None, c2w: Tensor | None = None, fovy: Tensor | None = None,
        depth: Tensor | None = None, normals: Tensor | None = None, opacity: Tensor | None = None,
        rgb_as_latents: bool = False, guidance_eval: bool = False, **kwargs: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Distillation loss of B renders.

        Args:
            rgb: (B, H, W, 3) in [0, 1], over white; or latents (B, h, w, C) with `rgb_as_latents`.
            prompt_utils: of the host's prompt processor, for models that know words; HPDM itself knows cameras instead.
            elevation, azimuth, camera_distances: (B,) degrees, degrees, scene units; used where `c2w` is not given.
            c2w: (B, 4, 4); fovy: (B,) radians, canonical if not given.
            depth (B, H, W, 1) distance along the ray, normals (B, H, W, 3) unit length in world frame, opacity
                (B, H, W, 1): the render's geometry, if known; no gradient reaches it.
            kwargs: other batch keys, ignored.
        Returns: ``loss_sds`` (or ``loss_csd``, ``loss_sdi``, ``loss_ism``), a scalar whose gradient is that of
            `distillation_gradient` over B; ``grad_norm``; ``min_step``, ``max_step``; with `guidance_eval` ``eval``.
        """
        model, kind = self._model, self.cfg.loss_type
        if c2w is None:
            if elevation is None or azimuth is None:
                raise UsageError("The HPDM guidance needs c2w, or elevation and azimuth, of every view.")
            distance = CANONICAL_DISTANCE if camera_distances is None else camera_distances
            c2w = orbit_c2w(azimuth, elevation, distance)
        c2w = c2w.to(self.device, torch.float32)
        fovy = canonical_fovy(c2w).expand(len(c2w)) if fovy is None else fovy.to(c2w)
        latents = rgb.permute(0, 3, 1, 2) if rgb_as_latents else self._encode(rgb)
        with torch.no_grad():
            conditions, bank, depth = self._conditions(c2w, fovy, depth, normals, opacity)
            if hasattr(model, "plain"):
                view = elevation, azimuth, camera_distances
                conditions = self._with_text(conditions, c2w, prompt_utils, *view)
            clean = latents.detach().float()
            if kind in ("sds", "csd"):
                t, reference, noisy, prediction = self._sampled(clean, c2w, fovy, depth, conditions, bank)
            else:
                t, reference, noisy = self._inverted(clean, conditions, bank)
                prediction = self._predict(noisy, t[:1], conditions, *self.scales, bank)
            if kind == "csd":
                reference = prediction.alone
                if reference is None:
                    reference = self._predict(noisy, t, conditions.alone()).noise
            weight = weighting(model.alphas_cumprod[t], self.cfg.weighting_strategy)
            gradient = distillation_gradient(prediction.noise, reference, weight, self.grad_clip)
        out: dict[str, Any] = {
            f"loss_{kind}": distillation_loss(latents, gradient.to(latents)), "grad_norm": gradient.norm(),
            "min_step": self.min_step, "max_step": self.max_step,
        }  # fmt: skip
        out |= {f"noise_{name}": value for name, value in self.noise_sampler.statistics.items()}
        if guidance_eval:
            out["eval"] = self._evaluation(clean, noisy, prediction, t)
        return out

    @torch.no_grad()
    def paint(
        self, rgb: Tensor, steps: int, c2w: Tensor, fovy: Tensor, depth: Tensor, normals: Tensor, opacity: Tensor
    ) -> Tensor:
        """What the model would have of B renders: they get the noise of the largest timestep, and `steps` take it off.

        With timesteps near the end little of a render is kept but its geometry.

        Args: as of a call; steps: denoiser calls.
        Returns: (B, 3, S, S) in [0, 1], of the model's size.
        """
        model, steps = self._model, int(steps)
        conditions, bank, depth = self._conditions(c2w, fovy, depth, normals, opacity)
        if hasattr(model, "plain"):
            conditions = self._with_text(conditions, c2w, None, None, None, None)
        clean = self._encode(rgb)
        noise = self.noise_sampler(NoiseRequest(tuple(clean.shape), c2w, fovy, depth, self.generator))
        t = torch.full((len(clean),), self.max_step, device=clean.device)

        def predict(noisy: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
            found = self._predict(noisy, levels[:1], conditions, *self.scales, bank)
            return found.clean, found.noise

        noisy = model.add_noise(clean, noise, t)
        latents = ddim_sampling(noisy, self.max_step, steps, model.alphas_cumprod, predict)
        return model.decode(latents).float().clamp(0, 1)

    def _encode(self, rgb: Tensor) -> Tensor:
        """Latents (B, C, h, w) of renders (B, H, W, 3), resized to the model's pictures; differentiable."""
        picture = rgb.permute(0, 3, 1, 2)
        size = self._model.image_size
        return self._model.encode(resized(picture, (size, size))).float()

    def _conditions(self, c2w: Tensor, fovy: Tensor, depth, normals, opacity) -> tuple:
        """Conditions of the views, the references' tokens, and depth (B, S, S) at the pictures' size or None."""
        from .hpdm.conditions import Conditions
        from .hpdm.views import Target

        size = self._model.image_size

        def sized(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            x = x.detach().to(c2w).permute(0, 3, 1, 2)
            return x if x.shape[-1] == size else F.interpolate(x, (size, size), mode="nearest-exact")

        depth, normals, opacity = sized(depth), sized(normals), sized(opacity)
        if depth is not None and opacity is not None:
            depth = depth * (opacity > 0.5)
        depth = None if depth is None else depth[:, 0]
        if self._known is None:
            return Conditions(self._model.cameras(c2w)), None, depth
        normals = None if normals is None else normals.permute(0, 2, 3, 1)
        target = Target(c2w, fovy, depth, normals, None if opacity is None else opacity[:, 0])
        return self._known.conditions(target), self._known.bank_for(len(c2w)), depth

    def _with_text(self, conditions, c2w: Tensor, prompt_utils: Any, elevation, azimuth, distances):
        """Conditions with the text of the prompt processor, if there is one, and of the configuration else."""
        if prompt_utils is None:
            return replace(conditions, plain_tokens=self._model.plain(c2w))
        text = prompt_utils.get_text_embeddings(elevation, azimuth, distances, self.cfg.view_dependent_prompting)
        tokens, plain = text.to(c2w).chunk(2)
        return replace(conditions, tokens=tokens, plain_tokens=plain)

    def _sampled(self, clean: Tensor, c2w, fovy, depth, conditions, bank) -> tuple:
        """Timesteps (B,), noise, noisy latents and prediction with the sampler's noise.

        A sampler that compares candidates gets the gradients of all of them, from one call of the denoiser, and says
        which noise each view keeps.
        """
        model, sampler, b, g = self._model, self.noise_sampler, len(clean), self.generator
        compare = sampler.compares_now()
        count = 1 if compare or self.cfg.one_timestep else b
        drawn = torch.randint(self.min_step, self.max_step + 1, (count,), generator=g, device=clean.device)
        t = drawn.expand(b)
        request = NoiseRequest(tuple(clean.shape), c2w, fovy, depth, g)
        if not compare:
            noise = sampler(request)
            noisy = model.add_noise(clean, noise, t)
            return t, noise, noisy, self._predict(noisy, drawn, conditions, *self.scales, bank)
        noise = sampler.candidates(request)
        k = len(noise)
        noisy = model.add_noise(clean.repeat(k, 1, 1, 1), noise.flatten(0, 1), t.repeat(k))
        repeated = None if bank is None else self._known.bank_for(k * b)
        found = self._predict(noisy, drawn, conditions.repeated(k), *self.scales, repeated)
        best = sampler.choose((found.noise - noise.flatten(0, 1)).view_as(noise), noise, g)
        row = best * b + torch.arange(b, device=best.device)
        prediction = type(found)(*(None if x is None else x[row] for x in vars(found).values()))
        return t, noise.flatten(0, 1)[row], noisy[row], prediction

    def _inverted(self, clean: Tensor, conditions, bank) -> tuple[Tensor, Tensor, Tensor]:
        """Timesteps (B,), the noise with which the prediction is compared, and noisy latents, for SDI and ISM."""
        model, b = self._model, len(clean)
        drawn = torch.randint(self.min_step, self.max_step + 1, (1,), generator=self.generator, device=clean.device)
        step = int(drawn)  # one level for the batch: the inversion takes all rows through the same ones
        alone = conditions.alone()

        def predict(noisy: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            # ISM inverts without conditions, SDI with them
            told = alone if self.cfg.loss_type == "ism" else conditions
            found = self._predict(noisy, steps[:1], told, *self.scales, None if told is alone else bank)
            return found.clean, found.noise

        noisy, before, level = ddim_inversion(clean, step, self.cfg.inversion_steps, model.alphas_cumprod, predict)
        t = torch.full((b,), step, device=clean.device)
        if self.cfg.loss_type == "ism":
            return t, self._predict(before, torch.full_like(t, level), alone).noise, noisy
        signal, spread = model.levels(t)
        return t, (noisy - signal * clean) / spread, noisy

    @torch.no_grad()
    def _evaluation(self, clean: Tensor, noisy: Tensor, prediction, t: Tensor) -> dict:
        """Pictures of what the model was shown and what it says, as threestudio's evaluation of guidances has them."""
        n = min(self.cfg.max_items_eval, len(clean))

        def pictures(latents: Tensor) -> Tensor:
            return self._model.decode(latents[:n]).float().clamp(0, 1).permute(0, 2, 3, 1)

        one_step = pictures(prediction.clean)
        return {
            "bs": n, "noise_levels": (t[:n].float() / self._model.scheduler.config.num_train_timesteps).tolist(),
            "texts": [f"t {int(step)}" for step in t[:n]], "imgs_noisy": pictures(noisy), "imgs_1step": one_step,
            "imgs_1orig": one_step, "imgs_final": one_step,
        }  # fmt: skip
