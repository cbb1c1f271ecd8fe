"""Multi-view training data in device memory: all shards as small integers on the device, batches by indexing.

A data set is a folder of shards ``SPLIT_00000.npz``, ... of one split, N subjects from V cameras in S x S pixels each:
  ``rgba (N,V,S,S,4)`` uint8 straight colour + alpha; ``c2w (N,V,4,4)`` float32, world frame;
  ``camera (N,V,4)`` float32 azimuth, elevation (degrees), distance, fovy (degrees); and, where a training needs them,
  ``depth (N,V,S,S)`` int16, distance along the ray in 1/8192 units, 0 for nothing (float16 in units is read, too);
  ``normal (N,V,S,S,3)`` int8, unit vector x 127, world frame; ``label (N,V,S,S)`` uint8 of `synthetic.parts.LABELS`.
`synthetic.dataset` writes such folders; other arrays in a shard are not read.
"""
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError

DEPTH_SCALE = 8192.0
"""Steps of a stored depth in one scene unit; 16 bits reach 4 units, half precision would be 16 times coarser there."""


@dataclass
class MultiViewData:
    """Images and cameras of many subjects.

    Attributes:
        rgba: (N, V, S, S, 4) uint8, straight colour and alpha.
        depth: (N, V, S, S) int16 distance along the unit ray in 1 / `DEPTH_SCALE`, 0 where nothing is hit; None when
            the shards have none.
        normal: (N, V, S, S, 3) int8, unit vector x 127, world frame; None when the shards have none.
        c2w: (N, V, 4, 4) world frame; fovy: (N, V) radians.
        azimuth, elevation: (N, V) degrees.
        label: (N, V, S, S) uint8, what a pixel shows (`synthetic.parts.LABELS`); None when the shards have none.
    """

    rgba: Tensor
    depth: Tensor | None
    c2w: Tensor
    fovy: Tensor
    azimuth: Tensor
    elevation: Tensor
    normal: Tensor | None = None
    label: Tensor | None = None

    def distance(self, subject: Tensor, view: Tensor) -> Tensor:
        """(..., S, S) float32 distance along the unit ray, scene units, of the indexed views."""
        return self.depth[subject, view].float() / DEPTH_SCALE

    def to(self, device: torch.device) -> "MultiViewData":
        """The same on a device."""
        return MultiViewData(**{name: v if v is None else v.to(device) for name, v in vars(self).items()})

    def __len__(self) -> int:
        return self.rgba.shape[0]

    @property
    def size(self) -> int:
        return self.rgba.shape[2]

    @property
    def device(self) -> torch.device:
        return self.rgba.device


def shard_paths(folder: str | Path) -> list[Path]:
    """The shards of a data set in order.

    Raises: UsageError when the folder holds no shard, or shards of several splits.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*_[0-9]*.npz"))
    if not paths:
        raise UsageError(
            f"No shards (SPLIT_00000.npz) in {folder}; render a data set first (portrait_diffusion.synthetic.dataset)."
        )
    splits = sorted({path.stem.rsplit("_", 1)[0] for path in paths})
    if len(splits) > 1:
        raise UsageError(f"{folder} holds shards of several splits ({', '.join(splits)}); keep one split a folder.")
    return paths


def load_shards(source: str | Path, device, limit: int | None = None) -> MultiViewData:
    """Read every shard of a data set written by `synthetic.dataset` into memory of `device`.

    Args:
        source: folder with SPLIT_00000.npz, ... of one split; or one shard.
        device: where the data is kept.
        limit: read only so many subjects.
    Raises: UsageError when the folder holds no shard or several splits, or a shard is damaged or unlike the others.
    """
    paths = [Path(source)] if Path(source).is_file() else shard_paths(source)
    parts: dict = {}
    count = 0
    for path in paths:
        for key, value in _read_shard(path).items():
            if key in parts and parts[key][0].shape[1:] != value.shape[1:]:
                raise UsageError(
                    f"'{key}' of {path} has shape {value.shape[1:]} a subject, in {paths[0].name} it is "
                    f"{parts[key][0].shape[1:]}; render the data set again with one size and number of views."
                )
            parts.setdefault(key, []).append(value)
        count += len(parts["rgba"][-1])
        if limit and count >= limit:
            break

    def stack(key, dtype):
        values = np.concatenate(parts[key])[:limit]
        return torch.from_numpy(values).to(device=device, dtype=dtype)

    def complete(key):
        return len(parts.get(key, [])) == len(parts["rgba"])

    camera = stack("camera", torch.float32)  # (N, V, 4): azimuth, elevation, distance, fovy in degrees
    return MultiViewData(
        rgba=stack("rgba", torch.uint8),
        depth=stack("depth", torch.int16) if complete("depth") else None,
        c2w=stack("c2w", torch.float32),
        fovy=torch.deg2rad(camera[..., 3]),
        azimuth=camera[..., 0],
        elevation=camera[..., 1],
        normal=stack("normal", torch.int8) if complete("normal") else None,
        label=stack("label", torch.uint8) if complete("label") else None,
    )


def _read_shard(path: Path) -> dict:
    """The arrays of one shard that training needs; raises UsageError naming the file."""
    try:
        with np.load(path, allow_pickle=False) as shard:
            keys = ("rgba", "depth", "normal", "label", "c2w", "camera")
            arrays = {key: shard[key] for key in keys if key in shard.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not a readable shard ({error}); delete it and render it again.") from error
    missing = {"rgba", "c2w", "camera"} - set(arrays)
    if missing:
        raise UsageError(f"{path} lacks {', '.join(sorted(missing))}; it is no shard of portrait_diffusion.synthetic.")
    if arrays.get("depth", np.zeros(0, np.int16)).dtype != np.int16:
        arrays["depth"] = encode_depth(arrays["depth"])
    return arrays


def encode_depth(depth: np.ndarray) -> np.ndarray:
    """Distances in scene units as stored in shards: int16 steps of 1 / `DEPTH_SCALE`, clipped at 3.99 units."""
    return np.round(np.clip(depth.astype(np.float32) * DEPTH_SCALE, 0, 32767)).astype(np.int16)


def read_manifest(folder: str | Path) -> dict:
    """Manifests of a data set by file name, {} if there is none."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("manifest_*.json"))}
