"""What the face detector says of heads that have one face for certain: true views of synthetic heads.

    python benchmarks/janus_floor.py --data TEST_DATA --out benchmarks/results/janus_floor.json

The Janus rate counts faces that YuNet finds in views beyond 120 degrees with a confidence of `JANUS_SCORE` or more. The
result tells how well that limit parts faces (views within 60 degrees) from backs of heads, and how other limits would.
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.evaluation.identity import BACK_AZIMUTH_DEG, JANUS_SCORE, detect_faces  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.multiview import load_shards, read_manifest  # noqa: E402
from portrait_diffusion.priors.patches import over_white, premultiplied_images  # noqa: E402

FACE_AZIMUTH_DEG = 61.0
LIMITS = (0.6, 0.7, 0.8, 0.9)


def shares(scores: list[float]) -> dict:
    """Share of the views at or above each limit."""
    return {str(limit): round(sum(score >= limit for score in scores) / len(scores), 4) for limit in LIMITS}


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of `render-dataset`")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args(argv)
    data = load_shards(args.data, "cpu")
    azimuth = ((data.azimuth + 180) % 360 - 180).abs()
    front, behind = [], []
    for subject, view in ((azimuth > BACK_AZIMUTH_DEG) | (azimuth < FACE_AZIMUTH_DEG)).nonzero().tolist():
        image = premultiplied_images(data.rgba[subject, view])
        picture = over_white(image[:3], image[3:]).permute(1, 2, 0).numpy()
        score = max((face.score for face in detect_faces(picture)), default=0.0)
        (behind if azimuth[subject, view] > BACK_AZIMUTH_DEG else front).append(score)
    spec = next(iter(read_manifest(args.data).values()), {}).get("spec", {})
    result = {
        "what": "YuNet's best confidence in true views of synthetic heads; shares of views at or above a limit",
        "limit": JANUS_SCORE, "size": data.size, "split": spec.get("split"), "seed": spec.get("seed"),
        "subjects": len(data),
        "faces within 60 degrees": {"views": len(front), "lowest": round(min(front), 4), "found": shares(front)},
        "backs beyond 120 degrees": {"views": len(behind), "highest": round(max(behind), 4), "found": shares(behind)},
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
