"""All metrics of one reconstructed portrait that need no ground truth besides the photo itself."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import EnvironmentProblem, UsageError
from ..ops.cameras import canonical_fovy, orbit_c2w
from . import image as image_metrics
from .identity import behind_scores, detect_faces, janus_rate, sface_cosine
from .stlpips import STLPIPS

SIDE_AZIMUTH_DEG = 30.0
BACK_AZIMUTHS_DEG = (127.5, 142.5, 157.5, 172.5, -172.5, -157.5, -142.5, -127.5)


def _to_size(picture: Tensor, size: int) -> Tensor:
    """(S,S,C) -> (1,C,size,size) with anti-aliasing."""
    picture = picture.permute(2, 0, 1)[None]
    return F.interpolate(picture, size=(size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _on_white(output: dict, like: Tensor) -> tuple[Tensor, Tensor]:
    """A render output composited on white (1,3,H,W) and its opacity (1,1,H,W)."""
    opacity = output["opacity"].detach().to(like)
    rgb = (output["comp_rgb_fg"].detach().to(like) + 1 - opacity).clamp(0, 1)
    return rgb.permute(0, 3, 1, 2), opacity.permute(0, 3, 1, 2)


def load_perceptual(device: torch.device | str = "cpu") -> dict[str, STLPIPS]:
    """The ST-LPIPS networks whose weights are installed, by name; `evaluate_portrait` says why one is missing."""
    loaded = {}
    for net in ("alex", "vgg"):
        try:
            loaded[net] = STLPIPS(net).to(device)
        except EnvironmentProblem:
            continue
    return loaded


def evaluate_portrait(
    render_fn: Callable,
    prepared,
    size: int = 128,
    render_input_fn: Callable | None = None,
    perceptual: dict[str, Callable] | None = None,
) -> dict:
    """Compare a reconstructed head with its photo, and look for faces where none may be.

    Photo and renders are composited on white with their own mattes, at size x size pixels. Input-view metrics are
    weighted by matte * valid; the rest of the photo is not compared.

    Args:
        render_fn: ``render(c2w (1,4,4), fovy (1,) radians, height, width)`` -> ``comp_rgb_fg`` (1,H,W,3) premultiplied
            colour and ``opacity`` (1,H,W,1).
        prepared: PreparedPhoto: ``rgb`` (S,S,3) in [0, 1], ``alpha`` (S,S,1), ``valid`` (S,S,1).
        size: side of the compared images in pixels, at least 32.
        render_input_fn: ``render(height, width)`` -> the same dict for the photo's own camera, with its pose and crop;
            default: ``render_fn`` at the canonical front camera.
        perceptual: distances by `load_perceptual`, to reuse over many photos; what is not in it is loaded here.
    Returns: dict of floats, None where a metric is missing, and ``"reasons"``: why, by metric name:
        ``psnr_db``, ``stlpips_alex``, ``stlpips_vgg``, ``silhouette_iou``, ``laplacian_ratio``, ``band_ratio_1`` to
        ``band_ratio_3`` (octaves up to the Nyquist frequency), all for the input view; ``sface_front``,
        ``sface_plus30``, ``sface_minus30`` (cosine to the photo; azimuths 0 and +-30 degrees),
        ``sface_detection_rate`` over those three views; ``janus_rate`` over eight views with |azimuth| > 120 degrees,
        ``janus_score`` the highest confidence of a face in them.
    Raises: UsageError for a matte without any visible pixel or a size below 32.
    """
    if size < 32:
        raise UsageError(f"Portraits are compared at 32 pixels or more; got size {size}.")
    photo, alpha, valid = (_to_size(x, size) for x in (prepared.rgb, prepared.alpha, prepared.valid))
    photo = photo * alpha + 1 - alpha
    mask = alpha * valid
    if float(mask.sum()) == 0:
        raise UsageError("The photo's matte is empty: there is nothing to compare the reconstruction with.")

    def view(azimuth_deg: float) -> tuple[Tensor, Tensor]:
        camera = orbit_c2w(photo.new_tensor([azimuth_deg]), photo.new_zeros(1))
        return _on_white(render_fn(camera, canonical_fovy(photo), size, size), photo)

    with torch.no_grad():
        front, opacity = view(0.0)
        same = front
        if render_input_fn is not None:
            same, opacity = _on_white(render_input_fn(size, size), photo)
        sides = {"plus30": view(SIDE_AZIMUTH_DEG)[0], "minus30": view(-SIDE_AZIMUTH_DEG)[0]}
        backs = [view(azimuth)[0] for azimuth in BACK_AZIMUTHS_DEG]

    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}

    def record(name: str, compute: Callable[[], tuple[float | None, str]]) -> None:
        try:
            value, reason = compute()
            if value is not None and not math.isfinite(value):
                value, reason = None, f"not a finite number ({value})"
        except (EnvironmentProblem, UsageError) as problem:
            value, reason = None, str(problem)
        values[name] = value
        if reason:
            reasons[name] = reason

    record("psnr_db", lambda: (float(image_metrics.psnr(same, photo, mask)), ""))
    for net in ("alex", "vgg"):
        distance = (perceptual or {}).get(net)
        record(f"stlpips_{net}", lambda n=net, d=distance: (_perceptual(n, d, same, photo, mask), ""))
    record("silhouette_iou", lambda: (float(image_metrics.silhouette_iou(opacity, alpha, mask=valid)), ""))
    record("laplacian_ratio", lambda: (float(image_metrics.laplacian_variance_ratio(same, photo, mask)), ""))
    for band in range(len(image_metrics.BANDS)):
        record(f"band_ratio_{band + 1}", lambda b=band: (float(_band_ratio(same, photo, mask, b)), ""))

    reference = _hwc(photo)
    for name, picture in {"front": front, **sides}.items():
        record(f"sface_{name}", lambda p=picture: sface_cosine(reference, _hwc(p)))
    record("sface_detection_rate", lambda: _detection_rate([front, *sides.values()]))
    scores: list[float] = []

    def look_behind() -> tuple[float, str]:
        scores.extend(behind_scores([_hwc(back) for back in backs], BACK_AZIMUTHS_DEG))
        return janus_rate(scores), ""

    record("janus_rate", look_behind)
    record("janus_score", lambda: (max(scores), "") if scores else (None, reasons["janus_rate"]))
    return {**values, "reasons": reasons}


def _perceptual(net: str, distance: Callable | None, a: Tensor, b: Tensor, mask: Tensor) -> float:
    with torch.no_grad():
        return float((distance or STLPIPS(net).to(a.device))(a, b, mask))


def _band_ratio(a: Tensor, b: Tensor, mask: Tensor, band: int) -> Tensor:
    return image_metrics.band_energy_ratios(a, b, mask, bands=(image_metrics.BANDS[band],))


def _detection_rate(pictures: list[Tensor]) -> tuple[float, str]:
    found = [bool(detect_faces(_hwc(picture))) for picture in pictures]
    return sum(found) / len(found), ""


def _hwc(picture: Tensor) -> Tensor:
    return picture[0].permute(1, 2, 0)
