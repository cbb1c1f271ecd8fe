"""A finished head: renders, metrics, export, and the file from which it is loaded again."""
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from . import host
from .errors import UsageError
from .export.bundle import ExportResult, PhotoInfo, export_all
from .export.fields import FieldFns
from .files import atomic_path, save_tensors
from .inversion.camera import PhotoCamera
from .ops.cameras import canonical_fovy, orbit_c2w
from .photo.prepare import PreparedPhoto, photo_weights
from .priors.published.families import facts_of
from .renderer.volume import PortraitVolumeRenderer  # noqa: F401  (registers)
from .settings import PipelineConfig, load_pipeline_config, prior_weights, typed

Progress = Callable[[str, int, int, dict], None]
HEAD_FILE = "portrait.safetensors"


class PortraitResult:
    """A finished head: geometry, renderer, the photo's camera; renders, saves, loads."""

    def __init__(self, geometry, renderer, camera: PhotoCamera, raw_config: dict, prepared: PreparedPhoto | None = None,
                 photo_sha256: str = "", curves: dict | None = None, timings: dict | None = None):  # fmt: skip
        self.geometry, self.renderer, self.camera = geometry.eval(), renderer.eval(), camera
        self.raw_config, self.prepared, self.photo_sha256 = raw_config, prepared, photo_sha256
        self.curves, self.timings, self.metrics = curves or {}, timings or {}, {}
        self.stopped = False
        self.denoiser_rows = 0  # pictures that the denoiser has seen in the stages
        self.noise: dict[str, dict[str, float]] = {}  # what comparisons of noises came to, see `noise.summary`

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
        """Hash of everything that determines the head and its pictures."""
        digest = hashlib.sha256()
        system = self.raw_config.get("system", {})
        shown = {key: system.get(key) for key in ("geometry_type", "geometry", "renderer_type", "renderer")}
        digest.update(json.dumps(shown, sort_keys=True).encode())
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
        config = typed(PipelineConfig, self.raw_config)
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
        weights = prior_weights(prior)
        if self.prepared is not None:
            weights |= photo_weights(self.prepared.matte, config.data.camera)
        return export_all(
            out, self.render_fn, self.field_fns(), photo, curves, self.raw_config, config=config.system.exporter,
            overrides=overrides, metrics=metrics, warnings=prior_terms(prior.type), seeds={"seed": config.seed},
            weights=weights, timings_s=self.timings, command=command, device=self.device, field_id=self.field_id(),
            base_dir=out, progress=tell, denoiser={"rows": self.denoiser_rows, "noise": self.noise},
        )  # fmt: skip

    @classmethod
    def load(cls, run_dir: str | Path, device: str | None = None) -> "PortraitResult":
        """A saved head, ready to render. Raises UsageError if the folder holds none."""
        return load_head(Path(run_dir), device)


def prior_terms(kind: str) -> list[str]:
    """What a report must say of a published prior: its weights' licence, and whom to cite. Args: kind: its type."""
    if kind == "bundled":
        return []
    facts = facts_of(kind)
    return [f"Made with {facts.title}. Licence of its weights: {facts.licence}. Please cite: {facts.citation}."]


def save_head(result: PortraitResult, out: Path) -> None:
    """Planes, decoder and the photo's camera as one safetensors file with the configuration in its header."""
    state = {f"geometry.{k}": v.detach().cpu().contiguous() for k, v in result.geometry.state_dict().items()}
    state |= {f"camera.{k}": v.detach().cpu().contiguous() for k, v in result.camera.state_dict().items()}
    header = {"config": json.dumps(result.raw_config), "geometry": json.dumps(dict(plain(result.geometry.cfg)))}
    save_tensors(out / HEAD_FILE, state, header)


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
    return assemble(config, raw, geometry.to(device), camera)


def assemble(config: PipelineConfig, raw: dict, geometry, camera: PhotoCamera, **kwargs) -> PortraitResult:
    renderer = host.find(config.system.renderer_type)(
        config.system.renderer, geometry=geometry, material=None, background=None
    )
    return PortraitResult(geometry, renderer.to(geometry.planes[0].device), camera.requires_grad_(False), raw, **kwargs)


def plain(cfg: Any) -> dict:
    """A structured config as plain values."""
    return OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else dict(vars(cfg))


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
