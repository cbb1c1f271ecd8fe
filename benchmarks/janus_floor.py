"""How often the face detector sees a face where there is none: true views of synthetic heads from behind.

    python benchmarks/janus_floor.py --data TEST_DATA --out benchmarks/results/janus_floor.json

The Janus rate of `benchmarks/photos.py` counts detections of YuNet in views beyond 120 degrees. This is its value for
heads that have one face for certain, so a rate below it means nothing.
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.evaluation.identity import BACK_AZIMUTH_DEG, detect_faces  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.priors.data import load_shards, read_manifest  # noqa: E402
from portrait_diffusion.priors.patches import over_white, premultiplied_images  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of `render-dataset`")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args(argv)
    data = load_shards(args.data, "cpu")
    azimuth = ((data.azimuth + 180) % 360 - 180).abs()
    found = []
    for subject, view in (azimuth > BACK_AZIMUTH_DEG).nonzero().tolist():
        image = premultiplied_images(data.rgba[subject, view])
        picture = over_white(image[:3], image[3:]).permute(1, 2, 0).numpy()
        found.append(bool(detect_faces(picture)))
    spec = next(iter(read_manifest(args.data).values()), {}).get("spec", {})
    result = {
        "what": "share of true views of synthetic heads beyond 120 degrees in which YuNet detects a face",
        "rate": round(sum(found) / len(found), 4), "views": len(found), "size": data.size, "split": spec.get("split"),
        "seed": spec.get("seed"), "subjects": len(data),
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
