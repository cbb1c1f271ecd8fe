"""Write the tables of docs/stages.md, the stages against the initialization, from the records of a run.

    python benchmarks/stages_page.py            # rewrite what is between the markers
    python benchmarks/stages_page.py --check    # exit code 1 when the page and the results disagree

The run is that of ``benchmarks/ladders/restored.yaml``, its records in benchmarks/results/ladder-restored/.
"""
import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from make_tables import insert_table  # noqa: E402
from portrait_diffusion.benchmark.summary import by_item, heads_of  # noqa: E402
from portrait_diffusion.benchmark.tables import markdown  # noqa: E402
from portrait_diffusion.evaluation.statistics import bootstrap_interval  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402

PAGE = ROOT / "docs" / "stages.md"
RECORDS = ROOT / "benchmarks" / "results" / "ladder-restored" / "results.jsonl"
START, END = "<!-- stages-table:start -->", "<!-- stages-table:end -->"
PAIRS = (("restored", "init"), ("refined", "init"), ("distilled", "init"), ("open", "refined"))
"""Which rung is set against which."""
TRUTH = {
    "stlpips_alex.side": ("ST-LPIPS side ↓", 3), "stlpips_alex.profile": ("profile ↓", 3),
    "stlpips_alex.back": ("back ↓", 3), "stlpips_alex.unseen": ("unseen ↓", 3), "iou.unseen": ("IoU ↑", 3),
    "self_warp_lpips_30": ("self-warp ↓", 4), "sface.side": ("SFace side ↑", 2),
    "sface_plus30": ("to the photo: +30° ↑", 3), "sface_minus30": ("−30° ↑", 3),
    "photo_psnr_db": ("photo's view, dB ↑", 1), "janus_rate": ("Janus ↓", 3),
}  # fmt: skip
"""Metric -> (heading, decimals), for subjects whose truth is known."""
PHOTOS = {
    "photo_psnr_db": TRUTH["photo_psnr_db"], "photo_stlpips_alex": ("its ST-LPIPS ↓", 4),
    "sface_front": ("SFace 0° ↑", 3), "sface_plus30": ("+30° ↑", 3), "sface_minus30": ("−30° ↑", 3),
    "self_warp_lpips_30": TRUTH["self_warp_lpips_30"], "janus_rate": TRUTH["janus_rate"],
}  # fmt: skip
"""The same for photos."""
TITLES = {"test": "of `test`", "domain": "of `domain`", "photos": "photos"}


def means_and_differences(records: Sequence[dict], data: str, metrics: Sequence[str], decimals: Sequence[int]) -> list:
    """Rows of cells: each rung's means, the true heads' own, then `PAIRS` less each other, [low, high] by bootstrap."""
    rungs = list(dict.fromkeys(r["rung"] for r in records if r["data"] == data))
    items = {rung: by_item(heads_of(records, data, rung)) for rung in rungs}
    rows = []
    for rung in rungs:
        values = [items[rung][metric] for metric in metrics]
        rows.append([rung, *(f"{sum(v.values()) / len(v):.{d}f}" for v, d in zip(values, decimals))])
    first = items[rungs[0]]  # what the true heads score by themselves is the same in every rung's records
    own = [list(first.get(f"{metric}_truth", {}).values()) for metric in metrics]
    if any(own):
        rows.append(["*the true heads*", *(f"{sum(v) / len(v):.{d}f}" if v else "" for v, d in zip(own, decimals))])
    for rung, before in PAIRS:
        if not {rung, before} <= set(rungs):
            continue
        cells = []
        for metric, d in zip(metrics, decimals):
            mine, other = items[rung][metric], items[before][metric]
            low, mean, high = bootstrap_interval([mine[item] - other[item] for item in mine if item in other])
            cells.append(f"{mean:+.{d}f} [{low:+.{d}f}, {high:+.{d}f}]".replace("-", "−"))
        rows.append([f"{rung} − {before}", *cells])
    return rows


def tables(records: Sequence[dict]) -> str:
    """Markdown of all kinds of data."""
    if not records:
        return "No results yet: run `launch_portrait.py evaluate --ladder benchmarks/ladders/restored.yaml`."
    parts = []
    for data in dict.fromkeys(record["data"] for record in records):
        measured = by_item([r for r in records if r["data"] == data and r["status"] == "ok"])
        columns = {m: told for m, told in (PHOTOS if data == "photos" else TRUTH).items() if m in measured}
        count = len({r["name"] for r in records if r["data"] == data})
        header = [f"{count} {TITLES[data]}", *(heading for heading, _ in columns.values())]
        decimals = [d for _, d in columns.values()]
        parts.append(markdown(header, means_and_differences(records, data, list(columns), decimals)))
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the page is out of date")
    options = parser.parse_args(arguments)
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.is_file() else []
    old = PAGE.read_text(encoding="utf-8")
    new = insert_table(old, tables([json.loads(line) for line in lines]), START, END)
    if options.check:
        if new != old:
            page = PAGE.relative_to(ROOT)
            print(f"error: {page} is out of date; run: python benchmarks/stages_page.py", file=sys.stderr)
        return int(new != old)
    write_text(PAGE, new)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
