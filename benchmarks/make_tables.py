"""Write the benchmark table of the README from the result files, so that no number in it is typed by hand.

    python benchmarks/make_tables.py            # rewrite the table between the markers
    python benchmarks/make_tables.py --check    # exit code 1 when the README and the results disagree
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
START = "<!-- benchmark-table:start -->"
END = "<!-- benchmark-table:end -->"
# (summary metric, heading, decimals); the arrow says which way is better.
COLUMNS = (
    ("psnr_db", "PSNR dB ↑", 1),
    ("stlpips_alex", "ST-LPIPS Alex ↓", 3),
    ("stlpips_vgg", "ST-LPIPS VGG ↓", 3),
    ("silhouette_iou", "IoU ↑", 3),
    ("sface_front", "SFace 0° ↑", 2),
    ("sface_plus30", "SFace +30° ↑", 2),
    ("sface_minus30", "SFace −30° ↑", 2),
    ("sface_detection_rate", "faces found ↑", 2),
    ("janus_rate", "Janus rate ↓", 3),
)
NOTE = (
    "Wall time (median) and peak memory (largest) of the fit, from the photo's file to the head, without export and "
    "scoring. Jobs × threads: photos at a time on that machine, and threads for each."
)


def _cell(entry: dict | None, decimals: int, total: int) -> str:
    """Mean over the photos that have the metric; the count is shown where some are missing."""
    if entry is None or entry["mean"] is None:
        return "–"
    text = f"{entry['mean']:.{decimals}f}"
    return text if entry["count"] == total else f"{text} ({entry['count']}/{total})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def make_table(summaries: list[dict]) -> str:
    """Markdown table, one row a run, and what its columns mean; means over the photos that were not refused."""
    if not summaries:
        return "No results yet: run `benchmarks/photos.py`."
    headings = [heading for _, heading, _ in COLUMNS]
    costs = ["wall s ↓", "peak GB ↓", "device", "jobs × threads"]
    header = ["run", "photos", "refused", "failed", *headings, *costs, "commit"]
    rows = [header, ["---"] * len(header)]
    for summary in summaries:
        metrics = summary["metrics"]
        rows.append(
            [
                _escape(summary["name"]),
                str(summary["photos"]),
                str(summary["refused"]),
                str(summary["failed"]),
                *(_cell(metrics.get(name), decimals, summary["ok"]) for name, _, decimals in COLUMNS),
                _number(summary["seconds_median"]),
                _number(summary["peak_host_gb_max"]),
                _escape(", ".join(summary["devices"])),
                f"{summary['jobs']} × {summary['threads']}",
                ", ".join(revision[:8] + ("+changes" if "+" in revision else "") for revision in summary["commits"]),
            ]
        )
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", NOTE])


def read_summaries(results: Path) -> list[dict]:
    """All ``*/summary.json`` below the results folder, by folder name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*/summary.json"))]


def insert_table(text: str, table: str, start: str = START, end: str = END) -> str:
    """The text with everything between the markers replaced by the table.

    Raises: ValueError unless the text holds each marker once, in order.
    """
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"the document needs the lines '{start}' and '{end}' once each, in this order")
    before, rest = text.split(start)
    return f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="document with the two markers")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of runs")
    options = parser.parse_args(arguments)
    try:
        text = options.readme.read_text(encoding="utf-8")
        wanted = insert_table(text, make_table(read_summaries(options.results)))
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {options.readme}: {error}", file=sys.stderr)
        return 2
    if options.check:
        if wanted != text:
            hint = "run: python benchmarks/make_tables.py"
            print(f"error: the table in {options.readme} is out of date; {hint}", file=sys.stderr)
        return int(wanted != text)
    if wanted != text:
        partial = options.readme.with_name(f".partial-{options.readme.name}")
        partial.write_text(wanted, encoding="utf-8")
        partial.replace(options.readme)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
