"""Write everything that people open: GLB, PLY, video, views, report, provenance, share.yaml; resume if interrupted."""
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..files import remove_partial_files
from ..ops.cameras import BOX_RADIUS, canonical_fovy, orbit_c2w
from ..ops.triplane_gather import kept_tables
from .bake import BakeConfig, TexturedMesh, bake, vertex_colours
from .fields import FieldFns, FieldSampler
from .glb import write_glb
from .manifest import Manifest
from .mesh import ExtractedMesh, MeshConfig, extract_mesh
from .mesh_render import mesh_render_fn
from .ply import write_ply
from .provenance import collect, config_hash, write_provenance
from .renders import RenderFn, ViewRenderer, render_pose
from .report import ReportData, write_report
from .share import shareable_config, write_share
from .video import TurntableConfig, write_turntable
from .viewer import viewer_html
from .views import view_directions, view_name, write_view

logger = logging.getLogger("portrait_diffusion")

CACHE_DIR = ".export_cache"
PROBE_POINTS = 4096
PROBE_SIZE = 16

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): stages mesh, glb, ply, views, turntable, share, provenance, report."""


@dataclass
class ExportConfig:
    """Everything about an export. The defaults suit two CPU cores; on a GPU raise render_size and turntable.height."""

    render_size: int = 128
    """Width and height of every volume render, pixels: views have this size, the turntable is enlarged from it."""
    view_azimuths_deg: list = field(default_factory=lambda: [0, 45, 90, 135, 180, -135, -90, -45])
    """Azimuths of the still views; those that are also turntable frames cost nothing more."""
    view_elevations_deg: list = field(default_factory=lambda: [0, 20])
    """Elevations of the still views; every azimuth is combined with every elevation."""
    points_per_call: int = 131072
    """Points in one call of the field, bounds the memory."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    bake: BakeConfig = field(default_factory=BakeConfig)
    turntable: TurntableConfig = field(default_factory=TurntableConfig)

    def __post_init__(self):
        if not 8 <= self.render_size <= 4096:
            raise UsageError(f"export.render_size must be between 8 and 4096, got {self.render_size}.")
        if not self.view_azimuths_deg or not self.view_elevations_deg:
            raise UsageError("export.view_azimuths_deg and view_elevations_deg need at least one angle each.")
        if self.points_per_call < 1:
            raise UsageError("export.points_per_call must be positive.")


@dataclass
class PhotoInfo:
    """The photo a head was made from, as the report shows it.

    name: file name, shown.  sha256: of the file.  rgb (S,S,3), alpha (S,S,1), valid (S,S,1): canonical crop in [0,1].
    warnings: sentences from preparation.  c2w (4,4), fovy (1,) radians: the photo's camera, default the canonical one.
    match: (R,R,3) ready render from the photo's camera on white; needed when that camera carries a crop.
    """

    name: str
    sha256: str
    rgb: np.ndarray
    alpha: np.ndarray | None = None
    valid: np.ndarray | None = None
    warnings: Sequence[str] = ()
    c2w: Tensor | None = None
    fovy: Tensor | None = None
    match: np.ndarray | None = None

    def digest(self) -> str:
        """Hash of everything that the report shows of the photo."""
        digest = hashlib.sha256(repr((self.name, self.sha256, tuple(self.warnings))).encode())
        for array in (self.rgb, self.alpha, self.valid, self.c2w, self.fovy, self.match):
            digest.update(b"none" if array is None else np.ascontiguousarray(np.asarray(array, np.float32)).tobytes())
        return digest.hexdigest()


@dataclass
class ExportResult:
    """What export_all left: artefact -> files, which were made now, facts about the mesh, seconds per artefact."""

    files: dict[str, list[Path]]
    made: list[str]
    mesh: dict[str, Any]
    seconds: dict[str, float]


def field_fingerprint(render: RenderFn, sampler: FieldSampler) -> str:
    """Hash of the field at fixed points and of a tiny front view: equal for the same head, else different."""
    points = np.random.default_rng(0).uniform(-BOX_RADIUS, BOX_RADIUS, (PROBE_POINTS, 3)).astype(np.float32)
    c2w = orbit_c2w(torch.tensor(0.0, device=sampler.device), torch.tensor(0.0, device=sampler.device))
    view = render_pose(render, c2w, canonical_fovy(c2w), PROBE_SIZE)
    digest = hashlib.sha256()
    for values in (sampler.density(points), sampler.colour(points), *view):
        digest.update(np.round(values, 4).astype(np.float32).tobytes())
    return digest.hexdigest()


