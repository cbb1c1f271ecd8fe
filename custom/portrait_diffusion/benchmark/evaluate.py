"""``launch_portrait.py evaluate``: runs the ladder on synthetic subjects and photos, and writes everything about it."""
import argparse
import json
import logging
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from .. import host
from ..errors import EnvironmentProblem, UsageError
from ..files import write_text
from .budget import denoiser_rows
from .gallery import write_gallery
from .ladder import LADDER, make_rungs, read_ladder
from .measure import Scope
from .plots import write_plots
from .records import Item, available_cores, versions
from .runner import Plan, collect, items_of, read_runs, run, view_size
from .summary import frechet, summarise
from .tables import page
from .truth import GROUPS, set_hash

_log = logging.getLogger("portrait_diffusion")


def shard(text: str) -> tuple[int, int]:
    """(K, N) of "K/N". Raises: argparse.ArgumentTypeError unless 1 <= K <= N."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected K/N with 1 <= K <= N, such as 1/2; got '{text}'")
    return int(first), int(count)


def parser() -> argparse.ArgumentParser:
    """Options."""
    p = argparse.ArgumentParser(
        prog="launch_portrait.py evaluate", allow_abbrev=False,
        description="The benchmark: every rung of the ladder on subjects whose truth is known and on photos.",
    )  # fmt: skip
    p.add_argument("out", type=Path, help="folder of results; what is recorded there is not run again")
    p.add_argument("--set", type=Path, help="folder of render-benchmark")
    p.add_argument("--groups", nargs="*", choices=list(GROUPS), help="of the set (default: test, with --set)")
    p.add_argument("--photos", type=Path, help="folder of photos, beside or in the place of the set")
    p.add_argument("--profile", default="full", help="of the ladder: full (a GPU) or quick (a CPU); default full")
    p.add_argument("--ladder", type=Path, default=LADDER, help="another ladder file")
    p.add_argument("--rungs", nargs="+", help="only these (default: the profile's)")
    p.add_argument("--subjects", type=int, help="at most so many of each kind of data (default: the profile's)")
    p.add_argument("--seeds", type=int, nargs="+", help="(default: the profile's)")
    p.add_argument("--rows", type=int, help="denoiser rows of each rung that asks one (default: the profile's)")
    p.add_argument("--hpdm", default="", help="folder of a trained HPDM, for the rungs that use one")
    p.add_argument("--clip", default="", help="folder of a CLIP model (transformers): adds CLIP-I")
    p.add_argument("--arcface", default="", help="ArcFace recogniser (.onnx, 112 pixels): adds ID")
    p.add_argument("--lpips", default="", help="torchvision's AlexNet (alexnet-owt-7be5be79.pth): adds canonical LPIPS")
    p.add_argument("--size", type=int, help="side of the compared pictures without a set (default 128)")
    p.add_argument("--jobs", type=int, default=1, help="items at a time, sharing the cores (default 1)")
    p.add_argument("--shard", type=shard, default=(1, 1), metavar="K/N",
                   help="only the K-th of N parts of the heads, for N cards or machines; --collect joins them")
    p.add_argument("--collect", action="store_true", help="run nothing, only summarise the records that are there")
    p.add_argument("--device", default="", help="cpu, cuda or cuda:N (default: the first CUDA GPU, else the CPU)")
    return p


def make_plan(args: argparse.Namespace) -> tuple[Plan, dict]:
    """The plan of a command line, and the settings that results are told with.

    Raises: UsageError for what does not exist.
    """
    ladder = read_ladder(args.ladder)
    if args.profile not in ladder["profiles"]:
        raise UsageError(f"The ladder has no profile '{args.profile}'; there are {', '.join(ladder['profiles'])}.")
    profile = ladder["profiles"][args.profile]
    rows = args.rows or profile.get("rows")
    rungs = make_rungs(ladder, args.rungs or profile.get("rungs"), rows, args.hpdm)
    groups = args.groups if args.groups is not None else (["test"] if args.set is not None else [])
    items = items_of(args.set, groups, args.photos, args.subjects or profile.get("subjects"))
    sizes = {view_size(args.set, item) for item in items if item.data != "photos"}
    if len(sizes) > 1 or (sizes and args.size not in (None, *sizes)):
        raise UsageError(f"The set's views have {sorted(sizes)} pixels; leave --size out, or render the set anew.")
    size = next(iter(sizes)) if sizes else args.size or 128
    try:
        scope = Scope(**profile.get("scope", {}))
    except TypeError as error:
        raise UsageError(f"Profile '{args.profile}': {error}.") from error
    seeds = args.seeds or profile["seeds"]
    plan = Plan(args.out, items, seeds, rungs, args.set, args.photos, size, scope, args.device, args.jobs,
                args.clip, args.arcface, args.lpips, args.shard)  # fmt: skip
    told = {"profile": args.profile, "rows": rows, "seeds": seeds, "size": size, "scope": vars(scope),
            "jobs": args.jobs, "set": set_hash()}  # fmt: skip
    return plan, told


def command_of(argv: Sequence[str]) -> str:
    """The command to repeat the whole run on one device; folders outside are shortened to their last part."""
    apart = ("--shard", "--collect")
    argv = [w for w, before in zip(argv, ["", *argv]) if not w.startswith(apart) and before != "--shard"]
    return shlex.join(["python", "launch_portrait.py", "evaluate", *(Path(w).name if "/" in w else w for w in argv)])


def summary_of(plan: Plan, records: list[dict], told: dict, command: str) -> dict:
    """Contents of ``ladder.json``."""
    data = summarise(records, plan.rungs, plan.not_run)
    with ThreadPoolExecutor(available_cores()) as pool:
        for name, part in data.items():
            if name == "photos":
                continue
            items = [Item(name, r) for r in dict.fromkeys(r["name"] for r in records if r["data"] == name)]
            distances = pool.map(partial(frechet, plan.out, items, seeds=plan.seeds), part["rungs"])
            for numbers, distance in zip(part["rungs"].values(), distances):
                if distance is not None:
                    numbers["numbers"]["fd_efflite0"] = [None, distance, None, len(items)]
    rungs = {
        rung.name: {"adds": rung.adds, "after": rung.after, "predicted_rows": denoiser_rows(rung.config["system"])}
        for rung in plan.rungs
    }
    return {
        "what": "the ladder: means over subjects, [low, mean, high, items], 95 % expanded bootstrap intervals",
        "name": plan.out.name, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "command": command,
        **told, "runs": read_runs(plan.out), "commits": sorted({r["commit"] for r in records}),
        "devices": sorted({r["device"] for r in records}), "versions": versions(), "rungs": rungs,
        "not_run": plan.not_run, "data": data,
    }  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Command line."""
    args = parser().parse_args(list(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    host.set_device(args.device or None)
    plan, told = make_plan(args)
    records = collect(plan) if args.collect else run(plan)
    for name, reason in plan.not_run.items():
        _log.info("not run: %s: %s", name, reason)
    summary = summary_of(plan, records, told, command_of(argv))
    write_text(plan.out / "ladder.json", json.dumps(summary, indent=1) + "\n")
    write_text(plan.out / "tables.md", page(summary) + "\n")
    try:
        write_plots(summary, plan.out / "plots")
    except EnvironmentProblem as problem:
        _log.warning("no plots: %s", problem)
    print(f"numbers {plan.out / 'ladder.json'}\ntables  {plan.out / 'tables.md'}")
    print(f"gallery {write_gallery(plan.out, plan.items, plan.rungs, records)}")
    return 0
