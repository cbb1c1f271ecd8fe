"""How far HPDM's answer moves with its noise: noise carried between two views, the answers compared where both see.

    python benchmarks/equivariance.py --model outputs/hpdm/hpdm --data TEST_DATA --name "shipped"   # adds to RESULT
    python benchmarks/equivariance.py --pages       # only the table of docs/hpdm.md again; --check compares it

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
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from make_tables import insert_table  # noqa: E402
from measuring import circumstances  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.guidance.hpdm.assess import conditions_of, held_out  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import load_hpdm  # noqa: E402
from portrait_diffusion.multiview import MultiViewData, load_shards  # noqa: E402
from portrait_diffusion.noise.transport import latent_depth, transport  # noqa: E402
from portrait_diffusion.ops.projection import forward_project  # noqa: E402

TIMESTEPS = (100, 300, 500, 700, 900)
RESULT = ROOT / "benchmarks" / "results" / "equivariance.json"
PAGE = ROOT / "docs" / "hpdm.md"
START, END = "<!-- equivariance:start -->", "<!-- equivariance:end -->"


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


def table(result: dict) -> str:
    """Markdown: the mean over both signs of each yaw, carried noise / independent noise, a row a model and yaw."""
    lines = ["| model | yaw | " + " | ".join(f"timestep {t}" for t in TIMESTEPS) + " | the latents themselves |"]
    lines.append("|---" * (len(TIMESTEPS) + 3) + "|")
    for name, entry in result.items():
        for yaw in sorted({row["yaw"] for row in entry["curve"]}):
            rows = [row for row in entry["curve"] if row["yaw"] == yaw]

            def mean(key: str, step: int, rows: list = rows) -> float:
                values = [row[key] for row in rows if row["step"] == step]
                return sum(values) / len(values)

            cells = [f"{mean('carried', t):.3f} / {mean('independent', t):.3f}" for t in TIMESTEPS]
            own = mean("latents themselves", TIMESTEPS[0])
            lines.append(f"| {name} | {yaw:g}° | " + " | ".join(cells) + f" | {own:.3f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="HPDM folder")
    parser.add_argument("--data", type=Path, help="held-out subjects, --sampling evaluation")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file; curves are added under --name")
    parser.add_argument("--name", default="model", help="of the curves in the file")
    parser.add_argument("--note", default="", help="how the model was trained, kept beside its curves")
    parser.add_argument("--limit", type=int, help="use only so many subjects")
    parser.add_argument("--pages", action="store_true", help="only write the table of docs/hpdm.md again")
    parser.add_argument("--check", action="store_true", help="only compare that table with the result file")
    args = parser.parse_args(argv)
    if args.pages or args.check:
        text = PAGE.read_text(encoding="utf-8")
        wanted = insert_table(text, table(json.loads(args.out.read_text(encoding="utf-8"))), START, END)
        if args.check:
            return int(wanted != text)
        write_text(PAGE, wanted)
        return 0
    if not (args.model and args.data):
        parser.error("--model and --data say what to measure.")
    device = default_device()
    model, data = load_hpdm(args.model).to(device), load_shards(args.data, device, args.limit)
    azimuth = data.azimuth[0].tolist()
    curves = []
    for second in range(1, len(azimuth)):
        yaw = abs((azimuth[second] - azimuth[0] + 180) % 360 - 180)
        if yaw <= 90:
            for step in TIMESTEPS:
                curves.append({"yaw": yaw, "step": step, **disagreement(model, data, 0, second, step)})
    before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    entry = {**circumstances(device, argv), "note": args.note, "subjects": len(data), "curve": curves}
    write_text(args.out, json.dumps(before | {args.name: entry}, indent=1) + "\n")
    print(json.dumps(curves))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
