"""The photo and the cameras of a run, registered as ``portrait-diffusion-datamodule``."""
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import UsageError
from ..host import Updateable, parse_structured, register
from ..ops.cameras import (
    canonical_fovy,
    get_mvp_matrix,
    get_projection_matrix,
    get_rays,
    orbit_c2w,
    test_azimuths_deg,
    validation_azimuths_deg,
)
from ..ops.canonical import CANONICAL_DISTANCE
from ..systems.stages import Schedule
from .cameras import draw_angles

if TYPE_CHECKING:
    from ..photo.prepare import PreparedPhoto


@dataclass
class PortraitDataConfig:
    """The photo, how it is prepared, and cameras."""

    image_path: str = ""  # the photo; empty is no photo, for training without one
    size: int = 512  # side of the canonical crop, pixels
    aligned: bool = False  # the picture already is in the canonical crop
    matte: str = "auto"  # auto, own, network, grabcut or none
    camera: str = "network"  # network or landmarks: what finds the photo's camera and the head's size in it
    stages: Any = field(default_factory=dict)  # system.stages, by ${system.stages}
    seed: int = 0  # of the training cameras
    eval_size: int = 128  # side of validation and test pictures, pixels
    eval_elevation_deg: float = 0.0  # of validation and test cameras
    n_val_views: int = 8  # validation pictures, evenly around the head
    n_test_views: int = 120  # pictures of the test film


def camera_batch(azimuth: Tensor, elevation: Tensor, size: int) -> dict[str, Any]:
    """A batch of canonical cameras in threestudio's keys. Args: (B,) degrees; side in pixels."""
    c2w = orbit_c2w(azimuth, elevation)
    fovy = canonical_fovy(c2w).expand(len(c2w))
    rays_o, rays_d = get_rays(c2w, fovy, size, size)
    return {
        "rays_o": rays_o, "rays_d": rays_d, "c2w": c2w, "fovy": fovy, "height": size, "width": size,
        "mvp_mtx": get_mvp_matrix(c2w, get_projection_matrix(fovy, 1.0)), "camera_positions": c2w[:, :3, 3],
        "light_positions": c2w[:, :3, 3], "azimuth": azimuth, "elevation": elevation,
        "camera_distances": torch.full_like(azimuth, CANONICAL_DISTANCE),
    }  # fmt: skip


class TrainingCameras(IterableDataset, Updateable):
    """Cameras of the stages; what a step shows is a function of seed and step alone (`batch_at`)."""

    def __init__(self, cfg: PortraitDataConfig):
        self.cfg, self.schedule, self.step = cfg, Schedule(dict(cfg.stages or {})), 0

    def batch_at(self, step: int) -> dict[str, Any]:
        """The batch of a global step."""
        place = self.schedule.at(step)
        s = place.stage
        azimuth, elevation = draw_angles(
            step, self.cfg.seed, s.views, s.azimuths, s.elevations, s.pairs, s.pair_deg
        )  # fmt: skip
        return camera_batch(azimuth, elevation, s.resolution_at(place.step))

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """The next batch is drawn for this step."""
        self.step = global_step

    def __iter__(self):
        while True:
            yield {}

    def collate(self, batch: Any) -> dict[str, Any]:
        """The cameras of the step; what the loader drew is empty."""
        return self.batch_at(self.step)


class RingOfCameras(Dataset):
    """Views around the head, one an item, with their index."""

    def __init__(self, azimuths: Tensor, elevation: float, size: int):
        self.azimuths, self.elevation, self.size = azimuths, elevation, size

    def __len__(self) -> int:
        return len(self.azimuths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        azimuth = self.azimuths[index : index + 1].float()
        batch = camera_batch(azimuth, torch.full_like(azimuth, self.elevation), self.size)
        return {name: value[0] if isinstance(value, Tensor) else value for name, value in batch.items()} | {
            "index": index
        }

    def collate(self, batch: list) -> dict[str, Any]:
        """Items as a batch; sizes stay numbers."""
        found = torch.utils.data.default_collate(batch)
        return found | {"height": self.size, "width": self.size}


@register("portrait-diffusion-datamodule")
class PortraitDataModule(pl.LightningDataModule):
    """A photo (`photo`) and cameras around the head.

    Raises: UsageError for a photo that cannot be used (in `setup`).
    """

    cfg: PortraitDataConfig

    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = parse_structured(PortraitDataConfig, cfg or {})
        self._photo = None

    def use_photo(self, photo: "PreparedPhoto") -> None:
        """Take a photo that is already prepared."""
        self._photo = photo

    @property
    def photo(self) -> "PreparedPhoto":
        """The photo in the canonical crop, prepared when first asked for."""
        from ..photo.prepare import prepare_photo

        if self._photo is None:
            if not self.cfg.image_path:
                raise UsageError("data.image_path is empty; give the photo: data.image_path=me.png.")
            c = self.cfg
            self._photo = prepare_photo(c.image_path, c.size, c.aligned, c.matte, c.camera)
        return self._photo

    @property
    def photo_or_none(self) -> "PreparedPhoto | None":
        """The photo, or None where the configuration names none."""
        return self.photo if self._photo is not None or self.cfg.image_path else None

    def setup(self, stage: str | None = None) -> None:
        c = self.cfg
        if stage in (None, "fit"):
            self.train_dataset = TrainingCameras(c)
        if stage in (None, "fit", "validate"):
            self.val_dataset = RingOfCameras(validation_azimuths_deg(c.n_val_views), c.eval_elevation_deg, c.eval_size)
        if stage in (None, "test", "predict"):
            self.test_dataset = RingOfCameras(test_azimuths_deg(c.n_test_views), c.eval_elevation_deg, c.eval_size)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=self.train_dataset.collate, num_workers=0)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_dataset, batch_size=1, collate_fn=self.val_dataset.collate, num_workers=0)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_dataset, batch_size=1, collate_fn=self.test_dataset.collate, num_workers=0)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()
