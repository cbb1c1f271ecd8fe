"""Small line charts as inline SVG, coloured by the page's own CSS (classes chart-line, chart-grid, chart-text)."""
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 420.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 8.0, 10.0, 24.0
MAX_POINTS = 400
LOG_RATIO = 30.0  # positive curves that span more than this are drawn on a logarithmic axis


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about MAX_POINTS points: lowest and highest of each bin, so that peaks stay visible, and both ends."""
    if len(points) <= MAX_POINTS:
        return points
    bins = MAX_POINTS // 2
    kept = [points[0]]
    for i in range(bins):
        part = points[i * len(points) // bins : (i + 1) * len(points) // bins]
        extremes = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept.extend(sorted(extremes))
    kept.append(points[-1])
    return kept


def _number(value: float) -> str:
    return f"{value:.3g}"


def line_chart(curve: Sequence[tuple[float, float]], label: str) -> str:
    """One curve as an <svg> element.

    Args: curve: (step, value) pairs in order; values that are not finite are left out.  label: accessible name.
    Returns: the SVG text; a chart without finite values says so.
    """
    points = [(float(x), float(y)) for x, y in curve if math.isfinite(x) and math.isfinite(y)]
    name = html.escape(label, quote=True)
    head = f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{name}">'
    if not points:
        return f'{head}<text class="chart-text" x="20" y="100">no finite values</text></svg>'
    low, high = min(y for _, y in points), max(y for _, y in points)
    logarithmic = low > 0 and high / low > LOG_RATIO
    scale = math.log10 if logarithmic else float
    y0, y1 = scale(low), scale(high)
    if y1 - y0 < 1e-12 * max(1.0, abs(y1)):
        y0, y1 = y0 - 0.5, y1 + 0.5
    x0, x1 = points[0][0], points[-1][0]
    span = (x1 - x0) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        u, v = (x - x0) / span, (scale(y) - y0) / (y1 - y0)
        return LEFT + u * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - v * (HEIGHT - TOP - BOTTOM)

    parts = [head]
    for i in range(4):
        level = y0 + (y1 - y0) * i / 3
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * i / 3
        text = _number(10.0**level if logarithmic else level)
        parts.append(f'<line class="chart-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="chart-text" text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}">{text}</text>')
    for x, anchor in ((x0, "start"), (x1, "end")):
        at = f'x="{place(x, low)[0]:.1f}" y="{HEIGHT - 6}"'
        parts.append(f'<text class="chart-text" text-anchor="{anchor}" {at}>{_number(x)}</text>')
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*p) for p in _thin(points)))
    parts.append(f'<polyline class="chart-line" points="{path}"/>')
    if len(points) == 1:
        px, py = place(*points[0])
        parts.append(f'<circle class="chart-dot" cx="{px:.1f}" cy="{py:.1f}" r="3"/>')
    return "".join(parts) + "</svg>"
