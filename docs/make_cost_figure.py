"""Draws docs/images/cost.png from the result files of field and renders: python docs/make_cost_figure.py"""
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results"
sys.path.insert(0, str(DOCS.parent / "custom"))

from portrait_diffusion.files import atomic_path  # noqa: E402

TARGET = DOCS / "images" / "cost.png"
PEAK = {"float32": 494.7e12, "bfloat16": 989.4e12}
"""Products a second of an H200's tensor cores, without sparsity (its data sheet): TF32 and bfloat16."""
LINES = {
    ("torch", "float32"): ("torch, float32", "#8a8a8a"),
    ("tcnn", "float32"): ("tiny-cuda-nn decoder, float32", "#c2452d"),
    ("triton", "float32"): ("kernels, float32", "#1f5fa8"), ("triton", "bfloat16"): ("kernels, bfloat16", "#4c9a6a"),
}  # fmt: skip


def read(name: str) -> dict:
    """A result file."""
    return json.loads((RESULTS / name).read_text())


def draw_field(axis) -> None:
    """Forward and backward of the field over points, with both bounds."""
    rows = [row for row in read("field_speed_h200.json")["rows"] if row["features kept"]]
    for key, (label, colour) in LINES.items():
        own = [row for row in rows if (row["implementation"], row["planes"]) == key]
        points, times = ([row[name] for row in own] for name in ("points", "forward and backward ms"))
        axis.plot(points, times, "o-", color=colour, label=label, markersize=3)
        if key[0] != "triton":
            continue
        axis.plot(points, [row["ms at the bandwidth of a copy"] for row in own], "--", color=colour, linewidth=0.9)
        axis.plot(points, [1000 * row["flop"] / PEAK[key[1]] for row in own], ":", color=colour, linewidth=0.9)
    axis.plot([], [], "--", color="#222222", linewidth=0.9, label="memory's bandwidth")
    axis.plot([], [], ":", color="#222222", linewidth=0.9, label="tensor cores' peak")
    axis.set(title="Field, forward and backward", xlabel="points", ylabel="ms")


def draw_renders(axis) -> None:
    """Renders with gradients over rays: views of 64², 128² and 256²."""
    rows = read("render_speed_h200.json")["by rays and views"]
    for implementation, colour in (("torch", "#8a8a8a"), ("triton", "#1f5fa8")):
        for samples, style in (("grid 64, 24", "--"), ("grid 64, 24, graphs", "-")):
            own = [row for row in rows if (row["implementation"], row["samples"]) == (implementation, samples)]
            own.sort(key=lambda row: (row["rays"], row["views"]))
            label = ("torch" if implementation == "torch" else "all kernels") + (", graphs" if style == "-" else "")
            times = [row["with gradients ms"] for row in own]
            axis.plot([row["rays"] for row in own], times, "o" + style, color=colour, label=label, markersize=3)
            if (implementation, style) == ("triton", "-"):
                for row in own:
                    axis.annotate(f"{row['views']} × {row['size']}²", (row["rays"], row["with gradients ms"]),
                                  xytext=(3, -9), textcoords="offset points", fontsize=6, color=colour)  # fmt: skip
    axis.set(title="Renders with gradients, grid 64³, 24 samples a ray", xlabel="rays", ylabel="ms")


def main() -> None:
    """Both panels."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, draw in zip(axes, (draw_field, draw_renders)):
        draw(axis)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(color="#e5e5e5", linewidth=0.6)
        axis.set_ylim(top=4 * axis.get_ylim()[1])  # room for the legend
        axis.legend(fontsize=7, loc="upper left", ncols=2, handlelength=3)
        axis.tick_params(labelsize=8)
    with atomic_path(TARGET) as partial:
        figure.savefig(partial, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
