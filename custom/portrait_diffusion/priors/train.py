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
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import default_device
from ..errors import UsageError
from ..files import atomic_path, write_text
from ..multiview import MultiViewData, load_shards, read_manifest
from ..ops.cameras import get_rays
from ..synthetic.parts import LABELS
from .alignment import encoder_input
from .assess import encode_all, evaluate, reconstruction_sheet, sample_sheet
from .augment import affine_jitter, colour_jitter, degrade, disguise, surface_texture, unknown_border
from .graphs import GraphedBackward
from .networks import Discriminator, Encoder, Generator, LatentCritic, PriorSpec
from .patches import PATCH, camera_condition, mirror_view, over_white, patch_rays
from .regrid import regrid
from .render import half_precision, render_planes
from .storage import load_spec, load_weights, save_weights

log = logging.getLogger("portrait_diffusion")


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
    w_square: float = 2.0
    """Weight of the squared error of colour over white: what one photo leaves open is answered with the mean."""
    w_chroma: float = 1.0
    """Weight of L1 on colour less its brightness, pooled over 8 x 8 pixels: coloured blotches are large and faint."""
    w_perceptual: float = 0.6
    w_depth: float = 1.0
    w_adversarial: float = 0.02
    w_sampled: float = 0.05
    w_latent: float = 0.01
    w_delta: float = 0.05
    """Pull of W+ to one w for all layers, so that latents of the mapping network and of the encoder are alike."""
    r1_gamma: float = 0.03
    r1_every: int = 16
    adversarial_from: float = 0.15
    """Share of the budget after which the adversarial terms come in (linearly over another 0.15)."""
    drop_features: float = 0.25
    """Share of subjects whose spatial features are dropped, so that W+ alone explains a head too."""
    textured: float = 0.0
    """Share of subjects whose hair gets a random solid texture like strands; needs depth and label in the shards.

    Hair of photos has far more detail than that of our assets, and details that a prior has not learnt to leave where
    they were seen it smears over the sides.
    """
    disguised: float = 0.0
    """Share of subjects whose input gets other texture, shading, blur and noise that the targets do not follow."""
    ema_halflife_steps: float = 1000.0
    decay_from: float = 0.6
    """Share of the budget after which learning rates fall (cosine) to a twentieth."""
    total_seconds: float = 1500.0
    cuda_graphs: bool = True
    """Replay the step as CUDA graphs (about twice as fast); without effect on a CPU."""
    seed: int = 0

    def __post_init__(self):
        if self.sampled < 0 or (self.judges and self.sampled < 1):
            raise UsageError(
                f"sampled must be at least 1 where there is an adversary, got {self.sampled}; "
                "w_adversarial 0, w_sampled 0 and w_latent 0 train without one."
            )

    @property
    def judges(self) -> bool:
        """Whether there is an adversary."""
        return max(self.w_adversarial, self.w_sampled, self.w_latent) > 0


def cosine_tail(share: float, decay_from: float) -> float:
    """1 up to the share `decay_from` of a budget, then a cosine to 0.05 at its end."""
    tail = max(0.0, (share - decay_from) / max(1e-6, 1 - decay_from))
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, tail)))


def pooled_chroma(images: Tensor, size: int = 8) -> Tensor:
    """Colour less brightness, averaged over blocks. Args: images (B, 3, H, W). Returns: (B, 3, H/size, W/size)."""
    return F.avg_pool2d(images - images.mean(dim=1, keepdim=True), size)


def schedule(share: float, config: TrainConfig) -> tuple:
    """(learning-rate factor, adversarial factor) after a share in [0, 1] of the budget."""
    adversarial = min(1.0, max(0.0, (share - config.adversarial_from) / 0.15))
    return cosine_tail(share, config.decay_from), adversarial


