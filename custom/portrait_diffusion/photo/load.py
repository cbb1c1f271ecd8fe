"""Any photo in: one decoded, upright, 8-bit sRGB image with its own alpha, or one clear sentence why not."""
import io
import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..optional import require

MAX_PIXELS = 200_000_000
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
_ORIENTATION = 0x0112
_log = logging.getLogger("portrait_diffusion")


@dataclass(frozen=True)
class LoadedPhoto:
    """A decoded photograph at working size.

    Attributes:
        rgb: (H, W, 3) uint8 sRGB.
        alpha: (H, W) uint8, or None when the file is opaque.
        source_size: (width, height) of the upright file in pixels.
        box: (x0, y0, x1, y1) in source pixels: the part of the file that ``rgb`` shows.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None
    source_size: tuple[int, int]
    box: tuple[float, float, float, float]

    @property
    def to_source(self) -> np.ndarray:
        """(2, 3) float64 matrix from working to source pixels (pixel centres at +0.5 in both)."""
        x0, y0, x1, y1 = self.box
        height, width = self.rgb.shape[:2]
        return np.array([[(x1 - x0) / width, 0.0, x0], [0.0, (y1 - y0) / height, y0]])


def load_photo(path, max_side: int = 2048, box=None) -> LoadedPhoto:
    """Decode an image file: first frame, EXIF orientation applied, any mode and depth to 8-bit sRGB, shrunk to
    working size.

    Colours with an embedded RGB or CMYK ICC profile are converted to sRGB (perceptual intent); 16-bit channels keep
    their upper 8 bits; float TIFF is read as [0, 1]. The decoder list is fixed (``FORMATS``): formats that run
    interpreters, such as EPS, are not opened.

    Args:
        path: file path.
        max_side: the longer side of the result is at most this many pixels.
        box: optional (x0, y0, x1, y1) in upright source pixels: decode only this part, clipped to the image.

    Returns: LoadedPhoto.
    Raises: UsageError for a missing, empty, broken, foreign or too large file.
    """
    path = Path(path)
    image_module = require("PIL.Image", extra="photo", package="pillow")
    _check_file(path)
    image_module.init()
    formats = [name for name in FORMATS if name in image_module.OPEN]
    try:
        with _own_pixel_limit(image_module), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(path, image_module, formats, max_side, box)
    except UsageError:
        raise
    except image_module.UnidentifiedImageError as error:
        raise UsageError(f"'{path}' is not an image that can be read; {_format_hint(path)}") from error
    except MemoryError as error:
        raise UsageError(f"'{path}' does not fit into memory; save a smaller copy of it.") from error
    except Exception as error:  # decoders raise almost anything on hostile files
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise UsageError(f"'{path}' is damaged or cut off ({reason}); save or download it again.") from error


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder, not an image file; name one photo inside it.")
    if not path.is_file():
        raise UsageError(f"There is no file '{path}'; check the path of the photo.")
    if path.stat().st_size == 0:
        raise UsageError(f"'{path}' is empty (0 bytes); save or download the photo again.")


def _format_hint(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(16)
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif"):
        return "HEIC photos must be converted first: export the photo as JPEG or PNG."
    return "expected JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or JPEG 2000."


@contextmanager
def _own_pixel_limit(image_module):
    """Lift Pillow's process-wide limit while our own, ``MAX_PIXELS``, is checked right after the header is read."""
    before = image_module.MAX_IMAGE_PIXELS
    image_module.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        image_module.MAX_IMAGE_PIXELS = before


def _decode(path: Path, image_module, formats, max_side: int, box) -> LoadedPhoto:
    with image_module.open(path, formats=formats) as image:
        header_size = image.size
        if header_size[0] * header_size[1] > MAX_PIXELS:
            raise UsageError(
                f"'{path}' has {header_size[0]} x {header_size[1]} pixels; at most {MAX_PIXELS // 10**6} megapixels "
                "are read, save a smaller copy of it."
            )
        if getattr(image, "n_frames", 1) > 1:
            image.seek(0)
        if box is None and image.format in ("JPEG", "MPO"):
            image.draft(None, (max_side, max_side))  # decodes at 1/2, 1/4 or 1/8, never below the size asked for
        image.load()
        upright, turned = _apply_orientation(image, path)
    # Pillow reports the stored size of a file before it is turned; TIFF is turned while loading.
    width, height = header_size[::-1] if turned else header_size
    if box is None:
        box = (0, 0, width, height)
    else:
        box = _clip_box(box, width, height)
        upright = upright.crop(box)
    profile = upright.info.get("icc_profile")
    upright = _shrink(_to_8_bit(upright, image_module), max_side, image_module)
    upright = _to_srgb(upright, profile, path, image_module)
    pixels = np.asarray(upright)
    alpha = None
    if pixels.shape[2] == 4:
        alpha = np.array(pixels[..., 3])
        alpha = None if alpha.min() == 255 else alpha
    rgb = np.array(pixels[..., :3])  # a copy: Pillow's own buffer is read-only
    return LoadedPhoto(rgb, alpha, (width, height), tuple(float(edge) for edge in box))


def _apply_orientation(image, path: Path):
    """Turn the image upright; returns it and whether width and height were swapped here."""
    operations = require("PIL.ImageOps", extra="photo", package="pillow")
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        return operations.exif_transpose(image), orientation in (5, 6, 7, 8)
    except Exception as error:  # broken metadata must not lose a good picture
        _log.warning("The EXIF data of '%s' cannot be read (%s); its orientation is ignored.", path, error)
        return image.copy(), False


def _clip_box(box, width: int, height: int) -> tuple[int, int, int, int]:
    x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if x1 <= x0 or y1 <= y0:
        raise UsageError(f"The box {tuple(box)} lies outside the image of {width} x {height} pixels.")
    return x0, y0, x1, y1


def _to_8_bit(image, image_module):
    """Bring any Pillow mode to RGB, RGBA or CMYK with 8 bits a channel."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
        white = 1.0 if image.mode == "F" else 65535.0
        grey = np.clip(values / white, 0, 1) * 255 + 0.5
        return image_module.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "CMYK":
        return image
    if image.mode == "LAB":
        cms = require("PIL.ImageCms", extra="photo", package="pillow")
        return cms.profileToProfile(image, cms.createProfile("LAB"), cms.createProfile("sRGB"), outputMode="RGB")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def _shrink(image, max_side: int, image_module):
    """Lanczos-resample so that the longer side is at most ``max_side`` (Pillow premultiplies alpha meanwhile)."""
    scale = max_side / max(image.size)
    if scale >= 1:
        return image
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, image_module.Resampling.LANCZOS, reducing_gap=3.0)


def _to_srgb(image, profile: bytes | None, path: Path, image_module):
    """Convert colours through the embedded ICC profile when its colour space is that of the pixels."""
    if profile:
        cms = require("PIL.ImageCms", extra="photo", package="pillow")
        try:
            source = cms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if space == "CMYK" and image.mode == "CMYK":
                return cms.profileToProfile(image, source, cms.createProfile("sRGB"), outputMode="RGB")
            if space == "RGB" and image.mode in ("RGB", "RGBA"):
                colours = cms.profileToProfile(image.convert("RGB"), source, cms.createProfile("sRGB"))
                if image.mode == "RGBA":
                    colours.putalpha(image.getchannel("A"))
                return colours
        except Exception as error:  # a broken profile must not lose a good picture
            _log.warning("The colour profile of '%s' cannot be used (%s); its colours are read as sRGB.", path, error)
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
