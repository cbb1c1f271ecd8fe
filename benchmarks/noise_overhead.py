"""What MV-NRS costs a guidance step: time and rows of the denoiser over independent noise, by how often it compares.

    python benchmarks/noise_overhead.py --out benchmarks/results/noise_overhead.json

Two neighbouring views of a ball, the small HPDM with random weights, means over whole cycles after the first step; the
quickest of several rounds in which the samplers take turns, since other work on the machine only adds. A row is one
picture through the denoiser, guidance rows counted; anchors look at the geometry again every 50 steps.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion import host  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.guidance.hpdm.model import build_mini  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import save_hpdm  # noqa: E402
from portrait_diffusion.noise.transport import latent_depth  # noqa: E402
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w  # noqa: E402

RADIUS = 0.2
EVERY = (1, 4, 16)


def ball_depth(c2w: torch.Tensor, fovy: torch.Tensor, size: int) -> torch.Tensor:
    """(B, size, size) distance along the rays to a ball around the origin, 0 beside it."""
    rays_o, rays_d = get_rays(c2w, fovy, size, size)
    b = (rays_o * rays_d).sum(-1)
    root = b.square() - rays_o.square().sum(-1) + RADIUS**2
    return torch.where(root > 0, -b - root.clamp(min=0).sqrt(), 0)


def measure(folder: Path, sampler: str, settings: dict, steps: int, size: int) -> dict:
    """Mean ms and rows of a step over `steps` steps after the first."""
    guidance = host.find("portrait-diffusion-hpdm-guidance")(
        {"pretrained_model_name_or_path": str(folder), "noise_sampler_type": sampler, "noise_sampler": settings}
    )
    device, model = torch.device(guidance.device), guidance.model
    rows: list[int] = []
    hook = model.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    azimuth = torch.tensor([20.0, 35.0], device=device)
    c2w = orbit_c2w(azimuth, torch.zeros_like(azimuth))
    fovy = canonical_fovy(c2w).expand(len(c2w))
    depth = ball_depth(c2w, fovy, size)[..., None]
    rgb = torch.rand(2, size, size, 3, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_(True)
    if hasattr(guidance.noise_sampler, "set_geometry"):
        guidance.noise_sampler.set_geometry(
            lambda poses, angles: latent_depth(ball_depth(poses, angles, size), model.factor), c2w[:1], fovy[:1]
        )

    def step() -> None:
        out = guidance(rgb, c2w=c2w, fovy=fovy, depth=depth, opacity=(depth > 0).to(depth))
        out["loss_sds"].backward()
        rgb.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    rows.clear()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    spent = time.perf_counter() - start
    hook.remove()
    return {"ms a step": round(1000 * spent / steps, 1), "rows a step": round(sum(rows) / steps, 3)}


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--steps", type=int, default=32, help="a multiple of 16 measures whole cycles")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128, help="side of the renders, pixels")
    args = parser.parse_args(argv)
    device = default_device()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        saved = save_hpdm(build_mini(image_size=args.size), Path(folder) / "model")
        samplers = {"independent": ("portrait-diffusion-iid-noise", {})}
        for every in EVERY:
            settings = {"resample_every": every}
            samplers[f"MV-NRS, compares every {every}"] = "portrait-diffusion-mvnrs-noise", settings
        rounds = [
            {name: measure(saved, *given, args.steps, args.size) for name, given in samplers.items()}
            for _ in range(args.rounds)
        ]
    found = {name: min((r[name] for r in rounds), key=lambda numbers: numbers["ms a step"]) for name in samplers}
    plain = found["independent"]
    for numbers in found.values():
        numbers["time over independent"] = round(numbers["ms a step"] / plain["ms a step"], 3)
    result = {
        "what": "guidance step of the small HPDM, two neighbouring views", "size": args.size, "steps": args.steps,
        "rounds": args.rounds,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__, "samplers": found,
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
