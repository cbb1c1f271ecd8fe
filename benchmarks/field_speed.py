"""Time of the field, planes and decoder, by implementation and number of points, with its distance to the bounds.

    python benchmarks/field_speed.py --out benchmarks/results/field_speed.json
    python benchmarks/field_speed.py --out tuning.json --sweep        # block sizes of the kernels instead

On a GPU 3 x 32 x 256^2 planes and up to 4.2 M random points; elsewhere a few thousand and torch alone. Forward, and
forward and backward with gradients to planes and weights. The bounds: `bytes` counts what must cross the memory once
(points, results, their gradients, planes and their gradient; look-ups of planes hit the cache), over the bandwidth of a
copy measured in the same run; `flop` the products of both layers, forward and backward.
"""
import argparse
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT / "custom"), str(ROOT / "benchmarks")]

from measuring import circumstances, copy_bandwidth, median_ms  # noqa: E402
from portrait_diffusion.devices import default_device  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402
from portrait_diffusion.ops.backends import missing  # noqa: E402
from portrait_diffusion.ops.field import query_field  # noqa: E402
from portrait_diffusion.ops.triplane import sample_planes  # noqa: E402

CHANNELS, HIDDEN, OUTPUTS = 32, 64, 33
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def inputs(points: int, resolution: int, dtype: torch.dtype, device: torch.device, outputs: int = OUTPUTS) -> tuple:
    """Planes with the channels innermost (as a fast path keeps them), points in the box, decoder; with gradients."""
    g = torch.Generator(device).manual_seed(0)
    planes = torch.randn(1, 3, resolution, resolution, CHANNELS, device=device, generator=g).to(dtype)
    coords = torch.rand(1, points, 3, device=device, generator=g) * 2 - 1
    shapes = (HIDDEN, CHANNELS), (HIDDEN,), (outputs, HIDDEN), (outputs,)
    weights = [torch.randn(s, device=device, generator=g) / s[-1] ** 0.5 for s in shapes]
    leaves = [planes.movedim(-1, 2).requires_grad_(True), *(w.requires_grad_(True) for w in weights)]
    return leaves, coords


def bounds(points: int, resolution: int, size: int, kept: bool, bandwidth: float) -> dict:
    """Bytes, floating-point operations, and the time that the bytes alone take, forward and backward."""
    planes = 3 * CHANNELS * resolution**2
    moved = points * (2 * 3 * 4 + 2 * OUTPUTS * 4 + 2 * CHANNELS * size * kept) + planes * (size + 2 * 4)
    products = 2 * points * HIDDEN * (CHANNELS + OUTPUTS)
    return {
        "bytes": moved, "flop": products * 4,  # forward, once more, and twice backward
        "ms at the bandwidth of a copy": round(1000 * moved / bandwidth, 4),
    }  # fmt: skip


def time_field(points: int, resolution: int, name: str, dtype: str, device: torch.device, repeats: int) -> dict:
    """Forward, and forward and backward, in ms."""
    leaves, coords = inputs(points, resolution, DTYPES[dtype], device)

    def forward():
        return query_field(leaves[0], coords, leaves[1:], implementation=name)

    raw = forward()
    pull = torch.randn_like(raw)

    def both():
        for leaf in leaves:
            leaf.grad = None
        forward().backward(pull)

    with torch.no_grad():
        ahead = median_ms(forward, device, repeats)
    return {"forward ms": ahead, "forward and backward ms": median_ms(both, device, repeats)}


def time_sampling(points: int, resolution: int, name: str, dtype: str, device: torch.device, repeats: int) -> dict:
    """Look-ups alone, forward and backward, in ms."""
    leaves, coords = inputs(points, resolution, DTYPES[dtype], device)
    pull = torch.randn(1, points, CHANNELS, device=device, dtype=DTYPES[dtype])

    def both():
        leaves[0].grad = None
        sample_planes(leaves[0], coords.to(pull.dtype) if name == "torch" else coords, implementation=name).backward(
            pull
        )

    return {"sampling alone, forward and backward ms": median_ms(both, device, repeats)}


