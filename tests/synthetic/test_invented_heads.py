"""Whole portraits of invented heads (`invented.py`) in software: neither assets nor a head basis nor OpenGL needed."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from portrait_diffusion import cli
from portrait_diffusion.multiview import DEPTH_SCALE
from portrait_diffusion.ops.canonical import BOX_RADIUS, CANONICAL_LANDMARKS_CROP, CANONICAL_LANDMARKS_HEAD
from portrait_diffusion.synthetic import dataset
from portrait_diffusion.synthetic.assets import TEST_ONLY, VAL_ONLY, find_assets
from portrait_diffusion.synthetic.cameras import HEAD_TO_WORLD, Camera
from portrait_diffusion.synthetic.dataset import DatasetSpec
from portrait_diffusion.synthetic.heads import load_head_basis
from portrait_diffusion.synthetic.normalise import normalise_head
from portrait_diffusion.synthetic.parts import LABELS
from portrait_diffusion.synthetic.raster_soft import SoftRasterizer
from portrait_diffusion.synthetic.sampling import sample_subject
from portrait_diffusion.synthetic.scene import SceneBuilder
from portrait_diffusion.synthetic.subjects import Beard, Glasses, canonical_lighting
from portrait_diffusion.synthetic.views import landmark_visibility

from synthetic.invented import DECIMETRES, MISSING, ORIGIN, InventedHead

SIZE = 40
MEAN = {"gender": 0.5, "age": 2 / 3, "muscle": 0.5, "weight": 0.5, "african": 1.0, "asian": 1.0, "caucasian": 1.0}
GLASSES = Glasses(2.5, 0.045, 0.03, 0.006, (0.1, 0.1, 0.1), (0.8, 0.85, 0.88), 0.05)
FIELDS = {"skins": "skin", "hair": "hair", "eyebrows": "eyebrow", "eyelashes": "eyelash", "iris": "iris"}
FIELDS |= {"clothes": "clothes"}


@pytest.fixture(scope="module")
def basis(invented_basis_file):
    return load_head_basis(invented_basis_file)


@pytest.fixture(scope="module")
def assets(invented_root):
    return find_assets(invented_root)


@pytest.fixture(scope="module")
def builder(basis, assets):
    return SceneBuilder(basis, assets)


@pytest.fixture(scope="module")
def subject(basis, assets):
    """One with hair and glasses, so that every label is drawn, in even light."""
    drawn = sample_subject(11, "train", 0, basis, assets)
    worn = {"hair": "short04", "clothes": "male_casualsuit01", "glasses": GLASSES, "beard": Beard()}
    return replace(drawn, lighting=canonical_lighting(), **worn)


@pytest.fixture(scope="module")
def scene(builder, subject):
    return builder.build(subject)


@pytest.fixture(scope="module")
def views(scene):
    raster = SoftRasterizer(SIZE, 2)
    raster.upload(scene)
    return [raster.render(camera) for camera in (Camera(), Camera(50, 10), Camera(180, -5))]


def test_files_hold_what_was_invented(basis, assets):
    head = InventedHead()
    mean = basis.evaluate(MEAN)
    assert np.allclose((mean - ORIGIN) / DECIMETRES, head.vertices, atol=1e-5) and 300 < len(mean) < 600
    lookup = basis.lookup()
    assert lookup[MISSING] == -1
    for kind in ("hair", "eyebrows", "eyelashes", "eyes", "clothes"):
        for name in assets.names(kind):
            whole = assets.asset(kind, name)
            part = whole.restricted(lookup)
            with np.load(assets.root / kind / f"{name}.npz") as arrays:
                there = (lookup[arrays["ref_idx"]] >= 0).all(1)
                assert np.allclose(part.fit(mean), arrays["verts"][there], atol=1e-4), "an asset sits where it was made"
            assert (len(part.faces) < len(whole.faces)) == (kind == "clothes")


def test_a_scene_follows_from_seed_and_subject(basis, builder, invented_root):
    def build(seed, index, builder):
        return builder.build(sample_subject(seed, "train", index, basis, builder.assets))

    first = build(5, 2, builder)
    again = build(5, 2, SceneBuilder(basis, find_assets(invented_root)))  # which has built no other before
    assert [part.name for part in first.parts] == [part.name for part in again.parts]
    for a, b in zip(first.parts, again.parts):
        for name in ("positions", "normals", "uvs", "faces", "light", "sheen", "tint"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), (a.name, name)
    assert first.textures.keys() == again.textures.keys() and first.exposure == again.exposure
    assert all(np.array_equal(first.textures[key], again.textures[key]) for key in first.textures)
    for seed, index in ((6, 2), (5, 3)):
        other = build(seed, index, builder)
        assert not np.array_equal(other.parts[0].positions, first.parts[0].positions)
        assert not np.array_equal(other.textures["skin_head"], first.textures["skin_head"])


def test_landmarks_are_canonical(basis, assets):
    for size in (1 / 3, 2 / 3, 1.0):  # age is nothing but size here, and size is normalised away
        body = basis.evaluate({**MEAN, "age": size})
        head, _, _ = normalise_head(body, body[basis.landmark_index])
        assert np.abs(head[basis.landmark_index[[0, 1, 3, 4]]] - CANONICAL_LANDMARKS_HEAD).max() < 1e-4
    for index in range(20):
        drawn = sample_subject(1, "train", index, basis, assets)
        body = basis.evaluate(drawn.phenotypes, drawn.local_changes, drawn.expression)
        head, _, _ = normalise_head(body, body[basis.landmark_index])
        found = head[basis.landmark_index[[0, 1, 3, 4]]]
        assert np.abs(found.mean(0) - CANONICAL_LANDMARKS_HEAD.mean(0)).max() < 1e-5
        assert 1e-4 < np.abs(found - CANONICAL_LANDMARKS_HEAD).max() < 0.02


def test_landmarks_are_drawn_where_they_are(scene, views):
    assert np.abs(scene.landmarks[[0, 1, 3, 4]] - CANONICAL_LANDMARKS_HEAD).max() < 0.02
    front, _, behind = views
    pixels = front.camera.project(scene.landmarks, SIZE)
    assert np.abs(pixels[[0, 1, 3, 4]] / SIZE - CANONICAL_LANDMARKS_CROP).max() < 0.02
    x, y = np.floor(pixels).astype(int).T
    assert front.label[y, x].tolist() == [LABELS["eyes"]] * 2 + [LABELS["skin"]] * 3
    origin, directions = front.camera.rays(SIZE)
    hit = origin + front.depth[y, x, None] * directions[y, x]
    assert np.abs(hit - scene.landmarks).max() < 0.02
    assert landmark_visibility(front, scene.landmarks, pixels).all()
    assert not landmark_visibility(behind, scene.landmarks, behind.camera.project(scene.landmarks, SIZE)).any()


def test_alpha_label_depth_and_normal_agree(views):
    for view in views:
        hit, alpha = view.label > 0, view.rgba[..., 3]
        assert 0.2 < hit.mean() < 0.9 and ((view.depth > 0) == hit).all()
        assert (alpha[hit] >= 255 // 4).all()  # one of the 2x2 samples at least
        assert hit[alpha > 250].mean() > 0.999
        assert not alpha[:2].any() and not alpha[-SIZE // 2 :, 0].any() and alpha[SIZE // 2, SIZE // 2] == 255
        assert np.allclose(np.linalg.norm(view.normal[hit], axis=-1), 1, atol=1e-3) and not view.normal[~hit].any()
        origin, directions = view.camera.rays(SIZE)
        points = origin + view.depth[hit][:, None] * directions[hit]
        assert np.hypot(points[:, 0], points[:, 2]).max() < BOX_RADIUS + 0.01
        assert np.abs(points[:, 1]).max() < BOX_RADIUS + 0.01
        facing = (view.normal[hit] @ HEAD_TO_WORLD[:3, :3] * directions[hit]).sum(-1)
        assert (facing < 0.1).all()
    assert set(np.unique(views[0].label)) == set(LABELS.values())
    assert not {LABELS["eyes"], LABELS["brows"]} & set(np.unique(views[2].label)), "no face behind"


def test_what_one_view_sees_no_other_sees_through(views):
    one, other, _ = views
    hit = one.rgba[..., 3] == 255
    origin, directions = one.camera.rays(SIZE)
    points = origin + one.depth[hit][:, None] * directions[hit]
    points = points[points[:, 1] > -0.25]  # of the head, which the other view has whole
    x, y = np.floor(other.camera.project(points, SIZE)).astype(int).T
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    near = np.max([np.roll(other.label > 0, step, (0, 1)) for step in steps], axis=0)
    assert near[y, x].all(), "to a pixel, all of it lies within the other's outline"
    seen = other.depth[y, x]
    gap = (np.linalg.norm(points - other.camera.position_head(), axis=1) - seen)[seen > 0]
    assert np.percentile(gap, 5) > -0.03, "nothing is seen behind it"
    assert (np.abs(gap) < 0.02).mean() > 0.5, "most of it is seen, 50 degrees on"


def test_splits_wear_different_assets(basis, assets):
    people = {split: [sample_subject(3, split, k, basis, assets) for k in range(40)] for split in dataset.SPLITS}
    for kind, field in FIELDS.items():
        train, val, test = (
            {getattr(person, field) for person in people[split]} & set(assets.names(kind)) for split in dataset.SPLITS
        )
        assert train and val and test and not train & test and not val & test, kind
        assert test <= set(TEST_ONLY[kind])
        if kind in VAL_ONLY:
            assert not train & val and val <= set(VAL_ONLY[kind])
    assert not {str(person.phenotypes) for person in people["train"]} & {str(p.phenotypes) for p in people["test"]}


def test_command_keeps_the_promises_of_its_manifest_and_repeats_bit_for_bit(
    tmp_path, monkeypatch, basis, assets, invented_basis_file, invented_root
):
    def render():
        monkeypatch.setattr(dataset, "_RENDERER", {})  # as a new process would begin
        words = ["render-dataset", str(tmp_path), "--split", "test", "--subjects", "2", "--views", "2", "--size", "24"]
        words += ["--shard-size", "1", "--supersample", "1", "--seed", "4", "--backend", "soft"]
        words += ["--extras", "label", "depth", "normal"]
        assert cli.main([*words, "--basis", str(invented_basis_file), "--assets", str(invented_root)]) == 0
        return json.loads((tmp_path / "manifest_test.json").read_text())

    manifest = render()
    spec = DatasetSpec("test", 2, 2, 24, 4, 1, 1, extras=("depth", "label", "normal"))
    assert manifest["complete"] and manifest["spec"] == json.loads(json.dumps(asdict(spec)))
    assert manifest["digest"] == spec.digest(invented_basis_file)
    files = [tmp_path / name for name in manifest["shards"]]
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "manifest_test.json", *files]) and len(files) == 2
    for index, file in enumerate(files):
        with np.load(file, allow_pickle=False) as shard:
            check_shard(shard, index, sample_subject(4, "test", index, basis, assets))
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    files[1].unlink()
    assert render() == manifest
    assert (files[0].read_bytes(), files[0].stat().st_mtime_ns) == before[0], "what is there is kept"
    assert files[1].read_bytes() == before[1][0], "what is made again is the same"


def check_shard(shard, index: int, subject) -> None:
    """One subject, two views of 24 pixels, as the text at the top of ``dataset.py`` says."""
    expected = {
        "rgba": ((1, 2, 24, 24, 4), np.uint8), "camera": ((1, 2, 4), np.float32), "target": ((1, 2, 3), np.float32),
        "c2w": ((1, 2, 4, 4), np.float32), "landmarks": ((1, 5, 3), np.float32),
        "landmarks_px": ((1, 2, 5, 2), np.float32), "landmarks_visible": ((1, 2, 5), bool),
        "subject_index": ((1,), np.int64), "label": ((1, 2, 24, 24), np.uint8), "depth": ((1, 2, 24, 24), np.int16),
        "normal": ((1, 2, 24, 24, 3), np.int8),
    }  # fmt: skip
    assert {name: (shard[name].shape, shard[name].dtype) for name in shard.files if name != "subjects"} == expected
    assert json.loads(str(shard["subjects"])) == json.loads(json.dumps([subject.to_dict()]))
    assert shard["subject_index"].tolist() == [index]
    for k in range(2):
        azimuth, elevation, distance, fovy = (float(v) for v in shard["camera"][0, k])
        camera = Camera(azimuth, elevation, distance, fovy, tuple(shard["target"][0, k].tolist()))
        assert np.allclose(camera.c2w(), shard["c2w"][0, k], atol=1e-5)
        assert np.allclose(camera.project(shard["landmarks"][0], 24), shard["landmarks_px"][0, k], atol=1e-3)
        hit = shard["label"][0, k] > 0
        assert ((shard["depth"][0, k] > 0) == hit).all() and (shard["normal"][0, k].any(-1) == hit).all()
        assert (shard["rgba"][0, k, ..., 3][hit] > 0).all() and 0.2 < hit.mean() < 0.9
        depth = shard["depth"][0, k] / DEPTH_SCALE
        assert 2.7 - 0.52 < depth[hit].min() and depth[hit].max() < 2.7 + 0.52
