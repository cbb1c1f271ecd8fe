"""report.html: one self-contained page that shows a result, how well it matches the photo, and how it was made."""
import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from ..files import write_text
from .report_page import CONTENT_SECURITY_POLICY, CSS, SCRIPT
from .svg import line_chart
from .video import resize

COMPARE_SIZE = 512
MAX_TILES = 6
HEADLINES = {
    "psnr_db": "PSNR against the photo, dB", "stlpips_alex": "ST-LPIPS, 0 is equal", "silhouette_iou": "outline, IoU",
    "sface_front": "same person, front", "sface_plus30": "same person at +30°", "janus_rate": "faces seen from behind",
}  # fmt: skip
"""Metrics shown on top, with what they say; all are in the table by their names."""


@dataclass
class ReportData:
    """What the page shows; every text may be hostile, it is escaped here.

    title: heading.  photo: (S,S,3) canonical crop in [0,1], or None without a photo.  alpha: (S,S,1) its matte.
    valid: (S,S,1) 0 where the crop reaches beyond the photograph.  match: (R,R,3) the head from the photo's camera, on
    white.  viewer: HTML page of the 3D view.  views: (label, PNG file).  curves: name -> (step, value) pairs.
    metrics, settings, mesh, provenance: nested plain values.  files: finished files beside the page.
    """

    title: str
    photo: np.ndarray | None
    alpha: np.ndarray | None
    valid: np.ndarray | None
    match: np.ndarray
    turntable: Path
    viewer: str
    views: Sequence[tuple[str, Path]]
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    mesh: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    files: Sequence[Path] = ()


def esc(value: Any) -> str:
    """HTML-escape any value, quotes included."""
    return html.escape(str(value), quote=True)


def data_uri(data: bytes, mime: str) -> str:
    """A data: address that carries the bytes."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def image_uri(image: np.ndarray, size: int = COMPARE_SIZE) -> str:
    """(H,W,3) in [0,1] as a JPEG data address of size x size pixels."""
    buffer = io.BytesIO()
    Image.fromarray(resize(image, size, size)).save(buffer, format="JPEG", quality=92, subsampling=0)
    return data_uri(buffer.getvalue(), "image/jpeg")


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted key, text) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            rows.extend(flatten(value, name))
        else:
            rows.append((name, format_value(value)))
    return rows


def format_value(value: Any) -> str:
    """Short text of a plain value: 4 significant digits for floats, a dash for nothing."""
    if value is None or value == {} or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(v) for v in value) + "]"
    return str(value)


def format_bytes(count: int) -> str:
    """Size of a file in kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def table(values: Mapping[str, Any], empty: str) -> str:
    """A two-column table, or a sentence when there is nothing."""
    rows = flatten(values)
    if not rows:
        return f'<p class="soft">{esc(empty)}</p>'
    body = "".join(f'<tr><th scope="row">{esc(k)}</th><td>{esc(v)}</td></tr>' for k, v in rows)
    return f'<div class="scroll"><table>{body}</table></div>'


