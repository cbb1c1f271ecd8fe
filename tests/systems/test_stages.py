"""Stages by global step, and the cameras of a step."""
import pytest
import torch
from portrait_diffusion.data.cameras import along_ranges, draw_angles
from portrait_diffusion.errors import UsageError
from portrait_diffusion.systems.stages import Schedule, StageConfig

CAMERAS = {"azimuths": [[60.0, 180.0], [-180.0, -60.0]], "elevations": [-10.0, 20.0], "pair_deg": [10.0, 30.0]}


def test_steps_fall_into_their_stages():
    schedule = Schedule({"refine": {"steps": 5}, "restore": {"steps": 3}})
    assert schedule.total == 8 and schedule.boundaries() == [3, 8]
    found = [(p.name, p.step, p.start) for p in map(schedule.at, (0, 2, 3, 7, 99))]
    expected = [("restore", 0, 0), ("restore", 2, 0), ("refine", 0, 3), ("refine", 4, 3), ("refine", 4, 3)]
    assert found == expected
    assert Schedule({"refine": {"steps": 2}}).at(1).name == "refine"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"magic": {}}, "no stage 'magic'"), ({"refine": {"step": 1}}, "system.stages.refine.*'step'"),
        ({"refine": {"pairs": "far"}}, "pairs must be one of"), ({"refine": {"steps": -1}}, "at least 0"),
        ({"refine": {"resolution": [64, 128]}}, "milestones must be 1"),
        ({"refine": {"azimuths": []}}, "azimuths"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(stages, message):
    with pytest.raises(UsageError, match=message):
        Schedule(stages)


def test_no_stage_with_steps_is_named():
    with pytest.raises(UsageError, match="no stage with steps"):
        Schedule({"refine": {"steps": 0}}).at(0)


def test_resolution_changes_at_its_milestones():
    stage = StageConfig(steps=10, resolution=[32, 64, 128], milestones=[2, 5])
    assert [stage.resolution_at(s) for s in (0, 1, 2, 4, 5, 9)] == [32, 32, 64, 64, 128, 128]
    assert [StageConfig(reference_every=3).shows_photo(s) for s in range(4)] == [True, False, False, True]
    assert not StageConfig(reference_every=0).shows_photo(0)


def test_ranges_are_walked_through():
    ranges = [[0.0, 10.0], [20.0, 50.0]]
    assert [along_ranges(s, ranges) for s in (0.0, 0.25, 0.5, 1.0)] == [0.0, 20.0, 30.0, 50.0]
    assert along_ranges(0.9, [[5.0, 5.0]]) == 5.0


def test_cameras_run_evenly_over_their_ranges_and_repeat():
    """600 steps over 240 degrees in 12 bins: each holds 50 within 10 %, far closer than chance (3 sigma: 40 %)."""
    drawn = [draw_angles(step, 3, 2, pairs="neighbours", **CAMERAS) for step in range(600)]
    first = torch.stack([a[0] for a, _ in drawn])
    assert bool((first.abs() >= 60).all()) and bool((first.abs() <= 180).all())
    counts = torch.histc(first % 360, bins=12, min=60, max=300)
    assert (counts - 50).abs().max() <= 5
    heights = torch.stack([e for _, e in drawn])
    assert bool((heights >= -10).all() and (heights <= 20).all()) and abs(float(heights.mean()) - 5) < 0.5
    apart = torch.stack([(a[1] - a[0] + 180) % 360 - 180 for a, _ in drawn])
    assert bool((apart.abs() >= 10 - 1e-3).all() and (apart.abs() <= 30 + 1e-3).all())
    assert 250 < int((apart > 0).sum()) < 350
    again = draw_angles(17, 3, 2, pairs="neighbours", **CAMERAS)
    assert torch.equal(again[0], drawn[17][0]) and not torch.equal(again[0], drawn[18][0])
    other = draw_angles(17, 4, 2, pairs="neighbours", **CAMERAS)
    assert not torch.equal(other[0], again[0])


def test_two_steps_in_a_row_look_at_both_halves():
    cameras = CAMERAS | {"azimuths": [[0.0, 180.0], [-180.0, 0.0]]}
    for step in range(0, 40, 2):
        a, b = (float(draw_angles(step + k, 0, 1, pairs="independent", **cameras)[0]) for k in (0, 1))
        assert (0 <= a <= 180) and (-180 <= b <= 0)


@pytest.mark.parametrize("views", [1, 2, 4])
def test_pairs_lie_as_they_should(views):
    for pairs in ("antipodal", "independent"):
        azimuth, elevation = draw_angles(5, 0, views, pairs=pairs, **CAMERAS)
        assert azimuth.shape == elevation.shape == (views,) and bool((azimuth.abs() <= 180).all())
    if views == 2:
        azimuth, elevation = draw_angles(5, 0, 2, pairs="antipodal", **CAMERAS)
        assert abs(abs(float(azimuth[0] - azimuth[1])) - 180) < 1e-3 and elevation[0] == elevation[1]
