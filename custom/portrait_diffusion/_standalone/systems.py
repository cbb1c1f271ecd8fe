"""Training systems on pytorch-lightning, with the host's order of calls. Slow to import: pytorch-lightning."""
import os
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from ..optional import require
from .base import Updateable, update_end_if_possible, update_if_possible
from .config import parse_structured, register_resolvers
from .misc import C, cleanup, find_last_path, get_device, load_module_weights
from .optimization import parse_optimizer, parse_scheduler
from .registry import find, info, warn
from .saving import SaverMixin

pl = require("pytorch_lightning", extra="train", package="pytorch-lightning")


class BaseSystem(pl.LightningModule, Updateable, SaverMixin):
    """A training system; override `configure` and the steps: training, validation (and its epoch end), test.

    Per training batch: preprocess_data, dataset.update_step(n), update_step(n), training_step, backward, optimizer
    step, update_step_end(n + 1).
    """

    @dataclass
    class Config:
        loggers: dict = field(default_factory=dict)
        loss: dict = field(default_factory=dict)  # lambda_*: number or schedule; 0 disables
        optimizer: dict = field(default_factory=dict)  # see parse_optimizer
        scheduler: dict | None = None  # see parse_scheduler
        weights: str | None = None  # checkpoint whose state_dict is loaded, strict=False; steps start at 0
        weights_ignore_modules: list[str] | None = None
        cleanup_after_validation_step: bool = False
        cleanup_after_test_step: bool = False

    cfg: Config

    def __init__(self, cfg: Any, resumed: bool = False) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self._save_dir: str | None = None
        self._resumed = resumed
        self._restored: tuple[int, int] | None = None  # (epoch, global_step) of the checkpoint under evaluation
        if (self.cfg.loggers.get("wandb") or {}).get("enable"):
            warn("loggers.wandb is not available in this host; metrics go to the CSV and TensorBoard loggers only.")
        self.configure()
        if self.cfg.weights is not None:
            self.load_weights(find_last_path(self.cfg.weights), self.cfg.weights_ignore_modules)
        self.post_configure()

    def configure(self) -> None:
        """Override to build the modules."""

    def post_configure(self) -> None:
        """Override to act after `weights` were loaded."""

    def load_weights(self, weights: str, ignore_modules: list[str] | None = None) -> None:
        """Load the entries of a checkpoint that fit, then update all modules to its step once."""
        ignored = list(ignore_modules) if ignore_modules else None
        state_dict, epoch, global_step = load_module_weights(weights, ignore_modules=ignored, map_location="cpu")
        self.load_state_dict(state_dict, strict=False)
        self.do_update_step(epoch, global_step, on_load_weights=True)

    @property
    def resumed(self) -> bool:
        return self._resumed

    def set_resume_status(self, current_epoch: int, global_step: int) -> None:
        """Tell a system under evaluation which step its checkpoint was written at."""
        self._restored = (current_epoch, global_step)

    @property
    def true_global_step(self) -> int:
        """Lightning's step, or under evaluation the checkpoint's."""
        return self._restored[1] if self._restored is not None else self.global_step

    @property
    def true_current_epoch(self) -> int:
        """Lightning's epoch, or under evaluation the checkpoint's."""
        return self._restored[0] if self._restored is not None else self.current_epoch

    def C(self, value: Any, interpolation: str = "linear") -> float:
        """Value of a schedule now."""
        return C(value, self.true_current_epoch, self.true_global_step, interpolation)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = parse_optimizer(self.cfg.optimizer, self)
        result: dict[str, Any] = {"optimizer": optimizer}
        if self.cfg.scheduler is not None:
            result["lr_scheduler"] = parse_scheduler(self.cfg.scheduler, optimizer)
        return result

    def preprocess_data(self, batch: Any, stage: str) -> None:
        """Override to complete a batch; `stage` is train, validation, test or predict."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return ``{"loss": scalar}``."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        raise NotImplementedError

    def on_validation_epoch_end(self) -> None:
        raise NotImplementedError

    def test_step(self, batch: Any, batch_idx: int) -> None:
        raise NotImplementedError

    def _batch_start(self, batch: Any, stage: str, loader: Any) -> None:
        self.preprocess_data(batch, stage)
        update_if_possible(loader.dataset, self.true_current_epoch, self.true_global_step)
        self.do_update_step(self.true_current_epoch, self.true_global_step)

    def _batch_end(self, loader: Any) -> None:
        update_end_if_possible(loader.dataset, self.true_current_epoch, self.true_global_step)
        self.do_update_step_end(self.true_current_epoch, self.true_global_step)

    def on_train_batch_start(self, batch: Any, batch_idx: int, unused: int = 0) -> None:
        self._batch_start(batch, "train", self.trainer.train_dataloader)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batch_end(self.trainer.train_dataloader)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_start(batch, "validation", self.trainer.val_dataloaders)

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_end(self.trainer.val_dataloaders)
        if self.cfg.cleanup_after_validation_step:
            cleanup()

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_start(batch, "test", self.trainer.test_dataloaders)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_end(self.trainer.test_dataloaders)
        if self.cfg.cleanup_after_test_step:
            cleanup()

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_start(batch, "predict", self.trainer.predict_dataloaders)

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._batch_end(self.trainer.predict_dataloaders)


class BaseLift3DSystem(BaseSystem):
    """System with a geometry, a material, a background and a renderer; all four types must be given."""

    @dataclass
    class Config(BaseSystem.Config):
        geometry_type: str = ""
        geometry: dict = field(default_factory=dict)
        geometry_convert_from: str | None = None  # checkpoint of a former stage to make the geometry from
        geometry_convert_inherit_texture: bool = False  # passed to create_from as copy_net
        geometry_convert_override: dict = field(default_factory=dict)  # changes to the former geometry's section
        material_type: str = ""
        material: dict = field(default_factory=dict)
        background_type: str = ""
        background: dict = field(default_factory=dict)
        renderer_type: str = ""
        renderer: dict = field(default_factory=dict)
        guidance_type: str = ""
        guidance: dict = field(default_factory=dict)
        prompt_processor_type: str = ""
        prompt_processor: dict = field(default_factory=dict)
        exporter_type: str = "mesh-exporter"
        exporter: dict = field(default_factory=dict)

    cfg: Config

    def configure(self) -> None:
        """Build the four scene modules. Guidance and prompt processor are the subclass's to build."""
        if self.cfg.geometry_convert_from and not self.cfg.weights and not self.resumed:
            self.geometry = self._convert_geometry(find_last_path(self.cfg.geometry_convert_from))
        else:
            self.geometry = find(self.cfg.geometry_type)(self.cfg.geometry)
        self.material = find(self.cfg.material_type)(self.cfg.material)
        self.background = find(self.cfg.background_type)(self.cfg.background)
        self.renderer = find(self.cfg.renderer_type)(
            self.cfg.renderer, geometry=self.geometry, material=self.material, background=self.background
        )

    def _convert_geometry(self, checkpoint: str) -> Any:
        """Rebuild the former stage's geometry from ``<checkpoint folder>/../configs/parsed.yaml`` and convert it."""
        info("Making the geometry from %s", checkpoint)
        parsed = os.path.join(os.path.dirname(checkpoint), "..", "configs", "parsed.yaml")
        register_resolvers()
        raw = OmegaConf.load(parsed)
        OmegaConf.resolve(raw)
        former = parse_structured(self.Config, raw.system)
        section = OmegaConf.merge(former.geometry, self.cfg.geometry_convert_override)
        old = find(former.geometry_type)(section)
        state_dict, epoch, global_step = load_module_weights(checkpoint, module_name="geometry", map_location="cpu")
        old.load_state_dict(state_dict)
        old.do_update_step(epoch, global_step, on_load_weights=True)
        old = old.to(get_device())
        new = find(self.cfg.geometry_type).create_from(
            old, self.cfg.geometry, copy_net=self.cfg.geometry_convert_inherit_texture
        )
        del old
        cleanup()
        return new

    def on_fit_start(self) -> None:
        if self._save_dir is not None:
            info("Images are written to %s", self.get_save_dir())

    def on_test_end(self) -> None:
        if self._save_dir is not None:
            info("Test results are in %s", self.get_save_dir())

    def on_predict_start(self) -> None:
        self.exporter = find(self.cfg.exporter_type)(
            self.cfg.exporter, geometry=self.geometry, material=self.material, background=self.background
        )

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        if self.exporter.cfg.save_video:
            self.test_step(batch, batch_idx)

    def on_predict_epoch_end(self) -> None:
        if self.exporter.cfg.save_video:
            self.on_test_epoch_end()
        for output in self.exporter():
            save = getattr(self, f"save_{output.save_type}", None)
            if save is None:
                raise ValueError(f"The exporter asks for save_{output.save_type}(), which the system does not have.")
            save(f"it{self.true_global_step}-export/{output.save_name}", **output.params)
