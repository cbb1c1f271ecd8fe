"""Make a head of one photo, score it, and print the record as one line of JSON. `photos.py` starts this for each photo.

    python benchmarks/score_photo.py CONFIG.yaml PHOTO [--size 128]

A process for each photo makes time and memory this photo's own. Both are those of `PortraitPipeline.run`, from the
photo's file to the fitted head: neither the start of Python, nor the export, nor the scoring counts.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.denormals import flushed_denormals  # noqa: E402
from portrait_diffusion.devices import is_out_of_memory  # noqa: E402
from portrait_diffusion.errors import PortraitError, UsageError  # noqa: E402
from portrait_diffusion.evaluation.report_metrics import evaluate_portrait  # noqa: E402
from portrait_diffusion.export.provenance import peak_memory  # noqa: E402
from portrait_diffusion.files import sha256_file  # noqa: E402
from portrait_diffusion.pipeline import PortraitPipeline  # noqa: E402


def device_name() -> str:
    """The accelerator torch would use, or the processor and its thread count."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def costs(start: float) -> dict:
    """Wall-clock seconds since `start` and peak memory of this process so far, in GB (10^9 bytes)."""
    peak = peak_memory("cuda" if torch.cuda.is_available() else "cpu")
    gigabytes = {name.replace("_bytes", "_gb"): None if size is None else size / 1e9 for name, size in peak.items()}
    return {"seconds": time.perf_counter() - start, **{f"peak_{name}": size for name, size in gigabytes.items()}}


def score_photo(pipeline, photo: Path, size: int, perceptual: dict[str, Callable] | None = None) -> dict:
    """Run the pipeline and compare its head with the photo.

    Args:
        pipeline: object with ``run(path)`` -> ``render_fn``, ``prepared`` and optionally ``render_input_fn``, see
            `evaluate_portrait`.
        photo: the file.
        size: side of the compared images in pixels.
        perceptual: distances to use in place of the real networks.
    Returns: ``photo``, ``sha256``, ``device``, ``status`` ('ok', 'refused' for an unfit photo, 'failed' for lack of
        memory), ``metrics`` and ``reasons`` or the ``reason``, ``seconds``, ``peak_host_gb``, ``peak_device_gb``; a
        peak is None where it is not known.
    """
    record: dict = {"photo": photo.name, "sha256": sha256_file(photo), "device": device_name()}
    start = time.perf_counter()
    try:
        result = pipeline.run(str(photo))
        record.update(costs(start))
        input_view = getattr(result, "render_input_fn", None)  # the photo's own camera, when the pipeline fitted one
        metrics = evaluate_portrait(result.render_fn, result.prepared, size, input_view, perceptual)
        record.update(status="ok", reasons=metrics.pop("reasons"), metrics=metrics)
    except UsageError as error:
        record.update(status="refused", reason=str(error).replace(str(photo), photo.name))  # results are published
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        record.update(status="failed", reason="out of memory")
    return record if "seconds" in record else {**record, **costs(start)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="pipeline configuration (YAML)")
    parser.add_argument("photo", type=Path, help="the photo")
    parser.add_argument("--size", type=int, default=128, help="side of the compared images in pixels (default 128)")
    options = parser.parse_args(arguments)
    try:
        with flushed_denormals():
            record = score_photo(PortraitPipeline.from_config(options.config), options.photo, options.size)
    except PortraitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
