"""Is noise that is carried around a head still white, and does it stay on the head? Ours beside naive warps.

    python benchmarks/noise_whiteness.py --out benchmarks/results/noise_whiteness.json
    python benchmarks/noise_whiteness.py --out benchmarks/results/noise_whiteness.json --only-time  # elsewhere

The head is the bundled prior's mean head. Whiteness is measured over the whole picture and over what was carried alone,
since all else is fresh noise. Whether noise stays on the head: where both views see the surface, its correlation with
the source's pixels in which a target pixel's places lie (`noise_head.Lookup`), over that of an exact integral; and of
sums over patches of 8 x 8 pixels, in which it matters little that the pixels of two views do not match.
"""
import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from scipy.stats import kstest
from torch import Tensor

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from noise_head import Compared, Lookup, Views, head_views  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.noise.field import NoiseField  # noqa: E402
from portrait_diffusion.noise.transport import radial_spectrum, transport  # noqa: E402

YAWS = (0, 5, 15, 30, 45, 60, 90)
PAIRS = ((0, 0), (0, 5), (0, 15), (45, 60), (0, 30), (0, 45), (0, 60), (0, 90))
"""Yaws of source and target."""
METHODS = ("transport", "field", "bilinear", "nearest")
CELLS = 1.5
"""Cells of the field along an edge of its box, over latent pixels along an edge of the picture."""


class Whiteness:
    """Statistics of noise inside a region (h, w) over many draws."""

    def __init__(self, region: Tensor, bins: int = 8):
        self.region, self.bins = region, bins
        self.pairs = {"horizontal": region[:, 1:] & region[:, :-1], "vertical": region[1:] & region[:-1]}
        self.count, self.sum, self.square, self.power = 0, 0.0, 0.0, torch.zeros(bins, dtype=torch.float64)
        self.products = dict.fromkeys(self.pairs, 0.0)
        self.thinned: list[Tensor] = []

    def add(self, noise: Tensor, generator: torch.Generator) -> None:
        """Count pictures (N, h, w)."""
        inside = noise[:, self.region].double()
        self.count += len(noise)
        self.sum += float(inside.sum())
        self.square += float(inside.square().sum())
        neighbours = {"horizontal": noise[:, :, 1:] * noise[:, :, :-1], "vertical": noise[:, 1:] * noise[:, :-1]}
        for name, product in neighbours.items():
            self.products[name] += float(product[:, self.pairs[name]].double().sum())
        # what is cut out of white noise has the same power at all frequencies: the region's share of the picture
        share = float(self.region.double().mean())
        self.power += radial_spectrum(noise[None] * self.region, self.bins).double().cpu() * len(noise) / share
        # one pixel of each picture: independent of each other whatever the noise is like
        pick = torch.randint(inside.shape[1], (len(noise), 1), generator=generator, device=noise.device)
        self.thinned.append(inside.gather(1, pick)[:, 0].cpu())

    def result(self) -> dict:
        """The numbers."""
        pixels = self.count * int(self.region.sum())
        mean = self.sum / pixels
        variance = self.square / pixels - mean**2
        values = torch.cat(self.thinned).numpy()
        spectrum = self.power / self.count
        out = {"pixels": int(self.region.sum()), "mean": round(mean, 5), "std": round(variance**0.5, 5)}
        for name, pairs in self.pairs.items():
            out[name] = round((self.products[name] / (self.count * int(pairs.sum())) - mean**2) / variance, 5)
        return out | {
            "spectrum": [round(x, 4) for x in spectrum.tolist()],
            "spectrum off by": round(float((spectrum - 1).abs().max()), 4),
            "ks p": round(float(kstest(values, "norm").pvalue), 4), "ks values": len(values),
        }  # fmt: skip


class Agreement:
    """Correlation of two views' noise on the surface that both see, over many draws."""

    def __init__(self, compared: Compared):
        self.compared, self.moments = compared, torch.zeros(3, dtype=torch.float64)

    def add(self, source: Tensor, target: Tensor) -> None:
        """Count noises (1, C, h, w) of the two views."""
        if len(self.compared.members):
            a, b = self.compared.sums(source, target)
            self.moments += torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()]).double().cpu()

    def result(self) -> dict:
        """Number of places, their correlation; for pixels also that of an exact integral, and the ratio of the two."""
        count, pixels = self.compared.members.shape
        if count == 0:
            return {"places": 0}
        product, a, b = self.moments.tolist()
        numbers = {"correlation": product / (a * b) ** 0.5}
        if pixels == 1:
            exact = self.compared.exact()
            numbers |= {"exact": exact, "of exact": numbers["correlation"] / exact}
        return {"places": count} | {name: round(x, 4) for name, x in numbers.items()}


def carried(
    method: str, views: Views, lookups: dict, channels: int, generator: torch.Generator
) -> Iterator[tuple[tuple, Tensor, Tensor, Tensor]]:
    """One draw of a method: for each pair its indices, noise (1, C, h, w) of source and target, carried (h, w) bool."""
    h, w = views.depth.shape[1:]

    def draw() -> Tensor:
        return torch.randn((1, channels, h, w), generator=generator, device=views.depth.device)

    if method == "field":
        field = NoiseField(channels, round(CELLS * w), generator)
        seen = {
            i: field.render(views.depth[i : i + 1], *views.camera(i), generator) for pair in lookups for i in pair
        }  # fmt: skip
        for a, b in lookups:
            yield (a, b), seen[a][0], seen[b][0], seen[b][1][0, 0] > 0
        return
    for (a, b), lookup in lookups.items():
        noise = draw()
        if method == "transport":
            moved, where = transport(
                noise, views.depth[a : a + 1], *views.camera(a), *views.camera(b), views.depth[b : b + 1], generator
            )
            yield (a, b), noise, moved, where[0, 0] > 0
        else:
            yield (a, b), noise, lookup.warp(noise, method, draw()), lookup.seen


