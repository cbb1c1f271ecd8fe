"""How far the camera that the preparation finds is from the one that took the photo, on the benchmark's subjects.

    python benchmarks/photo_camera.py --set data_cache/benchmark    # measure, and write the table of docs/priors.md
    python benchmarks/photo_camera.py --table                       # write the table alone; --check only compares

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

from make_tables import insert_table  # noqa: E402
from measuring import circumstances  # noqa: E402
from portrait_diffusion.benchmark.tables import markdown  # noqa: E402
from portrait_diffusion.benchmark.truth import GROUPS, PHOTO_SIZE, shard  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.inversion.start import initial_camera  # noqa: E402
from portrait_diffusion.ops.similarity import apply, scale  # noqa: E402
from portrait_diffusion.photo.camera_estimate import CAMERA_METHODS  # noqa: E402
from portrait_diffusion.photo.prepare import prepare_photo  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "photo_camera.json"
PAGE = ROOT / "docs" / "priors.md"
START, END = "<!-- photo-camera:start -->", "<!-- photo-camera:end -->"
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


def table(result: dict) -> str:
    """Markdown of the page: mean and root mean square of each error."""
    header = ["", "azimuth °", "elevation °", "size %", "across %", "down %"]
    rows = []
    for group, found in result["groups"].items():
        for method in CAMERA_METHODS:
            cells = [f"{e['mean']:+.1f} ± {e['rms']:.1f}" for e in (found[method][name] for name in ERRORS)]
            rows.append([f"`{group}` ({found['subjects']}), {method}", *cells])
    return markdown(header, rows)


def measure(folder: Path, groups: list[str], argv: list[str] | None) -> dict:
    """The result of both methods on the groups of a set."""
    result = {
        "what": "camera found in the photos of the benchmark's subjects minus the true one; a size of -5 per cent is a "
                "picture of the canonical head that is 5 per cent too small, which makes the fitted head too large",
        **circumstances(torch.device("cpu"), argv), "groups": {},
    }  # fmt: skip
    for group in groups:
        photos = [shard(folder, group, k, "photo").with_suffix(".png") for k in range(GROUPS[group].subjects)]
        found = {method: np.array([errors_of(photo, method) for photo in photos]) for method in CAMERA_METHODS}
        result["groups"][group] = {
            "subjects": len(photos), **{method: told(rows) for method, rows in found.items()}
        }  # fmt: skip
        print(group, json.dumps(result["groups"][group]))
    return result


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", type=Path, help="the set that render-benchmark made")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file")
    parser.add_argument("--page", type=Path, default=PAGE, help="document with the two markers")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 for a stale table")
    args = parser.parse_args(argv)
    if not args.table and not args.check:
        if args.set is None:
            parser.error("--set is needed to measure; make one with: python launch_portrait.py render-benchmark DIR")
        write_text(args.out, json.dumps(measure(args.set, args.groups, argv), indent=1) + "\n")
    text = args.page.read_text(encoding="utf-8")
    wanted = insert_table(text, table(json.loads(args.out.read_text(encoding="utf-8"))), START, END)
    if args.check:
        return int(wanted != text)
    write_text(args.page, wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