def table(sizes: list[int], resolution: int, device: torch.device, repeats: int) -> list[dict]:
    """One row for each implementation, data type of the planes, and number of points; tcnn looks up as Triton does."""
    bandwidth = copy_bandwidth(device)
    cases = [("torch", "float32", True)]
    if missing("triton", device) is None:
        cases += [("triton", dtype, True) for dtype in DTYPES] + [("triton", "float32", False)]
    if missing("tcnn", device) is None:
        cases += [("tcnn", dtype, True) for dtype in DTYPES]
    rows = []
    for name, dtype, kept in cases:
        if name == "triton":
            from portrait_diffusion.ops import field_triton

            field_triton.KEEP_BYTES = (1 << 62) if kept else 0
        for points in sizes:
            row = {"implementation": name, "planes": dtype, "features kept": kept, "points": points}
            row |= time_field(points, resolution, name, dtype, device, repeats)
            if kept and name != "tcnn":
                row |= time_sampling(points, resolution, name, dtype, device, repeats)
            row |= bounds(points, resolution, DTYPES[dtype].itemsize, kept, bandwidth)
            both = row["forward and backward ms"]
            row["times the bandwidth bound"] = round(both / row["ms at the bandwidth of a copy"], 2)
            row["ns a point"] = round(1e6 * both / points, 4)
            row["Tflop/s"] = round(row["flop"] / both / 1e9, 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def kernels(points: int, resolution: int, dtype: str, device: torch.device) -> dict[str, Callable]:
    """Each kernel of the fused field alone, as a function without arguments; the last takes the programs it is."""
    from portrait_diffusion.ops import decoder_triton, field_triton, triplane_triton
    from portrait_diffusion.ops.triplane import PLANE_AXES

    leaves, coords = inputs(points, resolution, DTYPES[dtype], device)
    planes, *weights = (x.detach() for x in leaves)
    table = planes.movedim(2, -1)
    grad = torch.zeros_like(table, dtype=torch.float32)
    features = torch.randn(1, points, CHANNELS, device=device).to(table)
    pull, out = torch.empty_like(features), torch.empty(1, points, OUTPUTS, device=device)
    grad_out, least = torch.randn_like(out), torch.zeros((), device=device)
    partial_sums = torch.zeros(8 * decoder_triton.processors(device), sum(w.numel() for w in weights), device=device)
    sizes = triplane_triton.pack_axes(PLANE_AXES), ((3, 1, resolution, resolution),), CHANNELS
    layers = CHANNELS, HIDDEN, OUTPUTS, *decoder_triton.parts(OUTPUTS)
    return {
        "gather": partial(triplane_triton.launch_gather, (table,), coords, pull, 0, 1 / 3, sizes),
        "scatter": partial(triplane_triton.launch_scatter, (grad,), coords, features, 0, 1 / 3, sizes),
        "decode": partial(field_triton.launch_decode, features, tuple(weights), out, 0, layers),
        "decode gradients": lambda programs: field_triton.launch_decode_gradients(
            features, grad_out, least, tuple(weights[:3]), pull, partial_sums, 0, programs, layers, (True, True)
        ),
    }


def sweep(points: int, resolution: int, device: torch.device, repeats: int) -> list[dict]:
    """ms of each kernel alone by points of a block, warps and programs a multiprocessor; failures are kept as such.

    Shapes that the compiler gets wrong may write where they should not: a failure ends what this process can measure.
    """
    from portrait_diffusion.ops import decoder_triton, triplane_triton

    rows: list[dict] = []

    def timed(function: Callable, **row) -> None:
        try:
            row["ms"] = median_ms(function, device, repeats)
        except Exception as error:  # a size that does not fit must not end the sweep
            row["failed"] = f"{type(error).__name__}: {str(error)[:120]}"
        rows.append(row)
        print(json.dumps(row), flush=True)

    for dtype in ("float32", "bfloat16"):
        found, many = kernels(points, resolution, dtype, device), decoder_triton.processors(device)
        for block, warps in itertools.product((16, 32, 64, 128), (1, 2, 4)):
            triplane_triton.GATHER_BLOCK, triplane_triton.GATHER_WARPS = block, warps
            triplane_triton.SCATTER_BLOCK, triplane_triton.SCATTER_WARPS = block, warps
            for name in ("gather", "scatter"):
                timed(found[name], kernel=name, planes=dtype, block=block, warps=warps)
        for block, programs, stages in itertools.product((32, 64), (2, 4, 8), (1, 2, 3)):  # 128: illegal access
            decoder_triton.FORWARD_BLOCK = decoder_triton.BACKWARD_BLOCK = block
            decoder_triton.FORWARD_PROGRAMS = programs
            decoder_triton.FORWARD_STAGES = decoder_triton.BACKWARD_STAGES = stages
            row = {"planes": dtype, "block": block, "programs an SM": programs, "stages": stages}
            timed(found["decode"], kernel="decode", **row)
            timed(partial(found["decode gradients"], programs * many), kernel="decode gradients", **row)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--points", type=int, nargs="+", help="numbers of points")
    parser.add_argument("--resolution", type=int, help="edge of the planes")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--precision", default="high", choices=("highest", "high"), help="of float32 products")
    parser.add_argument("--sweep", action="store_true", help="block sizes instead of implementations (a GPU)")
    args = parser.parse_args(argv)
    device = default_device()
    gpu = device.type == "cuda"
    sizes = args.points or ([2**17, 2**19, 2**20, 2**21, 2**22] if gpu else [4096, 16384, 65536])
    resolution = args.resolution or (256 if gpu else 64)
    torch.set_float32_matmul_precision(args.precision)
    rows = sweep(sizes[-1], resolution, device, args.repeats) if args.sweep else (
        table(sizes, resolution, device, args.repeats)
    )  # fmt: skip
    result = {
        "what": f"field of 3 x {CHANNELS} x {resolution}^2 planes and a {CHANNELS}-{HIDDEN}-{OUTPUTS} decoder, random "
        "points; median ms",
        "precision": args.precision, "repeats": args.repeats,
        "copy bandwidth GB/s": round(copy_bandwidth(device) / 1e9, 1), **circumstances(device, argv), "rows": rows,
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