def mesh_facts(extracted: ExtractedMesh, textured: TexturedMesh, sampler: FieldSampler) -> dict[str, Any]:
    """Plain values about the mesh for the manifest and the report."""
    return {
        **asdict(extracted.health),
        "iso_level": extracted.iso_level, "iso_rule": extracted.iso_rule, "grid_spacing": extracted.spacing,
        "filled_cells": extracted.filled_cells, "removed_components": extracted.removed_components,
        "texture_size": int(textured.texture.shape[0]), "texture_covered": textured.covered,
        "uv_charts": textured.charts,
        "density_evaluations": sampler.density_points, "colour_evaluations": sampler.colour_points,
    }  # fmt: skip


class _Export:
    """One run: holds what several artefacts share, and makes an artefact unless it is current."""

    def __init__(self, out_dir: Path, render: RenderFn, field_fns: FieldFns, config: ExportConfig,
                 device: torch.device | str, progress: Progress | None, field_id: str):  # fmt: skip
        self.out, self.config, self.render = out_dir, config, render
        self.device = torch.device(device)
        self.sampler = FieldSampler(field_fns, device, config.points_per_call)
        self.progress = progress or (lambda stage, done, total: None)
        self.manifest = Manifest(out_dir)
        self.made: list[str] = []
        self.field_id = field_id or field_fingerprint(render, self.sampler)
        self.volume = ViewRenderer(render, config.render_size, device, out_dir / CACHE_DIR, self.field_id)
        self._geometry: tuple[ExtractedMesh, TexturedMesh] | None = None

    def geometry(self) -> tuple[ExtractedMesh, TexturedMesh]:
        """The mesh and its texture, made on first use."""
        if self._geometry is None:
            self.progress("mesh", 0, 2)
            extracted = extract_mesh(self.sampler, self.config.mesh)
            self.progress("mesh", 1, 2)
            self._geometry = extracted, bake(self.sampler, extracted.mesh, extracted.spacing, self.config.bake)
            self.progress("mesh", 2, 2)
        return self._geometry

    def artefact(self, name: str, inputs: Any, make: Callable[[], tuple[list[Path], dict]]) -> bool:
        """Make and record an artefact unless its inputs and files are unchanged; True when it was made."""
        if self.manifest.is_current(name, inputs):
            logger.info("export: %s is up to date", name)
            self.progress(name, 1, 1)
            return False
        started = time.perf_counter()
        paths, facts = make()
        seconds = time.perf_counter() - started
        self.manifest.record(name, inputs, paths, seconds, facts)
        self.made.append(name)
        logger.info("export: %s in %.1f s", name, seconds)
        self.progress(name, 1, 1)
        return True

    def paths(self, name: str) -> list[Path]:
        """Files of a finished artefact."""
        return [self.out / file for file in self.manifest.hashes(name)]

    def make_glb(self):
        extracted, textured = self.geometry()
        path = self.out / "portrait.glb"
        write_glb(path, textured)
        return [path], mesh_facts(extracted, textured, self.sampler)

    def make_ply(self):
        extracted, _ = self.geometry()
        path = self.out / "portrait.ply"
        colours = vertex_colours(self.sampler, extracted.mesh, extracted.spacing, self.config.bake)
        write_ply(path, extracted.mesh, colours)
        return [path], {}

    def make_views(self, directions):
        paths = []
        for i, direction in enumerate(directions):
            paths.append(write_view(self.out / "views", self.volume, *direction))
            self.progress("views", i + 1, len(directions))
        return paths, {}

    def make_turntable(self):
        settings = self.config.turntable
        path = self.out / "turntable.mp4"
        renderer = self.volume
        if settings.source == "mesh":
            renderer = ViewRenderer(mesh_render_fn(self.geometry()[1]), settings.height)
        count = write_turntable(path, renderer, settings, lambda done, total: self.progress("turntable", done, total))
        return [path], {"frames": count}

    def match(self, photo: PhotoInfo | None) -> np.ndarray:
        """(R,R,3) the head on white from the photo's camera."""
        if photo is not None and photo.match is not None:
            return np.asarray(photo.match)
        if photo is None or photo.c2w is None:
            return self.volume.view(0.0, 0.0).over(1.0)
        c2w = torch.as_tensor(photo.c2w).float().to(self.device)
        fovy = canonical_fovy(c2w) if photo.fovy is None else torch.as_tensor(photo.fovy).float().to(self.device)
        return render_pose(self.render, c2w, fovy, self.config.render_size).over(1.0)


