"""Numbers of a run: each rung by itself and against the rung before it, over subjects, with intervals and tests."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import UsageError
from ..evaluation.distribution import frechet_distance
from ..evaluation.statistics import bootstrap_interval, holm, sign_flip_p
from .measure import BINS
from .records import Item

UNSEEN = ("side", "profile", "back")
PRIMARY = {
    "stlpips_alex.unseen": ("ST-LPIPS unseen", -1, 3), "stlpips_hair.unseen": ("hair ST-LPIPS unseen", -1, 3),
    "sface.side": ("SFace side", 1, 2), "normal_deg.back": ("normals back °", -1, 1),
    "chamfer": ("chamfer mm", -1, 2), "self_warp_lpips_30": ("self-warp 30°", -1, 4),
    "truth_warp_lpips_30": ("true-depth warp 30°", -1, 4), "janus_rate": ("Janus rate", -1, 3),
    "photo_psnr_db": ("PSNR of the photo dB", 1, 1),
}  # fmt: skip
"""Metric -> (heading, 1 if more is better and -1 if less, decimals): what rungs are compared in."""
OTHERS = {
    "psnr_db.unseen": ("PSNR unseen dB", 1, 1), "ssim.unseen": ("SSIM unseen", 1, 3),
    "stlpips_vgg.unseen": ("ST-LPIPS VGG unseen", -1, 3), "iou.unseen": ("IoU unseen", 1, 3),
    "depth_mm.unseen": ("depth unseen mm", -1, 1), "landmarks.side": ("landmarks side", -1, 3),
    "laplacian_ratio.unseen": ("Laplacian ratio unseen", 0, 2), "band_ratio_3.unseen": ("top band ratio unseen", 0, 2),
    "chroma_noise": ("colour specks", -1, 2), "chroma_noise_truth": ("those of the truth", 0, 2),
    "self_warp_lpips_30_truth": ("self-warp 30° of the truth", 0, 4), "sface_plus30": ("SFace +30° to the photo", 1, 3),
    "sface_plus30_truth": ("of the truth", 0, 3), "sface_minus30": ("SFace −30° to the photo", 1, 3),
    "sface_minus30_truth": ("of the truth", 0, 3),
    "flicker_front": ("flicker front", -1, 4), "flicker_back": ("flicker back", -1, 4), "pose_deg": ("pose °", -1, 1),
    "fd_efflite0": ("FD EffLite0", -1, 1), "clip_i.unseen": ("CLIP-I unseen", 1, 4),
    "arcface_id.side": ("ID side", 1, 3), "dlib_l2.side": ("dlib L2 side", -1, 2),
    "lpips.unseen": ("LPIPS unseen", -1, 3),
}  # fmt: skip
"""Likewise, shown and not tested; 0: best near 1."""
PHOTO_PRIMARY = {
    "photo_stlpips_alex": ("ST-LPIPS of the photo", -1, 3), "sface_plus30": ("SFace +30°", 1, 2),
    "sface_minus30": ("SFace −30°", 1, 2), "self_warp_lpips_30": PRIMARY["self_warp_lpips_30"],
    "janus_rate": PRIMARY["janus_rate"], "photo_psnr_db": PRIMARY["photo_psnr_db"],
}  # fmt: skip
"""What rungs are compared in on photos, which have no truth."""
PHOTO_OTHERS = {
    "dlib_l2.front": ("dlib L2 front", -1, 2), "dlib_l2.plus30": ("dlib L2 +30°", -1, 2),
    "dlib_l2.minus30": ("dlib L2 −30°", -1, 2), "chroma_noise": OTHERS["chroma_noise"],
    "flicker_front": OTHERS["flicker_front"], "flicker_back": OTHERS["flicker_back"],
    "lpips": ("LPIPS of the photo", -1, 3), "clip_i": ("CLIP-I", 1, 4),
    "arcface_id.front": ("ID front", 1, 3), "arcface_id.plus30": ("ID +30°", 1, 3),
    "arcface_id.minus30": ("ID −30°", 1, 3),
}  # fmt: skip
"""Likewise, shown and not tested."""
COSTS = ("seconds", "denoiser_rows", "peak_host_gb", "peak_device_gb")


def primary(data: str) -> dict:
    """The metrics that are tested on a kind of data."""
    return PHOTO_PRIMARY if data == "photos" else PRIMARY


def with_unseen(metrics: dict) -> dict:
    """Metrics with the mean of side, profile and back as bin ``unseen``; None where one of them is missing."""
    out = dict(metrics)
    for name in {key.removesuffix(".back") for key in metrics if key.endswith(".back")}:
        values = [metrics.get(f"{name}.{part}") for part in UNSEEN]
        if name not in ("sface", "dlib_l2", "landmarks", "face_found", "arcface_id"):
            out[f"{name}.unseen"] = None if None in values else sum(values) / len(values)
    return out


def heads_of(records: Sequence[dict], data: str, rung: str) -> list[dict]:
    """The records of a rung that are of finished heads."""
    return [r for r in records if r["data"] == data and r["rung"] == rung and r["status"] == "ok"]


def by_item(records: Sequence[dict]) -> dict[str, dict[str, float]]:
    """{metric or cost: {item: mean over its seeds}} of heads; missing values are left out."""
    found: dict[str, dict[str, list]] = {}
    for record in records:
        values = with_unseen(record["metrics"]) | {name: record.get(name) for name in COSTS}
        for metric, value in values.items():
            if value is not None:
                found.setdefault(metric, {}).setdefault(record["name"], []).append(value)
    return {m: {item: sum(v) / len(v) for item, v in items.items()} for m, items in found.items()}


def rung_numbers(records: Sequence[dict], data: str, rung: str) -> dict:
    """Counts of heads, and [low, mean, high, items] of every metric and cost of a rung; no interval for few."""
    own = [r for r in records if r["data"] == data and r["rung"] == rung]
    numbers = {}
    for metric, items in sorted(by_item(heads_of(records, data, rung)).items()):
        values = list(items.values())
        found = bootstrap_interval(values)
        low, mean, high = found if found is not None else (None, sum(values) / len(values), None)
        numbers[metric] = [low, mean, high, len(values)]
    counts = {status: sum(r["status"] == status for r in own) for status in ("ok", "refused", "failed")}
    return {"heads": len(own), **counts, "numbers": numbers}


def comparisons(records: Sequence[dict], data: str, pairs: Sequence[tuple[str, str]]) -> list[dict]:
    """Paired differences of rungs and those before them in the primary metrics, over items and seeds that both have.

    Args: pairs (rung, rung before it).
    Returns: entries with ``rung``, ``before``, ``metric``, ``items``, ``low``, ``difference``, ``high``, ``p`` (sign
        flips), ``p_holm`` (corrected for all entries) and ``shown``: ``better`` or ``worse`` where the interval
        excludes 0 and the corrected p is at most 0.05, else ``no difference shown``, or ``too few items``, ``low`` and
        ``high`` None, for fewer than `evaluation.statistics.LEAST`.
    """
    entries = []
    for rung, before in pairs:
        heads = [{(r["name"], r["seed"]): r for r in heads_of(records, data, name)} for name in (rung, before)]
        a, b = (by_item([own[key] for key in own if key in other]) for own, other in (heads, heads[::-1]))
        for metric, (_, sign, _) in primary(data).items():
            both = sorted(set(a.get(metric, {})) & set(b.get(metric, {})))
            if len(both) < 2:
                continue
            differences = [a[metric][item] - b[metric][item] for item in both]
            few = None, sum(differences) / len(differences), None
            low, mean, high = bootstrap_interval(differences) or few
            entries.append({
                "rung": rung, "before": before, "metric": metric, "items": len(both), "low": low, "difference": mean,
                "high": high, "p": sign_flip_p(differences), "sign": sign,
            })  # fmt: skip
    for entry, p in zip(entries, holm([entry["p"] for entry in entries])):
        better, enough = entry["difference"] * entry.pop("sign") > 0, entry["low"] is not None
        sure = enough and p <= 0.05 and (entry["low"] > 0 or entry["high"] < 0)
        shown = ("better" if better else "worse") if sure else "no difference shown" if enough else "too few items"
        entry |= {"p_holm": p, "shown": shown}
    return entries


def frechet(out: Path, items: Sequence[Item], rung: str, seeds: Sequence[int]) -> float | None:
    """Frechet distance of a rung's views to the true ones over all subjects; None where features are missing."""

    def features(name: str) -> torch.Tensor | None:
        paths = [out / "renders" / item.key / f"{name}.npz" for item in items]
        if not paths or not all(path.is_file() for path in paths):
            return None
        return torch.cat([torch.from_numpy(np.load(path, allow_pickle=False)["features"]) for path in paths])

    truth, made = features("truth"), [features(f"{rung}-s{seed}") for seed in seeds]
    if truth is None or any(part is None for part in made):
        return None
    return sum(frechet_distance(part, truth) for part in made) / len(made)