def difference(photo: np.ndarray, match: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Where photo and render differ. Args: (S,S,3), (S,S,3) in [0,1], weight (S,S,1) in [0,1].

    Returns: picture (S,S,3), white = equal, dark red = channels differ by 0.5 or more; weighted mean of the difference.
    """
    error = np.abs(photo - match).mean(-1, keepdims=True)
    mean = float((error * weight).sum() / max(float(weight.sum()), 1e-6))
    strength = np.clip(error * weight / 0.5, 0.0, 1.0)
    return 1.0 - strength * np.array([0.35, 0.85, 0.9]), mean


def _figure(image: np.ndarray, caption: str) -> str:
    text = esc(caption)
    return f'<figure><img alt="{text}" src="{image_uri(image)}"><figcaption>{text}</figcaption></figure>'


def _compare(data: ReportData) -> str:
    """The photo beside, under and minus the render from the same camera."""
    match = resize(data.match, COMPARE_SIZE, COMPARE_SIZE) / 255.0
    if data.photo is None:
        return (
            '<section id="comparison"><h2>Front view</h2><p class="soft">This head was made without a photo, so there '
            f'is nothing to compare with.</p><div class="compare">{_figure(match, "render")}</div></section>'
        )

    def fit(image: np.ndarray) -> np.ndarray:
        return resize(image, COMPARE_SIZE, COMPARE_SIZE) / 255.0

    ones = np.ones_like(data.photo[..., :1])
    alpha = ones if data.alpha is None else data.alpha
    valid = ones if data.valid is None else data.valid
    photo = fit(data.photo)
    weight = fit(np.repeat(alpha * valid, 3, -1))[..., :1]
    on_white = photo * weight + (1.0 - weight)
    picture, mean = difference(photo, match, weight)
    return f"""<section id="comparison"><h2>Photo and render</h2>
<p class="soft">The same camera for both. Drag across the picture to compare.</p>
<div class="compare"><div class="slider"><img alt="render from the photo's camera" src="{image_uri(match)}">
<img class="upper" alt="photo, cut out" src="{image_uri(on_white)}"><span class="bar"></span>
<span class="tag" style="left:10px">photo</span><span class="tag" style="right:10px">render</span>
<input type="range" min="0" max="100" value="50" step="0.5" aria-label="how much of the photo is shown"></div>
<div class="trio">{_figure(photo, "photo, aligned crop")}{_figure(on_white, "photo, cut out")}
{_figure(match, "render")}{_figure(picture, f"difference: mean {mean:.3f} of 1 in the head; dark red is 0.5 or more")}
</div></div></section>"""


def _tiles(metrics: Mapping[str, Any]) -> str:
    """The numbers people ask for first, then the others, until there are `MAX_TILES`."""
    first = [*(k for k in HEADLINES if k in metrics), *(k for k in metrics if k not in HEADLINES)]
    numbers = [(HEADLINES.get(k, k), metrics[k]) for k in first if type(metrics[k]) in (int, float)][:MAX_TILES]
    tiles = "".join(
        f'<div class="tile"><b>{esc(format_value(v))}</b><span class="soft">{esc(k)}</span></div>' for k, v in numbers
    )
    return f'<div class="tiles">{tiles}</div>' if numbers else ""


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<section id="warnings"><h2>Warnings</h2><p class="soft">None.</p></section>'
    items = "".join(f"<li>{esc(w)}</li>" for w in warnings)
    return f'<section id="warnings" class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>'


def _views(views: Sequence[tuple[str, Path]]) -> str:
    return "".join(
        f'<figure><img alt="view {esc(label)}" src="{data_uri(path.read_bytes(), "image/png")}">'
        f"<figcaption>{esc(label)}</figcaption></figure>"
        for label, path in views
    )


def _charts(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    if not curves:
        return '<p class="soft">No curves were recorded.</p>'
    figures = (
        f"<figure>{line_chart(points, name)}<figcaption>{esc(name)}</figcaption></figure>"
        for name, points in curves.items()
    )
    return f'<div class="charts">{"".join(figures)}</div>'


def _files(files: Sequence[Path]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><a href="./{esc(quote(p.name))}" download>{esc(p.name)}</a></th>'
        f"<td>{format_bytes(p.stat().st_size)}</td></tr>"
        for p in files
    )
    return f"<table>{rows}</table>" if rows else '<p class="soft">None.</p>'


def _details(name: str, title: str, values: Mapping[str, Any]) -> str:
    body = table(values, "Nothing recorded.")
    return f'<section id="{name}"><details><summary>{title}</summary>{body}</details></section>'


def build_report(data: ReportData) -> str:
    """The whole page as HTML text; it loads nothing from anywhere."""
    version = data.provenance.get("version", "")
    created = str(data.provenance.get("created_utc", "")).replace("T", " ").replace("+00:00", " UTC")
    video = data_uri(data.turntable.read_bytes(), "video/mp4")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{esc(CONTENT_SECURITY_POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">
<title>{esc(data.title)}</title><style>{CSS}</style></head><body><main>
<header><h1>{esc(data.title)}</h1>
<div class="soft">3D head · portrait_diffusion {esc(version)} · {esc(created)}</div>
{_tiles(data.metrics)}</header>
{_compare(data)}
<section id="viewer"><h2>3D view</h2><div class="soft">Drag to turn, scroll to zoom. Works offline.</div>
<iframe title="interactive 3D view" srcdoc="{esc(data.viewer)}"></iframe></section>
<section id="turntable"><h2>Turntable</h2><div class="soft">Colour and normals, one full turn.</div>
<video src="{video}" autoplay loop muted playsinline controls></video></section>
<section id="views"><h2>Views</h2>
<p class="soft">A photo shows one side of a head. What it does not show is a guess of the prior, not knowledge.</p>
<div class="views">{_views(data.views)}</div></section>
<section id="curves"><h2>Curves</h2>{_charts(data.curves)}</section>
{_warnings(data.warnings)}
<div class="two pair"><section id="metrics"><h2>Metrics</h2>{table(data.metrics, "No metrics were computed.")}</section>
<section id="files"><h2>Files</h2>{_files(data.files)}</section></div>
{_details("mesh", "Mesh", data.mesh)}
{_details("settings", "Settings", data.settings)}
{_details("provenance", "Provenance", data.provenance)}
<footer>This page is one file and loads nothing from the network.</footer>
</main><script>{SCRIPT}</script></body></html>
"""


def write_report(path: str | Path, data: ReportData) -> None:
    """Write report.html, atomically."""
    write_text(path, build_report(data))