@kept_tables()
def export_all(
    out_dir: str | Path,
    render_fn: RenderFn,
    field_fns: FieldFns,
    photo: PhotoInfo | None,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    settings: Mapping[str, Any],
    *,
    config: ExportConfig | None = None,
    overrides: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    seeds: Mapping[str, int] | None = None,
    weights: Mapping[str, str | Path] | None = None,
    timings_s: Mapping[str, float] | None = None,
    command: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    field_id: str = "",
    base_dir: str | Path = ".",
    progress: Progress | None = None,
    denoiser: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Write portrait.glb, portrait.ply, turntable.mp4, views/, share.yaml, provenance.json, report.html, export.json.

    Every file appears whole or not at all. What is complete and made from the same inputs is not made again, and
    rendered views of an interrupted run are used, so calling this again continues.

    Args:
        out_dir: output folder, created.
        render_fn, field_fns: the head, see RenderFn and FieldFns.
        photo: the photo it was made from, or None.
        curves: name -> (step, value) pairs.  settings: raw configuration of the run, plain values.
        config: see ExportConfig.  overrides: ``a.b=c`` texts on top of settings, for share.yaml.
        metrics: name -> value.  warnings: sentences, shown beside the photo's own.
        seeds, weights, timings_s, command, denoiser: see provenance.collect.
        device: where the field lives.
        field_id: what identifies the head (for example a hash of its parameters); "" probes the field instead.
        base_dir: folder that relative paths in share.yaml start from.
        progress: progress(stage, done, total).

    Returns: ExportResult.
    Raises: PortraitError, for example when the field is empty.
    """
    config = config or ExportConfig()
    directions = view_directions(config.view_azimuths_deg, config.view_elevations_deg)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    remove_partial_files(out)
    run = _Export(out, render_fn, field_fns, config, device, progress, field_id)
    started = time.perf_counter()

    # inputs of each artefact: whatever changes its content
    shape = [run.field_id, asdict(config.mesh), asdict(config.bake)]
    filmed = shape if config.turntable.source == "mesh" else [run.field_id, config.render_size]
    film = [filmed, asdict(config.turntable)]
    run.artefact("glb", shape, run.make_glb)
    run.artefact("ply", shape, run.make_ply)
    run.artefact("views", [run.field_id, config.render_size, directions], lambda: run.make_views(directions))
    run.artefact("turntable", film, run.make_turntable)

    shared, _ = shareable_config(settings, overrides, base_dir, weights)
    to_share = (settings, overrides, base_dir, weights)
    run.artefact("share", shared, lambda: (_written(out / "share.yaml", write_share, *to_share), {}))

    all_warnings = [*(photo.warnings if photo else ()), *warnings]
    story = [
        {name: run.manifest.hashes(name) for name in ("glb", "ply", "views", "turntable", "share")},
        photo.digest() if photo else None, {k: [list(p) for p in v] for k, v in curves.items()}, dict(metrics or {}),
        all_warnings, dict(seeds or {}), {k: str(v) for k, v in (weights or {}).items()},
    ]  # fmt: skip
    provenance_path = out / "provenance.json"
    provenance: dict[str, Any] = {}

    def make_provenance():
        nonlocal provenance
        times = {**(timings_s or {}), **{f"export.{k}": v for k, v in run.manifest.seconds().items() if k in run.made}}
        times["export"] = time.perf_counter() - started
        provenance = collect(
            config=shared, device=device, seeds=seeds, photo_name=photo.name if photo else None,
            photo_sha256=photo.sha256 if photo else None, weights=weights, timings_s=times, command=command,
            denoiser=denoiser,
        )  # fmt: skip
        return _written(provenance_path, write_provenance, provenance), {"provenance": provenance}

    run.artefact("provenance", story, make_provenance)
    provenance = run.manifest.facts("provenance")["provenance"]

    def make_report():
        path = out / "report.html"
        files = [p for name in ("glb", "ply", "turntable", "share", "provenance") for p in run.paths(name)]
        data = ReportData(
            title=photo.name if photo else "3D head",
            photo=None if photo is None else np.asarray(photo.rgb),
            alpha=None if photo is None or photo.alpha is None else np.asarray(photo.alpha),
            valid=None if photo is None or photo.valid is None else np.asarray(photo.valid),
            match=run.match(photo), turntable=out / "turntable.mp4", viewer=viewer_html(out / "portrait.glb"),
            views=[(_label(*d), out / "views" / f"{view_name(*d)}.png") for d in directions],
            curves=curves, metrics=metrics or {}, settings=shared, mesh=run.manifest.facts("glb"),
            provenance=provenance, warnings=all_warnings, files=files,
        )  # fmt: skip
        return _written(path, write_report, data), {}

    run.artefact("report", [config_hash(story), run.manifest.hashes("provenance")], make_report)
    shutil.rmtree(out / CACHE_DIR, ignore_errors=True)  # only now: an interrupted run continues from it
    names = ("glb", "ply", "views", "turntable", "share", "provenance", "report")
    files = {name: run.paths(name) for name in names}
    return ExportResult(files, run.made, run.manifest.facts("glb"), run.manifest.seconds())


def _written(path: Path, write: Callable, *arguments) -> list[Path]:
    write(path, *arguments)
    return [path]


def _label(azimuth_deg: float, elevation_deg: float) -> str:
    return f"azimuth {round(azimuth_deg)}°, elevation {round(elevation_deg)}°"


