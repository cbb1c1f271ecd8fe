"""The main job, one photo to a 3D head: `PortraitPipeline.from_config(path).run(image).save(folder)`."""
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from . import host, schema
from .errors import UsageError
from .export.bundle import ExportConfig, ExportResult, PhotoInfo, export_all
from .export.fields import FieldFns
from .export.made_with import differences
from .files import atomic_path, sha256_file, write_text
from .geometry.triplane import settings_for
from .interrupt import Stopped
from .inversion.camera import PhotoCamera
from .inversion.config import InversionConfig
from .inversion.engine import Inversion
from .inversion.published import PublishedFit
from .inversion.published_config import PublishedFitConfig
from .inversion.start import initial_camera, load_perceptual
from .inversion.target import target_from_photo
from .ops.cameras import canonical_fovy, orbit_c2w
from .optional import require
from .photo.prepare import PreparedPhoto, prepare_photo
from .priors.bundled import BundledPrior
from .priors.published.adapter import PublishedPrior
from .priors.published.sizes import FAMILIES
from .renderer.volume import PortraitVolumeRenderer  # noqa: F401  (registers)
from .systems.stages import Schedule

log = logging.getLogger("portrait_diffusion")
Progress = Callable[[str, int, int, dict], None]
DEFAULT_CONFIG = Path(__file__).resolve().parent / "configs" / "portrait-mini.yaml"


@dataclass
class DataConfig:
    """The photo and how it is prepared."""

    image_path: str = ""
    """Photo to start from; the command line's --image sets it."""
    size: int = 512
    """Side of the canonical crop, pixels."""
    matte: str = "auto"
    """auto (own alpha, else the network), network, grabcut or none."""
    aligned: bool = False
    """The image already is a canonical crop."""


@dataclass
class PriorConfig:
    """Which prior, and its weights; for the bundled one empty paths are the shipped files."""

    checkpoint: str = ""
    """Generator weights: .safetensors, for a published prior also the authors' .pkl."""
    encoder: str = ""
    """Encoder weights (.safetensors); the bundled prior alone has one."""
    type: str = "bundled"
    """bundled, or a published GAN whose file you bring: eg3d, panohead, spherehead, pyramid (docs/priors.md)."""

    def __post_init__(self):
        if self.type not in ("bundled", *FAMILIES):
            raise ValueError(f"prior.type must be one of bundled, {', '.join(FAMILIES)}, got '{self.type}'")
        if self.type != "bundled" and not self.checkpoint:
            raise ValueError(
                f"prior.type '{self.type}' needs prior.checkpoint, the path of its file; weights are never downloaded, "
                "docs/priors.md says where to get them"
            )


@dataclass
class SystemConfig:
    """The modules of the head."""

    prior: PriorConfig = field(default_factory=PriorConfig)
    """Which GAN prior, and its weights."""
    inversion: InversionConfig = field(default_factory=InversionConfig)
    """How the bundled prior is fitted to the photo."""
    published_fit: PublishedFitConfig = field(default_factory=PublishedFitConfig)
    """How a published prior is fitted to the photo."""
    geometry_type: str = "portrait-diffusion-triplane"
    """Registered name of the class that holds density and colour."""
    geometry: dict = field(default_factory=dict)
    """Keys of that class."""
    renderer_type: str = "portrait-diffusion-volume-renderer"
    """Registered name of the class that renders them."""
    renderer: dict = field(default_factory=dict)
    """Keys of that class."""
    stages: dict = field(default_factory=dict)
    """Stages after the initialization, `restore` and `refine`: keys of `systems.stages.StageConfig`; default: none."""
    guidance_type: str = ""
    """Registered name of the guidance of the stages."""
    guidance: dict = field(default_factory=dict)
    """Keys of that class."""
    extra_guidances: list = field(default_factory=list)
    """More guidances: sections with type, guidance, weight, stages, prompt_processor_type and prompt_processor."""
    optimizer: dict = field(default_factory=lambda: {
        "name": "Adam", "args": {"lr": 0.02, "betas": [0.9, 0.99]}, "params": {"geometry.restoration": {}},
    })  # fmt: skip
    """Optimizer of the stages: name, args and, by attribute path, params."""
    restoration_resolution: int = 96
    """Edge of the grid that the stages change, voxels."""
    detail_preservation: bool = True
    """Close that grid where the photo shows the head; false leaves it open."""
    preservation_thickness: float = 0.05
    """How far behind the visible surface it is closed, scene units."""
    exporter: ExportConfig = field(default_factory=ExportConfig)
    """What is written at the end, and in which sizes."""
    made_with: dict = field(default_factory=dict)
    """In a shared configuration (share.yaml): version, hashes of weights, revisions of models. A run compares them."""

    def __post_init__(self):
        kind = self.prior.get("type", "bundled") if isinstance(self.prior, Mapping) else self.prior.type
        if Schedule(self.stages).total and kind != "bundled":
            raise ValueError(f"stages after the initialization need prior.type 'bundled' so far, got '{kind}'")


