"""The report: complete, escaped, free of network access, and drawn by a real browser."""
import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from portrait_diffusion.export import report
from portrait_diffusion.export.bake import BakeConfig, bake
from portrait_diffusion.export.fields import FieldSampler
from portrait_diffusion.export.glb import write_glb
from portrait_diffusion.export.mesh import MeshConfig, extract_mesh
from portrait_diffusion.export.report import ReportData, build_report, difference, flatten, format_value, write_report
from portrait_diffusion.export.svg import MAX_POINTS, line_chart
from portrait_diffusion.export.video import write_mp4
from portrait_diffusion.export.viewer import viewer_html
from portrait_diffusion.export.views import png_bytes

from .fixtures import head_field

HOSTILE = """<img src=x onerror="alert(1)">'</script><script>alert(2)</script>&.jpg"""
SECTIONS = {
    "comparison", "viewer", "turntable", "views", "curves", "warnings", "metrics", "files", "mesh", "settings",
    "provenance",
}  # fmt: skip


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def values(self, attribute):
        return [a[attribute] for _, a in self.tags if attribute in a]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    sampler = FieldSampler(head_field())
    extracted = extract_mesh(sampler, MeshConfig(resolution=48, target_faces=1500))
    write_glb(folder / "portrait.glb", bake(sampler, extracted.mesh, extracted.spacing, BakeConfig(texture_size=256)))
    write_mp4(folder / "turntable.mp4", [np.full((32, 64, 3), v, np.uint8) for v in (10, 200)], 2)
    (folder / "az+000_el+00.png").write_bytes(png_bytes(np.full((8, 8, 4), 90, np.uint8)))
    photo = np.random.default_rng(0).uniform(size=(32, 32, 3))
    alpha = np.zeros((32, 32, 1))
    alpha[8:24, 8:24] = 1
    return ReportData(
        title=HOSTILE, photo=photo, alpha=alpha, valid=np.ones_like(alpha), match=np.ones((16, 16, 3)),
        turntable=folder / "turntable.mp4", viewer=viewer_html(folder / "portrait.glb"),
        views=[(HOSTILE, folder / "az+000_el+00.png")], curves={HOSTILE: [(0, 1.0), (1, 0.5)]},
        metrics={"PSNR": 27.25, HOSTILE: HOSTILE}, settings={HOSTILE: {"lr": 0.01}}, mesh={"faces": 1500},
        provenance={"version": HOSTILE, "created_utc": HOSTILE}, warnings=[HOSTILE], files=[folder / "portrait.glb"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(data):
    return build_report(data)


def test_every_section_is_there(page):
    ids = Page(page).values("id")
    assert set(ids) >= SECTIONS and len(ids) == len(set(ids))


def test_hostile_text_stays_text(page):
    parsed = Page(page)
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1  # our own
    assert "<script>alert(2)" not in page and "alert(2)" in "".join(parsed.text)
    (title,) = re.findall(r"<title>(.*?)</title>", page, re.S)
    assert "<" not in title
    assert HOSTILE in parsed.values("aria-label") and any(HOSTILE in alt for alt in parsed.values("alt"))


def loads(text):
    """All addresses that a page would load or follow, its srcdoc pages' included."""
    parsed = Page(text)
    names = ("src", "href", "poster", "action", "data", "srcset", "formaction")
    found = [value for name in names for value in parsed.values(name)]
    styles = re.findall(r"<style>(.*?)</style>", text, re.S)
    found += [u for style in styles for u in re.findall(r"url\(([^)]*)\)|@import ([^;]*)", style)]
    for inner in parsed.values("srcdoc"):
        found += loads(inner)
    return found


def test_nothing_is_loaded_from_anywhere(page, data):
    addresses = loads(page)
    assert len(addresses) >= 7
    assert all(a.startswith("data:") or a == "./portrait.glb" for a in addresses)
    parsed = Page(page)
    (policy,) = [a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "http" not in policy and "*" not in policy
    own = re.sub(r'srcdoc="[^"]*"', "", page)  # three.js names its home in comments
    assert "http://" not in own and "https://" not in own
    assert "/" not in "".join(a[2:] for a in addresses if a.startswith("./"))
    assert str(data.turntable.parent) not in page


def test_the_viewer_is_one_page_with_the_model_inside(data):
    assert data.viewer.count("<html") == 1 and data.viewer.rstrip().endswith("</html>")
    assert "Z2xURg" in data.viewer  # base64 of "glTF"
    assert "look" in Page(data.viewer).values("id")


def test_a_head_without_a_photo_has_a_report_too(data):
    page = build_report(ReportData(
        title="head", photo=None, alpha=None, valid=None, match=np.ones((8, 8, 3)), turntable=data.turntable,
        viewer="<html></html>", views=[],
    ))  # fmt: skip
    assert set(Page(page).values("id")) >= SECTIONS and "without a photo" in page


def test_difference_is_weighted_and_signless():
    photo, match = np.zeros((4, 4, 3)), np.zeros((4, 4, 3))
    photo[:2], match[2:] = 0.5, 0.5
    weight = np.zeros((4, 4, 1))
    weight[0] = 1.0
    picture, mean = difference(photo, match, weight)
    assert mean == pytest.approx(0.5)
    assert (picture[1:] == 1).all() and (picture[0, :, 1] < 0.2).all()
    assert difference(photo, match, np.zeros_like(weight))[1] == 0.0


def test_values_are_flat_and_short():
    rows = flatten({"a": {"b": 1.23456789, "c": {}}, "d": [True, None]})
    assert rows == [("a.b", "1.235"), ("a.c", "–"), ("d", "[yes, –]")]
    assert format_value(0.00012345) == "0.0001234"


def points_of(svg):
    return [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]*)"', svg)[1].split()]


def test_chart_geometry():
    points = points_of(line_chart([(0, 0.0), (5, 1.0), (10, 0.5)], "c"))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 < y2 < y0  # up is smaller y
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.2)


def test_chart_is_logarithmic_when_the_curve_spans_decades():
    points = points_of(line_chart([(0, 100.0), (1, 1.0), (2, 0.01)], "c"))
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.2)


