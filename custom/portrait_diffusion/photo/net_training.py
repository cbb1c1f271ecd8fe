"""Training of the small networks that look at photographs: resumable, with a time budget and a moving average."""
import argparse
import copy
import logging
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..devices import default_device
from ..errors import UsageError
from ..files import atomic_path
from .net_files import save_net

_log = logging.getLogger("portrait_diffusion")


@dataclass
class NetTrainConfig:
    """Settings of one training run; ``seconds`` ends it, or ``steps`` when given."""

    seconds: float = 200.0
    steps: int = 0
    batch_size: int = 96
    repeats: int = 2
    """Steps that a batch of pictures serves, every other one in a mirror: making them takes as long as a step."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    ema_decay: float = 0.998
    size: int = 256
    eval_batches: int = 4
    seed: int = 0
    save_every_seconds: float = 60.0

    def __post_init__(self):
        if self.repeats < 1:
            raise UsageError(f"A batch of pictures must serve at least one step; repeats is {self.repeats}.")


Config = TypeVar("Config", bound=NetTrainConfig)


class NetTrainer(ABC):
    """State of a run: network, its moving average, optimizer, progress.

    Args: build: makes the network, after the seed is set; pool: what pictures are made from, it has a length and is
        indexed by tensors; config; device.
    """

    name: str
    """Of the files: ``NAME.safetensors`` with its card, and ``NAME_train.pt``."""

    def __init__(self, build: type[nn.Module], pool, config: NetTrainConfig, device: torch.device):
        self.pool, self.config, self.device = pool, config, device
        torch.manual_seed(config.seed)  # initial weights
        self.net = build().to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.elapsed = 0, 0.0
        self._made: tuple[int, Any] | None = None

    @abstractmethod
    def pictures(self, rows, generator: torch.Generator):
        """A batch of pictures, with ``mirrored()``. Args: rows of the pool; generator: source of all randomness."""

    @abstractmethod
    def losses(self, batch) -> dict[str, Tensor]:
        """Loss terms of such a batch, ``total`` among them."""

    @abstractmethod
    def about(self) -> dict:
        """What of the card is this network's own: name, task, pictures, how well it does on held-out ones."""

    def card(self) -> dict:
        """What the weights are, what they were trained on, how well they do on fresh synthetic pictures."""
        return self.about() | {
            "parameters": sum(parameter.numel() for parameter in self.net.parameters()),
            "data": "rendered procedural heads over procedural backgrounds; no photographs",
            "steps": self.step,
            "seconds": round(self.elapsed, 1),
            "config": asdict(self.config),
        }

    def progress(self) -> float:
        """Finished share of the run in [0, 1]."""
        config = self.config
        return min(1.0, self.step / config.steps if config.steps else self.elapsed / config.seconds)

    @torch.no_grad()
    def batch(self):
        """Pictures of this step: a function of seed and step, so that a resumed run sees what it would have seen."""
        number, turn = divmod(self.step, self.config.repeats)
        if self._made is None or self._made[0] != number:
            generator = torch.Generator(self.device).manual_seed(self.config.seed * 2**32 + number)
            picks = torch.randint(
                0, len(self.pool), (self.config.batch_size,), generator=generator, device=self.device
            )
            self._made = number, self.pictures(self.pool[picks], generator)
        made = self._made[1]
        return made.mirrored() if turn % 2 else made

    def train_step(self) -> dict[str, Tensor]:
        """One optimizer step; returns the loss terms, detached."""
        config = self.config
        rate = config.learning_rate * min(1.0, (self.step + 1) / config.warmup_steps)
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress()))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        terms = self.losses(self.batch())
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
            "step": self.step,
            "elapsed": self.elapsed,
        }

    def load_state(self, state: dict) -> None:
        """Continue from ``state()``."""
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = int(state["step"]), float(state["elapsed"])

    def train(self, out: Path, log_every: int = 100) -> Path:
        """Run to the end of the budget, saving now and then; a run that left its state in ``out`` is continued.

        Args:
            out: folder for the weights with their card, and the resumable state.
            log_every: steps between two log lines.

        Returns: path of the weights (the moving average).
        """
        out.mkdir(parents=True, exist_ok=True)
        state = out / f"{self.name}_train.pt"
        if state.is_file():
            self.load_state(torch.load(state, map_location=self.device, weights_only=True))
            _log.info("resumed at step %d after %.0f s", self.step, self.elapsed)
        last = saved = time.monotonic()
        while self.progress() < 1:
            terms = self.train_step()
            if self.step % 10 == 0 and self.device.type != "cpu":
                terms["total"].item()  # waits for the device, so that the clock below is honest
            now = time.monotonic()
            self.elapsed, last = self.elapsed + now - last, now
            if self.step % log_every == 0:
                shown = " ".join(f"{name} {value.item():.4f}" for name, value in terms.items())
                _log.info("step %d, %.0f s: %s", self.step, self.elapsed, shown)
            if now - saved > self.config.save_every_seconds:
                self._save(out)
                saved = now
        return self._save(out)

    def _save(self, out: Path) -> Path:
        with atomic_path(out / f"{self.name}_train.pt") as partial:
            torch.save(self.state(), partial)
        path = out / f"{self.name}.safetensors"
        save_net(self.average, path, self.card())
        return path


def training_options(told: str, kind: type[Config], max_frames: int, max_yaw: float, arguments=None):
    """Command line of a training: data, output folder, and settings with their defaults; logging is set up.

    Args: told: description; kind: of the settings; max_frames, max_yaw: defaults; arguments: None takes the process's.
    Returns: options with ``data``, ``out``, ``max_frames`` and ``max_yaw``; settings; device.
    """
    config = kind()
    parser = argparse.ArgumentParser(description=told)
    parser.add_argument("--data", required=True, type=Path, help="folder with synthetic shards")
    parser.add_argument("--out", required=True, type=Path, help="folder for the weights and the resumable state")
    parser.add_argument("--seconds", type=float, default=config.seconds, help="time budget of the whole run, data "
                        "loading apart")  # fmt: skip
    parser.add_argument("--steps", type=int, default=config.steps, help="stop after so many steps instead of by time")
    parser.add_argument("--batch-size", type=int, default=config.batch_size)
    parser.add_argument("--size", type=int, default=config.size, help="side of the training pictures, a multiple of 32")
    parser.add_argument("--eval-batches", type=int, default=config.eval_batches, help="batches of the card's held-out "
                        "test")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=config.repeats, help="steps that a batch of pictures serves")
    parser.add_argument("--warmup-steps", type=int, default=config.warmup_steps)
    parser.add_argument("--seed", type=int, default=config.seed)
    parser.add_argument("--max-frames", type=int, default=max_frames)
    parser.add_argument("--max-yaw", type=float, default=max_yaw, help="use views up to so many degrees from the front")
    parser.add_argument("--device", default="", help="default: the accelerator if there is one")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device(options.device) if options.device else default_device()
    return options, kind(**{name: value for name, value in vars(options).items() if hasattr(config, name)}), device