@dataclass
class PipelineConfig:
    """Everything about a run."""

    name: str = "portrait-mini"
    """Name of the configuration; a part of the default output folder."""
    description: str = ""
    """What the configuration is for; kept with the results, without any effect."""
    tag: str = ""
    """Free label of a run; kept with the results, without any effect."""
    seed: int = 0
    """Seed of every random choice."""
    preview_every: int = 100
    """Steps of a stage between pictures of the head (save/STAGE-STEP.png: front, sides, back); 0 makes none."""
    exp_root_dir: str = "outputs"
    """Runs go to EXP_ROOT_DIR/NAME/IMAGE unless an output folder is given."""
    data: DataConfig = field(default_factory=DataConfig)
    """The photo and how it is prepared."""
    system: SystemConfig = field(default_factory=SystemConfig)
    """The modules of the head."""


def _typed(cls: type, section: Any) -> Any:
    """A dataclass from a plain section, nested ones included."""
    values = {}
    for f in cls.__dataclass_fields__.values():
        if f.name in section:
            value = section[f.name]
            nested = f.type if isinstance(f.type, type) and hasattr(f.type, "__dataclass_fields__") else None
            values[f.name] = _typed(nested, value) if nested else value
    return cls(**values)


def load_pipeline_config(source: Any = None, overrides: Sequence[str] = ()) -> tuple[PipelineConfig, dict]:
    """Validated configuration and its plain form. Raises UsageError naming file, key path and the nearest valid key."""
    source = DEFAULT_CONFIG if source is None else source
    try:
        checked = schema.validate(source, PipelineConfig, overrides)
    except UsageError as error:
        reasons = _version_differences(source)
        if not reasons:
            raise
        raise UsageError(f"{error} The reason may be that {reasons[0]}.") from error
    plain = OmegaConf.to_container(checked)
    return _typed(PipelineConfig, plain), plain


def _version_differences(source: Any) -> list[str]:
    """What `made_with.differences` says of a configuration that does not fit; nothing where it can't be read at all."""
    try:
        content = source if isinstance(source, dict) else OmegaConf.to_container(schema.read_yaml(source))
        return differences(content, {})
    except (UsageError, TypeError, AttributeError):
        return []


