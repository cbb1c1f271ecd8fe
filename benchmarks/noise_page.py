"""Write the numbers of docs/noise.md from the result files, so that none of them is typed by hand.

    python benchmarks/noise_page.py
    python benchmarks/noise_page.py --check     # exit code 1 when page and results disagree
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from make_tables import insert_table  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "noise.md"
NAMES = {"transport": "transport", "field": "field", "bilinear": "naive bilinear", "nearest": "naive nearest"}
PAIRS = ("0 to 5", "0 to 15", "45 to 60", "0 to 30", "0 to 45", "0 to 60", "0 to 90")
OURS = ("transport", "field")
RUNS = ("given up after 100", "never given up", "perturbed copies")


def rows(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *body])


def whiteness(result: dict) -> str:
    """How white the carried part is."""
    body = []
    for method, name in NAMES.items():
        for pair in PAIRS:
            n = result["methods"][method][pair]["white"]["carried"]
            neighbours = max(abs(n["horizontal"]), abs(n["vertical"]))
            ks = "< 0.0001" if n["ks p"] == 0 else f"{n['ks p']:.3f}"
            body.append([name, pair, f"{n['std']:.4f}", f"{neighbours:.4f}", f"{100 * n['spectrum off by']:.1f} %", ks])
    parts = [
        n for method in OURS for pair in result["methods"][method].values() for n in pair["white"].values()
    ]  # fmt: skip
    worst = (
        max(abs(n["std"] - 1) for n in parts), max(max(abs(n["horizontal"]), abs(n["vertical"])) for n in parts),
        max(n["spectrum off by"] for n in parts), min(n["ks p"] for n in parts),
    )  # fmt: skip
    return "\n".join([
        rows(["method", "yaws", "std", "neighbours", "spectrum off by", "KS p"], body), "",
        f"The worst of ours, whole pictures counted too: standard deviation off by {worst[0]:.4f}, neighbours "
        f"{worst[1]:.4f}, spectrum {100 * worst[2]:.1f} %, KS p {worst[3]:.3f} ({len(parts)} tests of "
        f"{parts[0]['ks values']} values, one of each picture).",
    ])  # fmt: skip


def sameness(result: dict) -> str:
    """How well noise stays on the surface."""
    body = []
    for method in OURS:
        for pair in PAIRS:
            n = result["methods"][method][pair]
            one, patches = n["same surface"]["pixels"], n["same surface"]["patches"]
            found = one["correlation"], one["exact"], one["of exact"], patches.get("correlation")
            cells = ["–" if x is None else f"{x:.2f}" for x in found]
            body.append([method, pair, f"{100 * n['covered']:.0f} %", *cells])
    header = ["method", "yaws", "covered", "latent pixels", "exact integral", "of exact", "8 × 8 patches"]
    return rows(header, body)


def settings(result: dict) -> str:
    """Cells of other sizes."""
    found = result["settings, 0 to 15"]
    body = [
        [what.split(",")[0], str(cells), f"{n['of exact']:.2f}", f"{100 * n['covered']:.0f} %"]
        for what, by_cells in found.items() for cells, n in by_cells.items()
    ]  # fmt: skip
    return rows(["method", "cells along a latent pixel", "of exact, 0 to 15", "covered"], body)


def drift(result: dict) -> str:
    """What selection does."""
    body = []
    for name in RUNS:
        n = result[name]
        after = n["drift after rounds"].values()
        body.append([
            name, *(f"{d:.2f}" for d in after), f"{n['largest drift']:.2f}", f"{n['std']:.3f}",
            f"{100 * n['spectrum off by']:.1f} %",
        ])  # fmt: skip
    header = ["anchors", *(f"after {r}" for r in result[RUNS[0]]["drift after rounds"]), "largest", "std"]
    return rows([*header, "spectrum off by"], body)


def times(result: dict) -> str:
    """Cost by device."""
    return rows(
        ["device", "transport, ms", "field, ms"],
        [[device, *(f"{ms[name]:.1f}" if name in ms else "–" for name in ("transport", "field"))]
         for device, ms in result["ms"].items()],
    )


def overhead(result: dict) -> str:
    """What MV-NRS adds to a guidance step."""
    body = [
        [name, f"{n['ms a step']:.0f}", f"{n['rows a step']:.2f}", f"{n['time over independent']:.2f}"]
        for name, n in result["samplers"].items()
    ]  # fmt: skip
    told = f"Small HPDM, random weights, two views of {result['size']} pixels, {result['device']}, "
    header = ["noise", "ms a step", "rows of the denoiser", "time over independent"]
    return f"{told}{result['steps']} steps:\n\n{rows(header, body)}"


def page(text: str, noise: dict, kept: dict, cost: dict) -> str:
    """The page's text with fresh numbers between its markers."""
    parts = {
        "whiteness": whiteness(noise), "surface": sameness(noise), "settings": settings(noise), "drift": drift(kept),
        "time": times(noise), "overhead": overhead(cost),
    }  # fmt: skip
    for name, table in parts.items():
        text = insert_table(text, table, f"<!-- {name}:start -->", f"<!-- {name}:end -->")
    return text


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the page and the results")
    args = parser.parse_args(argv)
    files = (RESULTS / f"noise_{name}.json" for name in ("whiteness", "drift", "overhead"))
    noise, kept, cost = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    text = PAGE.read_text(encoding="utf-8")
    wanted = page(text, noise, kept, cost)
    if args.check:
        return int(wanted != text)
    write_text(PAGE, wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
