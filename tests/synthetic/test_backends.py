"""Which rasteriser draws: OpenGL, the software one, or what there is."""

import logging
import sys

import numpy as np
import pytest
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.synthetic import dataset
from portrait_diffusion.synthetic.cameras import Camera
from portrait_diffusion.synthetic.dataset import DatasetSpec, ShardRenderer, main, open_rasterizer, render_dataset
from portrait_diffusion.synthetic.raster_soft import SoftRasterizer

from synthetic.conftest import quad, scene_of

REASON = "No headless OpenGL 3.3 could be opened through EGL (nothing here)."


class FakeGL:
    """A context that opens, as far as anyone asks."""

    opened: list = []

    def __init__(self, size, supersample):
        self.open = True
        FakeGL.opened.append(self)

    def release(self):
        self.open = False


@pytest.fixture
def no_gl(monkeypatch):
    def fail(*args):
        raise EnvironmentProblem(REASON)

    monkeypatch.setattr(dataset, "GLRasterizer", fail)


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_auto_draws_in_software_where_opengl_fails_and_says_why(no_gl, invented_basis_file, invented_root, caplog):
    spec = DatasetSpec("train", 1, 1, 8, 0, supersample=1)
    renderer = ShardRenderer(spec, str(invented_root), str(invented_basis_file))
    assert isinstance(renderer.rasterizer, SoftRasterizer)
    (told,) = warnings_of(caplog)
    assert "software rasteriser" in told and "slower than OpenGL" in told and told.endswith(REASON)


def test_an_explicit_choice_is_kept(no_gl, caplog):
    with pytest.raises(EnvironmentProblem) as told:
        open_rasterizer("gl", 8, 1)
    assert str(told.value).startswith(REASON) and "--backend soft" in str(told.value)
    assert isinstance(open_rasterizer("soft", 8, 1), SoftRasterizer) and not warnings_of(caplog)
    with pytest.raises(UsageError, match="auto, gl, soft, not 'metal'"):
        open_rasterizer("metal", 8, 1)


def test_auto_prefers_opengl_and_closes_what_it_tried(monkeypatch, caplog):
    monkeypatch.setattr(dataset, "GLRasterizer", FakeGL)
    FakeGL.opened = []
    assert isinstance(open_rasterizer("auto", 8, 1), FakeGL) and FakeGL.opened.pop().open
    assert dataset.settle_backend("auto") == "gl"
    assert [tried.open for tried in FakeGL.opened] == [False] and not warnings_of(caplog)


def test_auto_does_without_the_package_moderngl(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "moderngl", None)
    assert isinstance(open_rasterizer("auto", 8, 1), SoftRasterizer)
    assert "pip install 'moderngl'" in warnings_of(caplog)[0]


def test_auto_with_real_opengl(gl_rasterizer, caplog):
    gl_rasterizer(8).release()
    assert dataset.settle_backend("auto") == "gl" and not warnings_of(caplog)


def test_workers_are_told_what_auto_came_to(tmp_path, monkeypatch, no_gl, invented_basis_file, invented_root, caplog):
    jobs = []
    monkeypatch.setattr(dataset, "_run", lambda work, count: jobs.extend(work) or ())
    arguments = dict(split="train", n_subjects=3, views_per_subject=1, size=8, shard_size=1, workers=3)
    render_dataset(tmp_path, assets=str(invented_root), basis=invented_basis_file, **arguments)
    assert [job[3] for job in jobs] == ["soft"] * 3 and len(warnings_of(caplog)) == 1
    for job in jobs:
        (tmp_path / job[4]).touch()
    render_dataset(tmp_path, assets=str(invented_root), basis=invented_basis_file, **arguments)
    assert len(warnings_of(caplog)) == 1, "nothing is opened when nothing is left to render"


def test_opengl_rasterisers_do_not_disturb_one_another(gl_rasterizer):
    def scene(z, label):
        square = quad((0.05, 0, z), 0.2, label=label, texture="own")
        return scene_of(square, textures={"own": np.full((4, 4, 4), 200, np.uint8)})

    first = gl_rasterizer(16)
    first.upload(scene(0.1, 2))
    before = first.render(Camera())
    second = gl_rasterizer(16)
    second.upload(scene(-0.1, 5))
    between = second.render(Camera())
    assert set(np.unique(between.label)) == {0, 5}
    for _ in range(2):
        after = first.render(Camera())
        for name in ("rgba", "depth", "normal", "label"):
            assert np.array_equal(getattr(before, name), getattr(after, name))
        first.upload(scene(0.1, 2))
        dataset.settle_backend("auto")  # opens a third one and releases it
    assert np.array_equal(second.render(Camera()).rgba, between.rgba)
    second.release()
    assert np.array_equal(first.render(Camera()).rgba, before.rgba)


def test_command_that_insists_on_opengl_names_the_way_out(
    tmp_path, monkeypatch, no_gl, invented_basis_file, invented_root, caplog
):
    monkeypatch.setattr(dataset, "_RENDERER", {})
    words = [str(tmp_path), "--subjects", "1", "--views", "1", "--size", "8", "--supersample", "1"]
    words += ["--basis", str(invented_basis_file), "--assets", str(invented_root)]
    assert main([*words, "--backend", "gl"]) == 3
    assert "--backend soft" in caplog.text and not list(tmp_path.glob("*.npz"))
    assert main(words) == 0, "the default draws all the same"
    assert len(warnings_of(caplog)) == 1
    with np.load(tmp_path / "train_00000.npz", allow_pickle=False) as shard:
        assert 0.2 < (shard["rgba"][..., 3] > 128).mean() < 0.9
