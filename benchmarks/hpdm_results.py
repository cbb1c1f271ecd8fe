"""Turn the cards of a training and the files of `hpdm_views` into HPDM's result file and the tables that show it.

    python benchmarks/hpdm_results.py --out OUT     # OUT of train-hpdm: autoencoder.json, denoiser.json
    python benchmarks/hpdm_results.py               # only the tables again
    python benchmarks/hpdm_results.py --check       # exit code 1 when tables and result files disagree
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
TRAINING = RESULTS / "hpdm.json"
VIEWS = {
    "true": RESULTS / "hpdm_views.json", "prior": RESULTS / "hpdm_views_prior.json",
    "inverted": RESULTS / "hpdm_views_inverted.json",
}  # fmt: skip
GEOMETRIES = {
    "true": "true geometry", "prior": "geometry of the bundled prior's answer to the front view",
    "inverted": "geometry of the bundled prior's latents fitted to the front view",
}  # fmt: skip
PAGES = (ROOT / "custom" / "portrait_diffusion" / "weights" / "hpdm" / "card.md", ROOT / "docs" / "hpdm.md")
START, END = "<!-- numbers:start -->", "<!-- numbers:end -->"
KINDS = ("none", "explicit", "implicit", "hybrid")
BINS = (("below45", "below 45°"), ("45to135", "45–135°"), ("back", "back"))
GAIN = "side and back, ST-LPIPS of explicit less hybrid, over explicit"


def training_of(cards: dict) -> dict:
    """The result file's contents, of the cards of both stages by name."""
    data = cards["denoiser"]["data"]["manifest_train"]["spec"]
    stages = {
        name: {k: card[k] for k in ("step", "seconds", "device", "devices", "torch", "scores", "config") if k in card}
        for name, card in cards.items()
    }
    return {"what": "training of the bundled HPDM", "train_subjects": data["n_subjects"],
            "train_views": data["views_per_subject"], **stages}  # fmt: skip


def views_table(views: dict) -> str:
    """Markdown table of one result of `hpdm_views`."""
    lines = ["| seen | " + " | ".join(title for _, title in BINS) + " | hair, all views | SFace within 60° |",
             "|---" * (len(BINS) + 3) + "|"]  # fmt: skip
    for kind in KINDS:
        rows = [views[f"{kind} {name}"] for name, _ in BINS]
        cells = [f"{row['psnr'][1]:.1f} / {row['stlpips'][1]:.3f}" for row in rows]
        hair = [row["stlpips_hair"][1] for row in rows if row.get("stlpips_hair")]
        cells.append(f"{sum(hair) / len(hair):.3f}" if hair else "missing")
        sface = views.get(f"{kind} within 60", {}).get("sface")
        cells.append(f"{sface[1]:.2f}" if sface else "missing")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    low, mean, high = views[GAIN]["gain"]
    both, one = views[GAIN]["hybrid"], views[GAIN]["explicit"]
    told = "explicit {1:.3f} [{0:.3f}, {2:.3f}]".format(*one) + ", hybrid {1:.3f} [{0:.3f}, {2:.3f}]".format(*both)
    gain = f"{100 * mean:.0f} % less [{100 * low:.0f}, {100 * high:.0f}]"
    return "\n".join([*lines, "", f"ST-LPIPS on side and back views: {told}: {gain}."])


def numbers(training: dict, views: dict) -> str:
    """Markdown lines of model card and documentation; `views` by geometry."""
    first, second = training["autoencoder"], training["denoiser"]
    lines = [
        f"{training['train_subjects']} heads × {training['train_views']} views. Autoencoder: {first['step']} steps in "
        f"{first['seconds']} s, {first['scores']['psnr_autoencoder']:.1f} dB on unseen subjects. Denoiser and "
        f"branches: {second['step']} steps of {second['config']['batch']} × {second.get('devices', 1)} subjects in "
        f"{second['seconds']} s on {second.get('devices', 1)} {second['device']}.",
    ]
    for more in training.get("further", []):
        lines += ["", f"Trained on from there: {more['what']}"]
    for geometry, result in views.items():
        lines += [
            "", f"{result['subjects']} subjects of the {result['split']} split (unseen identities, hair and clothes), "
            f"{result['views']} views each from the front view alone, {GEOMETRIES[geometry]}, {result['steps']} steps. "
            "PSNR dB / ST-LPIPS, mean over subjects:", "", views_table(result),
        ]  # fmt: skip
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder that train-hpdm wrote")
    parser.add_argument("--check", action="store_true", help="only compare result files and tables")
    args = parser.parse_args(argv)
    if args.out is not None:
        stages = ("autoencoder", "denoiser")
        cards = {name: json.loads((args.out / f"{name}.json").read_text(encoding="utf-8")) for name in stages}
        write_text(TRAINING, json.dumps(training_of(cards), indent=1) + "\n")
    training = json.loads(TRAINING.read_text(encoding="utf-8"))
    views = {k: json.loads(path.read_text(encoding="utf-8")) for k, path in VIEWS.items() if path.is_file()}
    stale = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fresh = insert_table(text, numbers(training, views), START, END)
        stale |= fresh != text
        if not args.check:
            write_text(page, fresh)
    return int(stale) if args.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
