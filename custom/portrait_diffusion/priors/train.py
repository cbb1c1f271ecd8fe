"""Training of the bundled prior: adversarial and multi-view reconstruction together, on data held in device memory.

One step: an encoder reads a front-ish view of each subject, the generator makes planes, patches of other views are
rendered and compared with the truth (L1 on premultiplied colour and alpha, ST-LPIPS, depth); a camera- and
patch-conditioned discriminator judges those patches and patches of heads sampled from the mapping network
(non-saturating loss, R1).

Resumable in runs of a given number of seconds; learning rates follow the share of the total budget that is used up.
"""
import argparse
import copy
import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.cameras import get_rays
from .alignment import encoder_input
from .augment import affine_jitter, colour_jitter, degrade, unknown_border
from .data import MultiViewData, load_shards, read_manifest
from .networks import Discriminator, Encoder, Generator, LatentCritic, PriorSpec
from .render import render_planes
from .storage import save_weights

log = logging.getLogger("portrait_diffusion")
PATCH = 64


@dataclass
class TrainConfig:
    """Hyper-parameters of the prior's training; weights are relative to L1 on colour."""

    batch: int = 16
    """Subjects a step."""
    sampled: int = 8
    """Heads a step that come from the mapping network (adversarial loss only)."""
    coarse: int = 24
    fine: int = 24
    lr_generator: float = 2.0e-3
    lr_encoder: float = 3.0e-4
    lr_discriminator: float = 3.0e-4
    w_alpha: float = 1.0
    w_perceptual: float = 0.6
    w_depth: float = 1.0
    w_adversarial: float = 0.02
    w_sampled: float = 0.05
    w_latent: float = 0.01
    w_delta: float = 0.002
    r1_gamma: float = 1.0
    r1_every: int = 16
    adversarial_from: float = 0.15
    """Share of the budget after which the adversarial terms come in (linearly over another 0.15)."""
    drop_features: float = 0.25
    """Share of subjects whose spatial features are dropped, so that W+ alone explains a head too."""
    ema_halflife_steps: float = 600.0
    decay_from: float = 0.6
    """Share of the budget after which learning rates fall (cosine) to a twentieth."""
    total_seconds: float = 1500.0
    seed: int = 0


def schedule(share: float, config: TrainConfig) -> tuple:
    """(learning-rate factor, adversarial factor) after a share in [0, 1] of the budget."""
    tail = max(0.0, (share - config.decay_from) / max(1e-6, 1 - config.decay_from))
    lr = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, tail)))
    adversarial = min(1.0, max(0.0, (share - config.adversarial_from) / 0.15))
    return lr, adversarial


