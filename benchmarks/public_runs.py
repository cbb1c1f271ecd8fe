"""Time and memory of the configurations for public models, at full size with random weights, within a memory limit.

    python benchmarks/public_runs.py PHOTO portrait:24 portrait-12gb:12 --out benchmarks/results/public_runs_h200.json

No public weights can be had here, so all parts are random, of the sizes of Stable Diffusion 1.5, its ControlNets and
the tiny autoencoder; they are written to disk as users have them and read by the run. What comes out is no head:
measured is that every part runs, what a step costs, and that a GPU with so many GB is enough (`CONFIG:GB`; a process
that asks for more is refused). `--share` of the steps is run, milestones and schedules shortened alike; the time of all
steps follows from the mean step of each stage and resolution.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

import guidance_speed  # noqa: E402
from measuring import circumstances  # noqa: E402
from portrait_diffusion import host  # noqa: E402
from portrait_diffusion.devices import is_out_of_memory  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.pipeline import PortraitPipeline  # noqa: E402
from portrait_diffusion.preflight import check_run  # noqa: E402
from portrait_diffusion.settings import load_pipeline_config  # noqa: E402
from portrait_diffusion.systems.stages import Schedule  # noqa: E402

WORDS = [*"abcdefghijklmnopqrstuvwxyz,", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz,")]


def write_models(folder: Path, small: bool = False) -> list[str]:
    """Random public parts in diffusers' format; returns the overrides that make a configuration of public parts take
    them. Args: small: for trying the script, without a text encoder."""
    model = guidance_speed.build(tiny_vae=False, small=small)
    for name in ("unet", "vae", "scheduler"):
        getattr(model, name).save_pretrained(folder / "base" / name)
    model.controls[0].save_pretrained(folder / "control")
    guidance_speed.build(tiny_vae=True, small=small).vae.save_pretrained(folder / "tiny")
    if small:
        (folder / "base" / "text_encoder").mkdir()
    else:
        write_text_parts(folder / "base")
    control = f"{{path: {folder / 'control'}, layout: inpaint, scale: 1.0}}"
    named = f"system.guidance.pretrained_model_name_or_path={folder / 'base'}"
    return [named, f"system.guidance.controlnets=[{control}]"]


def write_text_parts(folder: Path) -> None:
    """A random text encoder of CLIP ViT-L/14's size, and a tokenizer that knows single letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = [*WORDS, "<|startoftext|>", "<|endoftext|>"]
    write_text(folder / "vocab.json", json.dumps({word: k for k, word in enumerate(words)}))
    write_text(folder / "merges.txt", "#version: 0.2\n")
    names = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    CLIPTokenizer(*names, model_max_length=77).save_pretrained(folder / "tokenizer")
    marks = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    CLIPTextModel(CLIPTextConfig(**sizes, **marks)).save_pretrained(folder / "text_encoder")


def shortened(stages: dict, share: float) -> list[str]:
    """Overrides that leave this share of each stage's steps, two at least to each resolution; one without has none."""
    found = []
    for name, stage in stages.items():
        if not stage["steps"]:
            continue
        least = 2 * len(stage["resolution"])
        steps = max(least, round(share * stage["steps"]))
        milestones = [max(2, round(steps * m / stage["steps"])) for m in stage["milestones"]]
        start, low, high, _ = stage["max_step_percent"]
        found += [f"system.stages.{name}.steps={steps}", f"system.stages.{name}.milestones={milestones}",
                  f"system.stages.{name}.max_step_percent=[{start}, {low}, {high}, {steps}]"]  # fmt: skip
    return found


class Stopwatch:
    """Progress of a run that notes when each step of a stage was done; `times` {stage: [seconds of each step]}."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int, values: dict) -> None:
        now = time.perf_counter()
        if done:
            self.times.setdefault(stage, []).append(now - self._last)
        self._last = now


def phases(times: dict[str, list[float]], short: Schedule, whole: Schedule) -> list[dict]:
    """Seconds of the first step of each stage and resolution, which loads and looks around, the mean of the others, and
    how many steps the whole configuration has there."""
    found = []
    for name, stage in short.stages.items():
        full = whole.stages[name]
        for size in stage.resolution:
            spent = [t for step, t in enumerate(times.get(name, [])) if stage.resolution_at(step) == size]
            if len(spent) > 1:
                found.append({"stage": name, "resolution": size, "first s": round(spent[0], 3),
                              "s": round(statistics.mean(spent[1:]), 4), "of": len(spent),
                              "steps": sum(full.resolution_at(step) == size for step in range(full.steps))})
    return found


def one(name: str, limit_gb: float | None, photo: Path, share: float, overrides: list[str], tiny: Path) -> dict:
    """A shortened run of a configuration: steps, seconds, memory, and whether it fitted into the limit."""
    device, path = host.get_device(), ROOT / "configs" / f"{name}.yaml"
    system = load_pipeline_config(path, overrides)[1]["system"]
    stages = system["stages"]
    settings = [*overrides, *shortened(stages, share), "preview_every=0"]
    if system["guidance"].get("vae"):
        settings.append(f"system.guidance.vae={tiny}")
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(1.0 if limit_gb is None else limit_gb * 1e9 / total)
    pipeline = PortraitPipeline.from_config(path, settings)
    check_run(pipeline.config, name)
    watch = Stopwatch()
    row: dict = {"configuration": name, "limit_gb": limit_gb}
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = pipeline.run(photo, folder, watch)
            row |= {key: round(value, 2) for key, value in result.timings.items()}
            exporting = time.perf_counter()
            result.save(folder)
            row["export"] = round(time.perf_counter() - exporting, 2)
        row |= {"status": "ok", "denoiser_rows": result.denoiser_rows}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        row |= {"status": "out of memory", "reason": str(error).splitlines()[0][:200]}
    row["seconds"] = round(time.perf_counter() - start, 2)
    row["phases"] = phases(watch.times, Schedule(pipeline.raw_config["system"]["stages"]), Schedule(stages))
    if row["status"] == "ok":
        fixed = row["photo"] + row["inversion"] + row["export"]
        steps = sum(part["first s"] + part["s"] * (part["steps"] - 1) for part in row["phases"])
        row["expected s"] = round(fixed + steps)
    if device.type == "cuda":
        row["peak allocated GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        row["peak reserved GB"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
    return row


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, help="any picture that the main job takes")
    parser.add_argument("configurations", nargs="+", metavar="CONFIG[:GB]", help="names in configs/, memory limits")
    parser.add_argument("--share", type=float, default=0.1, help="of the stages' steps (default .1)")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="of the configurations")
    parser.add_argument("--small", action="store_true", help="tiny parts, to try the script")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(Path(folder), args.small)
        for text in args.configurations:
            name, _, limit = text.partition(":")
            gigabytes = float(limit) if limit else None
            rows.append(one(name, gigabytes, args.photo, args.share, [*models, *args.set], Path(folder) / "tiny"))
            print(json.dumps(rows[-1]), flush=True)
            result = {
                "what": "shortened whole runs of public models' configurations at full size with random weights",
                **circumstances(host.get_device(), argv), "share": args.share, "rows": rows,
            }  # fmt: skip
            write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
