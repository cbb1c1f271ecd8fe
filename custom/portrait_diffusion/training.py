"""The stages after the initialization on our own host: one Lightning run, resumed from the last stage's checkpoint."""
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from .data.portrait import PortraitDataModule
from .files import PARTIAL_PREFIX
from .interrupt import Stopped
from .inversion.engine import Inversion
from .systems.portrait import PortraitSystem

log = logging.getLogger("portrait_diffusion")
Tell = Callable[[str, int, int, dict], None]
CHECKPOINT_SECONDS = 30.0
"""Seconds between checkpoints; each stage writes its own, the last time at its end."""


class Report(pl.Callback):
    """Tells the progress of each stage and writes checkpoints.

    Args: tell(stage, done, total, values), which may raise `Stopped`; files: each stage's checkpoint, a stage without
        one writes none; look(stage, done, system) is called after each step, for previews.
    """

    def __init__(self, tell: Tell, files: dict[str, Path], look: Callable | None = None):
        self.tell, self.files, self.last, self.look = tell, files, time.monotonic(), look
        self.stopped = False

    def on_train_batch_end(self, trainer: pl.Trainer, system: PortraitSystem, *args: Any) -> None:
        step = trainer.global_step
        place = system.schedule.at(step - 1)
        try:
            self.tell(place.name, place.step + 1, place.stage.steps, system.last_losses())
        except Stopped:
            self.stopped = trainer.should_stop = True
            self.write(trainer, place.name)
            return
        if self.look is not None:
            self.look(place.name, place.step + 1, system)
        ended = step in system.schedule.boundaries()
        if ended or time.monotonic() - self.last > CHECKPOINT_SECONDS:
            self.write(trainer, place.name)

    def write(self, trainer: pl.Trainer, stage: str) -> None:
        """The file is complete or not there."""
        path = self.files.get(stage)
        if path is not None:
            partial = path.with_name(f"{PARTIAL_PREFIX}{path.name}")
            trainer.save_checkpoint(partial)
            os.replace(partial, path)
        self.last = time.monotonic()


def run_stages(
    fit: Inversion, section: dict, photo, seed: int, files: dict[str, Path], tell: Tell, look: Callable | None = None
) -> tuple[PortraitSystem, dict, bool]:
    """Train the stages of a configuration from a finished initialization.

    Args:
        fit: the initialization.
        section: the system's configuration.
        photo: `photo.prepare.PreparedPhoto`.
        seed: of cameras and renders.
        files: stage -> checkpoint to write to, in order; the run goes on from the last one that is there. Empty keeps
            nothing.
        tell: tell(stage, done, total, values); may raise `Stopped`, which ends the run in order, but not in the stage
            "paint": the look around of a step.
        look: look(stage, done, system) after each step.
    Returns: the system with the head, the losses of every step of this run by name, and whether it was stopped.
    Raises: KeyboardInterrupt when interrupted; the checkpoints stay.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    last = next((path for path in reversed(files.values()) if path.is_file()), None)
    system = PortraitSystem({**section, "seed": seed}, resumed=last is not None)
    system.start_from(fit)
    data = PortraitDataModule({"stages": section["stages"], "seed": seed})
    data.use_photo(photo)
    device = torch.device(system.geometry.device)
    system.on_paint = lambda done, total: total and tell("paint", done, total, {})
    report = Report(tell, files, look)
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        max_steps=system.schedule.total, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
        callbacks=[report],
    )  # fmt: skip
    handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
            trainer.fit(system, datamodule=data, ckpt_path=None if last is None else str(last), weights_only=True)
    except SystemExit as exit_of_lightning:  # it answers an interruption itself, and ignores further ones
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from exit_of_lightning
    return system.eval(), system.curves, report.stopped
