"""Subjects: determinism, splits, statistics."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.synthetic import assets
from portrait_diffusion.synthetic.assets import TEST_ONLY, VAL_ONLY, FittedAsset, allowed, find_assets
from portrait_diffusion.synthetic.sampling import sample_subject

NAMES = {
    "skins": [
        "young_asian_male_0",
        "young_caucasian_male_0",
        "young_caucasian_female_0",
        "middleage_african_female_0",
        *TEST_ONLY["skins"],
        *VAL_ONLY["skins"],
    ],
    "hair": ["long01", "short01", *TEST_ONLY["hair"]],
    "eyebrows": ["eyebrow001", *TEST_ONLY["eyebrows"], *VAL_ONLY["eyebrows"]],
    "eyelashes": ["eyelashes01", *TEST_ONLY["eyelashes"]],
    "iris": ["brown_eye", *TEST_ONLY["iris"], *VAL_ONLY["iris"]],
    "clothes": ["male_casualsuit01", "female_casualsuit01", *TEST_ONLY["clothes"]],
}
#: Stand-ins that need neither assets nor a head basis.
PACK = SimpleNamespace(names=lambda kind, split: [name for name in NAMES[kind] if allowed(kind, name, split)])
LABELS = SimpleNamespace(local_labels=("nose-hump-incr", "l-eye-scale-incr", "r-eye-scale-incr"))
CHOSEN = {
    "skin": "skins",
    "hair": "hair",
    "eyebrow": "eyebrows",
    "eyelash": "eyelashes",
    "iris": "iris",
    "clothes": "clothes",
}


def draw(split, count, seed=3):
    return [sample_subject(seed, split, k, LABELS, PACK) for k in range(count)]


def test_same_arguments_same_subject_and_any_change_another():
    subject = sample_subject(1, "train", 5, LABELS, PACK)
    assert subject == sample_subject(1, "train", 5, LABELS, PACK)
    for other in (
        sample_subject(2, "train", 5, LABELS, PACK),
        sample_subject(1, "train", 6, LABELS, PACK),
        sample_subject(1, "val", 5, LABELS, PACK),
    ):
        assert other.phenotypes != subject.phenotypes
    assert np.array_equal(subject.rng(1).random(4), subject.rng(1).random(4)) and not np.array_equal(
        subject.rng(1).random(4), subject.rng(2).random(4)
    )


def test_splits_share_no_asset_where_assets_are_reserved():
    worn = {
        split: {field: {getattr(s, field) for s in draw(split, 80)} for field in CHOSEN}
        for split in ("train", "val", "test")
    }
    for field, kind in CHOSEN.items():
        procedural = {"bald", "buzz", "bare"}
        train, val, test = (worn[split][field] - procedural for split in ("train", "val", "test"))
        assert not train & test and not val & test
        assert test <= set(TEST_ONLY[kind]) and test
        if kind in VAL_ONLY:
            assert val == set(VAL_ONLY[kind]) and not train & val


def test_reserved_lists_do_not_overlap_and_unknown_split_is_refused():
    for kind, names in VAL_ONLY.items():
        assert not set(names) & set(TEST_ONLY[kind])
    with pytest.raises(UsageError, match="split"):
        allowed("hair", "long01", "dev")
    with pytest.raises(UsageError, match="split"):
        sample_subject(0, "dev", 0, LABELS, PACK)


def test_variety_matches_its_odds():
    subjects = draw("train", 600)
    glasses = np.mean([s.glasses is not None for s in subjects])
    assert abs(glasses - 0.17) < 4 * np.sqrt(0.17 * 0.83 / 600)  # false alarms below 1 in 10,000
    males = [s for s in subjects if s.phenotypes["gender"] < 0.5]
    bearded = np.mean([s.beard.style != "none" for s in males])
    assert abs(bearded - 0.55) < 4 * np.sqrt(0.25 / len(males))
    assert all(s.beard.style == "none" for s in subjects if s.phenotypes["gender"] >= 0.5)
    brightness = np.array([np.mean(s.skin_srgb) for s in subjects])
    assert brightness.min() < 0.3 and brightness.max() > 0.75
    assert all(r > g > b for r, g, b in (s.skin_srgb for s in subjects))  # human skin: red above green above blue
    assert all(0 <= v <= 1 for s in subjects for v in (*s.hair_srgb, *s.clothes_srgb, *s.lips_srgb))


def test_description_is_json():
    assert json.loads(json.dumps(draw("test", 1)[0].to_dict()))["split"] == "test"


def test_missing_assets_are_explained(tmp_path, monkeypatch):
    monkeypatch.delenv("PORTRAIT_DIFFUSION_ASSETS", raising=False)
    with pytest.raises(EnvironmentProblem, match="PORTRAIT_DIFFUSION_ASSETS"):
        find_assets()
    with pytest.raises(EnvironmentProblem, match="MakeHuman CC0 asset pack laid out as folders skins, hair, eyebrows"):
        find_assets(tmp_path)
    monkeypatch.setenv("PORTRAIT_DIFFUSION_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(EnvironmentProblem, match="nowhere"):
        find_assets()


def test_missing_assets_tell_which_pack_to_get_and_that_it_must_be_converted(tmp_path):
    with pytest.raises(EnvironmentProblem) as told:
        find_assets(tmp_path)
    text = str(told.value)
    assert "'MakeHuman system assets' from https://static.makehumancommunity.org/" in text
    assert "no converter is shipped" in text and "NAME.npz" in text and "NAME.png" in text
    assert "docstring of portrait_diffusion.synthetic.assets " in text
    fields = set(FittedAsset.__dataclass_fields__)
    assert all(f"{name} (" in assets.__doc__ for name in fields), "the docstring has every array that is read"
    assert all(f"{kind}" in assets.__doc__ for kind in assets.KINDS)


def test_a_pack_without_reserved_assets_says_so(tmp_path):
    folder = tmp_path / "clothes"
    folder.mkdir()
    (folder / "male_casualsuit01.npz").touch()
    pack = assets.AssetPack(tmp_path)
    assert pack.names("clothes", "train") == ["male_casualsuit01"] and pack.names("skins", "test") == []
    with pytest.raises(EnvironmentProblem, match="none for the split 'test': reserved are male_casualsuit02"):
        pack.names("clothes", "test")


def test_fit_reproduces_the_formula_and_follows_the_body():
    base = np.random.default_rng(0).standard_normal((6, 3))
    asset = FittedAsset(
        np.array([[0, 1, 2], [3, 4, 5]]),
        np.array([[0.2, 0.3, 0.5], [1, 0, 0]]),
        np.array([[0.1, 0, 0], [0, 0.2, 0]]),
        np.array([[0, 1, 2.0], [0, 0, 0.0], [2, 3, 1.0]]),
        np.zeros((2, 2)),
        np.zeros((0, 3), int),
        np.zeros((0, 3), int),
    )
    s = abs(base[0, 0] - base[1, 0]) / 2.0
    expected = 0.2 * base[0] + 0.3 * base[1] + 0.5 * base[2] + [0.1 * s, 0, 0]
    assert np.allclose(asset.fit(base)[0], expected) and np.allclose(asset.fit(base)[1], base[3] + [0, 0.2, 0])
    assert np.allclose(
        asset.fit(2 * base), 2 * asset.fit(base) - np.array([[0, 0, 0], [0, 0.2, 0]])
    )  # y has no scale reference


def test_restricting_a_fit_drops_what_the_basis_lacks():
    asset = FittedAsset(
        np.array([[0, 1, 2], [1, 2, 4], [0, 2, 1], [2, 1, 0]]),
        np.full((4, 3), 1 / 3),
        np.zeros((4, 3)),
        np.zeros((3, 3)),
        np.zeros((4, 2)),
        np.array([[0, 2, 3], [0, 1, 2]]),
        np.array([[0, 2, 3], [0, 1, 2]]),
    )
    lookup = np.array([2, 0, 1, -1, -1])
    small = asset.restricted(lookup)
    assert small.ref_idx.tolist() == [[2, 0, 1], [2, 1, 0], [1, 0, 2]] and small.faces.tolist() == [[0, 1, 2]]
