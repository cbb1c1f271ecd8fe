"""The turntable as a decoder sees it, the still views as an image program sees them."""
import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from portrait_diffusion.errors import PortraitError, UsageError
from portrait_diffusion.export.renders import View, ViewRenderer
from portrait_diffusion.export.video import (
    TurntableConfig,
    turntable_azimuths,
    turntable_frame,
    write_mp4,
    write_turntable,
)
from portrait_diffusion.export.views import straight_rgba, view_directions, view_name, write_view

COLOUR = (0.8, 0.4, 0.2)


class FlatRender:
    """A renderer that shows one colour at half opacity and remembers its cameras."""

    def __init__(self, opacity=0.5):
        self.opacity, self.azimuths = opacity, []

    def __call__(self, c2w, fovy, height, width):
        self.azimuths.append(round(float(torch.rad2deg(torch.atan2(c2w[0, 1, 3], c2w[0, 0, 3]))) % 360, 3) % 360)
        opacity = torch.full((1, height, width, 1), self.opacity)
        colour = torch.tensor(COLOUR).expand(1, height, width, 3)
        normal = torch.tensor([1.0, 0.5, 0.5]).expand_as(colour)
        return {"comp_rgb_fg": colour * opacity, "opacity": opacity, "comp_normal": normal * opacity}


def probe(path):
    """What ffmpeg says about a file: codec and pixel format, size, frames per second."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    (line,) = [part for part in text.splitlines() if "Video:" in part]
    return line


def decode(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["source_size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def test_mp4_decodes_with_its_frames_size_and_pixel_format(tmp_path):
    shades = [np.full((34, 50, 3), value, np.uint8) for value in (20, 90, 160, 230, 40)]
    assert write_mp4(tmp_path / "v.mp4", iter(shades), fps=10) == 5
    line = probe(tmp_path / "v.mp4")
    assert "h264" in line and "yuv420p" in line and "50x34" in line and re.search(r"\b10 fps", line)
    frames = decode(tmp_path / "v.mp4")
    assert len(frames) == 5
    assert [round(float(f.mean())) for f in frames] == pytest.approx([20, 90, 160, 230, 40], abs=4)
    assert (tmp_path / "v.mp4").read_bytes().find(b"moov") < (tmp_path / "v.mp4").read_bytes().find(b"mdat")  # streams
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_a_turn_loops_without_a_repeated_frame():
    azimuths = turntable_azimuths(8)
    assert azimuths == [0, 45, 90, 135, 180, 225, 270, 315]
    assert np.allclose(np.diff([*azimuths, 360.0]), 45.0)


def test_turntable_shows_colour_and_normals_and_reports_progress(tmp_path):
    render, seen = FlatRender(), []
    config = TurntableConfig(frames=6, fps=12, height=32)
    count = write_turntable(tmp_path / "t.mp4", ViewRenderer(render, 16), config, lambda *a: seen.append(a))
    assert count == 6 and seen == [(i + 1, 6) for i in range(6)]
    assert render.azimuths == pytest.approx([0, 60, 120, 180, 240, 300])
    frames = decode(tmp_path / "t.mp4")
    assert len(frames) == 6 and frames[0].shape == (32, 64, 3)
    on_white = np.array(COLOUR) * 0.5 + 0.5
    assert frames[2][16, 16] / 255 == pytest.approx(on_white, abs=0.03)
    assert frames[2][16, 48] / 255 == pytest.approx([1.0, 0.75, 0.75], abs=0.03)


def test_colour_only_turntable_is_square():
    view = ViewRenderer(FlatRender(), 8).view(0, 0)
    assert turntable_frame(view, TurntableConfig(height=20, show_normals=False)).shape == (20, 20, 3)


@pytest.mark.parametrize("bad", [{"source": "film"}, {"height": 33}, {"frames": 1}, {"crf": 90}])
def test_bad_turntable_settings_are_usage_errors(bad):
    with pytest.raises(UsageError, match="turntable"):
        TurntableConfig(**bad)


def test_an_interrupted_video_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"old")

    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(path, frames(), 10)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "frames, message",
    [
        ([], "no frames"),
        ([np.zeros((15, 16, 3), np.uint8)], "even height"),
        ([np.zeros((16, 16, 3), np.float32)], "uint8"),
        ([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)], "frame 1 has shape"),
    ],
)
def test_bad_frames_are_clear_errors_and_leave_no_file(tmp_path, frames, message):
    with pytest.raises(PortraitError, match=message):
        write_mp4(tmp_path / "v.mp4", iter(frames), 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "azimuth, elevation, name",
    [(0, 0, "az+000_el+00"), (-45, 15, "az-045_el+15"), (315, -5, "az-045_el-05"), (180, 0, "az+180_el+00"),
     (-180, 0, "az+180_el+00"), (359.7, 9.6, "az+000_el+10"), (45.0, -30, "az+045_el-30")],
)  # fmt: skip
def test_view_names(azimuth, elevation, name):
    assert view_name(azimuth, elevation) == name


def test_views_are_rgba_with_straight_alpha(tmp_path):
    path = write_view(tmp_path / "views", ViewRenderer(FlatRender(), 12), -45, 15)
    assert path == tmp_path / "views" / "az-045_el+15.png"
    with Image.open(path) as image:
        assert image.mode == "RGBA" and image.size == (12, 12)
        pixels = np.asarray(image)
    assert (pixels == [204, 102, 51, 128]).all()  # the colour itself, not colour times opacity


def test_transparent_pixels_are_black_and_clear():
    zeros = np.zeros((2, 2, 3), np.float32)
    assert not straight_rgba(View(zeros, zeros[..., :1], zeros)).any()


def test_directions_with_one_name_are_refused():
    assert view_directions([0, 90], [0, 15]) == [(0, 0), (90, 0), (0, 15), (90, 15)]
    with pytest.raises(UsageError, match=r"az\+000_el\+00"):
        view_directions([0, 360], [0])
    with pytest.raises(UsageError, match="-89"):
        view_directions([0], [95])


def test_each_view_is_rendered_once_and_survives_on_disk(tmp_path):
    render = FlatRender()
    first = ViewRenderer(render, 8, cache_dir=tmp_path, fingerprint="a")
    image = first.view(360.0, 0.0)
    assert np.allclose(first.view(0, 0).colour, image.colour, atol=1e-3) and first.rendered == 1
    again = ViewRenderer(render, 8, cache_dir=tmp_path, fingerprint="a")
    assert np.allclose(again.view(0, 0).colour, image.colour, atol=1e-3) and again.rendered == 0
    other = ViewRenderer(render, 8, cache_dir=tmp_path, fingerprint="b")
    other.view(0, 0)
    assert other.rendered == 1
    in_memory = ViewRenderer(render, 8)
    in_memory.view(10, 0), in_memory.view(10, 0)
    assert in_memory.rendered == 1


def test_a_renderer_that_breaks_the_contract_is_named():
    with pytest.raises(PortraitError, match="'comp_rgb_fg' of shape"):
        ViewRenderer(lambda *a: {"comp_rgb": torch.zeros(1, 4, 4, 3)}, 4).view(0, 0)
    with pytest.raises(PortraitError, match="not finite"):
        ViewRenderer(FlatRender(float("nan")), 4).view(0, 0)
