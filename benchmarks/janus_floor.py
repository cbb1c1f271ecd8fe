"""What the face detector says of heads that have one face for certain: true views of synthetic heads.

    python benchmarks/janus_floor.py --assets ASSETS --basis BASIS --out benchmarks/results/janus_floor.json

The Janus rate counts faces that YuNet finds behind a head with a confidence of `JANUS_SCORE` or more. Here true heads
with unseen hair, skin and clothes are rendered from the very views that the rate of a photo's head is taken from, and
from the front. The result tells how well that limit parts faces from backs of heads, and how other limits would.
"""
import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.evaluation.identity import JANUS_SCORE, detect_faces  # noqa: E402
from portrait_diffusion.evaluation.report_metrics import BACK_AZIMUTHS_DEG  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.synthetic.cameras import Camera  # noqa: E402
from portrait_diffusion.synthetic.dataset import BACKENDS, DatasetSpec, ShardRenderer  # noqa: E402
from portrait_diffusion.synthetic.sampling import sample_subject  # noqa: E402
from portrait_diffusion.synthetic.subjects import canonical_lighting  # noqa: E402

FRONT_AZIMUTHS_DEG = (0.0, 15.0, -15.0, 30.0, -30.0, 60.0, -60.0)
LIMITS = (0.6, 0.7, 0.8, 0.85, JANUS_SCORE, 0.9)


def scores_of(renderer: ShardRenderer, index: int, azimuths: tuple[float, ...]) -> list[float]:
    """YuNet's best confidence in each level view of a subject over white, 0 for none."""
    spec = renderer.spec
    subject = sample_subject(spec.seed, spec.split, index, renderer.basis, renderer.assets)
    renderer.rasterizer.upload(renderer.builder.build(replace(subject, lighting=canonical_lighting())))
    found = []
    for azimuth in azimuths:
        rgba = renderer.rasterizer.render(Camera(azimuth, 0.0)).rgba.astype(np.float32) / 255
        picture = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        found.append(max((face.score for face in detect_faces(picture)), default=0.0))
    return found


def told(scores: np.ndarray) -> dict:
    """Shares of the views (subjects, views) at or above each limit."""
    return {"views": scores.size, "found": {str(limit): round(float((scores >= limit).mean()), 4) for limit in LIMITS}}


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", required=True, help="folder of the MakeHuman CC0 assets")
    parser.add_argument("--basis", required=True, help="head basis (python -m portrait_diffusion.synthetic.heads FILE)")
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--size", type=int, default=128, help="side of the views, pixels")
    parser.add_argument("--backend", default="auto", choices=BACKENDS)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args(argv)
    spec = DatasetSpec("test", args.subjects, 1, args.size, seed=0)
    renderer = ShardRenderer(spec, args.assets, args.basis, args.backend)
    azimuths = FRONT_AZIMUTHS_DEG + BACK_AZIMUTHS_DEG
    scores = np.array([scores_of(renderer, index, azimuths) for index in range(args.subjects)])
    front, behind = np.split(scores, [len(FRONT_AZIMUTHS_DEG)], axis=1)
    highest = {str(azimuth): round(float(behind[:, k].max()), 4) for k, azimuth in enumerate(BACK_AZIMUTHS_DEG)}
    result = {
        "what": "YuNet's best confidence in true views of synthetic heads; shares of views at or above a limit",
        "limit": JANUS_SCORE, "size": args.size, "split": spec.split, "seed": spec.seed, "subjects": args.subjects,
        "faces within 60 degrees": {"lowest": round(float(front.min()), 4), **told(front)},
        "backs beyond 120 degrees": {"highest": round(float(behind.max()), 4), **told(behind), "by azimuth": highest},
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