def missing_metrics(records: Sequence[dict]) -> dict[str, str]:
    """Why metrics are missing in all records: {metric: reason}."""
    ok = [record for record in records if record["status"] == "ok"]
    found = {name: why for record in ok for name, why in record["reasons"].items()}
    have = {key for record in ok for key, value in record["metrics"].items() if value is not None}
    whole = have | {key.split(".")[0] for key in have}
    return {name: found[name] for name in sorted(found) if name not in whole}


def summarise(records: Sequence[dict], rungs: Sequence, not_run: dict[str, str]) -> dict:
    """Everything about a run by kind of data. Args: rungs of `ladder`; not_run {rung: why}."""
    out = {}
    for data in dict.fromkeys(record["data"] for record in records):
        names = [rung.name for rung in rungs if any(r["rung"] == rung.name and r["data"] == data for r in records)]
        pairs = [(rung.name, rung.after) for rung in rungs if rung.name in names and rung.after in names]
        own = [record for record in records if record["data"] == data]
        out[data] = {
            "items": len({record["name"] for record in own}),
            "rungs": {name: rung_numbers(records, data, name) for name in names},
            "comparisons": comparisons(records, data, pairs),
            "missing": missing_metrics(own),
        }
    if not out and not not_run:
        raise UsageError("There are no results to summarise.")
    return out


def bins_of(numbers: dict, metric: str) -> list[float | None]:
    """Means of a metric over `measure.BINS` in order."""
    return [numbers.get(f"{metric}.{name}", [None, None])[1] for name in BINS]