def test_long_curves_are_thinned_but_keep_their_peaks():
    values = np.random.default_rng(0).normal(size=20000)
    values[12345] = 50.0
    points = points_of(line_chart(list(enumerate(values)), "c"))
    assert len(points) <= MAX_POINTS + 2 and min(y for _, y in points) == pytest.approx(10.0, abs=0.2)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("curve", [[], [(0, NAN)], [(3, 2.0)], [(0, 1.0), (1, 1.0)], [(0, 1.0), (1, INF)]])
def test_charts_of_odd_curves_are_valid(curve):
    svg = line_chart(curve, "c")
    assert svg.startswith("<svg") and svg.endswith("</svg>")
    assert "nan" not in svg and "inf" not in svg.replace("finite", "")


def test_writing_is_atomic(tmp_path, data):
    write_report(tmp_path / "report.html", data)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on this machine")
def test_a_browser_draws_the_model_in_the_report_from_a_file(tmp_path, data):
    write_report(tmp_path / "report.html", data)
    shot = tmp_path / "shot.png"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={shot}",
        "--window-size=1200,2400",
        "--virtual-time-budget=8000", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
        f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "report.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=180, check=True)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    # only the 3D view shows skin and the blue stripes of the shirt: the photo here is noise, the render white
    skin = (red > 190) & (np.abs(red - green - 50) < 25) & (np.abs(green - blue - 25) < 20)
    shirt = (blue > 190) & (red < 90) & (green < 110)
    rows, columns = np.nonzero(skin)
    middle = np.abs(columns - 600) < 100
    assert skin.sum() > 3000 and middle.mean() > 0.8 and shirt.sum() > 1000
    assert np.median(np.nonzero(shirt)[0]) > np.median(rows[middle])  # the shirt is below the face


def test_the_video_inside_is_the_video(page, data):
    (source,) = [a["src"] for tag, a in Page(page).tags if tag == "video"]
    assert base64.b64decode(source.split(",", 1)[1]) == Path(data.turntable).read_bytes()
    assert json.dumps(next(imageio_ffmpeg.read_frames(str(data.turntable)))["source_size"]) == "[64, 32]"


def test_the_numbers_on_top_are_those_people_ask_for():
    metrics = {"odd": 1.0, "reasons": {}, "flag": True, "missing": None, "janus_rate": 0.0, "psnr_db": 30.0}
    tiles = report._tiles(metrics)
    order = [tiles.index(text) for text in ("PSNR against the photo, dB", "faces seen from behind", "odd")]
    assert order == sorted(order) and "flag" not in tiles and "missing" not in tiles and report._tiles({}) == ""
