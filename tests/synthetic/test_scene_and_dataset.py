"""Whole portraits (these need the asset pack and a head basis) and the data set command."""

import json
from dataclasses import replace

import numpy as np
import pytest
from portrait_diffusion.errors import UsageError
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_CROP, CANONICAL_LANDMARKS_HEAD
from portrait_diffusion.synthetic import dataset
from portrait_diffusion.synthetic.cameras import Camera
from portrait_diffusion.synthetic.dataset import DatasetSpec, main, render_dataset
from portrait_diffusion.synthetic.raster_soft import SoftRasterizer
from portrait_diffusion.synthetic.sampling import sample_subject
from portrait_diffusion.synthetic.views import evaluation_cameras, landmark_visibility, training_cameras


@pytest.fixture(scope="module")
def subject(basis, assets):
    subject = sample_subject(11, "train", 0, basis, assets)
    return replace(subject, hair="short04", glasses=None, clothes="male_casualsuit03")


@pytest.fixture(scope="module")
def scene(builder, subject):
    return builder.build(subject)


def test_building_is_deterministic(builder, subject, scene):
    again = builder.build(subject)
    for a, b in zip(scene.parts, again.parts):
        assert np.array_equal(a.positions, b.positions) and np.array_equal(a.light, b.light)
    assert all(np.array_equal(scene.textures[key], again.textures[key]) for key in scene.textures)


def test_landmarks_are_canonical_and_reproject_with_their_depth(scene, gl_rasterizer):
    assert np.abs(scene.landmarks[[0, 1, 3, 4]] - CANONICAL_LANDMARKS_HEAD).max() < 0.02
    size = 256
    raster = gl_rasterizer(size)
    raster.upload(scene)
    for camera in (Camera(), Camera(15, 5), Camera(-20, -8)):
        view = raster.render(camera)
        pixels = camera.project(scene.landmarks, size)
        origin, directions = camera.rays(size)
        visible = landmark_visibility(view, scene.landmarks, pixels)
        assert visible[2:].all()  # nose tip and mouth corners
        for k in (2, 3, 4):
            x, y = np.floor(pixels[k]).astype(int)
            assert np.linalg.norm(origin + view.depth[y, x] * directions[y, x] - scene.landmarks[k]) < 0.02
    frontal = Camera().project(scene.landmarks[[0, 1, 3, 4]], 1)
    assert np.abs(frontal - CANONICAL_LANDMARKS_CROP).max() < 0.02
    behind = raster.render(Camera(180, 0))
    assert not landmark_visibility(behind, scene.landmarks, Camera(180, 0).project(scene.landmarks, size)).any()


def test_alpha_and_labels_agree(scene, gl_rasterizer):
    raster = gl_rasterizer(96)
    raster.upload(scene)
    for azimuth in (0, 60, 180):
        view = raster.render(Camera(azimuth, 5))
        hit = view.label > 0
        assert (view.rgba[..., 3][hit] >= 255 // 4).all()  # one of the 2x2 samples at least
        assert hit[view.rgba[..., 3] > 250].mean() > 0.999
        assert ((view.depth > 0) == hit).all() and np.allclose(np.linalg.norm(view.normal[hit], axis=-1), 1, atol=1e-3)
        assert 2.7 - 0.52 < view.depth[hit].min() and view.depth[hit].max() < 2.7 + 0.52
        ray = Camera(azimuth, 5)
        _, directions = ray.rays(96)
        towards = (view.normal @ np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]) * directions).sum(-1)
        assert (towards[hit] < 0.1).all()  # normals face the viewer
    labels = set(np.unique(raster.render(Camera()).label))
    assert {0, 1, 2, 4, 5} <= labels


def test_gl_and_software_agree_on_a_portrait(scene, gl_rasterizer):
    exact, soft = gl_rasterizer(40), SoftRasterizer(40)
    exact.upload(scene)
    soft.upload(scene)
    a, b = exact.render(Camera(25, 10)), soft.render(Camera(25, 10))
    difference = np.abs(a.over() - b.over())
    assert difference.mean() < 2 / 255 and np.percentile(difference, 99) < 12 / 255
    assert (a.label == b.label).mean() > 0.99


def test_shading_is_the_same_from_every_view(scene, gl_rasterizer):
    """A point of the face keeps its colour when the camera moves: baked light only."""
    size = 256
    raster = gl_rasterizer(size, 3)
    raster.upload(scene)
    face = next(part for part in scene.parts if part.name == "face")
    front = face.positions[
        (face.normals[:, 2] > 0.9)
        & (np.abs(face.positions[:, 0]) > 0.05)
        & (face.positions[:, 1] < 0)
        & (face.positions[:, 1] > -0.08)
    ]
    colours = []
    for camera in (Camera(), Camera(12, 0), Camera(0, 12)):
        view = raster.render(camera)
        x, y = np.floor(camera.project(front, size)).astype(int).T
        colours.append(view.over()[y, x])
    assert np.median(np.abs(colours[0] - colours[1])) < 0.02 and np.median(np.abs(colours[0] - colours[2])) < 0.02


