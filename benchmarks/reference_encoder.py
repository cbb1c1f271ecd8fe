"""A plain supervised encoder trained for so many seconds, as a yardstick of the bundled prior on the same subjects.

    python benchmarks/reference_encoder.py --data TRAIN --limit 360 --seconds 330 --held val=VAL test=TEST --out R.json

One frontal image in, three planes of 64² out, a small decoder, 40 samples a ray at 64²; L1, squared error and
silhouettes over 32 subjects x 3 views a step; no adversary, no perceptual loss, no augmentation of pictures. What it
reaches on held-out subjects is scored as the prior is (`priors.assess.evaluate`), beside a prior given by --prior.
"""
import argparse
import json
import logging
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from measuring import circumstances  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.evaluation.stlpips import STLPIPS  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.multiview import MultiViewData, load_shards  # noqa: E402
from portrait_diffusion.ops.cameras import get_rays  # noqa: E402
from portrait_diffusion.priors.alignment import encoder_input  # noqa: E402
from portrait_diffusion.priors.assess import evaluate, reconstruction_sheet  # noqa: E402
from portrait_diffusion.priors.networks import Encoder, Generator, PlaneDecoder  # noqa: E402
from portrait_diffusion.priors.patches import premultiplied_images  # noqa: E402
from portrait_diffusion.priors.render import half_precision, render_planes  # noqa: E402
from portrait_diffusion.priors.storage import load_spec, load_weights  # noqa: E402
from portrait_diffusion.priors.train import cosine_tail  # noqa: E402

CHANNELS = 32
DENSITY_GAIN = 10.0
"""A fifth of the prior's: planes of a plain network start large, and an empty box has no gradient."""
WIDTHS = (64, 128, 256, 384, 384)
"""Channels at 128, 64, 32, 16 and 8 pixels."""
SIZE, SAMPLES, SUBJECTS, VIEWS = 64, 40, 32, 3


