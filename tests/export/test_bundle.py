"""The whole export on a small scale: all files, resuming, interruption, what a change makes again."""
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from portrait_diffusion.errors import PortraitError, UsageError
from portrait_diffusion.export.bake import BakeConfig
from portrait_diffusion.export.bundle import CACHE_DIR, PROBE_SIZE, ExportConfig, PhotoInfo, export_all
from portrait_diffusion.export.fields import FieldFns
from portrait_diffusion.export.glb import read_glb
from portrait_diffusion.export.mesh import MeshConfig
from portrait_diffusion.export.video import TurntableConfig
from portrait_diffusion.ops.cameras import orbit_c2w

from .fixtures import head_field, position_colour, volume_render_fn

SIZE, FRAMES = 20, 8
ALL = ["glb", "ply", "views", "turntable", "share", "provenance", "report"]
FILES = {
    "portrait.glb", "portrait.ply", "turntable.mp4", "views", "share.yaml", "provenance.json", "report.html",
    "export.json",
}  # fmt: skip


class CountingRender:
    """The volume renderer; counts full-size renders and can be interrupted after some."""

    def __init__(self, stop_after=None):
        self.inner, self.count, self.stop_after = volume_render_fn(head_field(), samples=32), 0, stop_after

    def __call__(self, c2w, fovy, height, width):
        if height != PROBE_SIZE:
            if self.count == self.stop_after:
                raise KeyboardInterrupt
            self.count += 1
        return self.inner(c2w, fovy, height, width)


def config(**turntable):
    return ExportConfig(
        render_size=SIZE, view_azimuths_deg=[0, 90, 180, -90], view_elevations_deg=[0, 20],
        mesh=MeshConfig(resolution=32, target_faces=600), bake=BakeConfig(texture_size=64),
        turntable=TurntableConfig(frames=FRAMES, height=32, **turntable),
    )  # fmt: skip


def photo():
    rgb = np.linspace(0, 1, 24 * 24 * 3).reshape(24, 24, 3)
    return PhotoInfo("me & <you>.jpg", "ab" * 32, rgb, np.ones((24, 24, 1)), np.ones((24, 24, 1)), ["It is small."])


def export(folder, render=None, field=None, curve=((0, 1.0), (1, 0.5)), settings=None, **more):
    return export_all(
        folder, render or CountingRender(), field or head_field(), photo(), {"loss": list(curve)},
        {"lr": 0.1, "seed": 3}, config=settings or config(), overrides=["lr=0.2"], metrics={"PSNR": 20.0},
        seeds={"torch": 3}, command=["portrait", "me.jpg"], **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    render, events = CountingRender(), []
    result = export(folder, render, progress=lambda *event: events.append(event))
    return folder, result, render, events


def test_everything_is_written(finished):
    folder, result, render, events = finished
    assert {p.name for p in folder.iterdir()} == FILES and result.made == ALL
    names = {p.name for p in (folder / "views").iterdir()}
    assert names == {f"az{a}_el{e}.png" for a in ("+000", "+090", "+180", "-090") for e in ("+00", "+20")}
    with Image.open(folder / "views" / "az+000_el+00.png") as image:
        assert image.mode == "RGBA" and image.size == (SIZE, SIZE)
    assert render.count == FRAMES + 4  # the views at elevation 0 are turntable frames, and the front one is the match
    assert len(read_glb(folder / "portrait.glb").faces) == result.mesh["faces"] <= 600
    assert result.mesh["watertight"] and result.mesh["iso_level"] > 0
    assert yaml.safe_load((folder / "share.yaml").read_text()) == {"lr": 0.2, "seed": 3}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["seeds"] == {"torch": 3} and provenance["photo"]["sha256"] == "ab" * 32
    assert provenance["timings_s"]["export.turntable"] > 0
    page = (folder / "report.html").read_text()
    assert "me &amp; &lt;you&gt;.jpg" in page and "It is small." in page and "<you>" not in page
    assert set(result.files) == set(ALL) and all(p.is_file() for paths in result.files.values() for p in paths)
    assert ("turntable", FRAMES, FRAMES) in events and ("views", 8, 8) in events and events[-1] == ("report", 1, 1)
    assert [s for i, (s, *_) in enumerate(events) if i == 0 or events[i - 1][0] != s] == ["mesh", *ALL]


def test_a_second_run_makes_nothing(finished):
    folder, _, _, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    render = CountingRender()
    assert export(folder, render).made == [] and render.count == 0
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_only_what_changed_is_made_again(finished):
    folder, _, _, _ = finished
    (folder / "portrait.ply").unlink()
    assert export(folder).made == ["ply"]
    (folder / "views" / "az+090_el+20.png").write_bytes(b"damaged")
    assert export(folder).made == ["views"]
    assert export(folder, curve=((0, 2.0),)).made == ["provenance", "report"]
    assert "turntable" in export(folder, settings=config(fps=8), curve=((0, 2.0),)).made
    other = FieldFns(head_field().density, position_colour)
    assert {"glb", "ply", "views", "turntable", "report"} <= set(export(folder, field=other, curve=((0, 2.0),)).made)
    (folder / "export.json").write_text("{ damaged")
    assert export(folder).made == ALL


def test_an_interrupted_export_leaves_no_half_files_and_continues(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, CountingRender(stop_after=10))  # 8 views, then the turntable's third new frame
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"portrait.glb", "portrait.ply", "views", "export.json", CACHE_DIR}
    assert not [p for p in tmp_path.rglob("*") if ".partial" in p.name]
    (tmp_path / ".partial-1-turntable.mp4").write_bytes(b"from a killed process")
    render = CountingRender()
    result = export(tmp_path, render)
    assert result.made == ["turntable", "share", "provenance", "report"]
    assert render.count == FRAMES + 4 - 10
    assert {p.name for p in tmp_path.iterdir()} == FILES


def test_the_turntable_can_film_the_mesh(tmp_path):
    render = CountingRender()
    result = export(tmp_path, render, settings=config(source="mesh"))
    assert render.count == 8  # views only
    assert "turntable" in result.made and (tmp_path / "turntable.mp4").stat().st_size > 500


def test_a_ready_match_is_used_and_a_camera_is_rendered(tmp_path):
    render = CountingRender()
    given = photo()
    given.match = np.zeros((8, 8, 3))
    settings = config(source="mesh")
    export_all(tmp_path / "a", render, head_field(), given, {}, {}, config=settings)
    assert render.count == 8
    posed = photo()
    posed.c2w = orbit_c2w(10.0, 5.0)
    export_all(tmp_path / "b", render, head_field(), posed, {}, {}, config=settings)
    assert render.count == 8 + 8 + 1


def test_an_empty_field_is_one_clear_sentence_and_leaves_nothing(tmp_path):
    empty = FieldFns(lambda p: 0 * p[:, :1], position_colour)
    with pytest.raises(PortraitError, match="field is empty"):
        export_all(tmp_path, volume_render_fn(empty, 8), empty, None, {}, {}, config=config())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_without_a_photo(tmp_path):
    export_all(tmp_path, CountingRender(), head_field(), None, {}, {}, config=config(source="mesh"))
    assert "without a photo" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("bad", [{"render_size": 2}, {"view_azimuths_deg": []}, {"points_per_call": 0}])
def test_bad_settings_are_usage_errors(bad):
    with pytest.raises(UsageError, match="export."):
        ExportConfig(**bad)
