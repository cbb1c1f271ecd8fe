"""Time of a fit's steps at full size with random weights: the latent step (W+) and the step on the planes.

    python benchmarks/published_prior_speed.py eg3d panohead --threads 2

No super-resolution, 24 + 24 samples, 1024 rays, pixel losses, as a reduced fit on a CPU has them.
"""
import argparse
import json
import platform
import resource
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "tests")]

from portrait_diffusion.inversion.camera import PhotoCamera  # noqa: E402
from portrait_diffusion.inversion.published import PublishedFit  # noqa: E402
from portrait_diffusion.inversion.published_config import PublishedFitConfig  # noqa: E402
from portrait_diffusion.inversion.target import Target  # noqa: E402
from portrait_diffusion.priors.published.adapter import PublishedPrior  # noqa: E402
from portrait_diffusion.priors.published.checkpoint import Checkpoint  # noqa: E402
from portrait_diffusion.priors.published.sizes import FAMILIES, released  # noqa: E402
from priors.published_samples import random_state  # noqa: E402


def steps_of(family: str, latent: int, tuning: int) -> dict:
    """Median seconds of the steps after the first of each kind."""
    state = random_state(released(family))
    prior = PublishedPrior(Checkpoint(family, state, {}, None, f"random {family}", Path("random weights")))
    target = Target(torch.full((1, 3, 32, 32), 0.5), torch.ones(1, 1, 32, 32), torch.ones(1, 1, 32, 32))
    cfg = PublishedFitConfig(
        latent_steps=latent, tuning_steps=tuning, size=32, rays=1024, ray_chunk=1024, lambda_perceptual=0,
        min_overlap=0.0, attempts=1,
    )  # fmt: skip
    times: dict[str, list[float]] = {"latent": [], "tuning": []}
    last = time.perf_counter()

    def note(stage: str, *rest) -> None:
        nonlocal last
        now = time.perf_counter()
        times[stage].append(now - last)
        last = now

    PublishedFit(prior, target, PhotoCamera(), cfg, on_step=note, face_check=lambda picture: True).run()
    return {stage: sorted(values[1:])[len(values[1:]) // 2] for stage, values in times.items()}


def main() -> None:
    """Print one line of JSON a family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+", choices=FAMILIES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--latent", type=int, default=4, help="latent steps, the first is not counted")
    parser.add_argument("--tuning", type=int, default=6, help="steps on the planes, the first is not counted")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for family in args.families:
        seconds = steps_of(family, args.latent, args.tuning)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({
            "family": family, "latent_step_s": round(seconds["latent"], 2), "plane_step_s": round(seconds["tuning"], 2),
            "peak_rss_gb": round(peak, 2), "threads": args.threads, "torch": torch.__version__,
            "machine": platform.machine(),
        }))  # fmt: skip


if __name__ == "__main__":
    main()
