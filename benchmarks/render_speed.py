"""Time, evaluated samples and exactness of renders of the bundled prior's heads, by how samples are chosen.

    python benchmarks/render_speed.py --out benchmarks/results/render_speed.json

Views around the head as in training, with gradients to planes and decoder, and without. PSNR is against 768 even
samples a ray. On a GPU 4 views of 128^2; elsewhere 2 of 64^2. A grid of densities is made anew every 16 steps in
training: its cost stands apart, and 1/16 of it is in the times with gradients. "host ms" of a step pass until the host
is free again. Implementations: torch; the field alone by Triton; field, compositing and the grid's samples by Triton.
On a GPU some ways are measured with CUDA graphs, too; how far their gradients of the planes are from those of plain
steps is over the largest.
"""
import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from measuring import circumstances, median_ms  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.geometry.triplane import TriplaneGeometry, settings_for  # noqa: E402
from portrait_diffusion.ops.backends import missing  # noqa: E402
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w  # noqa: E402
from portrait_diffusion.priors.bundled import BundledPrior  # noqa: E402
from portrait_diffusion.renderer.volume import PortraitVolumeRenderer  # noqa: E402

WAYS = {
    "96 even": {"num_samples_per_ray": 96, "num_importance_samples": 0},
    "32 + 32": {"num_samples_per_ray": 32, "num_importance_samples": 32},
    "grid 64, 16": {"occupancy_resolution": 64, "num_importance_samples": 16},
    "grid 64, 24": {"occupancy_resolution": 64, "num_importance_samples": 24},
    "grid 64, 32": {"occupancy_resolution": 64, "num_importance_samples": 32},
}
REFERENCE = {"num_samples_per_ray": 768, "num_importance_samples": 0}
GRAPHS = {f"{name}, graphs": WAYS[name] | {"cuda_graphs": True} for name in ("32 + 32", "grid 64, 24", "grid 64, 32")}
MARCHED = {
    f"grid 64, nerfacc, {steps} steps": {
        "occupancy_resolution": 64, "estimator": "nerfacc", "num_marching_steps": steps,
    }
    for steps in (128, 384)
}  # fmt: skip
IMPLEMENTATIONS = {
    "torch": ("torch", "torch"), "triton field": ("triton", "torch"), "triton": ("triton", "triton"),
    "tcnn field": ("tcnn", "torch"),
}  # fmt: skip
"""Of the field, and of compositing and the grid's samples."""


