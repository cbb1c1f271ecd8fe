"""Distances between shapes: known answers."""
import math

import numpy as np
import pytest
import torch
from portrait_diffusion.errors import UsageError
from portrait_diffusion.evaluation.geometry import depth_error, landmark_error, normal_error, surface_distance


def test_depth_counts_where_both_see_something():
    truth = torch.tensor([[[2.0, 2.0], [0.0, 3.0]], [[0.0, 0.0], [1.0, 1.0]]])
    made = torch.tensor([[[2.1, 0.0], [5.0, 2.7]], [[1.0, 1.0], [0.0, 0.0]]])
    found = depth_error(made, truth)
    assert float(found[0]) == pytest.approx(0.2, abs=1e-6) and bool(found[1].isnan())
    with pytest.raises(UsageError, match="one shape"):
        depth_error(made, truth[:1])


@pytest.mark.parametrize("degrees", [0.0, 0.01, 10.0, 12.0, 90.0, 180.0])
def test_turned_normals_have_the_angle_by_which_they_were_turned(degrees):
    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(1, 8, 8, 3, generator=generator, dtype=torch.float64), dim=-1)
    other = torch.nn.functional.normalize(torch.randn(1, 8, 8, 3, generator=generator, dtype=torch.float64), dim=-1)
    side = torch.nn.functional.normalize(torch.linalg.cross(a, other), dim=-1)
    angle = math.radians(degrees)
    b = math.cos(angle) * a + math.sin(angle) * side
    found = normal_error(b, a, torch.ones(1, 8, 8))
    assert float(found["mean"]) == pytest.approx(degrees, abs=1e-6)
    assert float(found["median"]) == pytest.approx(degrees, abs=1e-6)
    assert float(found["close"]) == (1.0 if degrees < 11.25 else 0.0)


def test_normals_outside_the_mask_do_not_count():
    a = torch.zeros(2, 2, 2, 3)
    a[..., 2] = 1.0
    b = a.clone()
    b[:, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    mask = torch.ones(2, 2, 2)
    mask[0, 0, 0] = 0
    found = normal_error(b, a, mask)
    assert found["mean"].tolist() == [0.0, 22.5] and found["close"].tolist() == [1.0, 0.75]
    assert bool(normal_error(b, a, torch.zeros(2, 2, 2))["mean"].isnan().all())
    with pytest.raises(UsageError, match="a mask"):
        normal_error(b, a, mask[:1])


def test_two_parallel_planes_are_as_far_apart_as_they_are():
    grid = np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), -1).reshape(-1, 2)
    a = np.concatenate([grid, np.zeros((len(grid), 1))], 1)
    found = surface_distance(a + [0, 0, 1.5], a)
    assert found["chamfer"] == pytest.approx(1.5) and found["f1"] == 0 and found["f2"] == 1 == found["f5"]
    same = surface_distance(a, a)
    assert same["chamfer"] == 0 and same["f1"] == 1


def test_a_missing_half_costs_recall_alone():
    line = np.stack([np.arange(100.0), np.zeros(100), np.zeros(100)], 1)
    found = surface_distance(line[:50], line, thresholds=(0.5,))
    assert found["f0.5"] == pytest.approx(2 * 0.5 / 1.5)
    assert found["chamfer"] == pytest.approx(0.5 * np.arange(1, 51).sum() / 100)
    with pytest.raises(UsageError, match="no points: 0 and 100"):
        surface_distance(line[:0], line)


def test_landmarks_are_measured_in_eye_distances():
    truth = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]])
    moved = truth + torch.tensor([0.0, 1.0])
    assert landmark_error(moved, truth).tolist() == [0.5]
    assert torch.allclose(landmark_error(3 * moved, 3 * truth), landmark_error(moved, truth))
    with pytest.raises(UsageError, match="one shape"):
        landmark_error(moved, truth[:, :2])
