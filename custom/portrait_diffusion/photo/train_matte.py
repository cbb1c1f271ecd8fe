"""Train MatteNet on synthetic heads over procedural scenes: ``python -m portrait_diffusion.photo.train_matte --data
DIR``.

The run is resumable: the same command continues from ``matte_train.pt`` in the output folder, and its time budget
counts all parts of the run.
"""
import argparse
import copy
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError
from ..files import atomic_path
from .composites import make_batch
from .matte_data import load_pool, read_frames, split_pool
from .matte_loss import matte_loss
from .matte_net import MATTE_SIZE, MatteNet, save_matte_net

_log = logging.getLogger("portrait_diffusion")


@dataclass
class MatteTrainConfig:
    """Settings of one training run; ``seconds`` ends it, or ``steps`` when given."""

    seconds: float = 200.0
    steps: int = 0
    batch_size: int = 96
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    ema_decay: float = 0.998
    size: int = MATTE_SIZE
    eval_batches: int = 4
    seed: int = 0
    save_every_seconds: float = 60.0


class MatteTrainer:
    """State of a run: network, its moving average, optimizer, generator, progress."""

    def __init__(self, frames: Tensor, config: MatteTrainConfig):
        """Args: frames: (M, S, S, 4) uint8 straight RGBA on the training device; config: the settings."""
        if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 4 or len(frames) == 0:
            raise UsageError(f"frames must be (M, S, S, 4) uint8 with M > 0, got {tuple(frames.shape)} {frames.dtype}.")
        self.frames, self.held_out = split_pool(frames)
        self.config, self.device = config, frames.device
        torch.manual_seed(config.seed)  # initial weights
        self.net = MatteNet().to(self.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.step, self.elapsed = 0, 0.0

    def progress(self) -> float:
        """Finished share of the run in [0, 1]."""
        config = self.config
        return min(1.0, self.step / config.steps if config.steps else self.elapsed / config.seconds)

    def train_step(self) -> dict[str, Tensor]:
        """One optimizer step on a fresh batch; returns the loss terms, detached."""
        config = self.config
        rate = config.learning_rate * min(1.0, (self.step + 1) / config.warmup_steps)
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress()))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        picks = torch.randint(0, len(self.frames), (config.batch_size,), generator=self.generator, device=self.device)
        with torch.no_grad():
            batch = make_batch(self.frames[picks], self.generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            logits = self.net(batch.rgb.contiguous(memory_format=torch.channels_last), batch.valid)
        terms = matte_loss(logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - decay)
        return {name: value.detach() for name, value in terms.items()}

    def state(self) -> dict:
        """Plain containers and tensors from which ``load_state`` continues the run."""
        return {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "elapsed": self.elapsed,
        }

    def load_state(self, state: dict) -> None:
        """Continue from ``state()``."""
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.elapsed = int(state["step"]), float(state["elapsed"])


def train(trainer: MatteTrainer, out: Path, log_every: int = 100) -> Path:
    """Run to the end of the budget, saving now and then.

    Args:
        trainer: a new or resumed MatteTrainer.
        out: folder for ``matte.safetensors`` with its card, and ``matte_train.pt``.
        log_every: steps between two log lines.

    Returns: path of the weights (the moving average).
    """
    out.mkdir(parents=True, exist_ok=True)
    last = saved = time.monotonic()
    while trainer.progress() < 1:
        terms = trainer.train_step()
        if trainer.step % 10 == 0 and trainer.device.type != "cpu":
            terms["total"].item()  # waits for the device, so that the clock below is honest
        now = time.monotonic()
        trainer.elapsed, last = trainer.elapsed + now - last, now
        if trainer.step % log_every == 0:
            shown = " ".join(f"{name} {value.item():.4f}" for name, value in terms.items())
            _log.info("step %d, %.0f s: %s", trainer.step, trainer.elapsed, shown)
        if now - saved > trainer.config.save_every_seconds:
            _save(trainer, out)
            saved = now
    return _save(trainer, out)


def _save(trainer: MatteTrainer, out: Path) -> Path:
    with atomic_path(out / "matte_train.pt") as partial:
        torch.save(trainer.state(), partial)
    path = out / "matte.safetensors"
    save_matte_net(trainer.average, path, model_card(trainer))
    return path


def model_card(trainer: MatteTrainer) -> dict:
    """What the weights are, what they were trained on, how well they do on fresh synthetic composites."""
    return {
        "name": "MatteNet",
        "task": "soft alpha of the person in a canonical portrait crop",
        "parameters": sum(parameter.numel() for parameter in trainer.net.parameters()),
        "data": "rendered procedural heads over procedural backgrounds; no photographs",
        "frames": len(trainer.frames),
        "steps": trainer.step,
        "seconds": round(trainer.elapsed, 1),
        "config": asdict(trainer.config),
        "held_out_synthetic": evaluate(trainer.average, trainer.held_out, trainer.config.eval_batches),
    }


@torch.no_grad()
def evaluate(net: MatteNet, frames: Tensor, batches: int = 4, batch_size: int = 16, seed: int = 10**6) -> dict:
    """Mean absolute alpha error and intersection over union at 0.5 on composites with a fixed seed."""
    generator = torch.Generator(frames.device).manual_seed(seed)
    error = area = overlap = union = 0.0
    for _ in range(batches):
        picks = torch.randint(0, len(frames), (batch_size,), generator=generator, device=frames.device)
        batch = make_batch(frames[picks], generator)
        alpha = net(batch.rgb, batch.valid).float().sigmoid()
        error += ((alpha - batch.alpha).abs() * batch.valid).sum().item()
        area += batch.valid.sum().item()
        found, true = (alpha > 0.5) & (batch.valid > 0), (batch.alpha > 0.5) & (batch.valid > 0)
        overlap += (found & true).sum().item()
        union += (found | true).sum().item()
    return {"mean_absolute_error": round(error / area, 5), "iou": round(overlap / max(union, 1), 4)}


def default_device() -> torch.device:
    """The accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def main(arguments=None) -> Path:
    """Command line entry; returns the path of the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder with synthetic shards")
    parser.add_argument("--out", required=True, type=Path, help="folder for the weights and the resumable state")
    parser.add_argument("--seconds", type=float, default=200.0, help="time budget of the whole run, data loading apart")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps instead of by time")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--size", type=int, default=MATTE_SIZE, help="side of the training pictures, a multiple of 32")
    parser.add_argument("--eval-batches", type=int, default=4, help="batches of 16 for the card's held-out test")
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--max-frames", type=int, default=40000)
    parser.add_argument("--max-yaw", type=float, default=75.0, help="use views up to this many degrees from the front")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="", help="default: the accelerator if there is one")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device(options.device) if options.device else default_device()
    config = MatteTrainConfig(
        options.seconds, options.steps, options.batch_size, warmup_steps=options.warmup_steps,
        size=options.size, eval_batches=options.eval_batches, seed=options.seed,
    )  # fmt: skip
    frames = load_pool(read_frames(options.data, options.max_yaw), config.size, device, options.max_frames)
    _log.info("%d frames on %s", len(frames), device)
    trainer = MatteTrainer(frames, config)
    state = options.out / "matte_train.pt"
    if state.is_file():
        trainer.load_state(torch.load(state, map_location=device, weights_only=True))
        _log.info("resumed at step %d after %.0f s", trainer.step, trainer.elapsed)
    return train(trainer, options.out)


if __name__ == "__main__":
    main()
