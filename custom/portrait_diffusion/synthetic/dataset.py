"""Render a data set of synthetic portraits: several processes, resumable, one .npz a shard of subjects.

Usage: ``python -m portrait_diffusion.synthetic.dataset OUT --split train --subjects 1000 --views 12 --size 128
--assets DIR --basis FILE``

Shard ``SPLIT_00000.npz`` (N subjects, V views, S pixels):
  ``rgba (N,V,S,S,4)`` uint8 straight colour + alpha; ``camera (N,V,4)`` float32 azimuth, elevation (degrees),
  distance, fovy (degrees);
  ``target (N,V,3)``; ``c2w (N,V,4,4)`` float32; ``landmarks (N,5,3)`` head frame (eye centres, nose tip, mouth
  corners; smaller x first);
  ``landmarks_px (N,V,5,2)``; ``landmarks_visible (N,V,5)`` bool; ``subject_index (N,)``;
  and if asked for: ``label (N,V,S,S)`` uint8, ``depth (N,V,S,S)`` int16 (distance along the ray in 1/8192; 0 =
  nothing),
  ``normal (N,V,S,S,3)`` int8 (unit vector x 127, world frame).
  ``subjects`` JSON text describing every subject.
``manifest_SPLIT.json`` holds the arguments, their hash, the version and the list of shards.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import EnvironmentProblem, PortraitError, UsageError
from ..files import atomic_path, write_text
from ..multiview import encode_depth
from .assets import find_assets
from .heads import load_head_basis
from .raster_gl import GLRasterizer
from .raster_soft import SoftRasterizer
from .sampling import grown_hair, sample_subject
from .scene import SceneBuilder
from .subjects import SPLITS, canonical_lighting
from .turn import sample_turn
from .views import FIXED_CAMERAS, RANDOM_CAMERAS, landmark_visibility

LOG = logging.getLogger("portrait_diffusion")
SAMPLINGS = (*RANDOM_CAMERAS, *FIXED_CAMERAS)
BACKENDS = ("auto", "gl", "soft")
VERSION = 4  # increase when the same arguments give other pictures


@dataclass(frozen=True)
class DatasetSpec:
    """Everything that decides what is rendered (and goes into the manifest's hash)."""

    split: str
    n_subjects: int
    views_per_subject: int
    size: int
    seed: int
    supersample: int = 3
    shard_size: int = 50
    sampling: str = "training"  # one of SAMPLINGS; the fixed ones have canonical light
    extras: tuple[str, ...] = ()  # of label, depth, normal
    version: int = VERSION
    turned: float = 0.0  # share of subjects whose shoulders are turned beneath the head, see `turn`
    grown: float = 0.0  # share of those with hair who have a grown haircut, see `haircuts`

    def digest(self, *files: Path) -> str:
        """Short hash of the specification and of the given files' contents."""
        later = ("turned", "grown")  # 0 is as before there were these
        told = {key: value for key, value in asdict(self).items() if key not in later or value}
        h = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for path in files:
            h.update(Path(path).read_bytes())
        return h.hexdigest()[:16]


def open_rasterizer(backend: str, size: int, supersample: int) -> GLRasterizer | SoftRasterizer:
    """The rasteriser that a backend names: 'gl', 'soft', or 'auto', which is OpenGL where a context can be opened and
    otherwise, with a warning, the software rasteriser.

    Raises: UsageError for another name, EnvironmentProblem when 'gl' cannot be opened.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend must be one of {', '.join(BACKENDS)}, not '{backend}'.")
    if backend == "soft":
        return SoftRasterizer(size, supersample)
    try:
        return GLRasterizer(size, supersample)
    except EnvironmentProblem as problem:
        if backend == "gl":
            raise EnvironmentProblem(f"{problem} Or draw without OpenGL, much slower: --backend soft.") from problem
        LOG.warning("the software rasteriser draws, tens of times slower than OpenGL, which failed: %s", problem)
        return SoftRasterizer(size, supersample)


def settle_backend(backend: str) -> str:
    """What 'auto' comes to on this machine, 'gl' or 'soft', so that workers need not try and warn one by one."""
    if backend != "auto":
        return backend
    rasterizer = open_rasterizer(backend, 1, 1)
    if isinstance(rasterizer, SoftRasterizer):
        return "soft"
    rasterizer.release()
    return "gl"


class ShardRenderer:
    """Renders shards; one lives in each worker process with its own rasteriser.

    Args: what to render; folder of the asset pack; file of the head basis; backend as `open_rasterizer`.
    """

    def __init__(self, spec: DatasetSpec, assets: str | None, basis: str, backend: str = "auto"):
        self.spec, self.basis, self.assets = spec, load_head_basis(basis), find_assets(assets)
        self.builder = SceneBuilder(self.basis, self.assets)
        self.rasterizer = open_rasterizer(backend, spec.size, spec.supersample)

    def render(self, indices: Sequence[int]) -> tuple[dict[str, np.ndarray], list[dict]]:
        """Arrays of one shard (see the module text) and the subjects' descriptions."""
        rows: list[dict] = []
        descriptions = []
        for index in indices:
            row, description = self.render_subject(index)
            rows.append(row)
            descriptions.append(description)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, descriptions

    def render_subject(self, index: int) -> tuple[dict[str, np.ndarray], dict]:
        """Arrays of one subject (without the leading N) and its description."""
        spec = self.spec
        subject = sample_subject(spec.seed, spec.split, index, self.basis, self.assets)
        subject = replace(subject, torso_deg=sample_turn(subject.rng(12), spec.turned))
        subject = grown_hair(subject, spec.grown)
        if spec.sampling in FIXED_CAMERAS:
            subject = replace(subject, lighting=canonical_lighting())
            cameras = FIXED_CAMERAS[spec.sampling](spec.views_per_subject)
        else:
            cameras = RANDOM_CAMERAS[spec.sampling](subject.rng(9), spec.views_per_subject)
        scene = self.builder.build(subject)
        self.rasterizer.upload(scene)
        views = [self.rasterizer.render(camera) for camera in cameras]
        pixels = np.stack([camera.project(scene.landmarks, spec.size) for camera in cameras])
        row = {
            "rgba": np.stack([view.rgba for view in views]),
            "camera": np.array([[c.azimuth_deg, c.elevation_deg, c.distance, c.fovy_deg] for c in cameras], np.float32),
            "target": np.array([c.target for c in cameras], np.float32),
            "c2w": np.stack([c.c2w() for c in cameras]).astype(np.float32),
            "landmarks": scene.landmarks.astype(np.float32),
            "landmarks_px": pixels.astype(np.float32),
            "landmarks_visible": np.stack(
                [landmark_visibility(view, scene.landmarks, px) for view, px in zip(views, pixels)]
            ),
            "subject_index": np.int64(index),
        }
        if "label" in spec.extras:
            row["label"] = np.stack([view.label for view in views])
        if "depth" in spec.extras:
            row["depth"] = encode_depth(np.stack([view.depth for view in views]))
        if "normal" in spec.extras:
            row["normal"] = np.round(np.stack([view.normal for view in views]) * 127).astype(np.int8)
        return row, subject.to_dict()


def render_dataset(
    out_dir,
    split: str,
    n_subjects: int,
    views_per_subject: int,
    size: int,
    seed: int = 0,
    assets=None,
    basis=None,
    workers: int = 1,
    supersample: int = 3,
    shard_size: int = 50,
    sampling: str = "training",
    extras: Sequence[str] = (),
    backend: str = "auto",
    turned: float = 0.0,
    grown: float = 0.0,
) -> Path:
    """Render a data set (resumes where an earlier run with the same arguments stopped).

    Args:
        out_dir: folder to fill.
        split: train, val or test: subjects and reserved assets are disjoint.
        n_subjects, views_per_subject, size: how much, and the side of the pictures in pixels.
        seed: changes every subject.
        assets: folder of the asset pack (or the environment variable PORTRAIT_DIFFUSION_ASSETS).
        basis: file of the head basis.
        workers: processes; each opens its own rasteriser.
        supersample: samples a pixel side.
        shard_size: subjects a file.
        sampling: 'training' (random views, each subject's own light), 'photographs' (likewise, within 45 degrees of the
            front), 'evaluation' (fixed azimuths, canonical light) or 'benchmark' (likewise, 24 azimuths at 3
            elevations).
        extras: any of label, depth, normal.
        backend: 'auto' (OpenGL where a context can be opened, else the software rasteriser), 'gl' or 'soft'.
        turned: share of subjects whose shoulders are turned and tilted beneath the head.
        grown: share of subjects with a grown haircut in place of an asset's; buzz cuts and bald heads stay.
    Returns: path of manifest.json.
    Raises: UsageError, EnvironmentProblem.
    """
    spec = DatasetSpec(
        split, n_subjects, views_per_subject, size, seed, supersample, shard_size, sampling, tuple(sorted(extras)),
        turned=turned, grown=grown,
    )  # fmt: skip
    _check(spec)
    if basis is None:
        raise UsageError(
            "No head basis was given (--basis); make it once with: python -m portrait_diffusion.synthetic.heads FILE"
        )
    pack = find_assets(assets)
    load_head_basis(basis)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    digest = spec.digest(Path(basis))
    _check_resume(out / f"manifest_{split}.json", digest)
    shards = [range(start, min(start + shard_size, n_subjects)) for start in range(0, n_subjects, shard_size)]
    manifest = {
        "digest": digest,
        "complete": False,
        "spec": asdict(spec),
        "shards": [f"{split}_{k:05d}.npz" for k in range(len(shards))],
    }
    _write_json(out / f"manifest_{split}.json", manifest)
    todo = [k for k in range(len(shards)) if not (out / manifest["shards"][k]).is_file()]
    LOG.info(
        "%d of %d shards are there already; rendering %d with %d workers",
        len(shards) - len(todo),
        len(shards),
        len(todo),
        workers,
    )
    if todo and workers > 1:
        backend = settle_backend(backend)
    jobs = [
        (spec, str(pack.root), str(basis), backend, str(out / manifest["shards"][k]), list(shards[k])) for k in todo
    ]
    started, done = time.monotonic(), 0
    for name, count in _run(jobs, workers):
        done += count
        rate = done / (time.monotonic() - started)
        LOG.info(
            "%s: %d subjects in this run, %.2f subjects/s, %.1f ms a view",
            name,
            done,
            rate,
            1000 / (rate * views_per_subject),
        )
    manifest["complete"] = True
    _write_json(out / f"manifest_{split}.json", manifest)
    return out / f"manifest_{split}.json"


def _check(spec: DatasetSpec) -> None:
    if spec.split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, not '{spec.split}'.")
    if min(spec.n_subjects, spec.views_per_subject, spec.size, spec.supersample, spec.shard_size) < 1:
        raise UsageError("subjects, views, size, supersample and shard size must be at least 1.")
    if spec.sampling not in SAMPLINGS:
        raise UsageError(f"sampling must be one of {', '.join(SAMPLINGS)}, not '{spec.sampling}'.")
    if spec.sampling in FIXED_CAMERAS:
        FIXED_CAMERAS[spec.sampling](spec.views_per_subject)
    if not 0 <= spec.turned <= 1:
        raise UsageError(f"turned is the share of subjects with turned shoulders, 0 to 1, not {spec.turned}.")
    if not 0 <= spec.grown <= 1:
        raise UsageError(f"grown is the share of subjects with a grown haircut, 0 to 1, not {spec.grown}.")
    unknown = set(spec.extras) - {"label", "depth", "normal"}
    if unknown:
        raise UsageError(f"extras can be label, depth, normal; not {', '.join(sorted(unknown))}.")


def _check_resume(manifest: Path, digest: str) -> None:
    if manifest.is_file():
        found = json.loads(manifest.read_text(encoding="utf-8")).get("digest")
        if found != digest:
            raise UsageError(
                f"'{manifest}' was rendered with other arguments (hash {found}, now {digest}); choose another folder "
                "or delete it."
            )


def _run(jobs, workers: int):
    if workers <= 1:
        for job in jobs:
            yield _render_shard(job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(len(jobs), 1)), mp_context=context) as pool:
        for future in as_completed([pool.submit(_render_shard, job) for job in jobs]):
            yield future.result()


