"""Cut-out heads for training the matting network, from the shards of ``portrait_diffusion.synthetic.dataset``."""
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UsageError

Pool = TypeVar("Pool")


def read_shards(folder, names: tuple[str, ...]) -> Iterator[tuple[np.ndarray, ...]]:
    """Arrays of all training shards in turn.

    Args: folder: holds ``train_*.npz``; names: of the arrays.
    Yields: the arrays of a shard.
    Raises: UsageError when there are no shards or a file is none.
    """
    shards = sorted(Path(folder).glob("train_*.npz"))
    if not shards:
        raise UsageError(
            f"There are no shards 'train_*.npz' in '{folder}'; render some with portrait_diffusion.synthetic.dataset."
        )
    for shard in shards:
        try:
            with np.load(shard, allow_pickle=False) as arrays:
                found = tuple(arrays[name] for name in names)
        except (KeyError, ValueError, OSError) as error:
            raise UsageError(f"'{shard}' is not a shard of synthetic heads ({error}); render it again.") from error
        yield found


def seen_from_front(camera: np.ndarray, max_yaw_deg: float) -> np.ndarray:
    """(...,) which cameras (..., 4), azimuth in degrees first, are at most so far from the front."""
    return np.abs((camera[..., 0] + 180) % 360 - 180) <= max_yaw_deg


def read_frames(folder, max_yaw_deg: float = 75.0) -> Iterator[np.ndarray]:
    """Frames of all training shards, seen from the front half.

    Args:
        folder: holds ``train_*.npz`` with ``rgba (N, V, S, S, 4)`` uint8 and ``camera (N, V, 4)`` (azimuth in degrees
            first).
        max_yaw_deg: views with a larger absolute azimuth are left out.

    Yields: (n, S, S, 4) uint8 arrays, one a shard.
    Raises: UsageError when there are no shards or a file is none.
    """
    for rgba, camera in read_shards(folder, ("rgba", "camera")):
        yield rgba[seen_from_front(camera, max_yaw_deg)]


def load_pool(arrays, size: int, device: torch.device, max_frames: int) -> Tensor:
    """Collect (..., S, S, 4) uint8 arrays from an iterator into one (M, size, size, 4) tensor on the device.

    Raises: UsageError when the iterator yields nothing or arrays of another kind.
    """
    pool, count = [], 0
    for array in arrays:
        frames = torch.as_tensor(array)
        square = frames.dim() >= 4 and frames.shape[-1] == 4 and frames.shape[-2] == frames.shape[-3]
        if frames.dtype != torch.uint8 or not square:
            raise UsageError(f"Expected uint8 RGBA frames (..., S, S, 4), got {tuple(frames.shape)} {frames.dtype}.")
        frames = frames.reshape(-1, *frames.shape[-3:])[: max_frames - count]
        pool.extend(resize_frames(part.to(device), size) for part in frames.split(256) if len(part))
        count += len(frames)
        if count >= max_frames:
            break
    if not count:
        raise UsageError("The training data holds no frames; render synthetic heads first.")
    return torch.cat(pool)


def resize_frames(frames: Tensor, size: int) -> Tensor:
    """Resize (M, S, S, 4) uint8 straight RGBA bilinearly (anti-aliased) through premultiplied colour."""
    if frames.shape[1] == size:
        return frames
    layers = frames.permute(0, 3, 1, 2).float() / 255
    premultiplied = torch.cat([layers[:, :3] * layers[:, 3:], layers[:, 3:]], 1)
    premultiplied = F.interpolate(premultiplied, (size, size), mode="bilinear", align_corners=False, antialias=True)
    alpha = premultiplied[:, 3:]
    colour = (premultiplied[:, :3] / alpha.clamp_min(1e-4)).clamp(0, 1)
    return (torch.cat([colour, alpha.clamp(0, 1)], 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def split_pool(frames: Pool, share: float = 0.02) -> tuple[Pool, Pool]:
    """(training, held-out) frames: the held-out ones are the last, so whole subjects; a tiny pool serves as both.

    Args: frames: a tensor or anything else with a length that slices cut; share: that is held out.
    """
    held_out = int(len(frames) * share)
    return (frames[:-held_out], frames[-held_out:]) if held_out else (frames, frames)