class Block(nn.Module):
    """Two normalised convolutions with a shortcut."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1),
            nn.GroupNorm(8, c_out), nn.SiLU(), nn.Conv2d(c_out, c_out, 3, padding=1),
        )  # fmt: skip
        self.skip = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class PlainEncoder(nn.Module):
    """(B, 7, 128, 128) aligned portrait (`priors.alignment.encoder_input`) to planes (B, 3, 32, 64, 64).

    Shaped as the bundled encoder and generator are where `priors.assess` asks: the planes travel as its "W+".
    """

    def __init__(self):
        super().__init__()
        self.spec = SimpleNamespace(encoder_input=128)
        pairs = list(zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
        self.first = nn.Conv2d(7, WIDTHS[0], 3, padding=1)
        self.down = nn.Sequential(*[nn.Sequential(Block(a, b), nn.AvgPool2d(2)) for a, b in pairs])
        self.middle = nn.Sequential(Block(WIDTHS[-1], WIDTHS[-1]), Block(WIDTHS[-1], WIDTHS[-1]))
        self.up = nn.Sequential(*[nn.Sequential(nn.Upsample(scale_factor=2), Block(b, a)) for a, b in pairs[:0:-1]])
        self.last = nn.Conv2d(WIDTHS[1], 3 * CHANNELS, 3, padding=1)
        self.decoder = PlaneDecoder(CHANNELS, 64)
        self.decoder.out_mix[0, 0] = DENSITY_GAIN

    def forward(self, x: Tensor) -> tuple:
        planes = self.last(self.up(self.middle(self.down(self.first(x)))))
        return planes.unflatten(1, (3, CHANNELS)), None, None

    def synthesis(self, planes: Tensor, features: None) -> list[Tensor]:
        return [planes]


def step_losses(model: PlainEncoder, data: MultiViewData, rng: torch.Generator) -> Tensor:
    """The loss of a random batch: the front view in, any three views compared."""
    device = data.device
    subjects = torch.randint(len(data), (SUBJECTS,), generator=rng, device=device)
    front = data.azimuth.abs().add(data.elevation.abs()).argmin(dim=1)[subjects]
    image = premultiplied_images(data.rgba[subjects, front])
    pose = data.azimuth[subjects, front], data.elevation[subjects, front]
    with half_precision(device):
        planes = model(encoder_input(image[:, :3], image[:, 3:], torch.ones_like(image[:, 3:]), *pose, 128))[0].float()
    views = torch.randint(data.rgba.shape[1], (SUBJECTS, VIEWS), generator=rng, device=device)
    rows, views = subjects[:, None].expand_as(views).reshape(-1), views.reshape(-1)
    truth = F.avg_pool2d(premultiplied_images(data.rgba[rows, views]), data.size // SIZE)
    rays = get_rays(data.c2w[rows, views], data.fovy[rows, views], SIZE, SIZE)
    each = planes[:, None].expand(-1, VIEWS, -1, -1, -1, -1).flatten(0, 1)
    out = render_planes([each], model.decoder.weights(), *rays, SAMPLES, 0, rng)
    colour = out["rgb"] + 1 - out["opacity"] - (truth[:, :3] + 1 - truth[:, 3:])
    return colour.abs().mean() + colour.square().mean() + (out["opacity"] - truth[:, 3:]).abs().mean()


def train(model: PlainEncoder, data: MultiViewData, seconds: float, seed: int, steps: int | None = None) -> int:
    """Adam, up to 5e-4 in 200 steps, a cosine fall in the last 40 % of the time; returns the number of steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, betas=(0.9, 0.99))
    rng, start, done = torch.Generator(device=data.device).manual_seed(seed), time.monotonic(), 0
    while time.monotonic() - start < seconds and done != steps:
        share = (time.monotonic() - start) / seconds
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * cosine_tail(share, 0.6) * min(1.0, (done + 1) / 200)
        loss = step_losses(model, data, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if done % 500 == 0:
            logging.info("step %d, loss %.4f", done, loss.item())
        done += 1
    return done


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="training subjects (render-dataset)")
    parser.add_argument("--limit", type=int, default=360, help="use only so many of them")
    parser.add_argument("--seconds", type=float, default=330.0)
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--held", nargs="+", required=True, metavar="NAME=FOLDER", help="held-out subjects")
    parser.add_argument("--prior", nargs=2, type=Path, metavar=("PRIOR", "ENCODER"), help="weights scored beside it")
    parser.add_argument("--perceptual-weights", type=Path, help="ST-LPIPS AlexNet file; default: the package's")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; sheets of pictures are written beside it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(args.seed)
    device = default_device()
    perceptual = STLPIPS("alex", weights=args.perceptual_weights).to(device)
    model, data = PlainEncoder().to(device), load_shards(args.data, device, args.limit)
    steps = train(model, data, args.seconds, args.seed, args.steps)
    pairs = {"reference": (model.eval(), model)}
    if args.prior:
        prior, encoder = args.prior
        pairs["prior"] = tuple(
            load_weights(kind(load_spec(file, name)), file, name).to(device).eval()
            for kind, file, name in ((Generator, prior, "generator"), (Encoder, encoder, "encoder"))
        )
    scores: dict = {}
    for name, folder in (entry.split("=", 1) for entry in args.held):
        held = load_shards(Path(folder), device)
        for who, (generator, encoder) in pairs.items():
            scores.setdefault(name, {})[who] = evaluate(generator, encoder, held, perceptual)
            sheet = args.out.with_name(f"{args.out.stem}-{name}-{who}.png")
            reconstruction_sheet(generator, encoder, held, min(8, len(held)), sheet)
        scores[name]["subjects"] = len(held)
    result = {
        "what": "a plain supervised encoder and the bundled prior on the same held-out subjects: one frontal image in, "
        "no optimisation; PSNR over white at 64 px, ST-LPIPS (AlexNet) at 128 px",
        **circumstances(device, argv), "parameters": sum(p.numel() for p in model.parameters()),
        "train_subjects": len(data), "steps": steps, "seconds": math.floor(args.seconds), "scores": scores,
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    logging.info(json.dumps(scores))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