class Trainer:
    """State and steps of the training; device and precision come from the data."""

    def __init__(self, spec: PriorSpec, config: TrainConfig, data: MultiViewData, perceptual: nn.Module | None):
        device = data.device
        torch.manual_seed(config.seed)  # network initialisation
        if config.textured > 0 and (data.depth is None or data.label is None):
            raise UsageError("'textured' needs data with --extras depth label; render them with it or set it to 0.")
        self.config, self.spec, self.data, self.perceptual = config, spec, data, perceptual
        self.generator = Generator(spec).to(device)
        self.encoder = Encoder(spec).to(device)
        self.discriminator = Discriminator().to(device)
        self.critic = LatentCritic(spec.w_dim).to(device)
        self.ema = nn.ModuleDict({"generator": self.generator, "encoder": self.encoder})
        self.ema = copy.deepcopy(self.ema).requires_grad_(False)
        fused = device.type == "cuda"
        makers = [*self.generator.parameters()], [*self.encoder.parameters()]
        judges = [*self.discriminator.parameters(), *self.critic.parameters()]
        self.opt_g = torch.optim.Adam(
            [{"params": makers[0], "base": config.lr_generator}, {"params": makers[1], "base": config.lr_encoder}],
            lr=1e-3, betas=(0.5, 0.99), fused=fused,
        )  # fmt: skip
        self.opt_d = torch.optim.Adam(
            [{"params": judges, "base": config.lr_discriminator}], lr=1e-3, betas=(0.0, 0.99), fused=fused
        )
        self.rng = torch.Generator(device=device).manual_seed(config.seed + 1)
        self.step, self.seconds, self.history = 0, 0.0, []
        front = (data.azimuth.abs() <= 32) & (data.elevation.abs() <= 16)
        self.front = front.float()
        self.front[:, 0] = 1.0  # every subject has view 0 in front
        self.adversarial = torch.zeros((), device=device)
        graphs = config.cuda_graphs and device.type == "cuda"
        both = makers[0] + makers[1]
        self.make_plain = GraphedBackward(lambda: self.make(False), both, self.rng, graphs)
        self.make_judged = GraphedBackward(lambda: self.make(True), both, self.rng, graphs)
        self.judge_plain = GraphedBackward(lambda: self.judge_losses(False), judges, self.rng, graphs)
        self.judge_r1 = GraphedBackward(lambda: self.judge_losses(True), judges, self.rng, graphs)
        self.made: dict = {}

    # ---- batches -------------------------------------------------------------------------------------------------
    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng, device=self.data.device)

    def draw(self) -> dict:
        """A batch: encoder input and two target patches a subject (one front-ish, one anywhere)."""
        d, c = self.data, self.config
        n = torch.randint(len(d), (c.batch,), generator=self.rng, device=d.device)
        views, b = d.rgba.shape[1], c.batch
        source, near = ((self.front[n] * (self.rand(b, views) + 1e-3)).argmax(dim=1) for _ in range(2))
        anywhere = torch.randint(views, (b,), generator=self.rng, device=d.device)
        chosen = torch.stack([source, near, anywhere], dim=1)  # (B, 3)
        flip = self.rand(b) < 0.5
        rgba = d.rgba[n[:, None], chosen].float() / 255.0  # (B, 3, S, S, 4)
        if c.textured > 0:
            rgba = torch.cat([(rgba[..., :3] * self.texture(n, chosen)).clamp(max=1.0), rgba[..., 3:]], dim=-1)
        rgba = torch.where(flip[:, None, None, None, None], rgba.flip(3), rgba)
        strength = (self.rand(b) < 0.7).float()
        rgb = colour_jitter(rgba[..., :3], strength, self.rng)
        images = torch.cat([rgb * rgba[..., 3:], rgba[..., 3:]], dim=-1).permute(0, 1, 4, 2, 3)  # premultiplied
        colour, alpha = degrade(images[:, 0, :3], images[:, 0, 3:], self.rng)
        valid = unknown_border(b, d.size, self.rng, d.device)
        jittered = affine_jitter(torch.cat([colour, alpha, valid], dim=1), self.rng)
        noise = 4.0 * torch.randn((2, b), generator=self.rng, device=d.device)
        azimuth = torch.where(flip, -d.azimuth[n, source], d.azimuth[n, source])
        target = chosen[:, 1:].reshape(-1)
        subject, flipped = (v[:, None].expand(-1, 2).reshape(-1) for v in (n, flip))
        patches = self.patches(images[:, 1:].reshape(2 * b, 4, d.size, d.size), subject, target, flipped)
        colour, alpha, valid = jittered[:, :3], jittered[:, 3:4], jittered[:, 4:5]
        if c.disguised > 0:
            colour = disguise(colour, alpha, self.rand(b) * (self.rand(b) < c.disguised), self.rng)
        pose = azimuth + noise[0], d.elevation[n, source] + noise[1]
        return {"x": encoder_input(colour, alpha, valid, *pose, self.spec.encoder_input), **patches}

    def texture(self, n: Tensor, views: Tensor) -> Tensor:
        """Factors (B, V, S, S, 1) on the colours of subjects n (B,) in views (B, V): a texture on hair, 1 elsewhere."""
        d, b = self.data, len(n)
        depth = d.distance(n[:, None], views)
        c2w, fovy = d.c2w[n[:, None], views].flatten(0, 1), d.fovy[n[:, None], views].flatten(0, 1)
        rays_o, rays_d = get_rays(c2w, fovy, d.size, d.size)
        points = rays_o.view(*depth.shape, 3) + depth[..., None] * rays_d.view(*depth.shape, 3)
        amount = 0.6 * self.rand(b) * (self.rand(b) < self.config.textured)
        factor = torch.exp(amount.view(b, 1, 1, 1) * surface_texture(points, self.rng))
        hair = (d.label[n[:, None], views] == LABELS["hair"]) & (depth > 0)
        return torch.where(hair, factor, torch.ones_like(factor))[..., None]

    def patches(self, images: Tensor, subject: Tensor, view: Tensor, flip: Tensor) -> dict:
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
        azimuth = torch.where(flip, -d.azimuth[subject, view], d.azimuth[subject, view])
        out = {
            "target": target, "c2w": mirror_view(d.c2w[subject, view], flip), "fovy": d.fovy[subject, view],
            "scale": scale, "offset": offset,
            "condition": camera_condition(azimuth, d.elevation[subject, view], scale, offset),
        }
        if d.depth is not None:
            depth = d.distance(subject, view)[:, None]
            depth = torch.where(flip[:, None, None, None], depth.flip(3), depth)
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
    def render(self, planes: list[Tensor], cams: dict, generator: torch.Generator | None = None) -> dict:
        rays_o, rays_d = patch_rays(cams["c2w"], cams["fovy"], cams["scale"], cams["offset"], PATCH)
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
        """One generator and, once the adversarial terms come near, one discriminator update. Returns scalars."""
        c = self.config
        adversarial = self.learning_rates()
        self.adversarial.fill_(adversarial)
        judged = c.judges and self.seconds / c.total_seconds > c.adversarial_from - 0.05
        losses = self.make_judged() if judged else self.make_plain()
        nn.utils.clip_grad_norm_([p for g in self.opt_g.param_groups for p in g["params"]], 1.0)
        self.opt_g.step()
        if c.judges:  # else the mapping network stays as it is
            self.generator.mapping.track(self.made["w"] if adversarial > 0 else self.made["ws"].mean(dim=1))
        if judged:
            losses = losses | (self.judge_r1() if self.step % c.r1_every == 0 else self.judge_plain())
            self.opt_d.step()
        self.update_ema()
        self.step += 1
        return losses

    def make(self, judged: bool) -> dict:
        """Gradients of generator and encoder on a fresh batch; keeps in `made` what the discriminator needs."""
        c, d = self.config, self.data
        batch = self.draw()
        with half_precision(self.data.device):
            ws, delta, features = self.encoder(batch["x"])
            keep = (self.rand(c.batch) >= c.drop_features).float()[:, None, None, None]
            features = {r: f * keep for r, f in features.items()}
            z = torch.randn((c.sampled, self.spec.z_dim), generator=self.rng, device=d.device)
            w = self.generator.mapping(z)
            all_ws = torch.cat([ws, w[:, None].expand(-1, self.spec.num_ws, -1)])
            all_features = {r: torch.cat([f, f.new_zeros(c.sampled, *f.shape[1:])]) for r, f in features.items()}
            planes = [level.float() for level in self.generator.synthesis(all_ws, all_features)]
        cams = self.cameras(c.sampled)
        both = {k: torch.cat([batch[k], cams[k]]) for k in ("c2w", "fovy", "scale", "offset", "condition")}
        index = torch.cat([torch.arange(c.batch, device=d.device).repeat_interleave(2, output_size=2 * c.batch),
                           torch.arange(c.batch, c.batch + c.sampled, device=d.device)])  # fmt: skip
        out = self.render([level.index_select(0, index) for level in planes], both, generator=self.rng)
        m = 2 * c.batch
        target_rgb, target_alpha = batch["target"][:, :3], batch["target"][:, 3:]
        fake = torch.cat([over_white(out["rgb"], out["opacity"]), out["opacity"]], dim=1)
        real = torch.cat([over_white(target_rgb, target_alpha), target_alpha], dim=1)
        losses = {
            "rgb": (out["rgb"][:m] - target_rgb).abs().mean(),
            "alpha": c.w_alpha * (out["opacity"][:m] - target_alpha).abs().mean(),
            "square": c.w_square * (fake[:m, :3] - real[:, :3]).square().mean(),
            "chroma": c.w_chroma * pooled_chroma(fake[:m, :3] - real[:, :3]).abs().mean(),
            "delta": c.w_delta * delta.float().square().mean(),
        }
        if "depth" in batch:
            solid = (batch["depth"] > 0) & (target_alpha > 0.99)
            error = (out["depth"][:m] - batch["depth"]).abs().clamp(max=0.2)
            losses["depth"] = c.w_depth * (error * solid).sum() / solid.sum().clamp(min=1)
        if self.perceptual is not None:
            with half_precision(self.data.device):
                losses["perceptual"] = c.w_perceptual * self.perceptual(fake[:m, :3], real[:, :3]).float().mean()
        self.discriminator.requires_grad_(False), self.critic.requires_grad_(False)
        if judged:
            with half_precision(self.data.device):
                logits = self.judge(fake, both["condition"], m)
                latent = self.critic(w).float()
            losses["adversarial"] = self.adversarial * c.w_adversarial * F.softplus(-logits[:m]).mean()
            losses["sampled"] = self.adversarial * c.w_sampled * F.softplus(-logits[m:]).mean()
            losses["latent"] = self.adversarial * c.w_latent * F.softplus(-latent).mean()
        sum(losses.values()).backward()
        self.discriminator.requires_grad_(True), self.critic.requires_grad_(True)
        self.made = {
            "real": real, "real_condition": batch["condition"], "fake": fake.detach(),
            "fake_condition": both["condition"], "ws": ws.detach().float(), "w": w.detach().float(),
        }  # fmt: skip
        return {k: v.detach() for k, v in losses.items()}

    def judge_losses(self, penalise: bool) -> dict:
        """Gradients of discriminator and critic on the pictures of the last `make`; R1 now and then ("lazy")."""
        c, made = self.config, self.made
        real, ws = made["real"], made["ws"]
        with half_precision(self.data.device):
            on_fake = self.judge(made["fake"], made["fake_condition"], len(real))
            on_real = self.discriminator(real, made["real_condition"]).float()
            pick = torch.randint(ws.shape[1], (ws.shape[0],), generator=self.rng, device=ws.device)
            point = ws[torch.arange(ws.shape[0], device=ws.device), pick].float()
            critic_real, critic_fake = self.critic(point).float(), self.critic(made["w"]).float()
        loss = F.softplus(on_fake).mean() + F.softplus(-on_real).mean()
        loss = loss + F.softplus(critic_fake).mean() + F.softplus(-critic_real).mean()
        if penalise:
            image = real.detach().float().requires_grad_(True)
            point = point.requires_grad_(True)
            logits = self.discriminator(image, made["real_condition"]).sum() + self.critic(point).sum()
            g_image, g_point = torch.autograd.grad(logits, (image, point), create_graph=True)
            penalty = g_image.square().sum(dim=(1, 2, 3)).mean() * c.r1_gamma + g_point.square().sum(dim=1).mean()
            loss = loss + 0.5 * c.r1_every * penalty
        loss.backward()
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
    def start_from(self, generator: Path, encoder: Path) -> None:
        """Take generator and encoder, and their averages, from weight files; the frontal grid may have other layers."""
        for name, path, make in (("generator", generator, Generator), ("encoder", encoder, Encoder)):
            given = load_spec(path, name)
            state = regrid(load_weights(make(given), path, name).state_dict(), given, self.spec)
            getattr(self, name).load_state_dict(state)
            self.ema[name].load_state_dict(state)

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


