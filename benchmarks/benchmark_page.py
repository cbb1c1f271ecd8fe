"""Write the tables and plots of docs/benchmark.md from the result files, so that no number in it is typed by hand.

    python benchmarks/benchmark_page.py            # rewrite what is between the markers, and the plots
    python benchmarks/benchmark_page.py --check    # exit code 1 when the page and the results disagree

A run becomes part of the page when its ladder.json and results.jsonl are copied to benchmarks/results/ladder-NAME/.
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from make_tables import insert_table  # noqa: E402
from portrait_diffusion.benchmark import tables  # noqa: E402
from portrait_diffusion.benchmark.plots import write_plots  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402

PAGE = ROOT / "docs" / "benchmark.md"
IMAGES = ROOT / "docs" / "images"
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- ladder:start -->", "<!-- ladder:end -->"


def read_runs(results: Path) -> dict[str, dict]:
    """Summaries of all published runs by the name of their folder."""
    paths = sorted(results.glob("ladder-*/ladder.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def generated(runs: dict[str, dict]) -> str:
    """What stands between the markers."""
    if not runs:
        return "No results yet: run `launch_portrait.py evaluate`."
    parts = []
    for name, summary in runs.items():
        files = [f"[{file}](../benchmarks/results/{name}/{file})" for file in ("ladder.json", "results.jsonl")]
        parts += [f"## Results: {name}", f"Result files: {', '.join(files)}.", tables.page(summary)]
        for data, part in summary["data"].items():
            if data != "photos":
                parts.append(f"![{data}: by side of the head](images/{name}-{data}-sides.png)")
            if part["comparisons"]:
                parts.append(f"![{data}: differences](images/{name}-{data}-differences.png)")
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the page is out of date")
    options = parser.parse_args(arguments)
    runs, text = read_runs(RESULTS), PAGE.read_text(encoding="utf-8")
    wanted = insert_table(text, generated(runs), START, END)
    if options.check:
        if wanted != text:
            print(f"error: {PAGE.name} is out of date; run: python benchmarks/benchmark_page.py", file=sys.stderr)
        return int(wanted != text)
    write_text(PAGE, wanted)
    for name, summary in runs.items():
        write_plots(summary, IMAGES, f"{name}-")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
