"""The stages after the initialization as one system, registered as ``portrait-diffusion-system``.

Photo -> initialization (`inversion`) -> restore -> refine. The initialization fills geometry and photo camera before
the first step; the stages change the geometry's restoration grid, whose gate is closed where the photo shows the head
(the Detail Preservation Block of arXiv 2411.10369, whose internals are not published; this is ours).
"""
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ..data.portrait import camera_batch
from ..errors import UsageError
from ..host import BaseLift3DSystem, C, config_to_primitive, find, register, update_if_possible, warn
from ..inversion.camera import PhotoCamera
from ..inversion.config import InversionConfig
from ..inversion.engine import Inversion
from ..inversion.start import initial_camera, load_perceptual
from ..inversion.target import Target, over_white, photo_losses, target_from_photo
from ..models import check_cached
from ..ops.cameras import canonical_fovy, get_rays, orbit_c2w
from ..priors.bundled import BundledPrior, prior_files
from ..priors.storage import load_spec
from ..renderer.kept import KeptRays, check_keeps, keep_rays, render_kept
from ..renderer.volume import unit_normals
from ..seeds import seeded, step_seed
from . import losses
from .describe import describe_head, write_settings
from .painting import Painted, look_around, painting_losses, rows_of
from .preservation import restoration_gate
from .stages import ExtraGuidance, Schedule, check_facing

OWN_RENDERER = "portrait-diffusion-volume-renderer"
FOOTPRINT = 2
"""Rays along each side of a latent pixel in the depths that a noise sampler asks for, whose anchors are many."""


