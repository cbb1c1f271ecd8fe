"""Train MatteNet on synthetic heads over procedural scenes: ``python launch_portrait.py train-matte --data DIR``.

The run is resumable: the same command continues from ``matte_train.pt`` in the output folder, and its time budget
counts all parts of the run.
"""
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError
from .composites import MatteBatch, make_batch
from .matte_data import load_pool, read_frames, split_pool
from .matte_loss import matte_loss
from .matte_net import MATTE_SIZE, MatteNet
from .net_training import NetTrainConfig, NetTrainer, training_options

_log = logging.getLogger("portrait_diffusion")


@dataclass
class MatteTrainConfig(NetTrainConfig):
    """Settings of one training run; ``seconds`` ends it, or ``steps`` when given."""

    size: int = MATTE_SIZE


class MatteTrainer(NetTrainer):
    """Trains MatteNet. Args: frames: (M, S, S, 4) uint8 straight RGBA on the training device; config: the settings."""

    name = "matte"

    def __init__(self, frames: Tensor, config: MatteTrainConfig):
        if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 4 or len(frames) == 0:
            raise UsageError(f"frames must be (M, S, S, 4) uint8 with M > 0, got {tuple(frames.shape)} {frames.dtype}.")
        frames, self.held_out = split_pool(frames)
        super().__init__(MatteNet, frames, config, frames.device)

    def pictures(self, rows: Tensor, generator: torch.Generator) -> MatteBatch:
        """Composites of some frames."""
        return make_batch(rows, generator)

    def losses(self, batch: MatteBatch) -> dict[str, Tensor]:
        """See `matte_loss`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            logits = self.net(batch.rgb.contiguous(memory_format=torch.channels_last), batch.valid)
        return matte_loss(logits, batch)

    def about(self) -> dict:
        """Name, task, frames, and how well the weights do on fresh synthetic composites."""
        return {
            "name": "MatteNet",
            "task": "soft alpha of the person in a canonical portrait crop",
            "frames": len(self.pool),
            "held_out_synthetic": evaluate(self.average, self.held_out, self.config.eval_batches),
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


def main(arguments=None) -> Path:
    """Command line entry; returns the path of the weights."""
    options, config, device = training_options(__doc__, MatteTrainConfig, 40000, 75.0, arguments)
    frames = load_pool(read_frames(options.data, options.max_yaw), config.size, device, options.max_frames)
    _log.info("%d frames on %s", len(frames), device)
    return MatteTrainer(frames, config).train(options.out)


if __name__ == "__main__":
    main()
