"""Turntable MP4: colour and normals side by side, H.264, yuv420p, plays everywhere and loops without a jump."""
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import PortraitError, UsageError
from ..files import atomic_path
from ..optional import require
from .bake import to_uint8
from .renders import View, ViewRenderer


@dataclass
class TurntableConfig:
    """The turntable video."""

    source: str = "volume"
    """What is filmed: volume (the head as the method renders it) or mesh (the exported mesh, fast)."""
    frames: int = 48
    """Frames of one full turn; the last frame is one step before the first. The volume costs one render each."""
    fps: int = 16
    """Frames per second: 48 frames at 16 make a turn of 3 s."""
    elevation_deg: float = 0.0
    """Camera elevation, degrees."""
    height: int = 384
    """Height of the video, pixels, even; renders are enlarged or shrunk to it with a Lanczos filter."""
    show_normals: bool = True
    """Show the normals at the right of the colours."""
    crf: int = 18
    """x264 quality, 0 (lossless) to 51."""

    def __post_init__(self):
        if self.source not in ("volume", "mesh"):
            raise UsageError(f"turntable.source must be 'volume' or 'mesh', got '{self.source}'.")
        if self.frames < 2 or self.fps < 1 or self.height < 16 or self.height % 2:
            raise UsageError("turntable needs frames >= 2, fps >= 1 and an even height >= 16.")
        if not 0 <= self.crf <= 51:
            raise UsageError(f"turntable.crf must be between 0 and 51, got {self.crf}.")


def turntable_azimuths(frames: int) -> list[float]:
    """Azimuths in degrees of a turn that loops: i 360 / frames, without the duplicate at 360."""
    return [360.0 * i / frames for i in range(frames)]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Lanczos resampling. Args: (H,W,3) in [0,1]. Returns: (height,width,3) uint8."""
    return np.asarray(Image.fromarray(to_uint8(image)).resize((width, height), Image.Resampling.LANCZOS))


def turntable_frame(view: View, config: TurntableConfig) -> np.ndarray:
    """One video frame (height, height or 2 height, 3) uint8: colour on white, normals at its right."""
    panels = [resize(view.over(1.0), config.height, config.height)]
    if config.show_normals:
        panels.append(resize(view.normal_over(1.0), config.height, config.height))
    return np.concatenate(panels, axis=1)


def write_mp4(path: str | Path, frames: Iterable[np.ndarray], fps: int, crf: int = 18) -> int:
    """Encode frames as H.264 yuv420p, atomically.

    Args: frames: (H,W,3) uint8 images of one even size.  fps: frames per second.  crf: x264 quality.
    Returns: number of frames. Raises: PortraitError for odd sizes, no frames, or an encoder failure.
    """
    ffmpeg = require("imageio_ffmpeg", extra="export", package="imageio[ffmpeg]")
    count, size, writer = 0, None, None
    with atomic_path(path) as partial:
        try:
            for frame in frames:
                if writer is None:
                    size = frame.shape
                    if size[0] % 2 or size[1] % 2 or size[2:] != (3,) or frame.dtype != np.uint8:
                        raise PortraitError(
                            f"Video frames must be uint8 of even height and width, got {frame.dtype} of shape {size}."
                        )
                    writer = ffmpeg.write_frames(
                        str(partial), (size[1], size[0]), fps=fps, codec="libx264", pix_fmt_in="rgb24",
                        pix_fmt_out="yuv420p", macro_block_size=2,
                        quality=None, output_params=["-crf", str(crf), "-movflags", "+faststart"],
                    )  # fmt: skip
                    writer.send(None)
                if frame.shape != size:
                    raise PortraitError(f"Video frame {count} has shape {frame.shape}, the first one {size}.")
                writer.send(np.ascontiguousarray(frame))
                count += 1
        finally:
            if writer is not None:
                writer.close()
        if count == 0:
            raise PortraitError("The video has no frames.")
        check_mp4(partial, count, size[1], size[0])
    return count


def check_mp4(path: Path, frames: int, width: int, height: int) -> None:
    """Decode the file once and compare its size and number of frames; raises PortraitError when they differ."""
    ffmpeg = require("imageio_ffmpeg", extra="export", package="imageio[ffmpeg]")
    try:
        reader = ffmpeg.read_frames(str(path))
        size = next(reader)["source_size"]
        decoded = sum(1 for _ in reader)
    except (OSError, RuntimeError, StopIteration, subprocess.SubprocessError) as error:
        raise PortraitError(f"The video just written cannot be decoded: {error}") from error
    if tuple(size) != (width, height) or decoded != frames:
        raise PortraitError(
            f"The video just written has {decoded} frames of {size}, expected {frames} of {(width, height)}; "
            "is the disk full?"
        )


def write_turntable(path: str | Path, renderer: ViewRenderer, config: TurntableConfig,
                    on_frame: Callable[[int, int], None] | None = None) -> int:  # fmt: skip
    """Render and encode the turntable. Args: on_frame(done, total) is called after each frame. Returns: frame count."""

    def frames():
        for i, azimuth in enumerate(turntable_azimuths(config.frames)):
            yield turntable_frame(renderer.view(azimuth, config.elevation_deg), config)
            if on_frame:
                on_frame(i + 1, config.frames)

    return write_mp4(path, frames(), config.fps, config.crf)
