"""Plots of a run's numbers: differences with their intervals, and metrics by side of the head."""
import math
from pathlib import Path

from ..files import atomic_path
from ..optional import require
from .measure import BINS
from .summary import bins_of, primary
from .tables import TITLES

BY_SIDE = {
    "stlpips_alex": "ST-LPIPS, less is better", "stlpips_hair": "hair ST-LPIPS, less is better",
    "band_ratio_3": "top band over the truth's, 1 is right", "normal_deg": "normals, degrees",
}  # fmt: skip
PANELS = 3
COLOURS = {"better": "#1b8a5a", "worse": "#c0392b"}


def _figure(width: float, height: float, columns: int, rows: int = 1):
    figure = require("matplotlib.figure", extra="plots", package="matplotlib").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure, path: Path) -> Path:
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=110, metadata={"Software": None})
    return path


def side_plot(part: dict, data: str, path: Path) -> Path:
    """Metrics over front, side, profile and back, one line a rung."""
    figure, axes = _figure(13, 3.4, len(BY_SIDE))
    for axis, (metric, told) in zip(axes, BY_SIDE.items()):
        for name, rung in part["rungs"].items():
            values = [float("nan") if v is None else v for v in bins_of(rung["numbers"], metric)]
            axis.plot(range(len(BINS)), values, marker="o", markersize=3, linewidth=1.3, label=name)
        axis.set_xticks(range(len(BINS)), list(BINS))
        axis.set_title(told, fontsize=9)
        axis.tick_params(labelsize=8)
        if metric == "band_ratio_3":
            axis.axhline(1, color="#bbbbbb", linewidth=0.8)
        else:
            axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=7)
    figure.suptitle(TITLES.get(data, data), fontsize=10)
    return _save(figure, path)


def difference_plot(part: dict, data: str, path: Path) -> Path | None:
    """Differences to the rung before with 95 % intervals, one panel a metric; None without comparisons."""
    entries = part["comparisons"]
    metrics = [metric for metric in primary(data) if any(e["metric"] == metric for e in entries)]
    if not metrics:
        return None
    names = list(dict.fromkeys(f"{e['rung']} − {e['before']}" for e in entries))
    lines = math.ceil(len(metrics) / PANELS)
    figure, axes = _figure(12, lines * (1.0 + 0.28 * len(names)), PANELS, lines)
    for axis in axes[len(metrics) :]:
        axis.set_axis_off()
    for k, (axis, metric) in enumerate(zip(axes, metrics)):
        mine = [e for e in entries if e["metric"] == metric]
        if not any(e["difference"] or e["low"] or e["high"] for e in mine):
            axis.set_xlim(-1, 1)  # nothing differs: matplotlib's own limits would be 1e-17
        for entry in mine:
            y = -names.index(f"{entry['rung']} − {entry['before']}")
            colour = COLOURS.get(entry["shown"], "#8a8f98")
            if entry["low"] is not None:
                axis.plot([entry["low"], entry["high"]], [y, y], color=colour, linewidth=2)
            axis.plot(entry["difference"], y, "o", color=colour, markersize=4)
        axis.axvline(0, color="#888888", linewidth=0.8)
        axis.set_ylim(-len(names) + 0.4, 0.6)
        axis.set_yticks([-k for k in range(len(names))], [""] * len(names) if k % PANELS else names, fontsize=8)
        axis.set_title(primary(data)[metric][0], fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        axis.locator_params(axis="x", nbins=4)
    return _save(figure, path)


def write_plots(summary: dict, folder: Path, prefix: str = "") -> list[Path]:
    """All plots of a run. Args: contents of ``ladder.json``."""
    paths = []
    for data, part in summary["data"].items():
        if data != "photos":
            paths.append(side_plot(part, data, folder / f"{prefix}{data}-sides.png"))
        paths.append(difference_plot(part, data, folder / f"{prefix}{data}-differences.png"))
    return [path for path in paths if path is not None]
