"""Training of a small HPDM on multi-view data: first the autoencoder, then denoiser and branches; Lightning, resumable.

    launch_portrait.py train-hpdm --data TRAIN --val VAL --out OUT --stage autoencoder --total-seconds 180
    launch_portrait.py train-hpdm --data TRAIN --drafts DRAFTS --val VAL --out OUT --stage denoiser --total-seconds 540

Each stage goes on from its own ``last.ckpt`` in OUT. Learning rates follow the share of the stage's budget (steps or
seconds) that is used up. Randomness of a step follows from seed, step and rank alone, so a resumed run makes the steps
that an uninterrupted one would.
"""
import argparse
import copy
import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pytorch_lightning as pl
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from ...devices import default_device
from ...errors import UsageError
from ...files import PARTIAL_PREFIX, sha256_file, write_text
from ...multiview import MultiViewData, load_shards, read_manifest
from ...noise.transport import latent_depth, transport
from ...ops.projection import forward_project
from ...priors.augment import colour_jitter, turn_hue, uniform
from ...priors.drafts import check_same_cameras
from ...priors.graphs import GraphedBackward
from ...priors.patches import over_white, premultiplied_images
from ...priors.render import half_precision
from ...priors.train import cosine_tail, unfinished
from ...seeds import step_seed
from .batches import BatchConfig, TrainBatch, make_batch
from .compiled import compile_networks
from .conditions import References
from .model import HPDM, build_mini
from .ranks import RanksStrategy, average_gradients
from .storage import INDEX, load_hpdm, save_hpdm

log = logging.getLogger("portrait_diffusion")
STAGES = ("autoencoder", "denoiser")
COMPILER = "inductor"
AGREE_EVERY = 10
"""Steps after which several ranks agree on the clock, and on whether to write or to stop."""


@dataclass
class HPDMTrainConfig:
    """Hyper-parameters of both stages."""

    batch: int = 64
    """Pictures a step and device (autoencoder), targets a step and device (denoiser)."""
    learning_rate: float = 4e-4
    warmup_steps: int = 200
    decay_from: float = 0.6
    """Share of the budget after which the learning rate falls (cosine) to a twentieth."""
    total_steps: int = 0
    """Budget of the stage in steps; 0 goes by `total_seconds`."""
    total_seconds: float = 1200.0
    ema_decay: float = 0.999
    w_perceptual: float = 0.5
    """Autoencoder: ST-LPIPS beside L1."""
    latent_noise: float = 0.03
    """Autoencoder: noise on latents of unit size before decoding, so that near latents are near pictures."""
    w_latent: float = 1e-3
    """Autoencoder: pull of latents to zero mean and unit size."""
    drop_both: float = 0.1
    """Denoiser: share of targets that see neither condition."""
    drop_explicit: float = 0.15
    drop_implicit: float = 0.15
    w_equivariance: float = 0.1
    """Denoiser: a part of the targets comes in pairs of views with transported noise, whose clean latents must agree
    where both see a surface. (EquiVDM, arXiv 2504.09789, trains with warped noise to that end.) 0: no pairs."""
    pairs: float = 0.25
    """Share of a batch that comes in such pairs."""
    w_picture: float = 0.0
    """Denoiser: ST-LPIPS between target and decoded clean latents, times sqrt(abar_t): least squares alone answer what
    is uncertain with its mean, which is soft. (Lin & Yang, arXiv 2401.00110, train with a perceptual loss to that end,
    in the denoiser's own features.) 0: no such loss."""
    pictured: float = 0.375
    """Share of a batch that is decoded for it."""
    painted: float = 0.0
    """Denoiser, with drafts: share of the rows told of a draft whose noise is put on the draft's own picture, as
    painting puts it on a render, see `repair_target`. Rows of pairs are left out."""
    painted_steps: tuple[float, float] = (0.05, 0.6)
    """Timesteps of such rows, as shares of all."""
    cuda_graphs: bool = True
    """Replay the step as a CUDA graph (a step is thousands of small kernels); without effect on a CPU."""
    compile: bool = False
    """Compile the networks by torch.compile before the first step: a minute or more, then fewer and larger kernels."""
    sample_steps: int = 20
    """Steps of the sampler behind the numbers and pictures of the card."""
    seed: int = 0
    spoil: BatchConfig = field(default_factory=BatchConfig)


