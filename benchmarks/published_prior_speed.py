"""Times and memory of published priors at full size with random weights, on a CPU or a CUDA GPU.

    python benchmarks/published_prior_speed.py eg3d panohead --threads 2
    python benchmarks/published_prior_speed.py eg3d panohead --size 128 --rays 16384 --image --out R.json

Steps of a fit: of the latent rows (W+), on the planes, and of the generator's weights (`--tunings`), forward and
backward, 24 + 24 samples a ray, pixel losses, no super-resolution. `--image`: planes, render at 128² and
super-resolution as published, without gradients.
"""
import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from measuring import circumstances, median_ms  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.inversion.camera import PhotoCamera  # noqa: E402
from portrait_diffusion.inversion.published import PublishedFit  # noqa: E402
from portrait_diffusion.inversion.published_config import PublishedFitConfig  # noqa: E402
from portrait_diffusion.inversion.target import Target  # noqa: E402
from portrait_diffusion.priors.published.adapter import PublishedPrior  # noqa: E402
from portrait_diffusion.priors.published.checkpoint import Checkpoint  # noqa: E402
from portrait_diffusion.priors.published.image import generate  # noqa: E402
from portrait_diffusion.priors.published.sizes import FAMILIES, released  # noqa: E402
from priors.published_samples import random_state  # noqa: E402


def prior_of(family: str, device: torch.device) -> PublishedPrior:
    """A prior of the released size with random weights."""
    state = random_state(released(family))
    checkpoint = Checkpoint(family, state, {}, None, f"random {family}", Path("random weights"))
    return PublishedPrior(checkpoint).to(device)


def now(device: torch.device) -> float:
    """Seconds, after the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def steps_of(prior: PublishedPrior, size: int, rays: int, tuning: str, latent: int, tuned: int) -> dict:
    """Median seconds of the steps after the first of each kind: {"latent": s, "tuning": s}."""
    device = next(prior.parameters()).device
    target = Target(torch.full((1, 3, size, size), 0.5), torch.ones(1, 1, size, size), torch.ones(1, 1, size, size))
    cfg = PublishedFitConfig(
        latent_steps=latent, tuning=tuning, tuning_steps=tuned, size=size, rays=rays, ray_chunk=rays,
        lambda_perceptual=0, min_overlap=0.0, attempts=1,
    )  # fmt: skip
    times: dict[str, list[float]] = {"latent": [], "tuning": []}
    last = now(device)

    def note(stage: str, *rest) -> None:
        nonlocal last
        here = now(device)
        times[stage].append(here - last)
        last = here

    PublishedFit(prior, target, PhotoCamera(), cfg, on_step=note, face_check=lambda picture: True).run()
    return {stage: statistics.median(values[1:]) for stage, values in times.items()}


@torch.no_grad()
def image_seconds(prior: PublishedPrior, repeats: int) -> float:
    """Median seconds from a latent code to the published picture: planes, render at 128², super-resolution."""
    device = next(prior.parameters()).device
    z = torch.randn(1, prior.generator.sizes.z_dim, generator=torch.Generator().manual_seed(0)).to(device)
    condition = prior.condition()
    label = condition[:, :25]
    return median_ms(lambda: generate(prior.generator, z, condition, label, size=128), device, repeats, 1) / 1000


def peak_gb(device: torch.device) -> float:
    """Largest memory so far: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def row_of(family: str, args: argparse.Namespace, device: torch.device) -> dict:
    """Times of a family; peaks are of its own steps on a GPU."""
    row: dict = {"family": family}
    for tuning in args.tunings:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        prior = prior_of(family, device)
        found = steps_of(prior, args.size, args.rays, tuning, args.latent, args.tuning)
        row.setdefault("latent_step_s", round(found["latent"], 4))
        row[f"{tuning}_step_s"] = round(found["tuning"], 4)
        row[f"{tuning}_peak_gb"] = round(peak_gb(device), 2)
    if args.image:
        row["image_s"] = round(image_seconds(prior_of(family, device), args.latent), 4)
    return row


def main(argv: list[str] | None = None) -> int:
    """Print one line of JSON a family, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+", choices=FAMILIES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    parser.add_argument("--size", type=int, default=32, help="side of the photo in the fit")
    parser.add_argument("--rays", type=int, default=1024, help="rays a step")
    parser.add_argument("--tunings", nargs="+", default=["planes"], choices=("planes", "generator"))
    parser.add_argument("--latent", type=int, default=4, help="latent steps, the first is not counted")
    parser.add_argument("--tuning", type=int, default=6, help="steps of each tuning, the first is not counted")
    parser.add_argument("--image", action="store_true", help="also time one picture with super-resolution")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device) if args.device else default_device()
    rows = []
    for family in args.families:
        rows.append(row_of(family, args, device))
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        result = {
            "what": f"median seconds of a step at full size, random weights, photo of {args.size} pixels, {args.rays} "
            "rays, 24 + 24 samples; image: one picture with super-resolution, no gradients",
            **circumstances(device, argv), "threads": args.threads, "rows": rows,
        }  # fmt: skip
        write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