_RENDERER: dict = {}  # the worker's renderer, kept between shards


def _render_shard(job) -> tuple[str, int]:
    spec, assets, basis, backend, path, indices = job
    key = (spec, assets, basis, backend)
    if key not in _RENDERER:
        _RENDERER.clear()
        _RENDERER[key] = ShardRenderer(spec, assets, basis, backend)
    arrays, descriptions = _RENDERER[key].render(indices)
    with atomic_path(path) as partial:
        np.savez(partial, subjects=np.array(json.dumps(descriptions)), **arrays)
    return Path(path).name, len(indices)


def _write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m portrait_diffusion.synthetic.dataset",
        description="Render synthetic portraits with ground truth.",
    )
    parser.add_argument("out", help="folder to fill")
    parser.add_argument("--split", default="train", choices=sorted(SPLITS))
    parser.add_argument("--subjects", type=int, default=1000)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--assets", default=None, help="folder of the MakeHuman CC0 asset pack (default: $PORTRAIT_DIFFUSION_ASSETS)"
    )
    parser.add_argument("--basis", required=True, help="head basis (.npz)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--supersample", type=int, default=3)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--sampling", default="training", choices=SAMPLINGS)
    parser.add_argument("--extras", nargs="*", default=[], help="label depth normal")
    parser.add_argument(
        "--backend", default="auto", choices=BACKENDS, help="auto: OpenGL where it opens, else soft (much slower)"
    )
    parser.add_argument("--turned", type=float, default=0.0, help="share of subjects with turned, tilted shoulders")
    parser.add_argument("--grown", type=float, default=0.0, help="share of subjects with haircuts that no asset has")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        manifest = render_dataset(
            args.out,
            args.split,
            args.subjects,
            args.views,
            args.size,
            args.seed,
            args.assets,
            args.basis,
            args.workers,
            args.supersample,
            args.shard_size,
            args.sampling,
            args.extras,
            args.backend,
            args.turned,
            args.grown,
        )
    except PortraitError as error:
        LOG.error("error: %s", error)
        return error.exit_code
    LOG.info("done: %s", manifest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