class PortraitResult:
    """A finished head: geometry, renderer, the photo's camera; renders, saves, loads."""

    def __init__(self, geometry, renderer, camera: PhotoCamera, raw_config: dict, prepared: PreparedPhoto | None = None,
                 photo_sha256: str = "", curves: dict | None = None, timings: dict | None = None):  # fmt: skip
        self.geometry, self.renderer, self.camera = geometry.eval(), renderer.eval(), camera
        self.raw_config, self.prepared, self.photo_sha256 = raw_config, prepared, photo_sha256
        self.curves, self.timings, self.metrics = curves or {}, timings or {}, {}
        self.stopped = False

    @property
    def device(self) -> torch.device:
        return self.geometry.planes[0].device

    def render_fn(self, c2w: Tensor, fovy: Tensor, height: int, width: int) -> dict:
        """RenderFn of the head: world-space camera poses to images."""
        return self.renderer.render(c2w.to(self.device), fovy.to(self.device), height, width)

    @torch.no_grad()
    def render_input_fn(self, height: int, width: int) -> dict:
        """The head as the photo's own camera sees it. Height and width must be equal: the crop is square."""
        if height != width:
            raise UsageError(f"The photo's camera is square, got {width} x {height}.")
        rays_o, rays_d = self.camera.rays(height)
        return self.renderer(rays_o=rays_o.to(self.device), rays_d=rays_d.to(self.device))

    def field_fns(self) -> FieldFns:
        """Density and colour of the head at world points."""

        def colour(points: Tensor) -> Tensor:
            return self.geometry.export(points)["features"]

        return FieldFns(self.geometry.forward_density, colour)

    def field_id(self) -> str:
        """Hash of everything that determines the head."""
        digest = hashlib.sha256()
        for name, value in sorted(self.geometry.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def evaluate(self, perceptual: dict | None = None) -> dict:
        """Metrics against the photo (see `evaluation.report_metrics`), kept for the report."""
        from .evaluation.report_metrics import evaluate_portrait

        if self.prepared is None:
            raise UsageError("This head was loaded without its photo; metrics need the photo.")
        self.metrics = evaluate_portrait(
            self.render_fn, self.prepared, render_input_fn=self.render_input_fn, perceptual=perceptual
        )
        return self.metrics

    def save(self, out_dir: str | Path, progress: Progress | None = None, overrides: Sequence[str] = (),
             command: Sequence[str] | None = None) -> ExportResult:  # fmt: skip
        """Write everything that people open, see `export.bundle.export_all`, and the head itself for later renders."""
        out = Path(out_dir)
        out.mkdir(parents=True, exist_ok=True)
        save_head(self, out)
        config = _typed(PipelineConfig, self.raw_config)
        photo = None
        if self.prepared is not None:
            match = self.render_input_fn(config.system.exporter.render_size, config.system.exporter.render_size)
            photo = PhotoInfo(
                name=Path(self.raw_config["data"]["image_path"]).name, sha256=self.photo_sha256,
                rgb=self.prepared.rgb.numpy(), alpha=self.prepared.alpha.numpy(), valid=self.prepared.valid.numpy(),
                warnings=self.prepared.warnings, match=match["comp_rgb"][0].cpu().numpy(),
            )  # fmt: skip
        metrics = {k: v for k, v in self.metrics.items() if k != "reasons" and v is not None}
        curves = {name: list(enumerate(values, 1)) for name, values in self.curves.items()}
        tell = (lambda stage, done, total: progress(stage, done, total, {})) if progress else None
        prior = config.system.prior
        weights = dict(zip(("prior", "encoder"), prior_paths(prior)))
        return export_all(
            out, self.render_fn, self.field_fns(), photo, curves, self.raw_config, config=config.system.exporter,
            overrides=overrides, metrics=metrics, seeds={"seed": config.seed}, weights=weights, timings_s=self.timings,
            command=command, device=self.device, field_id=self.field_id(), base_dir=out, progress=tell,
        )  # fmt: skip

    @classmethod
    def load(cls, run_dir: str | Path, device: str | None = None) -> "PortraitResult":
        """A saved head, ready to render. Raises UsageError if the folder holds none."""
        return load_head(Path(run_dir), device)


HEAD_FILE = "portrait.safetensors"


def save_head(result: PortraitResult, out: Path) -> None:
    """Planes, decoder and the photo's camera as one safetensors file with the configuration in its header."""
    from safetensors.torch import save_file

    state = {f"geometry.{k}": v.detach().cpu().contiguous() for k, v in result.geometry.state_dict().items()}
    state |= {f"camera.{k}": v.detach().cpu().contiguous() for k, v in result.camera.state_dict().items()}
    header = {"config": json.dumps(result.raw_config), "geometry": json.dumps(dict(_plain(result.geometry.cfg)))}
    with atomic_path(out / HEAD_FILE) as partial:
        save_file(state, str(partial), metadata=header)


def load_head(run_dir: Path, device: str | None) -> PortraitResult:
    """Counterpart of `save_head`."""
    from safetensors import SafetensorError, safe_open

    path = run_dir / HEAD_FILE
    if not path.is_file():
        raise UsageError(f"{run_dir} holds no {HEAD_FILE}; give the output folder of a finished run.")
    try:
        with safe_open(str(path), framework="pt") as handle:
            header = handle.metadata()
            state = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
        raw, geometry_cfg = json.loads(header["config"]), json.loads(header["geometry"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}); run the same command again to rebuild it.") from error
    config, _ = load_pipeline_config(raw)
    geometry = host.find(config.system.geometry_type)(geometry_cfg)
    geometry.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("geometry.")})
    camera = PhotoCamera()
    camera.load_state_dict({k[7:]: v for k, v in state.items() if k.startswith("camera.")})
    device = torch.device(device) if device else host.get_device()
    return _assemble(config, raw, geometry.to(device), camera)