def test_training_cameras_follow_their_distribution():
    cameras = [training_cameras(np.random.default_rng(k), 9) for k in range(200)]
    first = np.array([[c[0].azimuth_deg, c[0].elevation_deg] for c in cameras])
    assert np.abs(first[:, 0]).max() <= 20 and np.abs(first[:, 1]).max() <= 12
    around = np.array([c[k].azimuth_deg for c in cameras for k in (1, 3, 5, 7)])
    frontal = np.array([c[k].azimuth_deg for c in cameras for k in (2, 4, 6, 8)])
    assert np.abs(frontal).max() <= 35 and np.abs(around).max() > 170
    assert abs((np.abs(around) > 90).mean() - 0.5) < 4 * np.sqrt(0.25 / len(around))
    elevation = np.array([c[k].elevation_deg for c in cameras for k in range(1, 9)])
    assert elevation.min() >= -20 and elevation.max() <= 30
    with pytest.raises(UsageError, match="fixed views"):
        evaluation_cameras(99)
    assert evaluation_cameras(1)[0] == Camera(0.0, 0.0)


def test_digest_changes_with_every_argument(tmp_path):
    spec = DatasetSpec("train", 2, 3, 16, 0)
    changed = [
        replace(spec, split="test"),
        replace(spec, n_subjects=3),
        replace(spec, size=17),
        replace(spec, seed=1),
        replace(spec, extras=("depth",)),
    ]
    assert len({s.digest() for s in [spec, *changed]}) == 6
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert spec.digest(tmp_path / "a") != spec.digest(tmp_path / "b")


class FakeRenderer:
    """Stands in for the renderer, to test the bookkeeping without assets."""

    rendered: list = []

    def __init__(self, *args):
        pass

    def render(self, indices):
        FakeRenderer.rendered.append(list(indices))
        return {"subject_index": np.array(list(indices))}, [{"index": k} for k in indices]


def test_resume_renders_only_missing_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "ShardRenderer", FakeRenderer)
    monkeypatch.setattr(dataset, "find_assets", lambda root: type("Pack", (), {"root": "somewhere"}))
    monkeypatch.setattr(dataset, "load_head_basis", lambda path: None)
    monkeypatch.setattr(dataset, "_RENDERER", {})
    FakeRenderer.rendered = []
    basis = tmp_path / "basis.npz"
    basis.write_bytes(b"basis")
    arguments = dict(split="train", n_subjects=7, views_per_subject=2, size=8, assets="x", basis=basis, shard_size=3)
    manifest = render_dataset(tmp_path / "out", **arguments)
    assert FakeRenderer.rendered == [[0, 1, 2], [3, 4, 5], [6]]
    listed = json.loads(manifest.read_text())
    assert listed["complete"] and listed["shards"] == [f"train_{k:05d}.npz" for k in range(3)]
    (tmp_path / "out" / "train_00001.npz").unlink()
    FakeRenderer.rendered = []
    render_dataset(tmp_path / "out", **arguments)
    assert FakeRenderer.rendered == [[3, 4, 5]] and not list((tmp_path / "out").glob(".partial-*"))
    with pytest.raises(UsageError, match="other arguments"):
        render_dataset(tmp_path / "out", **{**arguments, "size": 9})


@pytest.mark.parametrize(
    "change,message",
    [
        ({"split": "dev"}, "split"),
        ({"size": 0}, "at least 1"),
        ({"sampling": "random"}, "sampling"),
        ({"extras": ["flow"]}, "extras"),
        ({"basis": None}, "head basis"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    arguments = dict(split="train", n_subjects=1, views_per_subject=1, size=8, basis="b.npz") | change
    with pytest.raises(UsageError, match=message):
        render_dataset(tmp_path, **arguments)


def test_command_without_assets_says_what_is_missing(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("PORTRAIT_DIFFUSION_ASSETS", raising=False)
    assert main([str(tmp_path / "out"), "--subjects", "1", "--basis", "none.npz"]) == 3
    assert "asset pack" in caplog.text


def test_command_writes_what_it_promises(tmp_path, assets_root, basis_file, gl_rasterizer):
    gl_rasterizer(8).release()
    command = [
        str(tmp_path),
        "--split",
        "test",
        "--subjects",
        "2",
        "--views",
        "3",
        "--size",
        "32",
        "--assets",
        str(assets_root),
        "--basis",
        str(basis_file),
        "--shard-size",
        "1",
        "--supersample",
        "2",
        "--extras",
        "label",
        "depth",
        "normal",
    ]
    assert main(command) == 0
    with np.load(tmp_path / "test_00001.npz", allow_pickle=False) as shard:
        assert shard["rgba"].shape == (1, 3, 32, 32, 4) and shard["rgba"].dtype == np.uint8
        assert (
            shard["camera"].shape == (1, 3, 4)
            and shard["c2w"].shape == (1, 3, 4, 4)
            and shard["camera"].dtype == np.float32
        )
        assert (
            shard["landmarks"].shape == (1, 5, 3)
            and shard["landmarks_px"].shape == (1, 3, 5, 2)
            and shard["landmarks_visible"].dtype == bool
        )
        assert (
            shard["label"].shape == (1, 3, 32, 32)
            and shard["depth"].dtype == np.int16
            and shard["normal"].dtype == np.int8
        )
        assert shard["subject_index"].tolist() == [1] and json.loads(str(shard["subjects"]))[0]["index"] == 1
        coverage = (shard["rgba"][..., 3] > 128).mean()
        assert 0.2 < coverage < 0.9
        first = shard["rgba"].copy()
    (tmp_path / "test_00001.npz").unlink()
    assert main(command) == 0
    with np.load(tmp_path / "test_00001.npz", allow_pickle=False) as shard:
        assert np.array_equal(shard["rgba"], first)  # the same bytes again