def learning_rate_factor(share: float, step: int, config: HPDMTrainConfig) -> float:
    """Warm-up by steps, then 1, then a cosine to 0.05 over the rest of the budget."""
    return min(1.0, (step + 1) / config.warmup_steps) * cosine_tail(share, config.decay_from)


PAINTED_WEIGHT = 4.0
"""What an error of clean latents counts at most in rows that begin with a draft; else 1 / (1 - abar_t), 20 and more."""


def repair_target(clean: Tensor, begun: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents of another picture, and the velocity whose clean latents are the true ones all the same.

    x_t = sqrt(abar) x' + sqrt(1 - abar) eps begins with a draft x'; sqrt(abar) x_t - sqrt(1 - abar) v = x, so that
    v = sqrt(abar) eps - sqrt(1 - abar) x + abar / sqrt(1 - abar) (x' - x). With x' = x both are those of plain
    diffusion (Salimans & Ho, ICLR 2022, appendix D). Painting begins with renders (Meng et al., "SDEdit", ICLR 2022),
    whose faults a plain denoiser takes for signal; that a denoiser can learn to take them off is the idea of bridges
    from degraded to clean pictures (Liu et al., "I2SB", ICML 2023), whose schedule this has not.

    Args: clean, begun, noise (B, C, h, w); signal, spread (B, 1, 1, 1) of the timesteps.
    Returns: noisy latents and velocity, (B, C, h, w).
    """
    noisy = signal * begun + spread * noise
    return noisy, signal * noise - spread * clean + signal.square() / spread * (begun - clean)


class Unshared:
    """Holds what a copy of the module (the moving average) must not copy: data, fixed networks."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def __deepcopy__(self, memo) -> "Unshared":
        return self


class Stage(pl.LightningModule):
    """What both stages share: budget, schedule, per-step randomness, and the step itself."""

    def __init__(
        self, model: HPDM, data: MultiViewData, config: HPDMTrainConfig, drafts: MultiViewData | None = None,
        perceptual: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.automatic_optimization = False
        self.model, self.config = model, config
        self.held = Unshared(data=data, drafts=drafts, perceptual=perceptual, gradients=None)
        self.seconds, self._clock, self._agreed = 0.0, None, None

    @property
    def share(self) -> float:
        """Used share of the stage's budget, in [0, 1]; the same on all ranks."""
        c = self.config
        seconds = self.seconds if self._agreed is None else self._agreed
        return min(1.0, self.global_step / c.total_steps if c.total_steps else seconds / c.total_seconds)

    def data(self) -> MultiViewData:
        """The data set on this rank's device."""
        self._bring()
        return self.held.data

    def drafts(self) -> MultiViewData | None:
        """The drafts of the data set on this rank's device, if there are any."""
        self._bring()
        return self.held.drafts

    def _bring(self) -> None:
        held = self.held
        if held.data.device != self.device:
            held.data = held.data.to(self.device)
            held.drafts = None if held.drafts is None else held.drafts.to(self.device)

    def seed_of_step(self) -> int:
        """Randomness of this step: a function of seed, step and rank."""
        return step_seed(self.config.seed, self.global_step, self.global_rank)

    def trained(self) -> list[nn.Module]:
        """The parts whose weights change."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """What a step runs and `compile` compiles."""
        raise NotImplementedError

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a fresh batch by name. Nothing in it may wait for the device, so that it can be replayed."""
        raise NotImplementedError

    def configure_optimizers(self):
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        parameters = [p for part in self.trained() for p in part.requires_grad_(True).parameters()]
        return torch.optim.AdamW(
            parameters, lr=self.config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2,
            fused=parameters[0].is_cuda,
        )  # fmt: skip

    def training_step(self, batch, index) -> None:
        """One step; on a GPU forward and backward are replayed as a CUDA graph (thousands of small kernels)."""
        optimizer = self.optimizers()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.held.gradients is None:
            self.held.gradients = self.gradients_of(parameters)
        self.held.gradients.generator.manual_seed(self.seed_of_step())
        losses = self.held.gradients()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()}, prog_bar=True)

    def gradients_of(self, parameters: list[nn.Parameter]) -> GraphedBackward:
        """Forward and backward of a step, ready to be called again and again; compiled and replayed as configured."""
        generator = torch.Generator(device=self.device)
        if self.config.compile:
            compile_networks(self.networks(), COMPILER)

        def gradients() -> dict[str, Tensor]:
            with half_precision(self.device):
                losses = self.losses(generator)
            sum(losses.values()).backward()
            return {name: loss.detach() for name, loss in losses.items()}

        graphs = self.device.type == "cuda" and self.config.cuda_graphs
        return GraphedBackward(gradients, parameters, generator, graphs)

    def on_train_end(self) -> None:
        """What follows has other shapes and is short: it runs uncompiled."""
        for network in self.networks():
            network._compiled_call_impl = None

    def on_train_batch_start(self, batch, index) -> None:
        now = time.monotonic()
        self.seconds += 0.0 if self._clock is None else now - self._clock
        self._clock = now
        if self.trainer.world_size > 1 and (self._agreed is None or self.global_step % AGREE_EVERY == 0):
            self._agreed = self.trainer.strategy.broadcast(self.seconds)
        factor = learning_rate_factor(self.share, self.global_step, self.config)
        for group in self.optimizers().param_groups:
            group["lr"] = self.config.learning_rate * factor

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.seconds = checkpoint["seconds"]

    def train_dataloader(self):
        """Steps; what a step sees is drawn on the device."""
        return torch.utils.data.DataLoader(range(1_000_000_000), batch_size=None)


class AutoencoderStage(Stage):
    """Autoencoder: L1 + ST-LPIPS on pictures over white, latents near unit size."""

    def trained(self) -> list[nn.Module]:
        return [self.model.vae]

    def networks(self) -> list[nn.Module]:
        return [self.model.vae.encoder, self.model.vae.decoder]

    def pictures(self, generator: torch.Generator) -> Tensor:
        """(B, 3, S, S) of random subjects and views over white; colours changed, half of them to any hue."""
        d, b = self.data(), self.config.batch
        subject = torch.randint(len(d), (b,), generator=generator, device=self.device)
        view = torch.randint(d.rgba.shape[1], (b,), generator=generator, device=self.device)
        rgba = d.rgba[subject, view].float() / 255.0
        angle = torch.pi * uniform((b,), -1.0, 1.0, generator, self.device)
        saturation = uniform((b,), 0.3, 2.0, generator, self.device)
        turned = (torch.arange(b, device=self.device) % 2).to(angle)
        rgb = turn_hue(rgba[..., :3], turned * angle, torch.lerp(torch.ones_like(angle), saturation, turned))
        rgb = colour_jitter(rgb, torch.ones(b, device=self.device), generator)
        return (rgb * rgba[..., 3:] + 1 - rgba[..., 3:]).permute(0, 3, 1, 2)

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        c, g = self.config, generator
        pictures = self.pictures(g)
        latents = self.model.vae.encode(2 * pictures - 1).latents
        noise = torch.randn(latents.shape, generator=g, device=self.device)
        decoded = self.model.vae.decode(latents + c.latent_noise * noise).sample / 2 + 0.5
        losses = {
            "l1": (decoded - pictures).abs().mean(),
            "latent": c.w_latent * ((latents.float().square().mean() - 1).square() + latents.float().mean().square()),
        }
        if self.held.perceptual is not None and c.w_perceptual > 0:
            perceptual = self.held.perceptual.to(self.device)
            losses["perceptual"] = c.w_perceptual * perceptual(decoded.clamp(0, 1), pictures).float().mean()
        return losses


class DenoiserStage(Stage):
    """Denoiser, branches and camera tokens, on latents of the finished autoencoder."""

    def trained(self) -> list[nn.Module]:
        m = self.model
        return [m.unet, m.explicit, m.reference, m.implicit, m.cameras]

    def networks(self) -> list[nn.Module]:
        m = self.model
        return [m.unet, m.explicit, m.reference, m.vae.encoder, m.vae.decoder]

    def draw(self, generator: torch.Generator) -> tuple[TrainBatch, int]:
        """A batch, and how many of its first rows form pairs: rows i and i + pairs show one subject."""
        d, c = self.data(), self.config
        pairs = int(c.batch * c.pairs / 2) if c.w_equivariance > 0 else 0
        subjects = torch.randint(len(d), (c.batch,), generator=generator, device=self.device)
        subjects[pairs : 2 * pairs] = subjects[:pairs]
        return make_batch(d, subjects, generator, c.spoil, drafts=self.drafts()), pairs

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        c, g, m = self.config, generator, self.model
        batch, pairs = self.draw(g)
        b = len(batch.target)
        with torch.no_grad():
            clean = m.encode(batch.target).float()
            references = m.encode(batch.references.flatten(0, 1)).float().unflatten(0, batch.references.shape[:2])
        levels = m.scheduler.config.num_train_timesteps
        steps = torch.randint(levels, (b,), generator=g, device=self.device)
        noise = torch.randn(clean.shape, generator=g, device=self.device)
        if pairs:
            steps[pairs : 2 * pairs] = steps[:pairs]
            noise[pairs : 2 * pairs] = self.partner_noise(noise[:pairs], batch, pairs, g)
        begun, part = clean, None
        if c.painted > 0:
            part, steps = self.begin(batch.drafted, steps, pairs, g)
            with torch.no_grad():
                begun = torch.lerp(clean, m.encode(batch.begun).float(), part)
        signal, spread = m.levels(steps)
        noisy, velocity = repair_target(clean, begun, noise, signal, spread)
        uniform = torch.rand((2, b), generator=g, device=self.device)
        explicit = batch.explicit * (uniform[0] >= c.drop_explicit).float()[:, None, None, None]
        gate = batch.gate * (uniform[1] >= c.drop_implicit).float()[:, None]
        plain = round(c.drop_both * b)
        order = torch.arange(b, device=self.device).roll(plain)  # the last rows, which are no pairs, see nothing
        bank = m.bank(References(references, batch.geometry, m.cameras(batch.reference_c2w), gate))
        rows = order[plain:]
        output = m.denoise(
            noisy[order], steps[order], m.cameras(batch.c2w)[order], explicit[rows],
            {name: tokens[rows] for name, tokens in bank.items()}, gate[rows], plain,
        )  # fmt: skip
        output = torch.empty_like(output).index_copy(0, order, output).float()
        wrong = (output - velocity).square()
        if part is not None:
            wrong = wrong * torch.where(part > 0, (PAINTED_WEIGHT * spread.square()).clamp(max=1.0), 1.0)
        losses = {"denoise": wrong.mean()}
        predicted = m.interpret(output, noisy, steps).clean
        if self.held.perceptual is not None and c.w_picture > 0:
            rows = slice(2 * pairs, min(2 * pairs + max(1, round(c.pictured * b)), b - plain))
            decoded = m.decode(predicted[rows]).clamp(0, 1)
            distance = self.held.perceptual.to(self.device)(decoded, batch.target[rows]).float()
            losses["picture"] = c.w_picture * (signal[rows].flatten() * distance).mean()
        if pairs:
            losses["equivariance"] = c.w_equivariance * self.disagreement(predicted[: 2 * pairs], batch, pairs)
        return losses

    def begin(
        self, drafted: Tensor, steps: Tensor, pairs: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """How far each row begins with its draft, (B, 1, 1, 1) in [0, 1], and timesteps (B,).

        Half of the rows that do begin with the draft itself, as the first step of painting does, half with a random
        blend of draft and truth, as later steps do.

        Args: drafted (B,) 1 where a row is told of a draft; steps (B,) of the other rows; pairs: see `draw`.
        """
        c, device, b = self.config, steps.device, len(steps)
        levels = self.model.scheduler.config.num_train_timesteps
        draws = torch.rand((3, b), generator=generator, device=device)
        chosen = drafted * (draws[0] < c.painted).float() * (torch.arange(b, device=device) >= 2 * pairs).float()
        part = (2 * draws[1]).clamp(max=1.0) * chosen
        low, high = c.painted_steps
        few = ((low + (high - low) * draws[2]) * levels).long().clamp(max=levels - 1)
        return part[:, None, None, None], torch.where(chosen > 0, few, steps)

    def partner_noise(self, noise: Tensor, batch: TrainBatch, pairs: int, generator: torch.Generator) -> Tensor:
        """Noise of the first views carried into their partners'."""
        depth = latent_depth(batch.depth[: 2 * pairs], self.model.factor)
        a, b = slice(0, pairs), slice(pairs, 2 * pairs)
        return transport(
            noise, depth[a], batch.c2w[a], batch.fovy[a], batch.c2w[b], batch.fovy[b], depth[b], generator, k=4
        )[0]

    def disagreement(self, predicted: Tensor, batch: TrainBatch, pairs: int) -> Tensor:
        """Mean squared difference of clean latents seen from two views of a pair, where both see the same surface."""
        depth = latent_depth(batch.depth[: 2 * pairs], self.model.factor)
        a, b = slice(0, pairs), slice(pairs, 2 * pairs)
        moved, valid = forward_project(
            predicted[a, None], depth[a, None], batch.c2w[a, None], batch.fovy[a, None], batch.c2w[b], batch.fovy[b],
            *depth.shape[-2:], target_depth=depth[b], subdivide=4,
        )  # fmt: skip
        channels = predicted.shape[1]
        return ((moved - predicted[b]).square() * valid).sum() / (channels * valid.sum()).clamp(min=1.0)


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights after every step, quick at first: decay min(d, (1 + n) / (10 + n))."""

    def __init__(self, decay: float):
        self._step = 0

        @torch.no_grad()
        def average(old: list[Tensor], new: list[Tensor], count: Tensor) -> None:
            d = min(decay, (1 + self._step) / (10 + self._step))
            torch._foreach_lerp_(old, new, 1 - d)

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def setup(self, trainer, pl_module, stage: str) -> None:
        """The average lives where the model will be; now the model still is on the CPU."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    @torch.no_grad()
    def model(self, stage: Stage) -> HPDM:
        """A copy of the averaged model; what is not trained is as it was, for averaging rounds."""
        model = copy.deepcopy(self._average_model.module.model)
        for part, current in zip(model.parameters(), stage.model.parameters(), strict=True):
            if not current.requires_grad:
                part.copy_(current)
        return model

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every step."""
        if step_idx is not None:
            self._step = step_idx
        return step_idx is not None


class Checkpoints(Callback):
    """Writes ``last.ckpt`` every few minutes, and ends a run after so many seconds or when the budget is used up.

    Args: path of the file; seconds of the run; every: seconds between two files; publish: what else is done then, by
        rank 0, for example to write the model of so far.
    """

    def __init__(
        self, path: Path, seconds: float, every: float = 150.0, publish: Callable[[Stage], None] | None = None
    ):
        self.path, self.seconds, self.every, self.publish = path, seconds, every, publish
        self.start = self.last = time.monotonic()

    def on_train_start(self, trainer, stage) -> None:
        self.start = self.last = time.monotonic()
        if stage.share >= 1:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer, stage, *args) -> None:
        if trainer.world_size > 1 and trainer.global_step % AGREE_EVERY and stage.share < 1:
            return
        now = time.monotonic()
        stop = trainer.strategy.broadcast(now - self.start > self.seconds or stage.share >= 1)
        if stop or trainer.strategy.broadcast(now - self.last > self.every):
            self.write(trainer)
            if self.publish is not None and not stop and trainer.is_global_zero:
                self.publish(stage)
        if stop:
            trainer.should_stop = True

    def write(self, trainer) -> None:
        """All ranks; the file is complete or not there."""
        partial = self.path.with_name(f"{PARTIAL_PREFIX}{self.path.name}")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.path)
        self.last = time.monotonic()


def _logger(out: Path):
    """TensorBoard's, or where it is not installed a CSV file a run; says so."""
    if importlib.util.find_spec("tensorboard"):
        return TensorBoardLogger(out, name="", version="tensorboard")
    log.warning("tensorboard is not installed: losses go to a CSV file (pip install tensorboard brings curves).")
    return CSVLogger(out, name="csv")


def run_stage(
    stage: Stage, out: Path, seconds: float, devices: int | str = 1, accelerator: str = "auto", progress: bool = True,
    every: float = 150.0,
) -> Stage:  # fmt: skip
    """Train for at most `seconds`, from ``last.ckpt`` in `out` if there is one; the weights end up as the average.

    Every `every` seconds the checkpoint and, in ``hpdm``, the averaged model of so far are written to `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    last, average = out / "last.ckpt", MovingAverage(stage.config.ema_decay)

    def publish(stage: Stage) -> None:
        save_hpdm(average.model(stage).cpu(), out / "hpdm")

    cuda = torch.cuda.is_available() and accelerator != "cpu"
    trainer = pl.Trainer(
        accelerator=accelerator, devices=devices, max_epochs=-1, precision="32-true",  # a step sets its own bfloat16
        benchmark=cuda, log_every_n_steps=50, use_distributed_sampler=False,
        enable_checkpointing=False, logger=_logger(out),
        callbacks=[average, Checkpoints(last, seconds, every, publish)],
        strategy="auto" if devices in (1, "1") else RanksStrategy(),
        enable_progress_bar=progress, enable_model_summary=False,
    )  # fmt: skip
    fixed = {name: value.clone() for name, value in stage.model.state_dict().items()}
    trainer.fit(stage, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    with torch.no_grad():  # averaging rounds: what was not trained is put back
        for name, parameter in stage.model.named_parameters():
            if not parameter.requires_grad:
                parameter.copy_(fixed[name])
    losses = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
    log.info("%s: step %d, %.0f of %.0f s; last losses %s", type(stage).__name__, stage.global_step, stage.seconds,
             stage.config.total_seconds, losses)  # fmt: skip
    if stage.share < 1 and not stage.config.total_steps:
        log.warning(unfinished(stage.seconds, stage.config.total_seconds))
    return stage


@torch.no_grad()
def unit_latents(model: HPDM, data: MultiViewData, count: int = 256) -> float:
    """Set the autoencoder's scaling factor so that latents of the data have standard deviation 1; returns it."""
    subjects = torch.arange(min(count, len(data)), device=data.device)
    images = premultiplied_images(data.rgba[subjects, subjects % data.rgba.shape[1]])
    pictures = over_white(images[:, :3], images[:, 3:])
    model.vae.register_to_config(scaling_factor=1.0)
    device = model.alphas_cumprod.device
    latents = torch.cat([model.encode(part.to(device)) for part in pictures.split(32)])
    factor = 1.0 / float(latents.float().std())
    model.vae.register_to_config(scaling_factor=factor)
    return factor


def run(
    data_dir: Path, val_dir: Path | None, out: Path, stage_name: str, seconds: float, config: HPDMTrainConfig,
    perceptual_weights: Path | None = None, devices: int | str = 1, accelerator: str = "auto", limit: int | None = None,
    progress: bool = True, initial: Path | None = None, drafts_dir: Path | None = None,
) -> HPDM:  # fmt: skip
    """One run of one stage; writes the model's folder ``hpdm``, a card with numbers, and a sheet of held-out views.

    Args:
        initial: model folder whose weights a first run starts from; None is fresh weights.
        drafts_dir: drafts of the data (`priors.drafts`), of which the denoiser learns to make the truth.
    Raises: UsageError for data without depth or normals, or when the denoiser's stage finds no autoencoder; for drafts
        of other data.
    """
    if stage_name not in STAGES:
        raise UsageError(f"--stage is '{stage_name}'; expected {' or '.join(STAGES)}.")
    data = load_shards(data_dir, "cpu", limit)
    if data.depth is None or data.normal is None:
        raise UsageError(f"{data_dir} has no depth or no normals; render it with --extras depth normal.")
    folder = out / "hpdm"
    torch.manual_seed(config.seed)
    perceptual = None
    if (config.w_perceptual if stage_name == "autoencoder" else config.w_picture) > 0:
        from ...evaluation.stlpips import STLPIPS

        perceptual = STLPIPS("alex", weights=perceptual_weights)
    if stage_name == "autoencoder":
        model = build_mini(image_size=data.size) if initial is None else load_hpdm(initial).train()
        stage = AutoencoderStage(model, data, config, perceptual=perceptual)
    else:
        source = folder if (folder / INDEX).is_file() else initial
        if source is None:
            raise UsageError(f"No autoencoder in {folder}; run --stage autoencoder first, with the same --out.")
        drafts = None
        if config.painted > 0 and drafts_dir is None:
            raise UsageError("--painted is a share of rows that are told of a draft; give --drafts, or leave it out.")
        if drafts_dir is not None:
            drafts = load_shards(drafts_dir, "cpu", limit)
            check_same_cameras(data, drafts)
        stage = DenoiserStage(load_hpdm(source).train(), data, config, drafts, perceptual)
    run_stage(stage, out / stage_name, seconds, devices, accelerator, progress)
    if stage.trainer.is_global_zero:
        device = torch.device("cpu") if accelerator == "cpu" else default_device()
        finish(stage, stage_name, folder, data_dir, val_dir, device, drafts_dir, initial)
    return stage.model


def finish(
    stage: Stage, stage_name: str, folder: Path, data_dir: Path, val_dir: Path | None, device: torch.device,
    drafts_dir: Path | None = None, initial: Path | None = None,
) -> None:  # fmt: skip
    """Model folder, card and sheet of a stage; the numbers are computed on `device`."""
    from .assess import scores, sheet

    model, steps = stage.model.eval(), stage.config.sample_steps
    if stage_name == "autoencoder":
        unit_latents(model.to(device), stage.data())
    save_hpdm(model.cpu(), folder)
    card = {
        "stage": stage_name, "step": stage.global_step, "seconds": round(stage.seconds), "config": asdict(stage.config),
        "data": read_manifest(data_dir), "drafts": None if drafts_dir is None else read_manifest(drafts_dir),
        "initial": None if initial is None else sha256_file(initial / "unet" / SAFETENSORS_WEIGHTS_NAME),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "devices": stage.trainer.world_size,
    }  # fmt: skip
    if val_dir is not None:
        val = load_shards(val_dir, device)
        card["scores"] = scores(model.to(device), val, stage_name == "autoencoder", steps)
        log.info("%s after step %d: %s", stage_name, stage.global_step, json.dumps(card["scores"]))
        sheet(model, val, folder.parent / f"{stage_name}.png", stage_name == "autoencoder", steps)
        model.cpu()
    write_text(folder.parent / f"{stage_name}.json", json.dumps(card, indent=1) + "\n")


def main(argv: list | None = None) -> int:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="train-hpdm", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with shards of training subjects")
    parser.add_argument("--val", type=Path, help="folder with shards of held-out subjects")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, model and cards")
    parser.add_argument("--stage", required=True, choices=STAGES)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of this run; default: all that is left")
    parser.add_argument("--devices", type=int, default=1, help="GPUs or, with --accelerator cpu, processes")
    parser.add_argument("--accelerator", default="auto", help="auto, gpu or cpu")
    parser.add_argument("--perceptual-weights", type=Path, help="ST-LPIPS AlexNet file; default: the package's")
    parser.add_argument("--initial", type=Path, help="HPDM folder whose weights the first run starts from")
    parser.add_argument("--drafts", type=Path, help="folder with drafts of the training subjects (render-drafts)")
    parser.add_argument(
        "--drafted", type=float, default=BatchConfig.drafted, help="share of targets that are told of a draft"
    )
    parser.add_argument("--limit", type=int, help="use only so many subjects")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = [f for f in fields(HPDMTrainConfig) if f.name not in ("spoil", "painted_steps")]
    for option in options:
        switch = isinstance(option.default, bool)
        kind = {"action": argparse.BooleanOptionalAction} if switch else {"type": type(option.default)}
        parser.add_argument(f"--{option.name.replace('_', '-')}", default=option.default, **kind)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    chosen = {option.name: getattr(args, option.name) for option in options}
    config = HPDMTrainConfig(**chosen, spoil=BatchConfig(drafted=args.drafted))
    run(
        args.data, args.val, args.out, args.stage, args.seconds, config, args.perceptual_weights, args.devices,
        args.accelerator, args.limit, not args.quiet, args.initial, args.drafts,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
