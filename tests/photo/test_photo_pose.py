"""Head pose from five landmarks: exact on its own model, right signs, invariances, refusals."""
import numpy as np
import pytest
from portrait_diffusion.errors import UsageError
from portrait_diffusion.photo.head_pose import MEAN_FACE_MM, estimate_head_pose, project, rotation


@pytest.mark.parametrize("yaw", [-55, -20, 0, 35, 60])
@pytest.mark.parametrize("pitch", [-25, 0, 20])
@pytest.mark.parametrize("roll", [-40, 0, 75, 170])
def test_recovers_the_pose_of_its_own_model(yaw, pitch, roll):
    points = project(np.radians([yaw, pitch, roll])) * 0.83 + [400, 300]
    pose = estimate_head_pose(points)
    assert (pose.yaw, pose.pitch, pose.roll) == pytest.approx((yaw, pitch, roll), abs=1e-3)
    assert pose.residual < 1e-6


def test_scale_shift_and_roll_change_nothing_else():
    generator = np.random.default_rng(0)
    points = project(np.radians([20, -8, 5])) + generator.normal(0, 1.5, (5, 2))
    reference = estimate_head_pose(points)
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pose = estimate_head_pose(points @ turn.T * 7.7 + [100, -3])
    expected = (reference.yaw, reference.pitch, reference.roll + 30)
    assert (pose.yaw, pose.pitch, pose.roll) == pytest.approx(expected, abs=1e-3)
    assert pose.residual == pytest.approx(reference.residual, rel=1e-4)


def test_mirror_negates_yaw_and_roll():
    points = project(np.radians([25, 10, 12])) + np.random.default_rng(1).normal(0, 1, (5, 2))
    pose = estimate_head_pose(points)
    mirrored = estimate_head_pose((points * [-1, 1])[[1, 0, 2, 4, 3]])
    assert (mirrored.yaw, mirrored.pitch, mirrored.roll) == pytest.approx((-pose.yaw, pose.pitch, -pose.roll), abs=1e-3)


def test_signs_mean_what_the_docstring_says():
    right = project(np.radians([20, 0, 0]))
    assert right[2, 0] > right[[0, 1]].mean(0)[0]  # nose moves right
    down = project(np.radians([0, 20, 0]))
    assert down[2, 1] - project(np.zeros(3))[2, 1] > 0  # nose moves down
    clockwise = project(np.radians([0, 0, 20]))
    assert clockwise[1, 1] > clockwise[0, 1]  # right eye lower


def test_rotation_is_a_rotation():
    for angles in np.random.default_rng(2).uniform(-3, 3, (20, 3)):
        matrix = rotation(*angles)
        assert np.allclose(matrix @ matrix.T, np.eye(3)) and np.linalg.det(matrix) == pytest.approx(1)


def test_degenerate_landmarks_are_refused():
    for points in (np.zeros((5, 2)), np.full((5, 2), np.nan), MEAN_FACE_MM, np.zeros((4, 2))):
        with pytest.raises(UsageError):
            estimate_head_pose(points)
