"""Draws docs/images/noise.png: noise carried around a head, by us and by naive warps, its histogram and spectrum.

    python benchmarks/noise_pictures.py [--results RESULTS.json] [--out PICTURE.png]

Numbers and spectra are those of the result file; noise and histograms are drawn anew.
"""
import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from noise_head import Lookup, Views, head_views  # noqa: E402
from noise_whiteness import carried  # noqa: E402
from portrait_diffusion.files import atomic_path  # noqa: E402

YAWS = (0, 15, 30, 60, 90)
ROWS = {"transport": "transport (ours)", "field": "field (ours)", "bilinear": "bilinear", "nearest": "nearest"}
COLOURS = {"transport": "#1f5fa8", "field": "#4c9a6a", "bilinear": "#c2452d", "nearest": "#d79a2b"}
BINS = np.linspace(-4, 4, 41)
CHANNELS = 64
"""Latent channels drawn for the histograms; the first is shown."""


def as_picture(noise: Tensor, where: Tensor) -> np.ndarray:
    """(h, w, 3) grey of noise (h, w) within 2.5 standard deviations; what was not carried is pale."""
    grey = (noise / 5 + 0.5).clamp(0, 1)[..., None].expand(-1, -1, 3)
    return torch.where(where[..., None], grey, 0.8 + 0.12 * grey).numpy()


def draw(views: Views, results: dict, seed: int = 0) -> plt.Figure:
    """The figure; `results` is the content of the result file."""
    lookups = {(0, i): Lookup(views, 0, i) for i in range(len(YAWS))}
    made = {}
    for method in ROWS:
        generator = torch.Generator().manual_seed(seed)
        for pair, _, noise, where in carried(method, views, lookups, CHANNELS, generator):
            made[method, pair[1]] = noise[0], where
    heights = [*[1] * (1 + len(ROWS)), 0.75, 0.75]
    figure, axes = plt.subplots(len(heights), len(YAWS), figsize=(10, 13), height_ratios=heights, layout="constrained")
    histogram, power = axes[-2], axes[-1]
    for i, yaw in enumerate(YAWS):
        axes[0, i].imshow(views.rgb[i].clamp(0, 1).numpy())
        axes[0, i].set_title(f"yaw {yaw}°", fontsize=12)
        for row, method in enumerate(ROWS, start=1):
            noise, where = made[method, i]
            numbers = results["methods"][method][f"0 to {yaw}"]["white"]["carried"]
            axes[row, i].imshow(as_picture(noise[0], where), interpolation="nearest")
            label = f"std {numbers['std']:.2f}, neighbours {abs(numbers['horizontal']):.2f}"
            axes[row, i].set_xlabel(label, fontsize=9)
            style = {"color": COLOURS[method], "lw": 1.5}
            histogram[i].hist(noise[:, where].flatten().numpy(), BINS, density=True, histtype="step", **style)
            bands = len(numbers["spectrum"])
            frequency = (np.arange(bands) + 0.5) / bands / 2**0.5
            power[i].plot(frequency, numbers["spectrum"], label=ROWS[method], **style)
        x = np.linspace(-4, 4, 161)
        histogram[i].plot(x, np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5, color="#222222", lw=0.8, ls=":")
        histogram[i].set(xlim=(-4, 4), ylim=(0, 0.62), yticks=[])
        power[i].axhline(1, color="#222222", lw=0.8, ls=":")
        power[i].set(xlim=(0, 0.71), ylim=(0, 2.6), xlabel="cycles per latent pixel")
        for axis in axes[:-2, i]:
            axis.set(xticks=[], yticks=[])
        for axis in axes[-2:, i]:
            axis.tick_params(labelsize=8)
    power[0].legend(fontsize=8, frameon=False, loc="upper right")
    for row, name in enumerate(["head", *ROWS.values(), "histogram", "power"]):
        axes[row, 0].set_ylabel(name, fontsize=11)
    return figure


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "noise_whiteness.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "noise.png")
    args = parser.parse_args(argv)
    results = json.loads(args.results.read_text(encoding="utf-8"))
    figure = draw(head_views(YAWS, results["latents"]), results)
    with atomic_path(args.out) as partial:
        figure.savefig(partial, dpi=100, format="png", pil_kwargs={"optimize": True})
    plt.close(figure)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
