"""The synthetic subjects of the benchmark: what they are, rendering them again from seeds, checking them, reading them.

Subjects follow from seeds alone, and so do their descriptions, which are compared by hash. Shapes pass through a
decomposition and pictures through a rasteriser that differ between machines in the last digits: landmarks, coverage,
colour and depth are compared with recorded values within the tolerances below. The files themselves have no fixed hash.
"""
import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..export.views import png_bytes
from ..files import write_bytes, write_text
from ..multiview import DEPTH_SCALE
from ..ops.cameras import canonical_fovy, orbit_c2w
from ..priors.patches import over_white, premultiplied_images
from ..synthetic.dataset import BACKENDS, render_dataset
from ..synthetic.parts import LABELS
from ..synthetic.views import BENCHMARK_AZIMUTHS, BENCHMARK_ELEVATIONS

RECORD = Path(__file__).with_name("set.json")
VIEWS = len(BENCHMARK_AZIMUTHS) * len(BENCHMARK_ELEVATIONS)
PHOTO_SIZE = 512
TOLERANCE = {"landmarks": 4e-4, "coverage": 0.004, "colour": 0.012, "depth": 2e-3}
"""Landmarks and mean depth in scene units (0.56 m), the covered share of the pictures, mean colour in [0, 1]."""
_log = logging.getLogger("portrait_diffusion")


@dataclass(frozen=True)
class Group:
    """Subjects that are drawn alike: split of the assets, seed, number."""

    split: str
    seed: int
    subjects: int
    told: str


GROUPS = {
    "dev": Group("test", 2411, 8, "unseen assets, for tuning"),
    "test": Group("test", 2412, 16, "unseen assets, for results"),
    "domain": Group("train", 2413, 8, "unseen persons with the assets that the training data use"),
}


@dataclass
class Cameras:
    """Where V views are taken from. Attributes: c2w (V, 4, 4); fovy (V,) radians; azimuth, elevation (V,) degrees."""

    c2w: Tensor
    fovy: Tensor
    azimuth: Tensor
    elevation: Tensor

    @classmethod
    def ring(cls, azimuths: Sequence[float], device: torch.device | str = "cpu") -> "Cameras":
        """Level canonical cameras."""
        azimuth = torch.tensor([float(a) for a in azimuths], device=device)
        c2w = orbit_c2w(azimuth, torch.zeros_like(azimuth))
        return cls(c2w, canonical_fovy(c2w).expand(len(c2w)), azimuth, torch.zeros_like(azimuth))

    def level(self) -> dict[int, int]:
        """Rows of the level views by azimuth in whole degrees, 0 to 359."""
        angles = zip(self.azimuth.tolist(), self.elevation.tolist())
        return {round(a) % 360: k for k, (a, e) in enumerate(angles) if abs(e) < 1e-3}

    def rows(self, kept: list[int]) -> "Cameras":
        """Some of them."""
        return Cameras(*(x[kept] for x in vars(self).values()))


@dataclass
class Pictures:
    """Views of a head. Attributes: rgb (V, 3, S, S) over white; alpha (V, 1, S, S); depth (V, S, S) distance along the
    ray, normal (V, S, S, 3) unit length, world frame; both 0 where nothing is."""

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor

    def rows(self, kept: list[int]) -> "Pictures":
        """Some of them."""
        return Pictures(*(x[kept] for x in vars(self).values()))


@dataclass
class Truth:
    """One subject.

    Attributes: pictures, cameras; hair (V, 1, S, S) 1 on hair; photo: file of the input view, RGBA; faces: what
        `measure.true_face` has found in the views, by row; own: what `measure.truth_metrics` has.
    """

    pictures: Pictures
    cameras: Cameras
    hair: Tensor
    photo: Path
    faces: dict[int, Any] = field(default_factory=dict)
    own: dict[str, float | None] = field(default_factory=dict)

    def rows(self, kept: list[int]) -> "Truth":
        """The same with some of the views."""
        return Truth(self.pictures.rows(kept), self.cameras.rows(kept), self.hair[kept], self.photo)


def group_of(name: str) -> Group:
    """A group by name. Raises: UsageError."""
    if name not in GROUPS:
        raise UsageError(f"The benchmark has no group '{name}'; there are {', '.join(GROUPS)}.")
    return GROUPS[name]


def shard(folder: Path, name: str, index: int, kind: str = "views") -> Path:
    """File of one subject: its ``views``, or its ``photo``."""
    return folder / name / kind / f"{group_of(name).split}_{index:05d}.npz"


def render_group(
    folder: Path, name: str, size: int, assets, basis, workers: int = 1, limit: int | None = None, backend: str = "auto"
) -> int:
    """Render a group's subjects, those that are not there yet; returns their number.

    Args: folder of the set; side of the views in pixels; assets, basis, workers, backend as `render_dataset`; limit:
        only so many subjects.
    Raises: UsageError, EnvironmentProblem.
    """
    group = group_of(name)
    count = min(group.subjects, limit or group.subjects)
    common = {"seed": group.seed, "assets": assets, "basis": basis, "workers": workers, "shard_size": 1,
              "backend": backend}  # fmt: skip
    views = {"sampling": "benchmark", "extras": ("depth", "label", "normal")}
    render_dataset(folder / name / "views", group.split, count, VIEWS, size, **views, **common)
    render_dataset(folder / name / "photo", group.split, count, 1, PHOTO_SIZE, sampling="benchmark", **common)
    for index in range(count):
        picture = shard(folder, name, index, "photo").with_suffix(".png")
        if not picture.is_file():
            with np.load(picture.with_suffix(".npz"), allow_pickle=False) as arrays:
                write_bytes(picture, png_bytes(arrays["rgba"][0, 0]))
    return count


