"""Train CameraNet on synthetic heads over procedural scenes: ``python launch_portrait.py train-camera --data DIR``.

The run is resumable: the same command continues from ``camera_train.pt`` in the output folder, and its time budget
counts all parts of the run.
"""
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.canonical import CANONICAL_LANDMARKS_CROP
from .camera_data import CameraBatch, CameraPool, crop_of, load_camera_pool, make_camera_batch
from .camera_net import CAMERA_SIZE, CameraNet
from .matte_data import split_pool
from .net_training import NetTrainConfig, NetTrainer, training_options

_log = logging.getLogger("portrait_diffusion")
EYE_DISTANCE = float(CANONICAL_LANDMARKS_CROP[1, 0] - CANONICAL_LANDMARKS_CROP[0, 0])
LOSS_DEG = 10.0
"""Error of an angle that weighs as much as one of the anchors by a tenth of the eye distance."""


@dataclass
class CameraTrainConfig(NetTrainConfig):
    """Settings of one training run; ``seconds`` ends it, or ``steps`` when given."""

    batch_size: int = 256
    learning_rate: float = 1.5e-3
    size: int = CAMERA_SIZE


class CameraTrainer(NetTrainer):
    """Trains CameraNet. Args: pool: views on the training device, larger than config.size or as large; config."""

    name = "camera"

    def __init__(self, pool: CameraPool, config: CameraTrainConfig):
        pool, self.held_out = split_pool(pool)
        super().__init__(CameraNet, pool, config, pool.frames.device)

    def pictures(self, rows: CameraPool, generator: torch.Generator) -> CameraBatch:
        """Crops of some views."""
        return make_camera_batch(rows, self.config.size, generator)

    def losses(self, batch: CameraBatch) -> dict[str, Tensor]:
        """Mean absolute errors, anchors in tenths of the eye distance, angles in ``LOSS_DEG``."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            angles, anchors = self.net(batch.rgb.contiguous(memory_format=torch.channels_last), batch.valid)
        places = F.smooth_l1_loss(anchors / (0.1 * EYE_DISTANCE), batch.anchors / (0.1 * EYE_DISTANCE), beta=0.2)
        turns = F.smooth_l1_loss(angles / LOSS_DEG, batch.angles / LOSS_DEG, beta=0.1)
        return {"anchors": places, "angles": turns, "total": places + turns}

    def about(self) -> dict:
        """Name, task, views, and how well the weights do on fresh synthetic photographs."""
        return {
            "name": "CameraNet",
            "task": "canonical camera of a roughly aligned portrait crop",
            "frames": len(self.pool),
            "held_out_synthetic": evaluate(self.average, self.held_out, self.config),
        }


@torch.no_grad()
def evaluate(net: CameraNet, pool: CameraPool, config: CameraTrainConfig, batch_size: int = 64, seed: int = 10**6):
    """Errors of one look at fresh crops with a fixed seed, means: angles in degrees; size, how far the scale of the
    similarity of the anchors is off, in per cent; shift, how far their mean is off, in per cent of the side."""
    generator = torch.Generator(pool.frames.device).manual_seed(seed)
    found = []
    for _ in range(config.eval_batches):
        picks = torch.randint(0, len(pool), (batch_size,), generator=generator, device=pool.frames.device)
        batch = make_camera_batch(pool[picks], config.size, generator)
        angles, anchors = net(batch.rgb, batch.valid)
        size = (crop_of(anchors)[0].abs() / crop_of(batch.anchors)[0].abs()).log()
        shift = (anchors.mean(1) - batch.anchors.mean(1)).norm(dim=-1)
        found.append(torch.cat([(angles - batch.angles).abs(), 100 * size[:, None].abs(), 100 * shift[:, None]], 1))
    means = torch.cat(found).mean(0).tolist()
    return dict(zip(("azimuth_deg", "elevation_deg", "size_percent", "shift_percent"), (round(x, 3) for x in means)))


def main(arguments=None) -> Path:
    """Command line entry; returns the path of the weights."""
    options, config, device = training_options(__doc__, CameraTrainConfig, 60000, 45.0, arguments)
    pool = load_camera_pool(options.data, config.size * 5 // 4, device, options.max_frames, options.max_yaw)
    _log.info("%d views on %s", len(pool), device)
    return CameraTrainer(pool, config).train(options.out)


if __name__ == "__main__":
    main()