def random_head(seed: int, implementation: str, device: torch.device) -> TriplaneGeometry:
    """A head of the bundled prior."""
    prior = BundledPrior()
    z = torch.randn(1, prior.generator.spec.latent_rank, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        planes = prior.synthesize(prior.sample(z))
    settings = settings_for(planes, prior.decoder, prior.radius) | {"implementation": implementation}
    geometry = TriplaneGeometry(settings).to(device)
    geometry.set_planes([level.to(device) for level in planes])
    geometry.set_decoder([w.to(device) for w in prior.decoder])
    return geometry


def rays(views: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of views spread around the head."""
    azimuth = torch.arange(views, device=device) * (360 / views) + 20
    c2w = orbit_c2w(azimuth, torch.zeros_like(azimuth))
    return get_rays(c2w, canonical_fovy(c2w).expand(views), size, size)


class Render:
    """One way of rendering one head, with its counts."""

    def __init__(self, geometry: TriplaneGeometry, way: dict, shots: tuple):
        self.module = PortraitVolumeRenderer(
            {"randomized": False, **way}, geometry=geometry, material=None, background=None
        ).to(shots[0].device)
        self.geometry, self.shots, self.asked = geometry, shots, 0

    def _count(self, module, args) -> None:
        self.asked += args[0][..., 0].numel()

    def step(self) -> None:
        """Forward and backward."""
        self.geometry.zero_grad(set_to_none=True)
        out = self.module.train()(*self.shots)
        (out["comp_rgb"].square().mean() + out["depth"].mean()).backward()

    @torch.no_grad()
    def picture(self) -> Tensor:
        """Colours in evaluation."""
        return self.module.eval()(*self.shots)["comp_rgb"]

    def refresh(self) -> None:
        """Make the grid of training anew."""
        self.module.train()._stale = True
        self.module._densities()

    def counted(self, function) -> int:
        """Samples of the field that one call asks for."""
        function()
        self.asked = 0
        hook = self.geometry.register_forward_pre_hook(self._count)
        function()
        hook.remove()
        return self.asked


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of values in [0, 1]."""
    return round(float(-10 * (a - b).square().mean().log10()), 2)


def host_ms(function: Callable, device: torch.device, repeats: int) -> float:
    """Median time until a call returns, whether a GPU is done with it or not."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - begin))
    return round(statistics.median(times), 4)


def measure(way: dict, geometry: TriplaneGeometry, shots: tuple, repeats: int) -> dict:
    """Times and counts of one way."""
    gc.collect()  # graphs of former renders
    device, render = shots[0].device, Render(geometry, way, shots)
    plain = Render(geometry, way | {"cuda_graphs": False}, shots)
    row = {"samples, evaluation": plain.counted(plain.picture), "samples, training": plain.counted(plain.step)}
    if way.get("cuda_graphs"):
        expected = geometry.planes[0].grad.clone()
        for _ in range(2):
            render.step()
        off = (geometry.planes[0].grad - expected).abs().max() / expected.abs().max()
        row["gradients, off by"] = float(f"{float(off):.2g}")
    row["evaluation ms"] = median_ms(render.picture, device, repeats, 1)
    row["with gradients ms"] = median_ms(render.step, device, repeats, 1)
    row["host ms"] = host_ms(render.step, device, repeats)
    if way.get("occupancy_resolution"):
        row["grid ms"] = median_ms(render.refresh, device, repeats, 1)
        row["with gradients ms"] = round(row["with gradients ms"] + row["grid ms"] / 16, 4)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        render.step()
        row["peak GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        torch.cuda.empty_cache()
        row["reserved GB"] = round(torch.cuda.memory_reserved() / 1e9, 2)  # of which graphs keep theirs
    return row


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--views", type=int)
    parser.add_argument("--size", type=int, help="side of the renders, pixels")
    parser.add_argument("--heads", type=int, default=2, help="heads over which the PSNR is averaged")
    parser.add_argument("--repeats", type=int)
    args = parser.parse_args(argv)
    device = default_device()
    gpu = device.type == "cuda"
    views, size = args.views or (4 if gpu else 2), args.size or (128 if gpu else 64)
    repeats = args.repeats or (10 if gpu else 2)
    torch.set_float32_matmul_precision("high")
    shots = rays(views, size, device)
    rows, lines = [], []
    ways = WAYS | (GRAPHS if gpu else {}) | (MARCHED if missing("nerfacc", device) is None else {})
    for implementation, (field, march) in IMPLEMENTATIONS.items():
        if any(name != "torch" and missing(name, device) for name in (field, march)):
            continue
        heads = [random_head(seed, field, device) for seed in range(args.heads)]
        chosen = {name: way | {"implementation": march} for name, way in ways.items()}
        truth = [Render(head, REFERENCE, shots).picture() for head in heads]
        for name, way in chosen.items():
            found = [psnr(Render(head, way, shots).picture(), exact) for head, exact in zip(heads, truth)]
            row = {"samples": name, "implementation": implementation, **measure(way, heads[0], shots, repeats)}
            row["PSNR to 768 even, dB"] = found
            rows.append(row)
            print(json.dumps(row), flush=True)
        sizes = [(views, size // 2), (views, size), (views, 2 * size), (1, size), (2 * views, size)]
        for count, side in sizes + ([(2 * views, 2 * size)] if gpu else []):
            for name in ("grid 64, 24", "grid 64, 24, graphs"):
                if name in chosen:
                    row = measure(chosen[name], heads[0], rays(count, side, device), repeats)
                    line = {"samples": name, "implementation": implementation, "views": count, "size": side}
                    line |= {"rays": count * side**2} | row
                    line["ns a ray, with gradients"] = round(1e6 * row["with gradients ms"] / line["rays"], 1)
                    lines.append(line)
                    print(json.dumps(line), flush=True)
    slowest = rows[0]
    for row in rows:
        for key in ("evaluation ms", "with gradients ms"):
            row[f"times as fast, {key[:-3]}"] = round(slowest[key] / row[key], 2)
    result = {
        "what": "bundled prior's heads; torch with 96 even samples a ray is what the others are compared with",
        "views": views, "size": size, "repeats": repeats, **circumstances(device, argv), "rows": rows,
        "by rays and views": lines,
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
