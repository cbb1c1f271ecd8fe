"""The benchmark's subjects: how many, told by hash, compared within tolerances, read as they were written."""
import json
from dataclasses import replace

import pytest
import torch
from portrait_diffusion import cli
from portrait_diffusion.benchmark import truth
from portrait_diffusion.benchmark.truth import GROUPS, RECORD, VIEWS
from portrait_diffusion.errors import UsageError
from portrait_diffusion.synthetic.sampling import sample_subject
from portrait_diffusion.synthetic.subjects import canonical_lighting
from portrait_diffusion.synthetic.views import benchmark_cameras, evaluation_cameras

from benchmark.ball_heads import truth_of, write_subject


def test_the_set_is_as_large_as_promised_and_recorded():
    unseen = [group for group in GROUPS.values() if group.split == "test"]
    assert sum(group.subjects for group in unseen) >= 24 and len(unseen) == 2
    assert len({group.seed for group in GROUPS.values()}) == len(GROUPS), "no person is in two groups"
    recorded = json.loads(RECORD.read_text())
    assert {name: len(entries) for name, entries in recorded.items()} == {n: g.subjects for n, g in GROUPS.items()}
    people = [entry["subject"] for entries in recorded.values() for entry in entries]
    assert len(set(people)) == len(people) == 32


def test_views_are_full_turns_at_three_elevations():
    cameras = benchmark_cameras(VIEWS)
    assert VIEWS == 72 and (cameras[0].azimuth_deg, cameras[0].elevation_deg) == (0.0, 0.0)
    assert {c.elevation_deg for c in cameras} == {-15.0, 0.0, 20.0}
    assert all({c.azimuth_deg for c in cameras[k : k + 24]} == {15.0 * n for n in range(24)} for k in (0, 24, 48))
    with pytest.raises(UsageError, match="72 fixed views"):
        benchmark_cameras(73)
    assert evaluation_cameras(1)[0] == cameras[0]


def test_the_hash_of_a_description_ignores_the_last_digits_only():
    one = truth.description_hash({"a": [0.1, 2], "b": {"c": "x"}})
    assert truth.description_hash({"b": {"c": "x"}, "a": (0.1 + 1e-12, 2)}) == one
    assert truth.description_hash({"a": [0.1001, 2], "b": {"c": "x"}}) != one


def test_the_hash_of_the_set_follows_its_parts(tmp_path):
    whole = truth.set_hash()
    assert whole == truth.set_hash() != truth.set_hash(["test"])
    recorded = json.loads(RECORD.read_text())
    recorded["test"][3]["subject"] = "0" * 16
    other = tmp_path / "set.json"
    other.write_text(json.dumps(recorded))
    assert truth.set_hash(record=other) != whole and truth.set_hash(["dev"], other) == truth.set_hash(["dev"])


def test_recorded_people_are_those_that_the_seeds_draw(basis, assets):
    recorded = json.loads(RECORD.read_text())
    for name, group in GROUPS.items():
        for index in (0, group.subjects - 1):
            subject = sample_subject(group.seed, group.split, index, basis, assets)
            told = replace(subject, lighting=canonical_lighting()).to_dict()
            assert truth.description_hash(json.loads(json.dumps(told))) == recorded[name][index]["subject"]


def test_a_file_is_compared_within_tolerances(tmp_path):
    path = write_subject(truth.shard(tmp_path, "test", 0))
    print_ = truth.fingerprint(path)
    record = tmp_path / "set.json"
    record.write_text(json.dumps({"test": [print_]}))
    truth.check_group(tmp_path, "test", 1, record)
    near = {**print_, "coverage": [print_["coverage"][0] + 0.001], "depth": [print_["depth"][0] - 0.0005]}
    assert truth.differences(near, print_) == []
    far = {**print_, "colour": [c + 0.1 for c in print_["colour"]], "subject": "x"}
    assert truth.differences(far, print_) == ["another person was drawn", "colour differs by 0.1, more than 0.012"]
    write_subject(path, person=8)
    with pytest.raises(UsageError, match="not subject 0 of the benchmark's group 'test': another person was drawn"):
        truth.check_group(tmp_path, "test", 1, record)


def test_a_subject_is_read_as_it_was_written(tmp_path):
    write_subject(truth.shard(tmp_path, "test", 0))
    read, made = truth.load_truth(tmp_path, "test", 0), truth_of((0.0, 180.0))
    for name, tolerance in (("rgb", 0.003), ("alpha", 0), ("depth", 1e-4), ("normal", 0.01)):
        torch.testing.assert_close(getattr(read.pictures, name), getattr(made.pictures, name), atol=tolerance, rtol=0)
    assert torch.equal(read.hair, made.hair) and read.cameras.level() == {0: 0, 180: 1}
    torch.testing.assert_close(read.cameras.fovy, made.cameras.fovy)
    assert read.photo == tmp_path / "test" / "photo" / "test_00000.png"
    behind = read.rows([1])
    assert behind.cameras.azimuth.tolist() == [180.0] and behind.pictures.rgb.shape[0] == len(behind.hair) == 1
    with pytest.raises(UsageError, match="render the set first"):
        truth.load_truth(tmp_path, "test", 1)
    with pytest.raises(UsageError, match="no group 'tests'; there are dev, test, domain"):
        truth.group_of("tests")


@pytest.mark.slow
def test_a_group_is_rendered_again_as_recorded(tmp_path, assets_root, basis_file, gl_rasterizer, capsys):
    gl_rasterizer(16)
    words = ["render-benchmark", str(tmp_path), "--assets", str(assets_root), "--basis", str(basis_file),
             "--groups", "test", "--subjects", "1", "--size", "96"]  # fmt: skip
    assert cli.main(words) == 0
    assert f"set {truth.set_hash()}: test 1" in capsys.readouterr().out
    read = truth.load_truth(tmp_path, "test", 0)
    assert len(read.pictures.rgb) == VIEWS and read.photo.is_file()
    assert cli.main(words) == 0, "what is there is kept"
