"""Inversion: encoder, latent optimisation with the photo's camera, detail grid.

Checkpointed, seeded, deterministic on a CPU.
"""
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..files import atomic_path
from ..ops.cameras import canonical_fovy, get_rays, orbit_c2w, world_to_head
from ..ops.plane_layouts import PlaneFrame
from ..ops.triplane import DETAIL_GAIN
from ..ops.triplane_gather import kept_tables
from ..ops.volrend import render_rays
from ..priors.bundled import BundledPrior, Latent
from .camera import PhotoCamera
from .config import InversionConfig
from .detail import build_cache, field_of, frontal_surface, render_cached, total_variation, visibility_gate
from .target import Target, over_white, photo_losses, uncropped
from .unseen import BEHIND, outline_colour, recoloured, upper_colour

log = logging.getLogger("portrait_diffusion")
SURFACE_SIZE = 128
"""Side of the render from which the visible surface is taken, pixels; it is smooth."""
StepFn = Callable[[str, int, int, dict], None]


class Inversion:
    """Fits a prior to one aligned photo.

    Args:
        prior: encoder and generator; the fit runs on their device.
        target: aligned photo at `cfg.detail_size` or larger.
        camera: estimate of the photo's camera, refined in place.
        cfg: settings.
        perceptual: ST-LPIPS module or None.
        seed: of every random choice.
        checkpoint: file to resume from and to write to; None keeps nothing.
        on_step: called with (stage, step, steps, losses) after every step.
    """

    def __init__(
        self, prior: BundledPrior, target: Target, camera: PhotoCamera, cfg: InversionConfig,
        perceptual=None, seed: int = 0, checkpoint: Path | None = None, on_step: StepFn | None = None,
    ):
        self.device = next(prior.parameters()).device
        self.prior, self.cfg = prior, cfg
        self.target = target.to(self.device)
        self.perceptual = None if perceptual is None else perceptual.to(self.device)
        self.checkpoint, self.on_step = checkpoint, on_step or (lambda *args: None)
        self.weights, self.radius = prior.decoder, prior.radius
        self.frame = PlaneFrame(radius=prior.radius, density_scale=cfg.density_scale)
        self.rng = torch.Generator().manual_seed(seed)  # on the CPU always: the same numbers for every device
        self.camera = camera.to(self.device)
        self.stage, self.step = "latent", 0
        self.curves: dict = {}
        with torch.no_grad():
            azimuth, elevation, _ = camera.degrees()
            plain = uncropped(self.target.resized(128), camera.pose()[2])
            self.start = prior.encode(plain.rgb, plain.alpha, plain.valid, float(azimuth), float(elevation))
        self.latent = Latent(
            self.start.ws.clone().requires_grad_(True),
            {r: f.clone().requires_grad_(True) for r, f in self.start.features.items()},
            torch.zeros(
                1, prior.generator.spec.plane_channels, cfg.rear_size, cfg.rear_size, requires_grad=True,
                device=self.device,
            ),
        )
        saved = None
        if checkpoint is not None and checkpoint.is_file():
            saved = torch.load(checkpoint, weights_only=True, map_location=self.device)
        later = saved is not None and saved["stage"] != "latent"  # only the latent stage looks at the kept views
        self.novel = [] if later else self._novel_views(plain)
        self.grid: Tensor | None = None
        self.gate: Tensor | None = None
        self.optimizer = self._latent_optimizer()
        if saved is not None:
            self.load_state_dict(saved)
            log.info("resuming the inversion in stage '%s' at step %d", self.stage, self.step)

    # ---- state ---------------------------------------------------------------------------------------------------
    def _latent_optimizer(self) -> torch.optim.Adam:
        c = self.cfg
        return torch.optim.Adam(
            [
                {"params": [self.latent.ws], "lr": c.latent_lr, "base": c.latent_lr},
                {"params": list(self.latent.features.values()), "lr": c.feature_lr, "base": c.feature_lr},
                {"params": [self.latent.rear], "lr": c.rear_lr, "base": c.rear_lr},
                {"params": [self.camera.values], "lr": c.camera_lr, "base": c.camera_lr},
            ],
            betas=(0.9, 0.99),
        )

    def state_dict(self) -> dict:
        """Plain containers and tensors: everything to continue bit for bit."""
        return {
            "stage": self.stage, "step": self.step, "rng": self.rng.get_state(), "curves": self.curves,
            "ws": self.latent.ws.detach(), "features": {r: f.detach() for r, f in self.latent.features.items()},
            "rear": self.latent.rear.detach(),
            "camera": self.camera.state_dict(), "grid": None if self.grid is None else self.grid.detach(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        with torch.no_grad():
            self.latent.ws.copy_(state["ws"])
            for r, f in state["features"].items():
                self.latent.features[r].copy_(f)
            self.latent.rear.copy_(state["rear"])
        self.camera.load_state_dict(state["camera"])
        self.stage, self.step, self.curves = state["stage"], state["step"], state["curves"]
        self.rng.set_state(state["rng"].cpu())
        if self.stage == "latent":
            self.optimizer.load_state_dict(state["optimizer"])
        elif self.stage == "detail":
            self._begin_detail()
            with torch.no_grad():
                self.grid.copy_(state["grid"])
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            self.grid = state["grid"]

    def save(self) -> None:
        """Write the checkpoint atomically."""
        if self.checkpoint is None:
            return
        with atomic_path(self.checkpoint) as partial:
            torch.save(self.state_dict(), partial)

    # ---- the run -------------------------------------------------------------------------------------------------
    def run(self) -> "Inversion":
        """All remaining stages. The result is in `planes()` and `camera`."""
        if self.stage == "latent":
            self._loop("latent", self.cfg.latent_steps, self._latent_step)
            self.stage, self.step = "detail", 0
            self._begin_detail()
            self.save()
        if self.stage == "detail":
            self._loop("detail", self.cfg.detail_steps, self._detail_step)
            with torch.no_grad():
                self.grid = (self.grid * self.gate).detach()  # the gate holds the gain
            self.stage = "done"
            self.save()
        return self

    def _loop(self, stage: str, steps: int, step_fn: Callable[[], dict]) -> None:
        while self.step < steps:
            share = self.step / max(1, steps)
            for group in self.optimizer.param_groups:
                fall = 1.0 if share < 0.5 else 2.0 * (1 - share) + 1e-2
                group["lr"] = group["base"] * min(1.0, (self.step + 1) / 5) * fall
            self.optimizer.zero_grad(set_to_none=True)
            losses = step_fn()
            total = sum(losses.values())
            total.backward()
            self.optimizer.step()
            self.step += 1
            values = {k: float(v.detach()) for k, v in losses.items()}
            for k, v in values.items():
                self.curves.setdefault(f"{stage}/{k}", []).append(v)
            self.on_step(stage, self.step, steps, values)
            if self.step % self.cfg.checkpoint_every == 0:
                self.save()

    def _compare(self, rgb: Tensor, alpha: Tensor, target: Target) -> dict:
        """Weighted losses on colour and alpha; all (1, C, h, w)."""
        colour, silhouette = photo_losses(rgb, alpha, target)
        return {"rgb": self.cfg.lambda_rgb * colour, "alpha": self.cfg.lambda_alpha * silhouette}

    def _perceptual(self, rgb: Tensor, alpha: Tensor, target: Target) -> dict:
        """ST-LPIPS over white; where the photo knows nothing the render stands on both sides."""
        if self.perceptual is None or self.cfg.lambda_perceptual == 0:
            return {}
        return {"perceptual": self.cfg.lambda_perceptual * self.perceptual(*over_white(rgb, alpha, target)).mean()}

    @torch.no_grad()
    def _novel_views(self, plain: Target) -> list:
        """(rays_o, rays_d, rgb, opacity) of side and back views that the latent stage must keep.

        They are the encoder's answer, its hair moved to the colour that the photo shows at the outline.
        """
        if self.cfg.lambda_novel == 0 or self.cfg.novel_views == 0:
            return []
        field = field_of(self.prior.synthesize(self.start), self.weights, self.frame)
        size, n, views = self.cfg.novel_size, self.cfg.latent_samples, []
        front = float(self.camera.degrees()[0])

        def render(offset: float) -> tuple:
            c2w = orbit_c2w(front + torch.tensor(offset, device=self.device), torch.zeros((), device=self.device))[None]
            rays_o, rays_d = (r.flatten(1, 2) for r in get_rays(c2w, canonical_fovy(c2w), size, size))
            out = render_rays(field, rays_o, rays_d, self.radius, n, n)
            points = world_to_head(rays_o + out["depth"] * rays_d)
            return rays_o, rays_d, *(v.view(size, size, -1) for v in (out["rgb"], out["opacity"], points))

        guessed = upper_colour(*render(180.0)[2:4])
        wanted = outline_colour(plain)
        for offset in torch.linspace(70.0, 290.0, self.cfg.novel_views).tolist():
            rays_o, rays_d, rgb, opacity, points = render(offset)
            if guessed is not None and wanted is not None:
                rgb = recoloured(rgb, opacity, points, guessed, BEHIND * wanted)
            views.append((rays_o, rays_d, rgb.view(1, -1, 3), opacity.view(1, -1, 1)))
        return views

    def _novel_loss(self, planes: list[Tensor]) -> dict:
        """One of the kept views a step, in turn."""
        if not self.novel:
            return {}
        n = self.cfg.latent_samples
        rays_o, rays_d, rgb, opacity = self.novel[self.step * 3 % len(self.novel)]  # far from the one before
        out = render_rays(field_of(planes, self.weights, self.frame), rays_o, rays_d, self.radius, n, n)
        error = (out["rgb"] - rgb).abs().mean() + (out["opacity"] - opacity).abs().mean()
        return {"novel": self.cfg.lambda_novel * error}

    @kept_tables(gradients=True)
    def _latent_step(self) -> dict:
        c, size = self.cfg, self.cfg.latent_size
        target = self.target.resized(size)
        planes = self.prior.synthesize(self.latent)
        rays_o, rays_d = self.camera.rays(size)
        field = field_of(planes, self.weights, self.frame)
        out = render_rays(
            field, rays_o.flatten(1, 2), rays_d.flatten(1, 2), self.radius, c.latent_samples, c.latent_samples, self.rng
        )
        rgb = out["rgb"].transpose(1, 2).view(1, 3, size, size)
        alpha = out["opacity"].transpose(1, 2).view(1, 1, size, size)
        losses = self._compare(rgb, alpha, target) | self._perceptual(rgb, alpha, target)
        losses |= self._novel_loss(planes)
        pull = (self.latent.ws - self.start.ws).square().mean()
        pull = pull + sum((f - self.start.features[r]).square().mean() for r, f in self.latent.features.items())
        return losses | {"latent": c.lambda_latent * pull, "camera": c.lambda_camera * self.camera.deviation()}

    def _begin_detail(self) -> None:
        """Freeze planes and camera, cache the photo's rays, make an empty grid: a function of latent and camera."""
        c = self.cfg
        with torch.no_grad():
            self.planes_fixed = [level.detach() for level in self.prior.synthesize(self.latent)]
            rays_o, rays_d = self.camera.rays(c.detail_size)
            small_o, small_d = self.camera.rays(min(SURFACE_SIZE, c.detail_size))
        surface = frontal_surface(self.planes_fixed, self.weights, self.radius, small_o, small_d, self.frame)
        surface = surface.resized(c.detail_size)
        target = self.detail_target = self.target.resized(c.detail_size)
        shape = (c.detail_depth, c.detail_resolution, c.detail_resolution)
        self.gate = visibility_gate(
            surface, self.camera.pose(), shape, self.radius, c.detail_thickness, rays_o.device, before=c.detail_before
        )
        self.gate = self.gate * self.gate.new_tensor(DETAIL_GAIN).view(1, 1, 4, 1, 1, 1)
        touched = (target.alpha[0, 0] > 0.004) | (surface.opacity > 0.004)
        keep = touched & (target.valid[0, 0] > 0)
        self.cache = build_cache(
            self.planes_fixed, self.weights, self.radius, rays_o, rays_d, surface, keep, c.detail_samples,
            c.detail_thickness, shape=(1, 1, 4, *shape), frame=self.frame,
        )  # fmt: skip
        self.grid = torch.zeros(1, 1, 4, *shape, requires_grad=True, device=self.device)
        self.row_of_pixel = torch.full((c.detail_size**2,), -1, dtype=torch.long, device=self.device)
        self.row_of_pixel[self.cache.index] = torch.arange(len(self.cache.index), device=self.device)
        self.optimizer = torch.optim.Adam(
            [{"params": [self.grid], "lr": c.detail_lr, "base": c.detail_lr}], betas=(0.9, 0.99), eps=1e-15
        )

    def _detail_pixels(self) -> tuple:
        """Rows and columns of this step: all, or a dense or a strided window by turns, for perception needs an image.

        The whole is 3 to 6 dB nearer to the photo than windows of half of the pixels, in as much time.
        """
        c = self.cfg
        side = c.detail_side
        largest = max(1, c.detail_size // side)
        stride = 1 if self.step % 2 else largest
        room = c.detail_size - stride * (side - 1)
        slack = stride * side // 2  # windows over the edge are pushed back, so that corners get their share
        y0, x0 = torch.randint(-slack, room + slack, (2,), generator=self.rng).clamp(0, room - 1).tolist()
        along = stride * torch.arange(side, device=self.device)
        return y0 + along, x0 + along

    def _detail_step(self) -> dict:
        c = self.cfg
        ys, xs = self._detail_pixels()
        side = len(ys)
        pixels = (ys[:, None] * c.detail_size + xs[None]).flatten()
        rows = self.row_of_pixel[pixels]
        known = rows >= 0
        gated = self.grid * self.gate
        rgb, opacity, depth = render_cached(self.cache, rows[known], gated)
        where = known.nonzero()[:, 0]
        image = rgb.new_zeros(side * side, 4).index_copy(0, where, torch.cat([rgb, opacity], dim=-1))
        image = image.t().view(1, 4, side, side)
        t = self.detail_target
        target = Target(*(x[:, :, ys][:, :, :, xs] for x in (t.rgb, t.alpha, t.valid)))
        losses = self._compare(image[:, :3], image[:, 3:], target)
        losses |= self._perceptual(image[:, :3], image[:, 3:], target)
        before, depth_before = self.cache.opacity[rows[known]], self.cache.depth[rows[known]]
        agree = ((before - target.alpha.flatten()[where][:, None]).abs() < 0.3).float()
        drift = (opacity - before).abs() + 5.0 * (depth - depth_before).abs().clamp(max=0.1) * before
        losses["geometry"] = c.lambda_geometry * (drift * agree).sum() / max(1, drift.numel())
        losses["detail"] = c.lambda_detail * self.grid.square().mean()
        losses["smooth"] = c.lambda_smooth * total_variation(gated)
        return losses

    @property
    def has_detail(self) -> bool:
        """Whether `planes` ends with a detail grid."""
        return self.grid is not None and self.cfg.detail_steps > 0

    def planes(self) -> list:
        """The result as a pyramid: the prior's planes and, from the detail stage on, the gated detail grid."""
        with torch.no_grad():
            base = [level.detach() for level in self.prior.synthesize(self.latent)]
        if not self.has_detail:
            return base
        grid = self.grid.detach() if self.stage == "done" else (self.grid * self.gate).detach()
        return [*base, grid]


def psnr_inside(rgb: Tensor, alpha: Tensor, target: Target) -> float:
    """PSNR over white inside the matte (alpha > 0.5 and valid); a quick number for the progress display."""
    inside = ((target.alpha > 0.5) & (target.valid > 0)).float()
    error = ((rgb + 1 - alpha) - (target.rgb + 1 - target.alpha)).square().mean(dim=1, keepdim=True)
    mse = (error * inside).sum() / inside.sum().clamp(min=1)
    return float(-10 * torch.log10(mse.clamp(min=1e-10)))