@torch.no_grad()
def measure(
    views: Views, yaws: tuple, draws: int, pairs: tuple = PAIRS, methods: tuple = METHODS, batch: int = 16,
    seed: int = 0,
) -> dict:  # fmt: skip
    """{method: {"0 to 30": numbers}} over `draws` latents of 4 channels, `batch` of them at a time."""
    lookups = {(yaws.index(a), yaws.index(b)): Lookup(views, yaws.index(a), yaws.index(b)) for a, b in pairs}
    everywhere = torch.ones_like(views.depth[0], dtype=torch.bool)
    table: dict = {}
    for method in methods:
        generator = torch.Generator(device=views.depth.device).manual_seed(seed)
        white, same, covered = {}, {}, {}
        for start in range(0, draws, batch):
            channels = 4 * min(batch, draws - start)
            for pair, source, target, where in carried(method, views, lookups, channels, generator):
                if pair not in white:
                    white[pair] = {"picture": Whiteness(everywhere), "carried": Whiteness(where)}
                    look = lookups[pair]
                    same[pair] = {"pixels": Agreement(look.pixels), "patches": Agreement(look.patches)}
                    covered[pair] = float(where.sum() / (views.depth[pair[1]] > 0).sum())
                for statistic in white[pair].values():
                    statistic.add(target[0], generator)
                for statistic in same[pair].values():
                    statistic.add(source, target)
        table[method] = {
            f"{yaws[pair[0]]} to {yaws[pair[1]]}": {
                "covered": round(covered[pair], 4),
                "same surface": {name: s.result() for name, s in same[pair].items()},
                "white": {name: s.result() for name, s in white[pair].items()},
            }
            for pair in lookups
        }
    return table


def median_ms(call: Callable, device: torch.device, repeats: int = 30) -> float:
    """Median ms of a call."""
    taken = []
    for _ in range(repeats + 3):
        if device.type != "cpu":
            torch.accelerator.synchronize()
        start = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        taken.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(taken[3:]), 2)


def calls(views: Views, source: int, target: int, generator: torch.Generator) -> tuple[Callable, Callable]:
    """Functions that carry noise (1, C, h, w) with k cells, and that see a field from a view."""
    depth = views.depth[source : source + 1], views.depth[target : target + 1]
    cameras = views.camera(source), views.camera(target)

    def move(noise: Tensor, k: int = 4) -> tuple[Tensor, Tensor]:
        return transport(noise, depth[0], *cameras[0], *cameras[1], depth[1], generator, k)

    def see(field: NoiseField, view: int = 1) -> tuple[Tensor, Tensor]:
        return field.render(depth[view], *cameras[view], generator)

    return move, see


def times(views: Views, source: int, target: int) -> dict:
    """Median ms of carrying one latent of 4 channels from one view to another, and of seeing the field from there."""
    device = views.depth.device
    generator = torch.Generator(device=device).manual_seed(0)
    move, see = calls(views, source, target, generator)
    noise = torch.randn((1, 4, *views.depth.shape[1:]), generator=generator, device=device)
    field = NoiseField(4, round(CELLS * noise.shape[-1]), generator)
    return {
        "transport": median_ms(lambda: move(noise), device), "field": median_ms(lambda: see(field), device),
    }  # fmt: skip


@torch.no_grad()
def settings(views: Views, source: int, target: int, draws: int, batch: int = 10) -> dict:
    """Finer and coarser cells of both methods: what stays on the surface, what is covered."""
    lookup, solid = Lookup(views, source, target), views.depth[target] > 0
    h, w = solid.shape
    generator = torch.Generator(device=solid.device).manual_seed(0)
    move, see = calls(views, source, target, generator)

    def numbers(one: Callable) -> dict:
        same = Agreement(lookup.pixels)
        for _ in range(0, draws, batch):
            before, after, where = one()
            same.add(before, after)
        return {"of exact": same.result()["of exact"], "covered": round(float(where.sum() / solid.sum()), 4)}

    def transported(k: int) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn((1, 4 * batch, h, w), generator=generator, device=solid.device)
        return noise, *move(noise, k)

    def seen(cells: float) -> tuple[Tensor, Tensor, Tensor]:
        field = NoiseField(4 * batch, round(cells * w), generator)
        return see(field, 0)[0], *see(field)

    return {
        "transport, cells a latent pixel": {k: numbers(lambda k=k: transported(k)) for k in (2, 4, 8)},
        "field, cells a latent pixel": {c: numbers(lambda c=c: seen(c)) for c in (1, 1.25, 1.5, 2, 3)},
    }


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--draws", type=int, default=1000, help="latents of 4 channels, a method and pair of views")
    parser.add_argument("--latents", type=int, default=64, help="latent pixels along an edge")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--only-time", action="store_true", help="add this machine's times to the file, nothing else")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device, start = default_device(), time.monotonic()
    views = head_views(YAWS, args.latents, device=device)
    before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    front, near, far = (YAWS.index(yaw) for yaw in (0, 15, 30))
    result = before if args.only_time else {
        "what": "noise of a view of the prior's mean head, carried to another; yaws in degrees, latents of 4 channels",
        "latents": args.latents, "draws": args.draws, "torch": torch.__version__,
        "methods": measure(views, YAWS, args.draws),
        "settings, 0 to 15": settings(views, front, near, max(args.draws // 20, 1)),
        "seconds": round(time.monotonic() - start),
    }  # fmt: skip
    where = f"CPU, {args.threads} threads" if device.type == "cpu" else torch.cuda.get_device_name()
    result["ms"] = before.get("ms", {}) | {where: times(views, front, far)}
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ms"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