class Trainer:
    """State and steps of the training; device and precision come from the data."""

    def __init__(self, spec: PriorSpec, config: TrainConfig, data: MultiViewData, perceptual: nn.Module | None):
        device = data.device
        torch.manual_seed(config.seed)  # network initialisation
        self.config, self.spec, self.data, self.perceptual = config, spec, data, perceptual
        self.generator = Generator(spec).to(device)
        self.encoder = Encoder(spec).to(device)
        self.discriminator = Discriminator().to(device)
        self.critic = LatentCritic(spec.w_dim).to(device)
        self.ema = nn.ModuleDict({"generator": self.generator, "encoder": self.encoder})
        self.ema = copy.deepcopy(self.ema).requires_grad_(False)
        self.opt_g = torch.optim.Adam(
            [
                {"params": self.generator.synthesis.parameters(), "base": config.lr_generator},
                {"params": self.generator.decoder.parameters(), "base": config.lr_generator},
                {"params": self.generator.mapping.parameters(), "base": config.lr_generator},
                {"params": self.encoder.parameters(), "base": config.lr_encoder},
            ],
            lr=1e-3,
            betas=(0.5, 0.99),
        )
        self.opt_d = torch.optim.Adam(
            [
                {
                    "params": [*self.discriminator.parameters(), *self.critic.parameters()],
                    "base": config.lr_discriminator,
                }
            ],
            lr=1e-3,
            betas=(0.0, 0.99),
        )
        self.rng = torch.Generator(device=device).manual_seed(config.seed + 1)
        self.step, self.seconds, self.history = 0, 0.0, []
        front = (data.azimuth.abs() <= 32) & (data.elevation.abs() <= 16)
        self.front_weight = front.float() + 1e-6  # every subject has view 0 in front

    # ---- batches -------------------------------------------------------------------------------------------------
    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng, device=self.data.device)

    def draw(self) -> dict:
        """A batch: encoder input and two target patches a subject (one front-ish, one anywhere)."""
        d, c = self.data, self.config
        n = torch.randint(len(d), (c.batch,), generator=self.rng, device=d.device)
        views = d.rgba.shape[1]
        source = torch.multinomial(self.front_weight[n], 1, generator=self.rng).squeeze(1)
        near = torch.multinomial(self.front_weight[n], 1, generator=self.rng).squeeze(1)
        anywhere = torch.randint(views, (c.batch,), generator=self.rng, device=d.device)
        chosen = torch.stack([source, near, anywhere], dim=1)  # (B, 3)
        rgba = d.rgba[n[:, None], chosen].float() / 255.0  # (B, 3, S, S, 4)
        strength = (self.rand(c.batch) < 0.7).float()
        rgb = colour_jitter(rgba[..., :3], strength, self.rng)
        images = torch.cat([rgb * rgba[..., 3:], rgba[..., 3:]], dim=-1).permute(0, 1, 4, 2, 3)  # premultiplied
        b = c.batch
        colour, alpha = degrade(images[:, 0, :3], images[:, 0, 3:], self.rng)
        valid = unknown_border(b, d.size, self.rng, d.device)
        jittered = affine_jitter(torch.cat([colour, alpha, valid], dim=1), self.rng)
        noise = 4.0 * torch.randn((2, b), generator=self.rng, device=d.device)
        x = encoder_input(
            jittered[:, :3], jittered[:, 3:4], jittered[:, 4:5],
            d.azimuth[n, source] + noise[0], d.elevation[n, source] + noise[1], self.spec.encoder_input,
        )
        target = chosen[:, 1:].reshape(-1)
        subject = n[:, None].expand(-1, 2).reshape(-1)
        return {
            "x": x,
            **self.patches(images[:, 1:].reshape(2 * b, 4, d.size, d.size), subject, target),
        }

    def patches(self, images: Tensor, subject: Tensor, view: Tensor) -> dict:
        """64² patches: half of the rows see the whole frame at half resolution, half a window at full resolution.

        Rows 2k and 2k + 1 are two views of a subject, the first in front; the kinds alternate with k, so that front
        and other views both come in both kinds.
        """
        d = self.data
        m = images.shape[0]
        row = torch.arange(m, device=d.device)
        whole = (row + row // 2) % 2 == 0
        if d.size != 2 * PATCH:
            raise ValueError(f"training images must be {2 * PATCH} px, got {d.size}")
        origin = (self.rand(m, 2) * (PATCH + 1)).long().clamp(max=PATCH)
        origin = torch.where(whole[:, None], torch.zeros_like(origin), origin)  # (m, 2) column, row
        index = torch.arange(PATCH, device=d.device)
        small = F.avg_pool2d(images, 2)
        rows, cols = origin[:, 1:2] + index, origin[:, :1] + index
        batch = torch.arange(m, device=d.device)[:, None, None]
        crop = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
        target = torch.where(whole[:, None, None, None], small, crop)
        scale = torch.where(whole, 1.0, 0.5)
        offset = origin.float() / d.size
        out = {
            "target": target, "c2w": d.c2w[subject, view], "fovy": d.fovy[subject, view],
            "scale": scale, "offset": offset,
            "condition": camera_condition(d.azimuth[subject, view], d.elevation[subject, view], scale, offset),
        }
        if d.depth is not None:
            depth = d.depth[subject, view].float()[:, None]
            hit = (depth > 0).float()
            pooled = F.avg_pool2d(depth, 2) / F.avg_pool2d(hit, 2).clamp(min=1e-6)
            pooled_hit = (F.avg_pool2d(hit, 2) > 0.99).float()
            crop = depth[:, 0][batch, rows[:, :, None], cols[:, None, :]][:, None]
            out["depth"] = torch.where(whole[:, None, None, None], pooled * pooled_hit, crop)
        return out

    def cameras(self, count: int) -> dict:
        """Random cameras of the data set with random patches, for heads that have no truth."""
        d = self.data
        n = torch.randint(len(d), (count,), generator=self.rng, device=d.device)
        v = torch.randint(d.rgba.shape[1], (count,), generator=self.rng, device=d.device)
        whole = torch.arange(count, device=d.device) % 2 == 0
        scale = torch.where(whole, 1.0, 0.5)
        offset = torch.where(whole[:, None], 0.0, (self.rand(count, 2) * (PATCH + 1)).floor().clamp(max=PATCH) / d.size)
        return {
            "c2w": d.c2w[n, v], "fovy": d.fovy[n, v], "scale": scale, "offset": offset,
            "condition": camera_condition(d.azimuth[n, v], d.elevation[n, v], scale, offset),
        }

    # ---- model ---------------------------------------------------------------------------------------------------
    def autocast(self):
        return torch.autocast(self.data.device.type, dtype=torch.bfloat16, enabled=self.data.device.type != "cpu")

    def render(self, planes: Tensor, cams: dict, size: int = PATCH, generator: torch.Generator | None = None) -> dict:
        rays_o, rays_d = patch_rays(cams["c2w"], cams["fovy"], cams["scale"], cams["offset"], size)
        return render_planes(
            planes, self.generator.decoder.weights(), rays_o, rays_d, self.config.coarse, self.config.fine, generator
        )

    def judge(self, images: Tensor, condition: Tensor, own: int) -> Tensor:
        """Logits of the discriminator. Rows from `own` on (heads of the mapping network) are a batch of their own.

        Else the minibatch standard deviation would compare them with reconstructions and could not tell when they are
        all alike.
        """
        parts = [(images[:own], condition[:own]), (images[own:], condition[own:])]
        return torch.cat([self.discriminator(x, y).float() for x, y in parts if len(x)])

    def learning_rates(self) -> float:
        lr, adversarial = schedule(self.seconds / self.config.total_seconds, self.config)
        warm = min(1.0, (self.step + 1) / 200)
        for group in (*self.opt_g.param_groups, *self.opt_d.param_groups):
            group["lr"] = group["base"] * lr * warm
        return adversarial

    def train_step(self) -> dict:
        """One generator and one discriminator update. Returns scalars for the log."""
        c, d = self.config, self.data
        adversarial = self.learning_rates()
        batch = self.draw()
        with self.autocast():
            ws, delta, features = self.encoder(batch["x"])
            keep = (self.rand(c.batch) >= c.drop_features).float()[:, None, None, None]
            features = {r: f * keep for r, f in features.items()}
            z = torch.randn((c.sampled, self.spec.z_dim), generator=self.rng, device=d.device)
            w = self.generator.mapping(z)
            all_ws = torch.cat([ws, w[:, None].expand(-1, self.spec.num_ws, -1)])
            all_features = {r: torch.cat([f, f.new_zeros(c.sampled, *f.shape[1:])]) for r, f in features.items()}
            planes = self.generator.synthesis(all_ws, all_features).float()
        cams = self.cameras(c.sampled)
        both = {k: torch.cat([batch[k], cams[k]]) for k in ("c2w", "fovy", "scale", "offset", "condition")}
        index = torch.cat([torch.arange(c.batch, device=d.device).repeat_interleave(2),
                           torch.arange(c.batch, c.batch + c.sampled, device=d.device)])
        out = self.render(planes[index], both, generator=self.rng)
        m = 2 * c.batch
        rgb, alpha = out["rgb"][:m], out["opacity"][:m]
        target_rgb, target_alpha = batch["target"][:, :3], batch["target"][:, 3:]
        losses = {
            "rgb": (rgb - target_rgb).abs().mean(),
            "alpha": c.w_alpha * (alpha - target_alpha).abs().mean(),
            "delta": c.w_delta * delta.float().square().mean(),
        }
        if "depth" in batch:
            solid = (batch["depth"] > 0) & (target_alpha > 0.99)
            error = (out["depth"][:m] - batch["depth"]).abs().clamp(max=0.2)
            losses["depth"] = c.w_depth * (error * solid).sum() / solid.sum().clamp(min=1)
        fake = torch.cat([over_white(out["rgb"], out["opacity"]), out["opacity"]], dim=1)
        real = torch.cat([over_white(target_rgb, target_alpha), target_alpha], dim=1)
        if self.perceptual is not None:
            with self.autocast():
                losses["perceptual"] = c.w_perceptual * self.perceptual(fake[:m, :3], real[:, :3]).float().mean()
        if adversarial > 0:
            with self.autocast():
                logits = self.judge(fake, both["condition"], m)
                latent = self.critic(w).float()
            losses["adversarial"] = adversarial * c.w_adversarial * F.softplus(-logits[:m]).mean()
            losses["sampled"] = adversarial * c.w_sampled * F.softplus(-logits[m:]).mean()
            losses["latent"] = c.w_latent * F.softplus(-latent).mean()
        self.opt_g.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False), self.critic.requires_grad_(False)
        sum(losses.values()).backward()
        self.discriminator.requires_grad_(True), self.critic.requires_grad_(True)
        nn.utils.clip_grad_norm_([p for g in self.opt_g.param_groups for p in g["params"]], 1.0)
        self.opt_g.step()
        self.generator.mapping.track(w.detach() if adversarial > 0 else ws.detach().mean(dim=1))
        log_values = {k: v.detach() for k, v in losses.items()}
        if self.seconds / c.total_seconds > c.adversarial_from - 0.05:
            log_values |= self.discriminator_step(real, batch["condition"], fake.detach(), both["condition"], ws, w)
        self.update_ema()
        self.step += 1
        return log_values

    def discriminator_step(self, real, real_condition, fake, fake_condition, ws, w) -> dict:
        c = self.config
        with self.autocast():
            on_fake = self.judge(fake, fake_condition, len(real))
            on_real = self.discriminator(real, real_condition).float()
            pick = torch.randint(ws.shape[1], (ws.shape[0],), generator=self.rng, device=ws.device)
            latent_real = ws.detach()[torch.arange(ws.shape[0], device=ws.device), pick].float()
            critic_real, critic_fake = self.critic(latent_real).float(), self.critic(w.detach()).float()
        loss = F.softplus(on_fake).mean() + F.softplus(-on_real).mean()
        loss = loss + F.softplus(critic_fake).mean() + F.softplus(-critic_real).mean()
        if self.step % c.r1_every == 0:
            image = real.detach().float().requires_grad_(True)
            point = latent_real.requires_grad_(True)
            logits = self.discriminator(image, real_condition).sum() + self.critic(point).sum()
            g_image, g_point = torch.autograd.grad(logits, (image, point), create_graph=True)
            penalty = g_image.square().sum(dim=(1, 2, 3)).mean() * c.r1_gamma + g_point.square().sum(dim=1).mean()
            loss = loss + 0.5 * c.r1_every * penalty
        self.opt_d.zero_grad(set_to_none=True)
        loss.backward()
        self.opt_d.step()
        return {"d": loss.detach(), "d_real": on_real.detach().mean(), "d_fake": on_fake.detach().mean()}

    @torch.no_grad()
    def update_ema(self) -> None:
        decay = min(0.5 ** (1.0 / self.config.ema_halflife_steps), (1 + self.step) / (10 + self.step))
        for name, module in (("generator", self.generator), ("encoder", self.encoder)):
            average = list(self.ema[name].parameters())
            torch._foreach_lerp_(average, list(module.parameters()), 1 - decay)
            for a, b in zip(self.ema[name].buffers(), module.buffers()):
                a.copy_(b)

    # ---- checkpoints ---------------------------------------------------------------------------------------------
    def state(self) -> dict:
        return {
            "step": self.step, "seconds": self.seconds, "history": self.history, "rng": self.rng.get_state(),
            "spec": asdict(self.spec), "opt_g": self.opt_g.state_dict(), "opt_d": self.opt_d.state_dict(),
            **{k: getattr(self, k).state_dict() for k in ("generator", "encoder", "discriminator", "critic", "ema")},
        }

    def load(self, state: dict) -> None:
        for k in ("generator", "encoder", "discriminator", "critic", "ema", "opt_g", "opt_d"):
            getattr(self, k).load_state_dict(state[k])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.rng.set_state(state["rng"].cpu())


