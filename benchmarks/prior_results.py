"""Turn the card of a training run into the prior's result file and the numbers of its model card.

    python benchmarks/prior_results.py --card OUT/card.json [--test TEST.json] [--more LABEL FILE.json]
    python benchmarks/prior_results.py --check     # exit code 1 when result file and model card disagree

The rows beside a plain supervised encoder on the same data come from the result file of `reference_encoder.py`.
`--test` holds the scores of the same weights on subjects with unseen assets, as `priors.assess.evaluate` returns them
(or a card of a run with ``--seconds 0 --val TEST_DATA``); `--more` adds rows of other scores under any label.
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from make_tables import insert_table  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "prior.json"
YARDSTICK = ROOT / "benchmarks" / "results" / "reference_encoder.json"
CARD = ROOT / "custom" / "portrait_diffusion" / "weights" / "prior.md"
START, END = "<!-- numbers:start -->", "<!-- numbers:end -->"
BINS = (("front", "front"), ("below45", "other views below 45°"), ("45to135", "45–135°"), ("back", "back"))
REFERENCE = {"psnr_front": 24.6, "psnr_below45": 20.1, "psnr_45to135": 19.0, "psnr_back": 20.1}
ROWS = (
    "val (unseen subjects)", "test (unseen subjects and assets)", "reference (plain supervised encoder, other data)",
)  # fmt: skip
WHAT = (
    "bundled prior, held-out synthetic subjects, one frontal image in, no optimisation; PSNR over white at 64 px, "
    "ST-LPIPS (AlexNet) at 128 px"
)


def result_of(card: dict, test: dict | None, more: dict[str, dict]) -> dict:
    """The result file's contents."""
    data = card["data"]["manifest_train"]["spec"]
    result = {
        "what": WHAT, "device": card["device"], "torch": card["torch"], "step": card["step"],
        "seconds": card["seconds"], "train_subjects": data["n_subjects"], "train_views": data["views_per_subject"],
    }  # fmt: skip
    if card["scores"]:  # a run without --val has none
        result[ROWS[0]] = card["scores"]
    if test is not None:
        result[ROWS[1]] = test.get("scores", test)
    result |= {label: scores.get("scores", scores) for label, scores in more.items()}
    return result | {ROWS[2]: REFERENCE, "config": card["config"], "history": card["history"]}


def numbers(result: dict, yardstick: dict) -> str:
    """Markdown lines of the model card. Args: contents of both result files."""
    lines = [
        f"{result['train_subjects']} heads × {result['train_views']} views, {result['step']} steps in "
        f"{result['seconds']} s on one {result['device']}. PSNR dB / ST-LPIPS:",
        "",
        "| | " + " | ".join(heading for _, heading in BINS) + " |",
        "|---" * (len(BINS) + 1) + "|",
    ]
    for row in [name for name, value in result.items() if isinstance(value, dict) and "psnr_front" in value]:
        lines.append(line(row, result[row]))
    then = f"the prior of commit {yardstick.get('prior_commit', yardstick['commit']['sha'])[:8]}"
    sizes = f"{yardstick['steps']} steps on {yardstick['train_subjects']} heads"
    lines += ["", f"Beside that plain encoder, {sizes} of the same kind (`benchmarks/reference_encoder.py`):", ""]
    lines += [lines[2], lines[3]]
    for split, scores in yardstick["scores"].items():
        lines.append(line(f"{split}, {scores['subjects']} subjects: {then}", scores["prior"]))
        lines.append(line(f"{split}: the plain encoder", scores["reference"]))
    return "\n".join(lines)


def line(name: str, scores: dict) -> str:
    """A row of a table: PSNR and, where it is known, ST-LPIPS; a dash where there are no such views."""
    cells = []
    for key, _ in BINS:
        psnr, distance = scores.get(f"psnr_{key}"), scores.get(f"stlpips_{key}")
        cells.append("–" if psnr is None else f"{psnr:.1f}" + ("" if distance is None else f" / {distance:.3f}"))
    return f"| {name} | " + " | ".join(cells) + " |"


def with_numbers(card: str, result: dict) -> str:
    """The model card's text with fresh numbers between its markers."""
    return insert_table(card, numbers(result, json.loads(YARDSTICK.read_text(encoding="utf-8"))), START, END)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--card", type=Path, help="card.json of the training run")
    parser.add_argument("--test", type=Path, help="scores on the test split, JSON")
    parser.add_argument("--more", nargs=2, action="append", default=[], metavar=("LABEL", "FILE"), help="other scores")
    parser.add_argument("--check", action="store_true", help="only compare result file and model card")
    args = parser.parse_args(argv)
    text = CARD.read_text(encoding="utf-8")
    if args.check:
        return int(with_numbers(text, json.loads(RESULT.read_text(encoding="utf-8"))) != text)
    if args.card is None:
        parser.error("--card is needed")
    test = json.loads(args.test.read_text(encoding="utf-8")) if args.test else None
    more = {label: json.loads(Path(file).read_text(encoding="utf-8")) for label, file in args.more}
    result = result_of(json.loads(args.card.read_text(encoding="utf-8")), test, more)
    write_text(RESULT, json.dumps(result, indent=1) + "\n")
    write_text(CARD, with_numbers(text, result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
