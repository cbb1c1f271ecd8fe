"""What hundreds of rounds of keeping the better noise do to it: its drift along what is scored, and its spectrum.

    python benchmarks/noise_drift.py --out benchmarks/results/noise_drift.json

Anchors stand around the bundled prior's mean head. In each round every anchor's noise is compared with a fresh draw and
the one is kept that lies further along a fixed direction of low frequency, which is the hardest that a score can pull.
Anchors are given up after 100 rounds (the default of MV-NRS), or never; and, to show what the spectrum finds, with
perturbed copies of what is kept in the place of fresh draws, which MV-NRS does not do.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from noise_head import mean_head, pictures  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.noise.agreement import keep_best  # noqa: E402
from portrait_diffusion.noise.anchors import AnchorRing, Anchors, DepthFn  # noqa: E402
from portrait_diffusion.noise.transport import radial_spectrum  # noqa: E402
from portrait_diffusion.ops.cameras import canonical_fovy, orbit_c2w  # noqa: E402

NEVER = 10**9
KEPT = 0.9
"""Correlation of a perturbed copy with what it is a copy of."""


def direction(solid: Tensor, channels: int) -> Tensor:
    """(N, C, h, w), length 1 for each of N views: a wave of two periods over the picture, on its solid (N, h, w) part.

    Its sum is 0, since the spectrum leaves the constant out.
    """
    w = solid.shape[2]
    wave = torch.cos(4 * torch.pi * torch.arange(w, device=solid.device) / w) * solid
    wave = wave - wave.sum(dim=(1, 2), keepdim=True) / solid.sum(dim=(1, 2), keepdim=True) * solid
    wave = wave[:, None].expand(-1, channels, -1, -1)
    return wave / wave.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def summary(drift: list[Tensor], kept: list[Tensor]) -> dict:
    """Numbers of a run: drift a round (N,), and noises (N, C, h, w) kept at the rounds that are looked at."""
    mean = torch.stack(drift).mean(dim=1)
    spectrum = sum(radial_spectrum(noise) for noise in kept) / len(kept)
    at = [r for r in (1, 10, 100, len(mean)) if r <= len(mean)]
    return {
        "drift after rounds": {str(r): round(float(mean[r - 1]), 3) for r in at},
        "drift, mean over rounds": round(float(mean.mean()), 3), "largest drift": round(float(mean.max()), 3),
        "std": round(float(torch.stack([noise.square().mean() for noise in kept]).mean().sqrt()), 5),
        "spectrum": [round(x, 4) for x in spectrum.tolist()],
        "spectrum off by": round(float((spectrum - 1).abs().max()), 4), "noises": sum(len(noise) for noise in kept),
    }  # fmt: skip


@torch.no_grad()
def keep_the_better(
    depth_of: DepthFn, shape: tuple, rounds: int, most: int, generator: torch.Generator, ring: AnchorRing,
    look_every: int = 100,
) -> dict:  # fmt: skip
    """Rounds of anchors against fresh draws; drift in standard deviations, noise looked at before it is given up.

    Args: shape (C, h, w); most: rounds after which an anchor is given up; look_every: rounds between looks.
    """
    like = torch.zeros(1, device=generator.device)
    anchors = Anchors(ring, orbit_c2w(like, like), canonical_fovy(like), shape, depth_of, generator)
    index = torch.arange(1, len(anchors.c2w), device=generator.device)
    wanted = direction(anchors.depth[1:] > 0, shape[0])
    drift, kept = [], []
    for number in range(1, rounds + 1):
        fresh = torch.randn((len(index), *shape), generator=generator, device=generator.device)
        candidates = torch.stack([anchors.noise[1:], fresh])
        best = keep_best((candidates * wanted).sum(dim=(2, 3, 4)))
        won = best.nonzero()[:, 0]
        a = index[won]
        anchors.replace(a, fresh[won], anchors.c2w[a], anchors.fovy[a], anchors.depth[a], generator)
        drift.append((anchors.noise[1:] * wanted).sum(dim=(1, 2, 3)))
        if number % look_every == 0 or number == rounds:
            kept.append(anchors.noise[1:].clone())
        anchors.count_round(index, most, generator)
    return summary(drift, kept)


@torch.no_grad()
def climb(solid: Tensor, shape: tuple, rounds: int, generator: torch.Generator) -> dict:
    """The same with perturbed copies of what is kept, e' = KEPT e + sqrt(1 - KEPT^2) n: a control."""
    wanted = direction(solid, shape[0])
    noise = torch.randn(wanted.shape, generator=generator, device=generator.device)
    drift = []
    for _ in range(rounds):
        fresh = torch.randn(noise.shape, generator=generator, device=generator.device)
        candidates = torch.stack([noise, KEPT * noise + (1 - KEPT**2) ** 0.5 * fresh])
        best = keep_best((candidates * wanted).sum(dim=(2, 3, 4)))
        noise = candidates[best, torch.arange(len(noise), device=noise.device)]
        drift.append((noise * wanted).sum(dim=(1, 2, 3)))
    return summary(drift, [noise])


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--latents", type=int, default=64, help="latent pixels along an edge")
    parser.add_argument("--spacing", type=int, default=5, help="degrees between anchors; all are of elevation 0")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device, start = default_device(), time.monotonic()
    head, seen = mean_head(device), {}

    def depth_of(c2w: Tensor, fovy: Tensor) -> Tensor:
        if "depth" not in seen:  # the same ring each time
            seen["depth"] = pictures(head, c2w, fovy, args.latents)[0]
        return seen["depth"]

    ring = AnchorRing(tuple(range(0, 360, args.spacing)), (0,))
    shape = 4, args.latents, args.latents

    def generator() -> torch.Generator:
        return torch.Generator(device=device).manual_seed(0)

    result = {
        "what": "noise of anchors around the prior's mean head, kept if it lies further along a fixed direction than a "
        "fresh draw; drift in standard deviations of that coordinate",
        "latents": args.latents, "rounds": args.rounds, "anchors": len(ring.azimuths), "torch": torch.__version__,
        "given up after 100": keep_the_better(depth_of, shape, args.rounds, 100, generator(), ring),
        "never given up": keep_the_better(depth_of, shape, args.rounds, NEVER, generator(), ring),
        "perturbed copies": climb(seen["depth"][1:] > 0, shape, args.rounds, generator()),
    }  # fmt: skip
    result["seconds"] = round(time.monotonic() - start)
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
