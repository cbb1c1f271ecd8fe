"""How far the camera that the preparation finds is from the one that took the photo, on the benchmark's subjects.

    python benchmarks/photo_camera.py --set data_cache/benchmark --out benchmarks/results/photo_camera.json

Their photos are taken by the canonical camera, so azimuth, elevation and roll are 0, and the crop that the preparation
cuts tells the true size and place. Compared are what the network says and what a face detector's landmarks say.
"""
import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from measuring import circumstances  # noqa: E402
from portrait_diffusion.benchmark.truth import GROUPS, PHOTO_SIZE, shard  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.inversion.start import initial_camera  # noqa: E402
from portrait_diffusion.ops.similarity import apply, scale  # noqa: E402
from portrait_diffusion.photo.camera_estimate import CAMERA_METHODS  # noqa: E402
from portrait_diffusion.photo.prepare import prepare_photo  # noqa: E402

ERRORS = ("azimuth_deg", "elevation_deg", "size_percent", "across_percent", "down_percent")


def errors_of(path: Path, method: str) -> list[float]:
    """Signed errors of a photo in the order of `ERRORS`; places and sizes in the crop, in per cent of its side."""
    prepared = prepare_photo(path, PHOTO_SIZE, matte="none", camera=method)
    with torch.no_grad():
        camera = initial_camera(prepared)
        azimuth, elevation, _ = (float(angle) for angle in camera.degrees())
        size, across, down = camera.pose()[2][0].tolist()
    middle = apply(prepared.photo_to_crop, np.full((1, 2), PHOTO_SIZE / 2))[0] / PHOTO_SIZE - 0.5
    larger = math.log(size / scale(prepared.photo_to_crop))
    return [azimuth, elevation, 100 * larger, 100 * (across - middle[0]), 100 * (down - middle[1])]


def told(found: np.ndarray) -> dict:
    """Mean and root mean square of each error. Args: found (subjects, errors)."""
    rms = np.sqrt((found**2).mean(0))
    return {name: {"mean": round(float(m), 3), "rms": round(float(r), 3)} for name, m, r in
            zip(ERRORS, found.mean(0), rms)}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", type=Path, required=True, help="the set that render-benchmark made")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args(argv)
    result = {
        "what": "camera found in the photos of the benchmark's subjects minus the true one; a size of +5 per cent is a "
                "picture of the canonical head 5 per cent larger than it is, so a head 5 per cent too small",
        **circumstances(torch.device("cpu"), argv), "groups": {},
    }  # fmt: skip
    for group in args.groups:
        photos = [shard(args.set, group, k, "photo").with_suffix(".png") for k in range(GROUPS[group].subjects)]
        found = {method: np.array([errors_of(photo, method) for photo in photos]) for method in CAMERA_METHODS}
        result["groups"][group] = {
            "subjects": len(photos), **{method: told(rows) for method, rows in found.items()}
        }  # fmt: skip
        print(group, json.dumps(result["groups"][group]))
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
