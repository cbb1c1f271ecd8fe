"""The main job, one photo to a 3D head: `PortraitPipeline.from_config(path).run(image).save(folder)`."""
import functools
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from . import host
from .deterministic import deterministic_algorithms
from .errors import UsageError
from .export.made_with import MODEL, OWN_GUIDANCES, own_guidances
from .files import sha256_file, write_text
from .geometry.triplane import settings_for
from .guidance.hpdm_guidance import model_folder
from .interrupt import Stopped
from .inversion.camera import PhotoCamera
from .inversion.config import InversionConfig
from .inversion.engine import Inversion
from .inversion.published import PublishedFit
from .inversion.published_config import PublishedFitConfig
from .inversion.start import initial_camera, load_perceptual
from .inversion.target import target_from_photo
from .noise.summary import noise_summary
from .optional import require
from .photo.matte import choose_matte
from .photo.prepare import PreparedPhoto, photo_weights, prepare_photo
from .preflight import check_prior_files
from .priors.bundled import BundledPrior
from .priors.published.adapter import PublishedPrior
from .result import PortraitResult, Progress, assemble, render_preview, save_preview
from .schema import default_of
from .settings import (
    STAGE_KEYS,
    DataConfig,
    PipelineConfig,
    PriorConfig,
    SystemConfig,
    load_pipeline_config,
    prior_paths,
    stage_section,
)
from .systems.stages import STAGES, Schedule, StageConfig

