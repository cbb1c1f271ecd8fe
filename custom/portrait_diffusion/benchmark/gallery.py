"""Pages to look at: for each item the input, the truth, and every rung from the same sides with its numbers."""
import base64
import html
from collections.abc import Sequence
from pathlib import Path

from ..export.report_page import CONTENT_SECURITY_POLICY, CSS
from ..files import write_text
from .records import Item
from .summary import OTHERS, primary, with_unseen
from .tables import TITLES
from .worker import SHOWN_AZIMUTHS

OWN_CSS = """
main { max-width: 1500px; }
.strip { width: 100%; display: block; background: #fff; border-radius: 10px; image-rendering: auto; }
.sides { display: grid; color: var(--soft); font-size: 13px; text-align: center; }
.row { display: grid; grid-template-columns: minmax(0, 1fr); gap: 6px; margin-bottom: 18px; }
.row h2 small { font-weight: 400; color: var(--soft); margin-left: 8px; font-size: 14px; }
.numbers { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); }
.input { width: 220px; border-radius: 10px; background: #fff; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; }
.cards a { text-decoration: none; }
"""


def _picture(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _numbers(record: dict, metrics: dict) -> str:
    if record["status"] != "ok":
        return f'<div class="numbers">{html.escape(record["status"])}: {html.escape(record.get("reason", ""))}</div>'
    values = with_unseen(record["metrics"])
    parts = []
    for metric, (told, _, decimals) in metrics.items():
        if metric in values:
            value = values[metric]
            text = "missing" if value is None else f"{value:.{decimals}f}"
            parts.append(f"<div><span>{html.escape(told)}</span> {text}</div>")
    parts.append(f"<div><span>seconds</span> {record['seconds']:.0f}</div>")
    parts.append(f"<div><span>denoiser rows</span> {record['denoiser_rows']}</div>")
    return f'<div class="numbers">{"".join(parts)}</div>'


def _row(title: str, note: str, picture: Path | None, numbers: str = "") -> str:
    image = f'<img class="strip" src="{_picture(picture)}" alt="{html.escape(title)}">' if picture else ""
    return f'<div class="row"><h2>{html.escape(title)}<small>{html.escape(note)}</small></h2>{image}{numbers}</div>'


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy" '
        f'content="{CONTENT_SECURITY_POLICY}"><style>{CSS}{OWN_CSS}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def item_page(out: Path, item: Item, rungs: Sequence, records: Sequence[dict], seed: int) -> str:
    """Page of one item with one seed; rungs without a record are left out."""
    own = {r["rung"]: r for r in records if (r["data"], r["name"], r["seed"]) == (item.data, item.name, seed)}
    renders = out / "renders" / item.key
    columns = f'style="grid-template-columns: repeat({len(SHOWN_AZIMUTHS)}, 1fr)"'
    sides = "".join(f"<div>{azimuth}°</div>" for azimuth in SHOWN_AZIMUTHS)
    rows = [f'<div class="sides" {columns}>{sides}</div>']
    if (renders / "truth.png").is_file():
        rows.append(_row("truth", "rendered, never seen by the method except the input", renders / "truth.png"))
    metrics = primary(item.data) | ({} if item.data == "photos" else OTHERS)
    for rung in rungs:
        if rung.name in own:
            strip = renders / f"{rung.name}-s{seed}.png"
            shown = strip if strip.is_file() else None
            rows.append(_row(rung.name, rung.adds, shown, _numbers(own[rung.name], metrics)))
    title = f"{TITLES.get(item.data, item.data)}: {item.name}"
    picture = renders / "input.png"
    given = f'<img class="input" src="{_picture(picture)}" alt="input">' if picture.is_file() else ""
    header = f'<header><h1>{html.escape(title)}</h1><p class="soft">input, seed {seed}</p>{given}</header>'
    return _document(title, f'{header}<section>{"".join(rows)}</section><p><a href="index.html">all</a></p>')


def write_gallery(out: Path, items: Sequence[Item], rungs: Sequence, records: Sequence[dict]) -> Path:
    """gallery/index.html and a page an item, each complete in itself; returns the index."""
    cards = []
    for item in items:
        seeds = [r["seed"] for r in records if (r["data"], r["name"]) == (item.data, item.name)]
        if not seeds:
            continue
        write_text(out / "gallery" / f"{item.key}.html", item_page(out, item, rungs, records, min(seeds)))
        picture = out / "renders" / item.key / "input.png"
        image = f'<img src="{_picture(picture)}" alt="">' if picture.is_file() else ""
        caption = html.escape(f"{item.data} {item.name}")
        cards.append(f'<a href="{item.key}.html"><figure>{image}<figcaption>{caption}</figcaption></figure></a>')
    body = f'<header><h1>Gallery</h1></header><section><div class="cards">{"".join(cards)}</div></section>'
    write_text(out / "gallery" / "index.html", _document("Gallery", body))
    return out / "gallery" / "index.html"