def camera_condition(azimuth: Tensor, elevation: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """(M, 6) condition of the discriminator from degrees and the patch window (unit coordinates)."""
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    return torch.stack([a.sin(), a.cos(), e.sin() * 2, scale, offset[:, 0], offset[:, 1]], dim=1)


def patch_rays(c2w: Tensor, fovy: Tensor, scale: Tensor, offset: Tensor, size: int) -> tuple:
    """Rays of a window of the image plane, by elementwise sums: matrix products in TF32 would bend them.

    Args:
        c2w: (M, 4, 4); fovy: (M,) radians.
        scale: (M,) share of the frame; offset: (M, 2) of its upper left corner (u, v), in [0, 1].
        size: side of the window in pixels.
    Returns: rays_o, rays_d (M, size, size, 3) world frame, unit directions.
    """
    centres = (torch.arange(size, device=c2w.device, dtype=c2w.dtype) + 0.5) / size
    u = offset[:, 0, None] + centres * scale[:, None]  # (M, size)
    v = offset[:, 1, None] + centres * scale[:, None]
    half = torch.tan(fovy / 2)
    x = ((2 * u - 1) * half[:, None])[:, None, :].expand(-1, size, -1)
    y = ((1 - 2 * v) * half[:, None])[:, :, None].expand(-1, -1, size)
    directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
    rays_d = F.normalize((directions[..., None, :] * c2w[:, None, None, :3, :3]).sum(-1), dim=-1)
    return c2w[:, None, None, :3, 3].expand_as(rays_d), rays_d


def over_white(premultiplied: Tensor, alpha: Tensor) -> Tensor:
    """Premultiplied colour over a white background."""
    return premultiplied + (1 - alpha)


BINS = {"below45": (0, 45), "45to135": (45, 135), "back": (135, 181)}
"""Absolute azimuth in degrees; the input view is its own bin."""


@torch.no_grad()
def evaluate(
    trainer: Trainer, data: MultiViewData, perceptual: nn.Module | None, size: int = 64, batch: int = 8
) -> dict:
    """One frontal image in, no optimisation: PSNR over white at `size`² and ST-LPIPS at full size by absolute azimuth.

    View 0 of every subject is the input; it alone makes the bin "front". Mean of per-image values; without a
    `perceptual` there are no ``stlpips_`` entries.
    """
    full, factor = data.size, data.size // size
    generator, encoder = trainer.ema["generator"], trainer.ema["encoder"]
    scores: dict = {}
    for start in range(0, len(data), batch):
        rgba = data.rgba[start : start + batch].float() / 255.0
        images = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1).permute(0, 1, 4, 2, 3)
        b, views = images.shape[:2]
        source = images[:, 0]
        x = encoder_input(
            source[:, :3], source[:, 3:], torch.ones_like(source[:, 3:]), data.azimuth[start : start + b, 0],
            data.elevation[start : start + b, 0], trainer.spec.encoder_input,
        )
        with trainer.autocast():
            ws, _, features = encoder(x)
            planes = generator.synthesis(ws, features).float()
        for view in range(views):
            rays_o, rays_d = get_rays(data.c2w[start : start + b, view], data.fovy[start : start + b, view], full, full)
            out = render_planes(planes, generator.decoder.weights(), rays_o, rays_d, 48, 48, None)
            fake = over_white(out["rgb"], out["opacity"]).clamp(0, 1)
            real = over_white(images[:, view, :3], images[:, view, 3:])
            mse = (F.avg_pool2d(fake, factor) - F.avg_pool2d(real, factor)).square().mean(dim=(1, 2, 3))
            psnr = -10 * torch.log10(mse.clamp(min=1e-10))
            columns = [psnr] if perceptual is None else [psnr, perceptual(fake, real).float()]
            for i in range(b):
                angle = abs(float((data.azimuth[start + i, view] + 180) % 360 - 180))
                name = "front" if view == 0 else next(k for k, (low, high) in BINS.items() if low <= angle < high)
                scores.setdefault(name, []).append([float(column[i]) for column in columns])
    result = {}
    for name, values in scores.items():
        for metric, digits, mean in zip(("psnr", "stlpips"), (3, 4), np.mean(values, axis=0)):
            result[f"{metric}_{name}"] = round(float(mean), digits)
    return result


