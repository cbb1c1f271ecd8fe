"""How far HPDM's answer moves with its noise: noise carried between two views, the answers compared where both see.

    python benchmarks/equivariance.py --model outputs/hpdm/hpdm --data TEST_DATA --out OUT.json

For a view and one turned by a yaw the clean latents predicted from carried noise are projected into each other
(`noise.transport`, `ops.projection`); the error is |W x(e) - x(W e)| / |x(W e)| over mutually visible latents, beside
the same with independent noise, which is what carrying it has to beat.
"""
import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.guidance.hpdm.assess import conditions_of, held_out  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import load_hpdm  # noqa: E402
from portrait_diffusion.multiview import MultiViewData, load_shards  # noqa: E402
from portrait_diffusion.noise.transport import latent_depth, transport  # noqa: E402
from portrait_diffusion.ops.projection import forward_project  # noqa: E402
from portrait_diffusion.priors.train import default_device  # noqa: E402

TIMESTEPS = (100, 300, 500, 700, 900)


@torch.no_grad()
def disagreement(model, data: MultiViewData, first: int, second: int, step: int, kind: str = "hybrid") -> dict:
    """Relative error between two views' predictions, with carried and with independent noise, over all subjects."""
    subjects = torch.arange(len(data), device=data.device)
    generator = torch.Generator(device=data.device).manual_seed(step)
    views = [held_out(data, subjects, view) for view in (first, second)]
    cameras = [(v.c2w, v.fovy) for v in views]
    depth = [latent_depth(v.depth, model.factor) for v in views]
    clean = [model.encode(v.target).float() for v in views]
    noise = torch.randn(clean[0].shape, generator=generator, device=data.device)
    independent = torch.randn(noise.shape, generator=generator, device=data.device)
    # the background keeps its noise, so that only what moves makes a difference; no number is used twice
    fresh = torch.where((depth[0] == 0)[:, None], noise, independent)
    carried = transport(noise, depth[0], *cameras[0], *cameras[1], depth[1], generator, fresh=fresh)[0]
    t = torch.full((len(data),), step, device=data.device)

    def predicted(view: int, e: torch.Tensor) -> torch.Tensor:
        conditions = conditions_of(model, views[view], kind)
        return model.predict(model.add_noise(clean[view], e, t), t, conditions).clean.float()

    moved, valid = forward_project(
        predicted(0, noise)[:, None], depth[0][:, None], cameras[0][0][:, None], cameras[0][1][:, None], *cameras[1],
        *noise.shape[-2:], target_depth=depth[1], subdivide=4,
    )  # fmt: skip
    truth, still = forward_project(
        clean[0][:, None], depth[0][:, None], cameras[0][0][:, None], cameras[0][1][:, None], *cameras[1],
        *noise.shape[-2:], target_depth=depth[1], subdivide=4,
    )  # fmt: skip

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((((a - b) * valid).square().sum() / (b * valid).square().sum().clamp(min=1e-9)).sqrt())

    return {
        "carried": round(error(moved, predicted(1, carried)), 4),
        "independent": round(error(moved, predicted(1, independent)), 4),
        "latents themselves": round(error(truth, clean[1]), 4),
        "covered": round(float(still.mean() / (depth[1] > 0).float().mean()), 4),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="HPDM folder")
    parser.add_argument("--data", type=Path, required=True, help="held-out subjects, --sampling evaluation")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; curves are added under --name")
    parser.add_argument("--name", default="model", help="of the curves in the file")
    parser.add_argument("--limit", type=int, help="use only so many subjects")
    args = parser.parse_args(argv)
    device = default_device()
    model, data = load_hpdm(args.model).to(device), load_shards(args.data, device, args.limit)
    azimuth = data.azimuth[0].tolist()
    curves = []
    for second in range(1, len(azimuth)):
        yaw = abs((azimuth[second] - azimuth[0] + 180) % 360 - 180)
        if yaw <= 90:
            for step in TIMESTEPS:
                curves.append({"yaw": yaw, "step": step, **disagreement(model, data, 0, second, step)})
    before = json.loads(args.out.read_text()) if args.out.is_file() else {}
    result = before | {args.name: {"subjects": len(data), "device": str(device), "curve": curves}}
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(curves))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
