"""Steps per second of HPDM's denoiser training on this machine, plain and compiled; random weights, real data.

    python benchmarks/hpdm_train_speed.py --data DATA --out OUT.json [--variants plain compiled]

The result names the fastest variant; the options of `train-hpdm` that it stands for are in ``options``.
"""
import argparse
import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

import torch  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.guidance.hpdm.model import build_mini  # noqa: E402
from portrait_diffusion.guidance.hpdm.train import DenoiserStage, HPDMTrainConfig  # noqa: E402
from portrait_diffusion.multiview import load_shards  # noqa: E402
from torch import nn  # noqa: E402

VARIANTS = {"plain": [], "compiled": ["--compile"]}
WARM_UP = 5
"""Steps before the clock starts; the graph is captured in them."""


def rate(stage: DenoiserStage, steps: int) -> dict:
    """Seconds before the first timed step, steps per second, last loss, peak memory."""
    start = time.perf_counter()
    optimizer = stage.configure_optimizers()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = stage.gradients_of(parameters)
    cuda = stage.device.type == "cuda"
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            if cuda:
                torch.cuda.synchronize()
            begin = time.perf_counter()
        gradients.generator.manual_seed(step)
        losses = gradients()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    loss = float(losses["denoise"])  # waits for the device
    seconds = time.perf_counter() - begin
    row = {"steps_per_s": round(steps / seconds, 3), "before_s": round(begin - start, 1), "loss": round(loss, 4)}
    return row | ({"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if cuda else {})


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of shards with depth and normals")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args(argv)
    device = default_device()
    data = load_shards(args.data, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    result = {
        "what": "steps of the denoiser's training per second, random weights", "batch": args.batch, "device": name,
        "torch": torch.__version__, "rows": {}, "options": [],
    }  # fmt: skip
    for variant in args.variants:
        torch.manual_seed(0)
        config = HPDMTrainConfig(batch=args.batch, compile="--compile" in VARIANTS[variant])
        stage = DenoiserStage(build_mini(image_size=data.size).train(), data, config, data).to(device)
        result["rows"][variant] = rate(stage, args.steps)
        print(variant, json.dumps(result["rows"][variant]), flush=True)
        best = max(result["rows"], key=lambda name: result["rows"][name]["steps_per_s"])
        result["options"] = VARIANTS[best]
        write_text(args.out, json.dumps(result, indent=1) + "\n")
        del stage
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