def _assemble(config: PipelineConfig, raw: dict, geometry, camera: PhotoCamera, **kwargs) -> PortraitResult:
    renderer = host.find(config.system.renderer_type)(
        config.system.renderer, geometry=geometry, material=None, background=None
    )
    return PortraitResult(geometry, renderer.to(geometry.planes[0].device), camera.requires_grad_(False), raw, **kwargs)


def _plain(cfg: Any) -> dict:
    """A structured config as plain values."""
    return OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else dict(vars(cfg))


def prior_paths(prior: PriorConfig) -> tuple[Path, ...]:
    """Files that a configuration means: generator and encoder, of a published prior its one file."""
    if prior.type != "bundled":
        return (Path(prior.checkpoint),)
    from .priors.bundled import WEIGHTS

    generator = Path(prior.checkpoint or WEIGHTS / "prior.safetensors")
    return generator, Path(prior.encoder or WEIGHTS / "encoder.safetensors")


class PortraitPipeline:
    """Photo in, head out.

    Example::

        result = PortraitPipeline.from_config("configs/portrait-mini.yaml").run("me.jpg", "outputs/me")
        result.save("outputs/me")
    """

    def __init__(self, config: PipelineConfig, raw_config: dict):
        self.config, self.raw_config = config, raw_config

    @classmethod
    def from_config(cls, source: Any = None, overrides: Sequence[str] = ()) -> "PortraitPipeline":
        """Pipeline of a YAML file, a dict, or the default configuration; `overrides` are ``a.b=c`` texts."""
        return cls(*load_pipeline_config(source, overrides))

    def default_out_dir(self, image: str | Path) -> Path:
        """EXP_ROOT_DIR/NAME/IMAGE."""
        return Path(self.config.exp_root_dir) / self.config.name / Path(image).stem

    def run(
        self, image: str | Path | None = None, out_dir: str | Path | None = None, progress: Progress | None = None
    ) -> PortraitResult:
        """Prepare the photo and fit the prior to it.

        Args:
            image: photo; None takes `data.image_path`.
            out_dir: where checkpoints and the preview go; an interrupted run with the same photo, settings and weights
                goes on from there. None keeps nothing on disk.
            progress: progress(stage, done, total, values); it may raise `interrupt.Stopped` after a step, then the
                head is returned as it is, with `stopped` set, and the same call goes on later.
        Raises: UsageError for an unfit photo, EnvironmentProblem for missing weights or packages.
        """
        tell = progress or (lambda *args: None)
        data, started = self.config.data, time.perf_counter()
        image = Path(image or data.image_path)
        if not image.name:
            raise UsageError("No photo given; use --image PATH or data.image_path=PATH.")
        tell("photo", 0, 1, {})
        prepared = prepare_photo(image, data.size, data.aligned, data.matte)
        sha256 = sha256_file(image)
        raw = {**self.raw_config, "data": {**self.raw_config.get("data", {}), "image_path": str(image)}}
        photo_seconds = time.perf_counter() - started
        tell("photo", 1, 1, {})
        out = Path(out_dir) if out_dir is not None else None
        if out is not None:
            write_configs(out, raw)
            save_preview(prepared, out / "save" / "it0-photo.png")
        fit = self._inversion(prepared, sha256, raw, out, tell)
        if out is not None and fit.stage == "latent" and fit.step == 0:
            render_preview(self._result(fit, raw, prepared, sha256), out / "save" / "it0-0.png")
        tell("preview", 1, 1, {})

        def step(stage: str, done: int, total: int, values: dict) -> None:
            tell(stage, done, total, values)
            if self._shows(out, done, total):
                render_preview(self._result(fit, raw, prepared, sha256), out / "save" / f"{stage}-{done}.png")

        fit.on_step, stopped = step, False
        try:
            fit.run()
        except Stopped:
            fit.save()
            stopped = True
        result = self._result(fit, raw, prepared, sha256)
        result.stopped = stopped
        result.curves = fit.curves
        result.timings = {"photo": photo_seconds, "inversion": time.perf_counter() - started - photo_seconds}
        if stopped or not Schedule(self.config.system.stages).total:
            return result
        return self._staged(result, fit, raw, out, tell)

    def _shows(self, out: Path | None, done: int, total: int) -> bool:
        """Whether a preview is due after a step."""
        every = self.config.preview_every
        return out is not None and every > 0 and done % every == 0 and done < total

    def _staged(self, before: PortraitResult, fit: Inversion, raw: dict, out: Path | None, tell: Progress):
        """The head after the stages of the configuration."""
        require("pytorch_lightning", extra="train", package="pytorch-lightning")
        from .training import run_stages

        started, system = time.perf_counter(), self.config.system
        keys = (*STAGE_KEYS, "geometry_type", "geometry", "renderer_type", "renderer")
        section = {key: getattr(system, key) for key in keys} | {
            "material_type": "portrait-diffusion-no-material", "background_type": "portrait-diffusion-white-background",
            "prior": {"checkpoint": system.prior.checkpoint, "encoder": system.prior.encoder},
            "inversion": vars(system.inversion),
        }  # fmt: skip
        key = run_key(before.photo_sha256, raw, system.prior, stages=True)
        checkpoint = None if out is None else out / "ckpts" / f"stages-{key}.ckpt"

        def look(stage: str, done: int, system: Any) -> None:
            total = system.schedule.stages[stage].steps
            if self._shows(out, done, total):
                render_preview(system, out / "save" / f"{stage}-{done}.png")

        done = run_stages(fit, section, before.prepared, self.config.seed, checkpoint, tell, look)
        trained, curves, stopped = done
        after = _assemble(
            self.config, raw, trained.geometry.to(before.device), before.camera, prepared=before.prepared,
            photo_sha256=before.photo_sha256, curves=before.curves | curves,
            timings=before.timings | {"stages": time.perf_counter() - started},
        )  # fmt: skip
        after.stopped = stopped
        return after

    def _inversion(
        self, prepared: PreparedPhoto, sha256: str, raw: dict, out: Path | None, tell: Progress
    ) -> Inversion | PublishedFit:
        """The fit, at its first step or where its checkpoint in `out` left it."""
        system, cfg = self.config.system, self.config.system.inversion
        if system.prior.type != "bundled":
            return self._published_fit(prepared, sha256, raw, out, tell)
        prior = BundledPrior(*prior_paths(system.prior)).to(host.get_device())
        target = target_from_photo(prepared.rgb, prepared.alpha, prepared.valid, max(128, cfg.detail_size))
        checkpoint = None if out is None else out / "ckpts" / f"inversion-{run_key(sha256, raw, system.prior)}.pt"
        return Inversion(
            prior, target, initial_camera(prepared), cfg, load_perceptual(cfg), self.config.seed, checkpoint, tell
        )

    def _published_fit(
        self, prepared: PreparedPhoto, sha256: str, raw: dict, out: Path | None, tell: Progress
    ) -> PublishedFit:
        system, cfg = self.config.system, self.config.system.published_fit
        prior = PublishedPrior.open(system.prior.checkpoint, system.prior.type).to(host.get_device())
        target = target_from_photo(prepared.rgb, prepared.alpha, prepared.valid, max(128, cfg.size))
        checkpoint = None if out is None else out / "ckpts" / f"inversion-{run_key(sha256, raw, system.prior)}.pt"
        return PublishedFit(
            prior, target, initial_camera(prepared), cfg, load_perceptual(cfg), self.config.seed, checkpoint, tell
        )

    def _result(self, fit: Inversion | PublishedFit, raw: dict, prepared: PreparedPhoto, sha256: str) -> PortraitResult:
        planes, weights = fit.planes(), fit.weights
        settings = self.config.system.geometry | settings_for(
            planes, weights, fit.radius, fit.has_detail, fit.frame
        )
        geometry = host.find(self.config.system.geometry_type)(settings)
        geometry.set_planes(planes)
        geometry.set_decoder(weights)
        camera = PhotoCamera()
        camera.load_state_dict(fit.camera.state_dict())
        return _assemble(self.config, raw, geometry.to(fit.device), camera, prepared=prepared, photo_sha256=sha256)


