"""Fit of a published prior to a photo: latent rows, then planes or weights, checked, and tried again from elsewhere.

W+ (Abdal et al., "Image2StyleGAN", 2019), pivotal tuning (Roich et al., 2021) or tuning of the planes themselves.
"""
import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from ..errors import UsageError
from ..files import atomic_path
from ..ops.triplane import DecoderWeights
from ..ops.triplane_gather import kept_tables
from ..ops.volrend import render_rays
from ..priors.published.adapter import PublishedPrior
from ..priors.render import half_precision
from .camera import PhotoCamera
from .detail import field_of
from .published_config import PublishedFitConfig
from .target import Target, over_white, photo_losses

log = logging.getLogger("portrait_diffusion")
CHECK_SIZE = 160
"""Side of the render in which a face is looked for, pixels."""


def ramp(step: int, steps: int) -> float:
    """Factor on learning rates: up over the first 5 %, down as a cosine over the last 25 % (StyleGAN2's projector)."""
    share = step / max(1, steps)
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - share) / 0.25))
    return down * min(1.0, (share + 1 / max(1, steps)) / 0.05)


def overlap(alpha: Tensor, target: Target) -> float:
    """Intersection over union of two silhouettes (alpha > 0.5) where the photo is known. Args: alpha (1,1,S,S)."""
    known = target.valid > 0
    a, b = (alpha > 0.5) & known, (target.alpha > 0.5) & known
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def has_face(rgb: Tensor) -> bool:
    """Whether the face detector finds a face in a picture (1,3,S,S) in [0, 1]."""
    from ..photo.detect import FaceDetector

    picture = (rgb[0].permute(1, 2, 0).clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()
    return bool(FaceDetector().detect(picture)[0])


class PublishedFit:
    """Fits a published prior to one aligned photo; the same calls as `inversion.engine.Inversion`.

    Args:
        prior, target, camera: prior, aligned photo, estimate of its camera (refined in place).
        cfg: settings; perceptual: ST-LPIPS or None; seed: of every random choice.
        checkpoint: file to resume from and write to; None keeps nothing.
        on_step: called with (stage, step, steps, losses); face_check: says whether a picture shows a face.
    """

    has_detail = False

    def __init__(
        self, prior: PublishedPrior, target: Target, camera: PhotoCamera, cfg: PublishedFitConfig, perceptual=None,
        seed: int = 0, checkpoint: Path | None = None, on_step: Callable | None = None,
        face_check: Callable[[Tensor], bool] = has_face,
    ):  # fmt: skip
        self.device = next(prior.parameters()).device
        self.prior, self.cfg, self.camera = prior, cfg, camera.to(self.device)
        self.perceptual = None if perceptual is None else perceptual.to(self.device)
        self.target = target.resized(cfg.size).to(self.device)
        self.checkpoint, self.on_step, self.face_check = checkpoint, on_step or (lambda *a: None), face_check
        self.radius, self.frame, self.seed = prior.radius, prior.frame, seed
        self.curves: dict = {}
        self.mean, self.spread = prior.latent_statistics(torch.Generator().manual_seed(seed), 2000)
        self._pristine = [p.detach().clone() for p in prior.field_parameters()] if cfg.tuning == "generator" else []
        self._begin(0)
        if checkpoint is not None and checkpoint.is_file():
            self._resume(torch.load(checkpoint, weights_only=True, map_location=self.device))

    # ---- state ---------------------------------------------------------------------------------------------------
    def _begin(self, attempt: int) -> None:
        """A fresh start: the mean latent, later random heads; the camera where it was estimated."""
        self.attempt, self.stage, self.step = attempt, "latent", 0
        self.rng = torch.Generator().manual_seed(self.seed + 1000 * attempt)
        if attempt:
            z = torch.randn(1, self.prior.generator.sizes.z_dim, generator=self.rng)
            start = self.prior.sample(z.to(self.device), 0.7)
        else:
            start = self.mean[:, None].repeat(1, self.prior.num_ws, 1)
        self.ws = start.clone().requires_grad_(True)
        with torch.no_grad():
            self.camera.values.copy_(self.camera.start)
            for p, value in zip(self.prior.field_parameters(), self._pristine):
                p.requires_grad_(False).copy_(value)
        self.tuned: list[Tensor] = []
        self.optimizer = self._adam([(self.ws, self.cfg.latent_lr), (self.camera.values, self.cfg.camera_lr)])

    @staticmethod
    def _adam(groups: list) -> torch.optim.Adam:
        params = [{"params": [p], "lr": lr, "base": lr} for p, lr in groups]
        return torch.optim.Adam(params, betas=(0.9, 0.99), fused=True)  # one pass over the planes' millions of numbers

    def _begin_tuning(self) -> None:
        """Fix the pivot: latent rows and camera stay; planes or the generator's weights become what is fitted."""
        self.stage, self.step = "tuning", 0
        self.ws.requires_grad_(False)
        with torch.no_grad():
            self.pivot = [level.float().detach() for level in self._generated()]
            self.variances = [max(float(level.var()), 1e-8) for level in self.pivot]
        if self.cfg.tuning == "planes":
            self.tuned = [level.clone().requires_grad_(True) for level in self.pivot]
            spreads = [math.sqrt(v) for v in self.variances]
            fine = [0.2 if len(self.pivot) > 2 and level.shape[-1] >= 256 else 1.0 for level in self.pivot]
            rates = [self.cfg.plane_lr * s * f for s, f in zip(spreads, fine)]
        else:
            self.tuned = [p.requires_grad_(True) for p in self.prior.field_parameters()]
            rates = [self.cfg.generator_lr] * len(self.tuned)
        self.optimizer = self._adam(list(zip(self.tuned, rates)))

    def state_dict(self) -> dict:
        """Plain containers and tensors: everything to go on."""
        return {
            "attempt": self.attempt, "stage": self.stage, "step": self.step, "rng": self.rng.get_state(),
            "curves": self.curves, "ws": self.ws.detach(), "camera": self.camera.state_dict(),
            "tuned": [t.detach() for t in self.tuned], "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def _resume(self, state: dict) -> None:
        self._begin(state["attempt"])
        with torch.no_grad():
            self.ws.copy_(state["ws"])
        self.camera.load_state_dict(state["camera"])
        if state["tuned"]:
            self._begin_tuning()
            with torch.no_grad():
                for mine, saved in zip(self.tuned, state["tuned"]):
                    mine.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.stage, self.step, self.curves = state["stage"], state["step"], state["curves"]
        self.rng.set_state(state["rng"].cpu())
        log.info("resuming the fit in stage '%s' at step %d", self.stage, self.step)

    def save(self) -> None:
        """Write the checkpoint atomically."""
        if self.checkpoint is not None:
            with atomic_path(self.checkpoint) as partial:
                torch.save(self.state_dict(), partial)

    # ---- the run -------------------------------------------------------------------------------------------------
    def run(self) -> "PublishedFit":
        """All remaining steps and attempts; the result is in `planes()`, `weights` and `camera`.

        Raises: UsageError when no attempt shows the photo's face and silhouette.
        """
        while self.stage != "done":
            if self.stage == "latent":
                self._loop("latent", self.cfg.latent_steps)
                if self.cfg.tuning != "none":
                    self._begin_tuning()
                    self.save()
            if self.stage == "tuning":
                self._loop("tuning", self.cfg.tuning_steps)
            problem = self.check()
            if problem is None:
                self.stage = "done"
            elif self.attempt + 1 < self.cfg.attempts:
                which = f"{self.attempt + 1} of {self.cfg.attempts}"
                log.warning("attempt %s: %s; trying from another start", which, problem)
                self._begin(self.attempt + 1)
            else:
                raise UsageError(
                    f"The prior '{self.prior.family}' could not be fitted to this photo: {problem} after "
                    f"{self.cfg.attempts} attempts; use a sharper, more frontal photo, more "
                    "system.published_fit.latent_steps, or system.prior.type=bundled."
                )
            self.save()
        return self

    @torch.no_grad()
    def check(self) -> str | None:
        """What is wrong with the present fit, None if nothing: its silhouette, and a face where the photo has one."""
        rgb, alpha = self._render(self.planes(), self.weights, *self.camera.rays(self.cfg.size))
        share = overlap(alpha, self.target)
        if share < self.cfg.min_overlap:
            least = self.cfg.min_overlap
            return f"its silhouette overlaps the photo's by {100 * share:.0f} %, expected {100 * least:.0f} %"
        rgb, alpha = self._render(self.planes(), self.weights, *self.camera.rays(CHECK_SIZE))
        return None if self.face_check(rgb + 1 - alpha) else "no face is found in it"

    def _loop(self, stage: str, steps: int) -> None:
        while self.step < steps:
            for group in self.optimizer.param_groups:
                group["lr"] = group["base"] * ramp(self.step, steps)
            self.optimizer.zero_grad(set_to_none=True)
            losses = self._losses(steps)
            sum(losses.values()).backward()
            self.optimizer.step()
            self.step += 1
            values = {k: float(v.detach()) for k, v in losses.items()}
            for k, v in values.items():
                self.curves.setdefault(f"{stage}/{k}", []).append(v)
            self.on_step(stage, self.step, steps, values)
            if self.step % self.cfg.checkpoint_every == 0:
                self.save()

    def _generated(self, ws: Tensor | None = None) -> list[Tensor]:
        ws = self.ws if ws is None else ws
        with half_precision(ws.device):  # bfloat16 on a GPU: the plane generator is safe, the rendering stays float32
            return [level.float() for level in self.prior.planes(ws)]

    def _losses(self, steps: int) -> dict:
        c, ws = self.cfg, self.ws
        if self.stage == "latent":
            left = max(0.0, 1 - self.step / max(1, steps) / 0.75)
            noise = torch.randn(ws.shape, generator=self.rng).to(ws) * (self.spread / math.sqrt(ws.shape[-1]))
            ws = ws + noise * (c.latent_noise * left**2)
        planes = self.tuned if self.stage == "tuning" and c.tuning == "planes" else self._generated(ws)
        whole = self.perceptual is not None and c.lambda_perceptual > 0 and self.step % c.perceptual_every == 0
        stride = 1 if whole else max(1, math.ceil(c.size / math.sqrt(c.rays)))
        y0, x0 = torch.randint(stride, (2,), generator=self.rng).tolist()
        # anywhere within the pixels: through the centres alone finer texels stay as they were
        dy, dx = (torch.rand(2, generator=self.rng) - 0.5).tolist()
        rows, columns = (torch.arange(start, c.size, stride, device=ws.device) for start in (y0, x0))
        rays_o, rays_d = self.camera.rays(c.size, rows + dy, columns + dx)
        t = self.target
        target = Target(*(x[:, :, y0::stride, x0::stride] for x in (t.rgb, t.alpha, t.valid)))
        rgb, alpha = self._render(planes, self.prior.decoder(ws), rays_o, rays_d, self.rng)
        colour, silhouette = photo_losses(rgb, alpha, target)
        losses = {"rgb": c.lambda_rgb * colour, "alpha": c.lambda_alpha * silhouette}
        if whole:
            losses["perceptual"] = c.lambda_perceptual * self.perceptual(*over_white(rgb, alpha, target)).mean()
        if self.stage == "latent":
            pull = (self.ws - self.mean).square().sum(-1).mean() / self.spread**2
            losses |= {"latent": c.lambda_latent * pull, "camera": c.lambda_camera * self.camera.deviation()}
        else:
            pull = sum(F.mse_loss(a, b) / v for a, b, v in zip(planes, self.pivot, self.variances))
            losses["pivot"] = c.lambda_pivot * pull / len(self.pivot)
        return losses

    def _render(
        self, planes: list[Tensor], weights: DecoderWeights, rays_o: Tensor, rays_d: Tensor,
        rng: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """rgb (1,3,h,w) premultiplied and alpha (1,1,h,w); chunks of rays are computed again for the gradient."""
        n, (h, w) = self.cfg.samples, rays_o.shape[1:3]
        parts = list(zip(*(r.flatten(1, 2).split(self.cfg.ray_chunk, dim=1) for r in (rays_o, rays_d))))
        seeds = [None if rng is None else int(torch.randint(2**31, (1,), generator=rng)) for _ in parts]

        @kept_tables(gradients=True)
        def chunk(o: Tensor, d: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
            draws = None if seed is None else torch.Generator(device=o.device).manual_seed(seed)
            out = render_rays(field_of(planes, weights, self.frame), o, d, self.radius, n, n, draws)
            return out["rgb"], out["opacity"]

        again = len(parts) > 1 and torch.is_grad_enabled()
        outs = []
        for (o, d), seed in zip(parts, seeds):
            outs.append(recomputed(chunk, o, d, seed, use_reentrant=False) if again else chunk(o, d, seed))
        rgb, alpha = (torch.cat(x, dim=1).transpose(1, 2).view(1, -1, h, w) for x in zip(*outs))
        return rgb, alpha

    # ---- the result ----------------------------------------------------------------------------------------------
    @property
    def weights(self) -> DecoderWeights:
        """Decoder of density and colour."""
        with torch.no_grad():
            return DecoderWeights(*(w.detach() for w in self.prior.decoder(self.ws)))

    @torch.no_grad()
    def planes(self) -> list[Tensor]:
        """Planes for the geometry."""
        if self.tuned and self.cfg.tuning == "planes":
            return [level.detach() for level in self.tuned]
        return [level.detach() for level in self._generated()]