@torch.no_grad()
def sample_sheet(
    trainer: Trainer, count: int, path: Path, truncation: float = 0.7, seed: int = 0, size: int = 128
) -> None:
    """Random heads of the mapping network seen from six sides, as one PNG."""
    from ..ops.cameras import CANONICAL_FOVY_DEG, orbit_c2w

    generator = trainer.ema["generator"]
    device = trainer.data.device
    rng = torch.Generator(device=device).manual_seed(seed)
    z = torch.randn((count, trainer.spec.z_dim), generator=rng, device=device)
    planes = generator.synthesis(generator.broadcast(generator.mapping(z), truncation), None).float()
    columns = []
    for azimuth in (0.0, 35.0, 90.0, 180.0, 270.0, 325.0):
        c2w = orbit_c2w(torch.full((count,), azimuth, device=device), torch.zeros(count, device=device))
        fovy = torch.full((count,), math.radians(CANONICAL_FOVY_DEG), device=device)
        rays_o, rays_d = get_rays(c2w, fovy, size, size)
        out = render_planes(planes, generator.decoder.weights(), rays_o, rays_d, 48, 48, None)
        columns.append(over_white(out["rgb"], out["opacity"]).clamp(0, 1).permute(0, 2, 3, 1))
    sheet = torch.cat(columns, dim=2).reshape(count * size, -1, 3)
    save_png(sheet, path)


