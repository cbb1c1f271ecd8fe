"""Time and memory of a guidance step, random weights, and where the time goes.

    python benchmarks/guidance_speed.py --out benchmarks/results/guidance_speed.json [--views 4] [--size 512]
    python benchmarks/guidance_speed.py --out benchmarks/results/guidance_mini_cpu.json --mini --views 1 --size 128
    python benchmarks/guidance_speed.py --out benchmarks/results/guidance_operations.json --count    # needs no GPU

Of Stable-Diffusion-1.5 size (bfloat16 on a GPU), or with `--mini` the small HPDM. Median of repeated runs after warming
up; as many known views as views, both conditions, guidance with three rows. The parts are timed alone, so they need not
add up to the step.
"""
import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel  # noqa: E402
from measuring import circumstances, median_ms  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.guidance.distillation import distillation_loss  # noqa: E402
from portrait_diffusion.guidance.hpdm.assemble import AssembledHPDM  # noqa: E402
from portrait_diffusion.guidance.hpdm.compiled import compile_networks  # noqa: E402
from portrait_diffusion.guidance.hpdm.conditions import EXPLICIT_CHANNELS, Conditions, References  # noqa: E402
from portrait_diffusion.guidance.hpdm.graphed import GraphedPredict  # noqa: E402
from portrait_diffusion.guidance.hpdm.model import HPDM, build_mini, plain_attention  # noqa: E402
from portrait_diffusion.guidance.hpdm.views import KnownViews, Target, Views  # noqa: E402
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w  # noqa: E402


def build(tiny_vae: bool, small: bool = False) -> AssembledHPDM:
    """Random parts of Stable Diffusion 1.5's sizes; `small` is for trying the script without a GPU."""
    widths = (8, 16, 16, 16) if small else (320, 640, 1280, 1280)
    groups = 8 if small else 32
    text = 16 if small else 768
    unet = UNet2DConditionModel(
        sample_size=8 if small else 64, block_out_channels=widths, cross_attention_dim=text, attention_head_dim=8,
        layers_per_block=1 if small else 2, norm_num_groups=groups,
    )  # fmt: skip
    blocks = 4
    thin = {"encoder_block_out_channels": (8,) * blocks, "decoder_block_out_channels": (8,) * blocks} if small else {}
    vae = AutoencoderTiny(**thin) if tiny_vae else AutoencoderKL(
        block_out_channels=(8,) * blocks if small else (128, 256, 512, 512), layers_per_block=1 if small else 2,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4, norm_num_groups=groups,
    )  # fmt: skip
    control = ControlNetModel.from_unet(unet)
    tokens = torch.randn(1, 77, text)
    return AssembledHPDM(unet, vae, DDIMScheduler(), [(control, "inpaint", 1.0)], tokens, tokens).eval()


def measure(model: HPDM, size: int, views: int, device: torch.device, repeats: int) -> dict:
    """Times in ms of the whole step and of its parts."""
    dtype = model.unet.dtype
    azimuth = torch.linspace(0, 90, views, device=device)
    c2w, fovy = orbit_c2w(azimuth, torch.zeros_like(azimuth)), canonical_fovy(azimuth).expand(views)
    rays_o, rays_d = get_rays(c2w, fovy, size, size)
    b = (rays_o * rays_d).sum(-1)
    root = b.square() - rays_o.square().sum(-1) + 0.2**2
    depth = torch.where(root > 0, -b - root.clamp(min=0).sqrt(), 0)
    solid = (depth > 0).float()
    normals = torch.nn.functional.normalize(rays_o + depth[..., None] * rays_d, dim=-1) * solid[..., None]
    rgb = torch.rand(views, 3, size, size, device=device)
    target = Target(c2w, fovy, depth, normals, solid)
    known = KnownViews(model, Views(rgb, depth, normals, solid, c2w, fovy))
    latents = model.encode(rgb).detach().float()
    t = torch.full((views,), 500, device=device)
    explicit = torch.zeros(views, EXPLICIT_CHANNELS, size, size, device=device, dtype=dtype)
    tokens = model.cameras(c2w)
    one = References(latents[:, None], explicit[:, None, :7], tokens[:, None], torch.ones(views, 1, device=device))

    def step(predict: Callable = model.predict, levels: torch.Tensor = t) -> None:
        picture = rgb.clone().requires_grad_(True)
        x = model.encode(picture).float()
        with torch.no_grad():
            told = known.conditions(target)
            told = Conditions(told.tokens, told.explicit.to(dtype), told.references, tokens)
            noise = torch.randn_like(x)
            found = predict(model.add_noise(x.detach(), noise, levels), levels, told, 7.5, 2.0, known.bank_for(views))
        distillation_loss(x, found.noise.float() - noise).backward()

    def encode():
        picture = rgb.clone().requires_grad_(True)
        model.encode(picture).float().sum().backward()

    def without_gradient(function: Callable) -> Callable:
        return torch.no_grad()(function)

    parts = {
        "step": step,
        "autoencoder, encode forward and backward": encode,
        "projection and conditions": without_gradient(lambda: known.conditions(target)),
        "denoiser alone": without_gradient(lambda: model.denoise(latents, t, tokens)),
        "denoiser and ControlNet": without_gradient(lambda: model.denoise(latents, t, tokens, explicit)),
        "denoiser and one reference": without_gradient(
            lambda: model.denoise(latents, t, tokens, None, model.bank(one), one.gate)
        ),
    }
    parts |= {"step, one timestep": partial(step, levels=t[:1])}
    if device.type == "cuda":
        graphed = GraphedPredict(model)
        parts |= {"step, graph": partial(step, graphed), "step, graph, one timestep": partial(step, graphed, t[:1])}
    found = {name: median_ms(function, device, repeats) for name, function in parts.items()}
    if device.type != "cuda":
        return found
    compile_networks(model.networks())
    graphed, start = GraphedPredict(model), time.monotonic()
    parts = {
        "step, compiled, one timestep": partial(step, levels=t[:1]),
        "step, compiled, graph, one timestep": partial(step, graphed, t[:1]),
        "autoencoder, compiled": encode,
    }
    found |= {name: median_ms(function, device, repeats) for name, function in parts.items()}
    return found | {"s for these, most of it to compile": round(time.monotonic() - start, 1)}