def load_truth(folder: Path, name: str, index: int, device: torch.device | str = "cpu") -> Truth:
    """One subject. Raises: UsageError naming the file that is missing."""
    path = shard(folder, name, index)
    if not path.is_file():
        raise UsageError(f"'{path}' is missing; render the set first: launch_portrait.py render-benchmark {folder}.")
    with np.load(path, allow_pickle=False) as arrays:
        a = {key: torch.from_numpy(arrays[key][0]).to(device) for key in
             ("rgba", "depth", "normal", "label", "c2w", "camera")}  # fmt: skip
    images = premultiplied_images(a["rgba"])
    normal = torch.nn.functional.normalize(a["normal"].float(), dim=-1)
    depth, alpha = a["depth"].float() / DEPTH_SCALE, images[:, 3:]
    pictures = Pictures(over_white(images[:, :3], alpha), alpha, depth, normal)
    camera = a["camera"]
    cameras = Cameras(a["c2w"], torch.deg2rad(camera[:, 3]), camera[:, 0], camera[:, 1])
    hair = (a["label"] == LABELS["hair"])[:, None].float()
    return Truth(pictures, cameras, hair, shard(folder, name, index, "photo").with_suffix(".png"))


def fingerprint(path: Path) -> dict:
    """What is compared of one subject's file: hash of the description, and measures of shape and pictures."""
    with np.load(path, allow_pickle=False) as arrays:
        description = json.loads(str(arrays["subjects"]))[0]
        rgba, depth = arrays["rgba"][0].astype(np.float64) / 255, arrays["depth"][0].astype(np.float64) / DEPTH_SCALE
        landmarks = arrays["landmarks"][0].astype(np.float64)
    alpha = rgba[..., 3:]
    return {
        "subject": description_hash(description),
        "landmarks": np.round(landmarks, 5).ravel().tolist(),
        "coverage": [round(float(alpha.mean()), 5)],
        "colour": np.round((rgba[..., :3] * alpha).sum((0, 1, 2)) / alpha.sum(), 5).tolist(),
        "depth": [round(float(depth[depth > 0].mean()), 5)],
    }


def description_hash(description: dict) -> str:
    """Hash of a subject's description, its numbers to nine digits."""

    def rounded(value):
        if isinstance(value, dict):
            return {key: rounded(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [rounded(v) for v in value]
        return float(f"{value:.9g}") if isinstance(value, float) else value

    return hashlib.sha256(json.dumps(rounded(description), sort_keys=True).encode()).hexdigest()[:16]


def differences(found: dict, recorded: dict) -> list[str]:
    """What differs between a fingerprint and the recorded one, in words."""
    out = [] if found["subject"] == recorded["subject"] else ["another person was drawn"]
    for name, tolerance in TOLERANCE.items():
        worst = max(abs(a - b) for a, b in zip(found[name], recorded[name], strict=True))
        if worst > tolerance:
            out.append(f"{name} differs by {worst:.4g}, more than {tolerance:g}")
    return out


def set_hash(names: Sequence[str] = tuple(GROUPS), record: Path = RECORD) -> str:
    """Hash of the groups' specification and of all their subjects' descriptions."""
    recorded = json.loads(record.read_text(encoding="utf-8"))
    content = {name: [vars(GROUPS[name]), [entry["subject"] for entry in recorded[name]]] for name in names}
    return hashlib.sha256(json.dumps([content, VIEWS, PHOTO_SIZE], sort_keys=True).encode()).hexdigest()[:16]


def check_group(folder: Path, name: str, count: int, record: Path = RECORD) -> None:
    """Compare rendered subjects with the record.

    Raises: UsageError naming the first that differs.
    """
    recorded = json.loads(record.read_text(encoding="utf-8"))[name]
    for index in range(count):
        found = differences(fingerprint(shard(folder, name, index)), recorded[index])
        if found:
            raise UsageError(
                f"{shard(folder, name, index)} is not subject {index} of the benchmark's group '{name}': "
                f"{'; '.join(found)}. Use the assets and the version of anny that docs/benchmark.md names."
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``render-benchmark``."""
    parser = argparse.ArgumentParser(
        prog="launch_portrait.py render-benchmark", description="Render the benchmark's subjects, check them."
    )
    parser.add_argument("out", type=Path, help="folder of the set; what is there is kept")
    parser.add_argument("--assets", help="folder of the MakeHuman CC0 assets (default: $PORTRAIT_DIFFUSION_ASSETS)")
    parser.add_argument("--basis", required=True, help="head basis (python -m portrait_diffusion.synthetic.heads FILE)")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--subjects", type=int, help="only so many of each group")
    parser.add_argument("--size", type=int, default=128, help="side of the views, pixels (default 128)")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--backend", default="auto", choices=BACKENDS)
    parser.add_argument("--record", type=Path, help="FILE: write the fingerprints there instead of checking them")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    counts = {
        name: render_group(
            args.out, name, args.size, args.assets, args.basis, args.workers, args.subjects, args.backend
        )
        for name in args.groups
    }
    if args.record is not None:
        prints = {name: [fingerprint(shard(args.out, name, k)) for k in range(n)] for name, n in counts.items()}
        write_text(args.record, json.dumps(prints) + "\n")
        return 0
    for name, count in counts.items():
        check_group(args.out, name, count)
        _log.info("%s: %d subjects as recorded", name, count)
    print(f"set {set_hash()}: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    return 0