@torch.no_grad()
def reconstruction_sheet(trainer: Trainer, data: MultiViewData, count: int, path: Path) -> None:
    """Held-out subjects: input, then truth above result for the evaluation views."""
    generator, encoder = trainer.ema["generator"], trainer.ema["encoder"]
    rgba = data.rgba[:count].float() / 255.0
    images = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1).permute(0, 1, 4, 2, 3)
    source = images[:, 0]
    x = encoder_input(
        source[:, :3], source[:, 3:], torch.ones_like(source[:, 3:]), data.azimuth[:count, 0],
        data.elevation[:count, 0], trainer.spec.encoder_input,
    )
    ws, _, features = encoder(x)
    planes = generator.synthesis(ws, features).float()
    rows = []
    for view in range(images.shape[1]):
        rays_o, rays_d = get_rays(data.c2w[:count, view], data.fovy[:count, view], data.size, data.size)
        out = render_planes(planes, generator.decoder.weights(), rays_o, rays_d, 48, 48, None)
        fake = over_white(out["rgb"], out["opacity"]).clamp(0, 1)
        real = over_white(images[:, view, :3], images[:, view, 3:])
        rows.append(torch.cat([real, fake], dim=2))  # (count, 3, 2 S, S)
    sheet = torch.cat(rows, dim=3).permute(0, 2, 3, 1)
    save_png(sheet.reshape(-1, sheet.shape[2], 3), path)


