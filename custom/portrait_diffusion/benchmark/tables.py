"""Markdown tables of a run's numbers; none of them is typed by hand."""
from .summary import OTHERS, PHOTO_OTHERS, primary

TITLES = {
    "test": "Synthetic, unseen assets (test)", "dev": "Synthetic, unseen assets (development)",
    "domain": "Synthetic, assets of the training data", "photos": "Real photos",
}  # fmt: skip
ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def cell(entry: list | None, decimals: int) -> str:
    """Mean with its interval; – where missing."""
    if entry is None:
        return "–"
    low, mean, high = entry[:3]
    inside = "" if low is None else f" [{low:.{decimals}f}, {high:.{decimals}f}]"
    return f"{mean:.{decimals}f}{inside}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def rung_table(part: dict, metrics: dict, data: str) -> str:
    """One row a rung: means over subjects with 95 % intervals. Args: part of `summary.summarise` for this data."""
    used = {m: told for m, told in metrics.items() if any(m in r["numbers"] for r in part["rungs"].values())}
    header = ["rung", "heads", "refused"] + [told + ARROWS[sign] for told, sign, _ in used.values()]
    rows = [
        [name, str(rung["heads"]), str(rung["refused"])]
        + [cell(rung["numbers"].get(m), decimals) for m, (_, _, decimals) in used.items()]
        for name, rung in part["rungs"].items()
    ]
    return markdown(header, rows)


def cost_table(part: dict) -> str:
    """Time, memory and denoiser rows of each rung."""
    columns = {"seconds": ("seconds", 1), "denoiser_rows": ("denoiser rows", 0), "peak_host_gb": ("host peak GB", 1),
               "peak_device_gb": ("GPU peak GB", 1)}  # fmt: skip
    rows = []
    for name, rung in part["rungs"].items():
        entries = [rung["numbers"].get(key) for key in columns]
        texts = [f"{e[1]:.{d}f}" if e else "–" for e, (_, d) in zip(entries, columns.values())]
        rows.append([name, *texts])
    return markdown(["rung", *(told for told, _ in columns.values())], rows)


def comparison_table(part: dict, data: str) -> str:
    """One row a comparison: difference with its interval, p, corrected p, and what it shows."""
    rows = []
    for entry in part["comparisons"]:
        told, sign, decimals = primary(data)[entry["metric"]]
        difference = cell([entry["low"], entry["difference"], entry["high"]], decimals + 1)
        numbers = [f"{entry[p]:.2g}" for p in ("p", "p_holm")]
        rows.append([f"{entry['rung']} − {entry['before']}", told + ARROWS[sign], str(entry["items"]), difference,
                     *numbers, entry["shown"]])  # fmt: skip
    return markdown(["rungs", "metric", "items", "difference", "p", "p, Holm", "shown"], rows)


CROSS = ("photo_psnr_db", "photo_stlpips_alex", "pose_deg", "self_warp_30", "self_warp_lpips_30", "flicker_front",
         "flicker_back", "janus_rate", "stlpips_alex.unseen", "stlpips_hair.unseen", "sface.side", "normal_deg.back",
         "chamfer", "band_ratio_3.unseen")  # fmt: skip


def cross_table(parts: dict, rung: str) -> str:
    """One rung on all kinds of data side by side: what they have in common, then what needs a truth."""
    there = {data: part["rungs"][rung]["numbers"] for data, part in parts.items() if rung in part["rungs"]}
    rows = [[metric] + [cell(numbers.get(metric), 3) for numbers in there.values()] for metric in CROSS]
    return markdown(["metric", *(TITLES.get(data, data) for data in there)], rows)


def page(summary: dict) -> str:
    """All tables of a run. Args: contents of ``ladder.json``."""
    blocks = []
    for data, part in summary["data"].items():
        blocks += [f"### {TITLES.get(data, data)}: {part['items']} {'photos' if data == 'photos' else 'subjects'}",
                   rung_table(part, primary(data), data)]  # fmt: skip
        blocks.append(rung_table(part, PHOTO_OTHERS if data == "photos" else OTHERS, data))
        if part["comparisons"]:
            blocks += ["Against the rung before:", comparison_table(part, data)]
        blocks.append(cost_table(part))
    common = [name for name in summary["rungs"] if sum(name in p["rungs"] for p in summary["data"].values()) > 1]
    for name in [n for n in ("init", "full") if n in common] or common[:1]:
        blocks += [f"### Kinds of data side by side: {name}", cross_table(summary["data"], name)]
    if summary["not_run"]:
        rows = [[name, reason] for name, reason in summary["not_run"].items()]
        blocks += ["### Not run", markdown(["rung", "why"], rows)]
    gone = {name: reason for part in summary["data"].values() for name, reason in part["missing"].items()}
    if gone:
        blocks += ["### Missing metrics", markdown(["metric", "why"], [[n, r] for n, r in gone.items()])]
    facts = [
        f"Profile {summary['profile']}, seeds {summary['seeds']}, {summary['rows']} denoiser rows a rung with one, "
        f"pictures of {summary['size']} pixels, scope {summary['scope']}; set {summary['set']}; "
        f"{', '.join(summary['devices'])}; torch {summary['versions']['torch']}; commit "
        f"{', '.join(c[:8] + ('+changes' if '+' in c else '') for c in summary['commits'])}; `{summary['command']}`."
    ]
    for made in summary.get("runs", []):
        part = "" if made["shard"] == [1, 1] else f", part {made['shard'][0]} of {made['shard'][1]}"
        by = f"{made['jobs']} processes on {made['cores']} cores"
        facts.append(f"{made['heads']} heads made and measured in {made['seconds']:.0f} s by {by}{part}.")
    return "\n\n".join(facts + blocks)
