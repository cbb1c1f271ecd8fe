"""What a user waits for: the whole command on one photo, from the start to the last file, for several configurations.

    python benchmarks/main_job.py                  # measures, writes the result file and the README's table
    python benchmarks/main_job.py --table          # only the table, from the result file
    python benchmarks/main_job.py --check          # exit code 1 when table and result file disagree

Every configuration runs in a process of its own, in a fresh folder, with export. "First look" is the moment at which
``save/it0-0.png`` is there; peak memory is the resident one that the run notes of itself (`provenance.json`).
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from make_tables import insert_table  # noqa: E402
from measuring import circumstances  # noqa: E402
from portrait_diffusion.benchmark.records import available_cores  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "main_job.json"
README = ROOT / "README.md"
START, END = "<!-- main-job-table:start -->", "<!-- main-job-table:end -->"
CONFIGS = ("portrait-fast", "portrait-init", "portrait-mini", "portrait-sharp", "portrait-distilled")
FIRST_LOOK = Path("save") / "it0-0.png"


def measure(config: str, photo: Path, overrides: list[str], keep: Path | None = None) -> dict:
    """Row of a configuration. Raises: SystemExit when the command fails, with its last words.

    Args: keep: new folder for its files; None keeps none.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, log = keep or Path(folder) / "out", Path(folder) / "log"
        command = [sys.executable, str(ROOT / "launch_portrait.py"), "--image", str(photo), "--config",
                   str(ROOT / "configs" / f"{config}.yaml"), "--out", str(out), *overrides]  # fmt: skip
        start, first = time.monotonic(), None
        with open(log, "wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            while process.poll() is None:
                if first is None and (out / FIRST_LOOK).is_file():
                    first = time.monotonic() - start
                time.sleep(0.05)
        seconds = time.monotonic() - start
        if process.returncode:
            raise SystemExit(f"{config} ended with {process.returncode}: {log.read_text()[-2000:]}")
        told = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
        return {
            "config": config, "seconds": round(seconds, 1), "first look s": None if first is None else round(first, 1),
            "peak GB": round(told["peak_memory"]["host_bytes"] / 1e9, 2),
            "parts s": {name: round(value, 1) for name, value in told["timings_s"].items()},
        }  # fmt: skip


def table(result: dict) -> str:
    """Markdown of the README."""
    lines = ["| configuration | first look, s | all files written, s | peak memory, GB |", "|---|---|---|---|"]
    for row in result["rows"]:
        first = "–" if row["first look s"] is None else f"{row['first look s']:.0f}"
        lines.append(f"| `{row['config']}` | {first} | {row['seconds']:.0f} | {row['peak GB']:.1f} |")
    device = result["device"]["name"]
    return "\n".join([*lines, "", f"`{result['photo']}`, {device}, {result['cores']} cores, export included."])


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path, default=ROOT / "examples" / "astronaut.png")
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file")
    parser.add_argument("--keep", type=Path, help="new folder for what the runs write, a folder a configuration")
    parser.add_argument("--readme", type=Path, default=README, help="document with the two markers")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 for a stale table")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every configuration")
    args = parser.parse_intermixed_args(argv)
    text = args.readme.read_text(encoding="utf-8")
    if not args.table and not args.check:
        rows = []
        for config in args.configs:
            rows.append(measure(config, args.photo, args.overrides, args.keep and args.keep / config))
            print(rows[-1], flush=True)
        result = {
            "what": "the whole command on one photo: seconds until the first look and the end, peak resident memory",
            "photo": args.photo.name, "cores": available_cores(), **circumstances(default_device(), argv), "rows": rows,
        }
        write_text(args.out, json.dumps(result, indent=1) + "\n")
    wanted = insert_table(text, table(json.loads(args.out.read_text(encoding="utf-8"))), START, END)
    if args.check:
        return int(wanted != text)
    if wanted != text:
        write_text(args.readme, wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