STAGE_KEYS = (
    "stages", "guidance_type", "guidance", "extra_guidances", "optimizer", "restoration_resolution",
    "detail_preservation", "preservation_thickness",
)  # fmt: skip
"""Keys of the system that matter to the stages after the initialization alone."""


def run_key(photo_sha256: str, raw: dict, prior: PriorConfig, stages: bool = False) -> str:
    """Short hash of photo, settings and weights that shape the head: a checkpoint is taken up only by its own run.

    Without `stages` it is that of the initialization, which their settings do not change. Weights count by what is in
    the files, not by where they lie. Raises: FileNotFoundError if one is missing.
    """
    apart = ("exporter", "made_with") if stages else ("exporter", "made_with", "renderer", *STAGE_KEYS)
    system = {k: v for k, v in raw.get("system", {}).items() if k not in apart}
    system["prior"] = {k: v for k, v in system.get("prior", {}).items() if k not in ("checkpoint", "encoder")}
    data = {k: v for k, v in raw.get("data", {}).items() if k != "image_path"}
    weights = [weights_sha256(path) for path in prior_paths(prior)]
    text = json.dumps([photo_sha256, system, data, raw.get("seed", 0), weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_sha256(path: Path) -> str:
    """SHA-256 of a file; a process reads it again only when its time of change or its size differs."""
    state = path.stat()
    return _sha256_of_state(path.resolve(), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=16)
def _sha256_of_state(path: Path, mtime_ns: int, size: int) -> str:
    return sha256_file(path)


def write_configs(out: Path, raw: dict) -> None:
    """configs/parsed.yaml of the run, atomically."""
    write_text(out / "configs" / "parsed.yaml", OmegaConf.to_yaml(OmegaConf.create(raw)))


def save_png(image: Tensor, path: Path) -> None:
    """(H, W, 3) in [0, 1] to a PNG, atomically."""
    from PIL import Image

    with atomic_path(path) as partial:
        Image.fromarray((image.clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()).save(partial)


def save_preview(prepared: PreparedPhoto, path: Path) -> None:
    """What the preparation made of the photo: the crop, the matte, the cut-out on white."""
    white = prepared.rgb * prepared.alpha + 1 - prepared.alpha
    save_png(torch.cat([prepared.picture, prepared.alpha.expand(-1, -1, 3), white], dim=1), path)


def render_preview(head: Any, path: Path, size: int = 96) -> None:
    """A look at the head: front, both sides, back. Args: head: anything with ``renderer`` and ``device``."""
    views = []
    for azimuth in (0.0, 45.0, -90.0, 180.0):
        c2w = orbit_c2w(torch.tensor([azimuth], device=head.device), torch.tensor([0.0], device=head.device))
        views.append(head.renderer.render(c2w, canonical_fovy(c2w), size, size)["comp_rgb"][0].cpu())
    save_png(torch.cat(views, dim=1), path)