def count_operations(views: int, size: int) -> dict:
    """Tflop of the networks in a step of SD-1.5 size, counted on tensors without data; of the autoencoder too."""

    def count(function: Callable) -> float:
        counter = FlopCounterMode(display=False)
        with counter:
            function()
        return round(counter.get_total_flops() / 1e12, 2)

    with torch.device("meta"):
        model, side = build(False).to(torch.bfloat16).requires_grad_(False), size // 8
        model.alphas_cumprod = torch.empty(1000)
        explicit = torch.empty(views, EXPLICIT_CHANNELS, size, size)
        latents, tokens = torch.empty(views, 4, side, side), torch.empty(views, 77, 768)
        bank = {name: x[None].expand(views, *x.shape) for name, x in (("latents", latents), ("tokens", tokens))}
        references = References(bank["latents"], explicit, bank["tokens"], torch.empty(views, views))
        told = Conditions(tokens, explicit, references, tokens)
        t, picture = torch.empty(views, dtype=torch.long), torch.empty(views, 3, size, size, requires_grad=True)
        with torch.no_grad():
            found = {
                "prediction, three rows": count(lambda: model.predict(latents, t, told, 7.5, 2.0, bank)),
                "prediction, three rows, one timestep": count(
                    lambda: model.predict(latents, t[:1], told, 7.5, 2.0, bank)
                ),
            }
        found["autoencoder, encode forward and backward"] = count(lambda: model.encode(picture).sum().backward())
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--mini", action="store_true", help="the small HPDM")
    parser.add_argument("--small", action="store_true", help="tiny widths, to try the script")
    parser.add_argument("--count", action="store_true", help="floating-point operations instead of times, of any size")
    args = parser.parse_args(argv)
    device = default_device()
    if args.count:
        result = {
            "what": "Tflop of the networks", "views": args.views, "size": args.size, **circumstances(device, argv),
            "Tflop": count_operations(args.views, args.size),
        }  # fmt: skip
        write_text(args.out, json.dumps(result, indent=1) + "\n")
        print(json.dumps(result["Tflop"]))
        return 0
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    result: dict = {
        "what": "ms, median; both conditions, guidance with three rows, as many known views as views",
        "views": args.views, "size": args.size, "dtype": str(dtype), "small": args.small,
        **circumstances(device, argv),
    }  # fmt: skip
    builders = {name: partial(build, tiny, args.small) for name, tiny in
                (("full autoencoder", False), ("tiny autoencoder", True))}  # fmt: skip
    if args.mini:
        builders = {"mini": lambda: build_mini(image_size=args.size).eval()}
    for name, builder in builders.items():
        model = builder().to(device, dtype).requires_grad_(False)
        model.alphas_cumprod = model.scheduler.alphas_cumprod.to(device)
        if device.type == "cuda":
            plain_attention(model.vae)
            torch.cuda.reset_peak_memory_stats()
        result[name] = measure(model, args.size, args.views, device, args.repeats)
        if device.type == "cuda":
            result[name]["peak GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        del model
        write_text(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