log = logging.getLogger("portrait_diffusion")


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
        Raises: UsageError for an unfit photo, and, before anything is done, for a prior's file that is none or of
            another kind than the configuration says; EnvironmentProblem for missing weights or packages.
        """
        with deterministic_algorithms(self.config.deterministic):
            return self._run(image, out_dir, progress or (lambda *args: None))

    def _run(self, image: str | Path | None, out_dir: str | Path | None, tell: Progress) -> PortraitResult:
        data, started = self.config.data, time.perf_counter()
        image = Path(image or data.image_path)
        if not image.name:
            raise UsageError("No photo given; use --image PATH or data.image_path=PATH.")
        check_prior_files(self.config.system.prior)
        tell("photo", 0, 1, {})
        prepared = prepare_photo(image, data.size, data.aligned, data.matte, data.camera)
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
        keys = {name: run_key(before.photo_sha256, raw, system.prior, name) for name in Schedule(system.stages).names}
        files = {} if out is None else {name: out / "ckpts" / f"stages-{key}.ckpt" for name, key in keys.items()}

        def look(stage: str, done: int, system: Any) -> None:
            total = system.schedule.stages[stage].steps
            if self._shows(out, done, total):
                render_preview(system, out / "save" / f"{stage}-{done}.png")

        done = run_stages(fit, stage_section(system), before.prepared, self.config.seed, files, tell, look)
        trained, curves, stopped = done
        after = assemble(
            self.config, raw, trained.geometry.to(before.device), before.camera, prepared=before.prepared,
            photo_sha256=before.photo_sha256, curves=before.curves | curves,
            timings=before.timings | {"stages": time.perf_counter() - started},
        )  # fmt: skip
        after.stopped = stopped
        guidance = getattr(trained, "guidance", None)
        after.denoiser_rows, after.noise = getattr(guidance, "denoiser_rows", 0), noise_summary(curves)
        if after.noise:
            after.timings["stages.noise"] = guidance.noise_sampler.seconds
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
        net = load_perceptual(cfg.lambda_perceptual, "system.inversion.lambda_perceptual")
        return Inversion(
            prior, target, initial_camera(prepared), cfg, net, self.config.seed, checkpoint, tell
        )

    def _published_fit(
        self, prepared: PreparedPhoto, sha256: str, raw: dict, out: Path | None, tell: Progress
    ) -> PublishedFit:
        system, cfg = self.config.system, self.config.system.published_fit
        prior = PublishedPrior.open(system.prior.checkpoint, system.prior.type).to(host.get_device())
        target = target_from_photo(prepared.rgb, prepared.alpha, prepared.valid, max(128, cfg.size))
        checkpoint = None if out is None else out / "ckpts" / f"inversion-{run_key(sha256, raw, system.prior)}.pt"
        net = load_perceptual(cfg.lambda_perceptual, "system.published_fit.lambda_perceptual")
        return PublishedFit(
            prior, target, initial_camera(prepared), cfg, net, self.config.seed, checkpoint, tell
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
        return assemble(self.config, raw, geometry.to(fit.device), camera, prepared=prepared, photo_sha256=sha256)


def run_key(photo_sha256: str, raw: dict, prior: PriorConfig, stage: str | None = None) -> str:
    """Short hash of photo, settings and weights that shape the head: a checkpoint is taken up only by its own run.

    It is that of the head at the end of a stage, which settings of later stages do not change; without one that of the
    initialization, which neither the stages' settings nor the guidance's model change. Weights count by what is in the
    files, not by where they lie; defaults of the fit count, which a later version may have changed. Raises:
    FileNotFoundError if a file is missing.
    """
    apart = ("exporter", "made_with") if stage else ("exporter", "made_with", "renderer", *STAGE_KEYS)
    system = {k: v for k, v in raw.get("system", {}).items() if k not in apart}
    if stage:
        until = STAGES[: STAGES.index(stage) + 1]
        system["stages"] = {name: v for name, v in (system.get("stages") or {}).items() if name in until}
    system["prior"] = {k: v for k, v in system.get("prior", {}).items() if k not in ("checkpoint", "encoder")}
    data = {k: v for k, v in raw.get("data", {}).items() if k != "image_path"}
    matte = choose_matte(data.get("matte", DataConfig.matte))
    looked = photo_weights(matte, data.get("camera", DataConfig.camera))
    weights = [weights_sha256(path) for path in (*prior_paths(prior), *looked.values())]
    defaults = [asdict(InversionConfig()), asdict(PublishedFitConfig())]
    if stage:
        weights += guidance_weights(system)
        defaults += stage_defaults(system)
    text = json.dumps([photo_sha256, system, data, raw.get("seed", 0), weights, defaults], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def guidance_weights(system: dict) -> list[str]:
    """SHA-256 of the files of the guidances' models, the shipped one and those in folders; hub ids speak for others."""
    folders = [model_folder(str(s.get(MODEL, OWN_GUIDANCES[kind]))) for kind, s in own_guidances(system)]
    return [weights_sha256(path) for folder in folders if folder for path in sorted(folder.rglob("*.safetensors"))]


def stage_defaults(system: dict) -> list[dict]:
    """Defaults that the stages go by where a configuration is silent: theirs, and those of the classes it names."""
    own = plain_defaults(SystemConfig)
    kinds = [system.get(key, own[key]) for key in ("geometry_type", "renderer_type", "guidance_type")]
    kinds += [extra.get("type") for extra in system.get("extra_guidances") or []]
    classes = [getattr(host.find(kind), "Config", None) for kind in kinds if kind]
    found = [plain_defaults(cls) for cls in classes if is_dataclass(cls)]
    return [{key: own[key] for key in STAGE_KEYS}, asdict(StageConfig()), *found]


def plain_defaults(cls: type) -> dict:
    """Defaults of a dataclass's fields, as JSON takes them."""
    return json.loads(json.dumps({field.name: default_of(field) for field in fields(cls)}, default=str))


def weights_sha256(path: Path) -> str:
    """SHA-256 of a file; a process reads it again only when its time of change or its size differs."""
    state = path.stat()
    return _sha256_of_state(path.resolve(), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=64)
def _sha256_of_state(path: Path, mtime_ns: int, size: int) -> str:
    return sha256_file(path)


def write_configs(out: Path, raw: dict) -> None:
    """configs/parsed.yaml of the run, atomically."""
    write_text(out / "configs" / "parsed.yaml", OmegaConf.to_yaml(OmegaConf.create(raw)))