@register("portrait-diffusion-system")
class PortraitSystem(BaseLift3DSystem):
    """Initialization from a photo, then the stages of the configuration."""

    @dataclass
    class Config(BaseLift3DSystem.Config):
        stages: dict = field(default_factory=dict)  # restore and refine, see systems.stages.StageConfig
        prior: dict = field(default_factory=dict)  # checkpoint and encoder: weight files; the shipped ones without
        inversion: dict = field(default_factory=dict)  # the initialization, see inversion.config.InversionConfig
        init: bool = True  # start from the photo; false starts from the geometry as it is
        restoration_resolution: int = 96  # edge of the grid that the stages change, voxels
        restoration_blur: float = 0.0  # voxels; colours give way to blurred ones where that grid may change them; 0: no
        restoration_reach: float = 0.0  # how far from the head that grid may change density, scene units; 0: anywhere
        detail_preservation: bool = True  # close the grid where the photo shows the head; false leaves it open
        preservation_thickness: float = 0.05  # how far behind the visible surface it is closed, scene units
        preservation_facing: list = field(default_factory=lambda: [0.15, 0.4])  # open below, closed above; cosines
        extra_guidances: list = field(default_factory=list)  # more guidances, see ExtraGuidance
        seed: int = 0  # of the initialization
        made_with: dict = field(default_factory=dict)  # of a shared configuration, see export.made_with; no effect

    cfg: Config

    # ---- building ------------------------------------------------------------------------------------------------
    def configure(self) -> None:
        keys = ("stages", "geometry", "inversion", "renderer")
        plain = {key: config_to_primitive(getattr(self.cfg, key)) for key in keys}
        self.schedule = Schedule(plain["stages"])
        kind = config_to_primitive(self.cfg.prior).get("type", "bundled")
        if kind != "bundled":
            raise UsageError(f"portrait-diffusion-system starts from the bundled prior; system.prior.type is '{kind}'.")
        check_facing(self.cfg.preservation_facing)
        self._inversion = InversionConfig(**plain["inversion"])
        if self.cfg.init:
            self.cfg.geometry = self.head_sizes() | plain["geometry"]
        if self.cfg.renderer_type == OWN_RENDERER:  # HPDM is told of the render's geometry, normals included
            self.cfg.renderer = {"return_normals": True} | plain["renderer"]
        super().configure()
        cleans = any(stage.remove_floaters for stage in self.schedule.stages.values())
        if cleans and not hasattr(self.geometry, "remove_floaters"):
            raise UsageError("remove_floaters needs portrait-diffusion-triplane; set it to false.")
        self.photo_camera = PhotoCamera().requires_grad_(False)
        self._target: Target | None = None
        self._perceptual = None
        self._known_at: tuple | None = None
        self._painted: Painted | None = None
        self.on_paint: Callable[[int, int], None] = lambda done, total: None  # a look around takes long
        self._kept: dict[tuple, list[KeptRays]] = {}
        self._saved: dict | None = None
        self._others: list = []
        self._saved_others: list = []
        self._fit: Inversion | None = None
        self._last: dict[str, float] = {}
        self._unread: tuple[str, dict[str, Tensor]] | None = None
        self.curves: dict[str, list] = {}
        self.settings: dict[str, Any] = {}

    def start_from(self, fit: Inversion) -> None:
        """Take this initialization instead of making one; for hosts that made it."""
        self._fit = fit

    def last_losses(self) -> dict[str, float]:
        """The losses of the last step, weighted."""
        self._read_losses()
        return dict(self._last)

    def _read_losses(self) -> None:
        """Bring a step's losses to the host, all at once and after its backward pass: that waits for the GPU."""
        if self._unread is None:
            return
        (stage, values), self._unread = self._unread, None
        if not values:
            self._last = {}
            return
        numbers = torch.stack([value.float() for value in values.values()]).tolist()
        self._last = dict(zip(values, numbers, strict=True))
        for name, value in self._last.items():
            self.curves.setdefault(f"{stage}/{name}", []).append(value)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(*args, **kwargs)
        self._read_losses()

    def prior_files(self) -> tuple[Path, Path]:
        """Weight files of generator and encoder."""
        return prior_files(self.cfg.prior.get("checkpoint"), self.cfg.prior.get("encoder"))

    def head_sizes(self) -> dict:
        """Keys of the geometry that the initialization's head needs."""
        spec, inversion = load_spec(self.prior_files()[0], "generator"), self._inversion
        sizes = {
            "channels": spec.plane_channels, "resolution": spec.plane_resolution, "hidden": spec.decoder_hidden,
            "frontal_layers": spec.frontal_layers, "restoration_resolution": self.cfg.restoration_resolution,
            "restoration_replaces": self.cfg.restoration_blur > 0, "restoration_reach": self.cfg.restoration_reach,
        }
        if inversion.detail_steps:
            sizes |= {"detail_resolution": inversion.detail_resolution, "detail_depth": inversion.detail_depth}
        return sizes

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.settings = write_settings(self)
        if self.trainer.max_steps > self.schedule.total > 0:
            warn(
                f"trainer.max_steps is {self.trainer.max_steps}, but the stages have {self.schedule.total} steps: "
                "those after them repeat the last one."
            )
        photo = self._photo()
        if photo is not None:
            self._target = target_from_photo(photo.rgb, photo.alpha, photo.valid, max(128, self._inversion.detail_size))
        fresh = self.global_step == 0 and not self.resumed and self.cfg.weights is None
        if self.cfg.init and fresh:
            self._check_models()
            self.initialize(photo)
        self._perceptual = self._load_perceptual()
        if self.cfg.guidance_type:
            self.guidance = find(self.cfg.guidance_type)(self.cfg.guidance)
            self._prompts = self._prompt(self.cfg.prompt_processor_type, self.cfg.prompt_processor)
            if self._saved is not None and hasattr(self.guidance, "load_state_dict"):
                self.guidance.load_state_dict(self._saved["guidance"])
                self._known_at = tuple(self._saved["known_at"]) if self._saved["known_at"] else None
                painted = self._saved.get("painted")
                self._painted = None if painted is None else Painted(**painted).to(self.device)
                self._give_geometry()
        extras = [ExtraGuidance(**extra) for extra in config_to_primitive(self.cfg.extra_guidances)]
        self._others = [
            (extra, find(extra.type)(extra.guidance), self._prompt(extra.prompt_processor_type, extra.prompt_processor))
            for extra in extras
        ]
        for (_, guidance, _), state in zip(self._others, self._saved_others):
            if state is not None:
                guidance.load_state_dict(state)

    def _check_models(self) -> None:
        """Missing public models are named before minutes of fitting, where the guidance may not get them itself."""
        guidance = config_to_primitive(self.cfg.guidance)
        if guidance.get("offline"):
            check_cached({"guidance_type": self.cfg.guidance_type, "guidance": guidance})

    def _photo(self):
        """The data module's photo; None where neither initialization nor a stage looks at one."""
        if not (self.cfg.init or any(stage.reference_every for stage in self.schedule.stages.values())):
            return None
        if not hasattr(type(self.trainer.datamodule), "photo"):
            raise UsageError(
                "portrait-diffusion-system needs a photo: use data_type portrait-diffusion-datamodule, or set "
                "system.init=false and reference_every: 0 in every stage."
            )
        return self.trainer.datamodule.photo

    @staticmethod
    def _prompt(kind: str, section: dict) -> Any:
        return find(kind)(section) if kind else None

    def _load_perceptual(self):
        """ST-LPIPS if any stage weighs it."""
        names = ("lambda_perceptual", "lambda_painted_perceptual")
        wanted = any(stage.loss.get(name) for stage in self.schedule.stages.values() for name in names)
        net = load_perceptual(float(wanted), "system.stages.NAME.loss.lambda_perceptual")
        return None if net is None else net.to(self.device)

    def initialize(self, photo) -> None:
        """Fit the prior to the photo, on this system's device, and take the head over."""
        if self._fit is not None:
            self.adopt(self._fit)
            return
        prior = BundledPrior(*self.prior_files()).to(self.device)
        weight = self._inversion.lambda_perceptual
        camera, net = initial_camera(photo), load_perceptual(weight, "system.inversion.lambda_perceptual")
        fit = Inversion(prior, self._target, camera, self._inversion, net, self.cfg.seed)
        self.adopt(fit.run())

    @torch.no_grad()
    def adopt(self, fit: Inversion) -> None:
        """Take over the head and the camera of a finished fit, and close the gate where the photo shows the head."""
        geometry = self.geometry
        geometry.set_planes(fit.planes())
        geometry.set_decoder(fit.weights)
        self.photo_camera.load_state_dict(fit.camera.state_dict())
        gate = torch.ones_like(geometry.restoration_gate)
        if self.cfg.detail_preservation:
            fade = tuple(self.cfg.preservation_facing)
            gate = restoration_gate(geometry, self.photo_camera, self.cfg.preservation_thickness, fade)
        geometry.set_restoration(gate, self.cfg.restoration_blur)

    # ---- steps ---------------------------------------------------------------------------------------------------
    def configure_optimizers(self) -> Any:
        """The configured optimizer; what it does not change gets no gradients, which are most of a render's cost."""
        found = super().configure_optimizers()
        optimizer = found["optimizer"] if isinstance(found, dict) else found
        changed = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in changed)
        if any(stage.steps and stage.keep_samples for stage in self.schedule.stages.values()):
            check_keeps(self.geometry, self.renderer)
        return found

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Also the end of a stage, which belongs to its last step: the checkpoint that follows holds it."""
        place = self.schedule.at(self.true_global_step)
        last = self.true_global_step + 1 in self.schedule.boundaries()
        super().optimizer_step(*args, **kwargs)
        if place.stage.remove_floaters and last:
            self.geometry.remove_floaters()

    def preprocess_data(self, batch: Any, stage: str) -> None:
        """Training cameras are those of this very step, so that a resumed run sees what an uninterrupted one would."""
        cameras = getattr(self.trainer.train_dataloader, "dataset", None) if stage == "train" else None
        if hasattr(cameras, "batch_at"):
            fresh = cameras.batch_at(self.true_global_step)
            batch.clear()
            batch.update({k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in fresh.items()})

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.renderer(**batch, generator=self._generator())

    def _generator(self) -> torch.Generator:
        """Randomness of a step's render: a function of seed and step, as everything in it."""
        return torch.Generator(device=self.device).manual_seed(step_seed(self.cfg.seed, self.true_global_step))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        place = self.schedule.at(self.true_global_step)
        stage = place.stage
        if self._target is not None and stage.shows_photo(place.step):
            found, out = self._photo_losses(place)
        elif stage.painted and self.cfg.guidance_type:
            found, out, batch = self._painted_losses(place)
            found |= self._other_losses(batch, out, place)
        else:
            out = self(batch)
            found = self._guidance_losses(batch, out, place) | self._other_losses(batch, out, place)
        found |= {name: loss(out) for name, loss in losses.RENDER_LOSSES.items() if self._weight(place, name)}
        grid = getattr(self.geometry, "restoration", None)
        if grid is not None:
            free = grid * self.geometry.restoration_gate
            found |= {name: loss(free) for name, loss in losses.GRID_LOSSES.items() if self._weight(place, name)}
        weighted = {name: self._weight(place, name) * value for name, value in found.items()}
        total = sum(weighted.values(), out["opacity"].sum() * 0)
        for name, value in found.items():
            self.log(f"train/{name}", value.detach())
        self._unread = place.name, {name: value.detach() for name, value in weighted.items()}
        self.log("train/loss", total.detach(), prog_bar=True)
        return {"loss": total}

    def _weight(self, place, name: str) -> float:
        """Weight of a loss at a step of the stage; guidances carry theirs already."""
        if name.startswith("guidance"):
            return 1.0
        return scheduled(place.stage.loss.get(f"lambda_{name}", 0.0), place.step)

    def _photo_losses(self, place) -> tuple[dict, dict]:
        """Losses of the photo's own view, and its render."""
        size = place.stage.resolution_at(place.step)

        def rays() -> dict[str, Tensor]:
            return dict(zip(("rays_o", "rays_d"), (r.to(self.device) for r in self.photo_camera.rays(size))))

        if place.stage.keep_samples:
            out = render_kept(self.geometry, self._kept_views(("photo", size), rays))
        else:
            out = self(rays())
        rgb, alpha = (out[name].permute(0, 3, 1, 2) for name in ("comp_rgb_fg", "opacity"))
        target = self._target.resized(size).to(self.device)
        colour, silhouette = photo_losses(rgb, alpha, target)
        found = {"rgb": colour, "alpha": silhouette}
        if self._weight(place, "perceptual") and self._perceptual is not None:
            found["perceptual"] = self._perceptual(*over_white(rgb, alpha, target)).mean()
        return found, out

    def _painted_losses(self, place) -> tuple[dict, dict, dict]:
        """Losses of some painted views, their renders and cameras; looks around and paints where the stage says so."""
        self._prepare_guidance(place)
        painted = self._painted
        rows = rows_of(place.step, place.stage.views, len(painted))
        size = place.stage.resolution_at(place.step)
        batch = camera_batch(painted.azimuth[rows], painted.elevation[rows], size)
        if place.stage.keep_samples:
            kept = self._kept_painted(size)
            out = render_kept(self.geometry, [kept[row] for row in rows])
        else:
            out = self(batch)
        perceptual = self._perceptual if self._weight(place, "painted_perceptual") else None
        return painting_losses(out["comp_rgb"], painted.rgb[rows], perceptual), out, batch

    def _kept_painted(self, size: int) -> list[KeptRays]:
        """The painted views at a resolution as `keep_samples` shows them."""
        views = self._painted
        return self._kept_views(("painted", size), lambda: camera_batch(views.azimuth, views.elevation, size))

    def _kept_views(self, key: tuple, rays: Callable[[], dict[str, Any]]) -> list[KeptRays]:
        """Views of rays_o, rays_d (B,H,W,3) as `keep_samples` shows them, found once; painted ones until a new look."""
        if key not in self._kept:
            found = rays()
            self._kept[key] = keep_rays(self.geometry, self.renderer, found["rays_o"], found["rays_d"])
        return self._kept[key]

    @torch.no_grad()
    def _paint(self, stage, turn: int) -> Painted:
        """The pictures of a look around."""
        if not hasattr(self.guidance, "paint"):
            raise UsageError(f"{self.cfg.guidance_type} cannot paint views; set painted: 0 in the stages.")
        azimuth, elevation = (x.to(self.device) for x in look_around(stage, turn))
        size = self.guidance.model.image_size
        batch = camera_batch(azimuth, elevation, size)
        out = self._look(batch["rays_o"], batch["rays_d"])
        normals = unit_normals(out["comp_normal"], out["opacity"])
        told = batch["c2w"], batch["fovy"], out["depth"], normals, out["opacity"]
        return Painted(self.guidance.paint(out["comp_rgb"], stage.paint_steps, *told), azimuth, elevation)

    def _guidance_losses(self, batch: dict, out: dict, place) -> dict[str, Tensor]:
        """Losses of the system's guidance, times its weight."""
        weight = scheduled(place.stage.guidance, place.step)
        if not (self.cfg.guidance_type and weight):
            return {}
        self._prepare_guidance(place)
        return self._ask(self.guidance, self._prompts, weight, "guidance", batch, out)

    def _other_losses(self, batch: dict, out: dict, place) -> dict[str, Tensor]:
        """Losses of the other guidances, each times its weight."""
        found: dict[str, Tensor] = {}
        for k, (extra, guidance, prompts) in enumerate(self._others):
            weight = scheduled(extra.weight, place.step) if place.name in extra.stages else 0.0
            if weight:
                update_if_possible(guidance, self.true_current_epoch, self.true_global_step)
                with seeded(step_seed(self.cfg.seed + k + 1, self.true_global_step), self.device):
                    found |= self._ask(guidance, prompts, weight, f"guidance_extra{k}", batch, out)
        return found

    def _ask(self, guidance, prompts, weight: float, name: str, batch: dict, out: dict) -> dict[str, Tensor]:
        """Every loss of a guidance, called as threestudio's are, with the render's geometry beside.

        What its noise sampler tells of a comparison goes to the curves, see `noise.summary`.
        """
        given = {k: v for k, v in batch.items() if k not in ("rays_o", "rays_d", "height", "width")}
        geometry = {"depth": out["depth"], "opacity": out["opacity"]}
        if "comp_normal" in out:
            geometry["normals"] = unit_normals(out["comp_normal"], out["opacity"])
        answer = guidance(out["comp_rgb"], prompts() if prompts is not None else None, **given, **geometry,
                          rgb_as_latents=False)  # fmt: skip
        for key, value in answer.items():
            if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
                self.log(f"train/{name}_{key}", value.detach() if isinstance(value, Tensor) else float(value))
            if key.startswith("noise_"):
                stage = self.schedule.at(self.true_global_step).name
                self.curves.setdefault(f"{stage}/{name}_{key}", []).append(float(value))
        return {f"{name}_{key}": weight * value for key, value in answer.items() if key.startswith("loss_")}

    def _prepare_guidance(self, place) -> None:
        """Timesteps of the stage; known views and geometry for guidances that want them."""
        stage, guidance = place.stage, self.guidance
        if hasattr(guidance, "set_min_max_steps"):
            low, high = (scheduled(v, place.step) for v in (stage.min_step_percent, stage.max_step_percent))
            guidance.set_min_max_steps(low, high)
        turn = (place.name, place.step // stage.views_every if stage.views_every else 0)
        if self._known_at == turn:
            return
        first = self._known_at is None and hasattr(self.geometry, "without_restoration")
        self._known_at = turn
        self.on_paint(0, stage.painted)
        with self.geometry.without_restoration() if first else nullcontext():  # sharp, as the initialization left it
            if hasattr(guidance, "set_views"):
                guidance.set_views(self.known_views(stage.known_azimuths, guidance.model.image_size))
            self._give_geometry()
            self._painted = self._paint(stage, turn[1]) if stage.painted else None
            self._kept = {key: views for key, views in self._kept.items() if key[0] != "painted"}
        if stage.painted and stage.keep_samples:
            self._kept_painted(stage.resolution_at(place.step))
        self.on_paint(stage.painted, stage.painted)

    def _give_geometry(self) -> None:
        """The head's depth for a noise sampler that asks for it, once."""
        sampler = getattr(self.guidance, "noise_sampler", None)
        if hasattr(sampler, "set_geometry") and not sampler.has_geometry:
            c2w, fovy, _ = self.photo_camera.pose()
            sampler.set_geometry(self._latent_depth(self.guidance.model), c2w.to(self.device), fovy.to(self.device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a guidance keeps between steps belongs to the run, and so do its settings; ST-LPIPS does not."""
        without_perceptual(checkpoint)
        self._read_losses()
        others = [guidance.state_dict() if hasattr(guidance, "noise_sampler") else None
                  for _, guidance, _ in self._others]  # fmt: skip
        checkpoint["portrait"] = {"settings": self.settings, "curves": self.curves, "others": others}
        if hasattr(getattr(self, "guidance", None), "state_dict"):
            known = list(self._known_at) if self._known_at else None
            painted = None if self._painted is None else dict(vars(self._painted))
            state = {"guidance": self.guidance.state_dict(), "known_at": known, "painted": painted}
            checkpoint["portrait"] |= state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        without_perceptual(checkpoint)
        found = checkpoint.get("portrait") or {}
        self.settings, self.curves = found.get("settings") or {}, found.get("curves") or {}
        self._saved, self._saved_others = found if "guidance" in found else None, found.get("others") or []

    def on_predict_start(self) -> None:
        super().on_predict_start()
        describe_head(self)

    @torch.no_grad()
    def known_views(self, azimuths: list, size: int):
        """The photo's own view of the head and renders at azimuths (degrees), for `guidance.set_views`."""
        from ..guidance.hpdm.views import Views

        c2w, fovy, crop = (x.to(self.device) for x in self.photo_camera.pose())
        around = torch.tensor([float(a) for a in azimuths], device=self.device)
        ring = orbit_c2w(around, torch.zeros_like(around))
        poses, angles = torch.cat([c2w, ring]), torch.cat([fovy, canonical_fovy(c2w).expand(len(ring))])
        plain = crop.new_tensor([[1.0, 0.0, 0.0]]).expand(len(ring), -1)
        crops = torch.cat([crop, plain])
        out = self._look(*get_rays(poses, angles, size, size, crops))
        rgb, opacity = out["comp_rgb"].permute(0, 3, 1, 2).clone(), out["opacity"][..., 0]
        if self._target is not None:
            seen = self._target.resized(size)
            known = seen.valid.to(rgb)
            rgb[:1] = torch.lerp(rgb[:1], (seen.rgb + 1 - seen.alpha).to(rgb), known)
        return Views(
            rgb, out["depth"][..., 0] * (opacity > 0.5), unit_normals(out["comp_normal"], out["opacity"]), opacity,
            poses, angles, crops,
        )  # fmt: skip

    def _look(self, rays_o: Tensor, rays_d: Tensor, normals: bool = True) -> dict[str, Tensor]:
        """Renders of some rays, deterministic, without gradients; with normals where they are wanted."""
        if hasattr(self.renderer, "look"):
            return self.renderer.look(rays_o, rays_d, normals=normals)
        training = self.renderer.training
        self.renderer.eval()
        try:
            with torch.no_grad():
                out = self.renderer(rays_o=rays_o, rays_d=rays_d, light_positions=rays_o[:, 0, 0])
        finally:
            self.renderer.train(training)
        if normals and "comp_normal" not in out:
            raise UsageError(f"{self.cfg.renderer_type} gives no normals (comp_normal); set that in system.renderer.")
        return out

    def _latent_depth(self, model):
        """depth_of(c2w, fovy) on the grid of a model's latents, from `FOOTPRINT` rays along a latent pixel's sides."""
        from ..noise.transport import latent_depth

        factor = min(FOOTPRINT, model.factor)
        size = model.image_size // model.factor * factor

        def depth_of(c2w: Tensor, fovy: Tensor) -> Tensor:
            out = self._look(*get_rays(c2w, fovy, size, size), normals=False)
            return latent_depth(out["depth"][..., 0] * (out["opacity"][..., 0] > 0.5), factor)

        return depth_of

    # ---- looking -------------------------------------------------------------------------------------------------
    def _save_view(self, batch: dict[str, Any], folder: str, name: str) -> None:
        out = self._look(batch["rays_o"], batch["rays_d"])
        rgb = {"data_format": "HWC", "data_range": (0, 1)}
        self.save_image_grid(
            f"{folder}{int(batch['index'][0])}.png",
            [
                {"type": "rgb", "img": out["comp_rgb"][0], "kwargs": rgb},
                {"type": "rgb", "img": out["comp_normal"][0], "kwargs": rgb},
                {"type": "grayscale", "img": out["opacity"][0, ..., 0], "kwargs": {"cmap": None, "data_range": (0, 1)}},
            ],
            name=name, step=self.true_global_step,
        )  # fmt: skip

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._save_view(batch, f"it{self.true_global_step}-", "validation_step")

    def on_validation_epoch_end(self) -> None:
        pass

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._save_view(batch, f"it{self.true_global_step}-test/", "test_step")

    def on_test_epoch_end(self) -> None:
        folder = f"it{self.true_global_step}-test"
        self.save_img_sequence(
            folder, folder, r"(\d+)\.png", save_format="mp4", fps=30, name="test", step=self.true_global_step
        )


def without_perceptual(checkpoint: dict[str, Any]) -> None:
    """Drop ST-LPIPS's weights: fixed, and not there yet when a checkpoint is loaded."""
    for name in [name for name in checkpoint.get("state_dict", {}) if name.startswith("_perceptual.")]:
        del checkpoint["state_dict"][name]


def scheduled(value: Any, step: int) -> float:
    """Value of a number or of a schedule ``[start, from, to, end]`` at a step of the stage."""
    return C(OmegaConf.create(value) if isinstance(value, list) else value, 0, step)