def run(
    data_dir: Path, val_dir: Path | None, out_dir: Path, seconds: float, config: TrainConfig,
    spec: PriorSpec | None = None, perceptual_weights: Path | None = None, device: str | torch.device | None = None,
    limit: int | None = None, report_every: float = 150.0, initial: tuple[Path, Path] | None = None,
) -> Trainer:
    """Train for at most `seconds`, from the checkpoint in `out_dir` if there is one; writes weights, sheets and a card.

    Checkpoint and weights are also written with every report.

    Args:
        spec: None is the one of `initial` or the default.
        device: None is `default_device()`.
        initial: weight files of generator and encoder that a first run starts from; None is fresh weights.
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
    spec = spec or (load_spec(initial[0], "generator") if initial else PriorSpec())
    trainer = Trainer(spec, config, data, perceptual)
    if initial:
        trainer.start_from(*initial)
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
                line |= evaluate(trainer.ema["generator"], trainer.ema["encoder"], val, perceptual)
            trainer.history.append(line)
            log.info(json.dumps(line))
            write_weights(trainer, out_dir)
            sums, count = {}, 0
            last_report = time.monotonic()
    finish(trainer, val, perceptual, out_dir, data_dir)
    return trainer


def write_weights(trainer: Trainer, out_dir: Path) -> None:
    """Checkpoint, and the averaged weights as they ship, random heads fitted to the encoder of so far."""
    trainer.ema["generator"].set_latent_gaussian(encode_all(trainer.ema["encoder"], trainer.data))
    with atomic_path(out_dir / "state.pt") as partial:
        torch.save(trainer.state(), partial)
    info = {"step": trainer.step, "seconds": round(trainer.seconds)}
    for kind, name in (("generator", "prior"), ("encoder", "encoder")):
        save_weights(trainer.ema[kind], out_dir / f"{name}.safetensors", trainer.spec, kind, info)


def unfinished(seconds: float, budget: float) -> str:
    """What a run says that ends before its budget does."""
    return (
        f"{seconds:.0f} of {budget:.0f} s are used up, so the learning rate has not come to its end; repeat the "
        "command to go on, or give the whole time as --total-seconds."
    )


def finish(trainer: Trainer, val: MultiViewData | None, perceptual, out_dir: Path, data_dir: Path) -> None:
    """Checkpoint, shipped weights, numbers and pictures."""
    info = {"step": trainer.step, "seconds": round(trainer.seconds)}
    generator, encoder = trainer.ema["generator"], trainer.ema["encoder"]
    write_weights(trainer, out_dir)
    save_weights(trainer.discriminator, out_dir / "discriminator.safetensors", trainer.spec, "discriminator", info)
    scores = evaluate(generator, encoder, val, perceptual) if val is not None else {}
    device = trainer.data.device
    card = {
        **info, "scores": scores, "config": asdict(trainer.config), "data": read_manifest(data_dir),
        "history": trainer.history, "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    write_text(out_dir / "card.json", json.dumps(card, indent=1))
    sample_sheet(generator, 8, out_dir / "samples.png")
    if val is not None:
        reconstruction_sheet(generator, encoder, val, min(8, len(val)), out_dir / "reconstructions.png")
    log.info("after step %d: %s", trainer.step, json.dumps(scores))
    if trainer.seconds < trainer.config.total_seconds:
        log.warning(unfinished(trainer.seconds, trainer.config.total_seconds))


def main(argv: list | None = None) -> int:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="train-prior", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with shards of training subjects")
    parser.add_argument("--val", type=Path, help="folder with shards of held-out subjects")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, weights and card")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of this run; default: all that is left")
    parser.add_argument("--device", help="torch device; default: a GPU if there is one")
    parser.add_argument("--perceptual-weights", type=Path, help="ST-LPIPS AlexNet file; default: the package's")
    parser.add_argument("--limit", type=int, help="use only so many subjects")
    parser.add_argument(
        "--initial", type=Path, nargs=2, metavar=("PRIOR", "ENCODER"), help="weights that the first run starts from"
    )
    parser.add_argument("--frontal-layers", type=int, help="of the frontal grid; default: those of --initial or ours")
    parser.add_argument("--encoded-layers", type=int, help="of these, foremost ones that the encoder feeds; likewise")
    for name, value in asdict(TrainConfig()).items():
        option = argparse.BooleanOptionalAction if isinstance(value, bool) else None
        kind = {"action": option} if option else {"type": type(value)}
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, **kind)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = TrainConfig(**{name: getattr(args, name) for name in asdict(TrainConfig())})
    sizes = {k: getattr(args, k) for k in ("frontal_layers", "encoded_layers") if getattr(args, k) is not None}
    spec = None
    if sizes:
        spec = replace(load_spec(args.initial[0], "generator") if args.initial else PriorSpec(), **sizes)
    run(
        args.data, args.val, args.out, args.seconds, config, spec, args.perceptual_weights, args.device, args.limit,
        initial=args.initial,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