def save_png(image: Tensor, path: Path) -> None:
    """(H, W, 3) in [0, 1] to a PNG, atomically."""
    from PIL import Image

    temporary = path.with_suffix(".tmp.png")
    Image.fromarray((image * 255 + 0.5).byte().cpu().numpy()).save(temporary)
    os.replace(temporary, path)


def default_device() -> torch.device:
    """The accelerator if torch sees one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def run(
    data_dir: Path, val_dir: Path | None, out_dir: Path, seconds: float, config: TrainConfig,
    spec: PriorSpec | None = None, perceptual_weights: Path | None = None, device: str | torch.device | None = None,
    limit: int | None = None, report_every: float = 100.0,
) -> Trainer:
    """Train for at most `seconds`, from the checkpoint in `out_dir` if there is one; writes weights, sheets and a card.

    `device`: None is `default_device()`.
    """
    start = time.monotonic()
    device = torch.device(device) if device else default_device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    out_dir.mkdir(parents=True, exist_ok=True)
    data = load_shards(data_dir, device, limit)
    val = load_shards(val_dir, device) if val_dir else None
    perceptual = None
    if config.w_perceptual > 0:
        from ..evaluation.stlpips import STLPIPS

        perceptual = STLPIPS("alex", weights=perceptual_weights).to(device)
    trainer = Trainer(spec or PriorSpec(), config, data, perceptual)
    checkpoint = out_dir / "state.pt"
    if checkpoint.is_file():
        trainer.load(torch.load(checkpoint, map_location=device, weights_only=True))
    log.info("training on %d subjects from step %d (%.0f s) on %s", len(data), trainer.step, trainer.seconds, device)
    before, last_report, sums, count = trainer.seconds, start, {}, 0
    while time.monotonic() - start < seconds and trainer.seconds < config.total_seconds:
        values = trainer.train_step()
        trainer.seconds = before + time.monotonic() - start
        count += 1
        for k, v in values.items():
            sums[k] = sums.get(k, 0.0) + v
        if time.monotonic() - last_report > report_every:
            rate = count / (time.monotonic() - last_report)
            line = {"step": trainer.step, "seconds": round(trainer.seconds, 1), "steps_per_s": round(rate, 2)}
            line |= {k: round(float(v) / count, 4) for k, v in sums.items()}
            if val is not None:
                line |= evaluate(trainer, val, None)
            trainer.history.append(line)
            log.info(json.dumps(line))
            sums, count = {}, 0
            last_report = time.monotonic()
    finish(trainer, val, perceptual, out_dir, data_dir)
    return trainer


def finish(trainer: Trainer, val: MultiViewData | None, perceptual, out_dir: Path, data_dir: Path) -> None:
    """Checkpoint, shipped weights, numbers and pictures."""
    temporary = out_dir / "state.pt.tmp"
    torch.save(trainer.state(), temporary)
    os.replace(temporary, out_dir / "state.pt")
    info = {"step": trainer.step, "seconds": round(trainer.seconds)}
    save_weights(trainer.ema["generator"], out_dir / "prior.safetensors", trainer.spec, "generator", info)
    save_weights(trainer.ema["encoder"], out_dir / "encoder.safetensors", trainer.spec, "encoder", info)
    save_weights(trainer.discriminator, out_dir / "discriminator.safetensors", trainer.spec, "discriminator", info)
    scores = evaluate(trainer, val, perceptual) if val is not None else {}
    device = trainer.data.device
    card = {
        **info, "scores": scores, "config": asdict(trainer.config), "data": read_manifest(data_dir),
        "history": trainer.history, "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    temporary = out_dir / "card.json.tmp"
    temporary.write_text(json.dumps(card, indent=1))
    os.replace(temporary, out_dir / "card.json")
    sample_sheet(trainer, 8, out_dir / "samples.png")
    if val is not None:
        reconstruction_sheet(trainer, val, min(8, len(val)), out_dir / "reconstructions.png")
    log.info("after step %d: %s", trainer.step, json.dumps(scores))


def main(argv: list | None = None) -> int:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="train-prior", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with shards of training subjects")
    parser.add_argument("--val", type=Path, help="folder with shards of held-out subjects")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, weights and card")
    parser.add_argument("--seconds", type=float, default=540.0, help="length of this run")
    parser.add_argument("--device", help="torch device; default: a GPU if there is one")
    parser.add_argument("--perceptual-weights", type=Path, help="ST-LPIPS AlexNet file; default: the package's")
    parser.add_argument("--limit", type=int, help="use only so many subjects")
    for name, value in asdict(TrainConfig()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = TrainConfig(**{name: getattr(args, name) for name in asdict(TrainConfig())})
    run(args.data, args.val, args.out, args.seconds, config, None, args.perceptual_weights, args.device, args.limit)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
