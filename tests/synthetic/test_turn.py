"""Shoulders turned beneath the head: what stays, what moves as one piece, how often and how far."""
from dataclasses import replace

import numpy as np
import pytest
from portrait_diffusion.errors import UsageError
from portrait_diffusion.synthetic.dataset import DatasetSpec, ShardRenderer, render_dataset
from portrait_diffusion.synthetic.turn import (
    HEAD,
    MOST_DEG,
    PIVOT,
    SLOPE,
    SPREAD_DEG,
    TORSO,
    sample_turn,
    turn_torso,
)
from scipy.spatial.transform import Rotation

ANGLES = (40.0, -10.0, 12.0)


def points(n=3000, seed=0):
    return np.random.default_rng(seed).uniform(-0.4, 0.4, (n, 3))


def height(p):
    return p[:, 1] + SLOPE * p[:, 2]


def test_the_head_stays_and_the_torso_moves_as_one_piece():
    p = points()
    moved, turn = turn_torso(p, ANGLES)
    head, torso = height(p) >= HEAD, height(p) <= TORSO
    np.testing.assert_allclose(moved[head], p[head], atol=1e-15)
    whole = Rotation.from_rotvec(np.radians([ANGLES[1], ANGLES[0], ANGLES[2]])).as_matrix()
    np.testing.assert_allclose(moved[torso], (p[torso] - PIVOT) @ whole.T + PIVOT, atol=1e-12)
    np.testing.assert_allclose(turn[torso], np.broadcast_to(whole, turn[torso].shape), atol=1e-12)
    assert min(head.sum(), torso.sum()) > 100
    same, _ = turn_torso(p, (0.0, 0.0, 0.0))
    np.testing.assert_allclose(same, p, atol=1e-15)


def test_a_positive_yaw_brings_the_breast_to_larger_x():
    """As a positive azimuth brings the camera there: what points at +z then points at +x."""
    breast = np.array([[0.0, -0.55, 0.1]])
    assert turn_torso(breast, (30.0, 0.0, 0.0))[0][0, 0] > 0.05


def test_nothing_tears():
    """Neighbours stay neighbours: the twist is a smooth step of height, at most 1.5 turns a neck's height."""
    p = points()
    step = 1e-5
    moved = turn_torso(p, MOST_DEG)[0]
    for axis in range(3):
        q = p.copy()
        q[:, axis] += step
        stretch = np.linalg.norm(turn_torso(q, MOST_DEG)[0] - moved, axis=1) / step
        angle = np.radians(np.linalg.norm(MOST_DEG))
        reach = np.linalg.norm(p - PIVOT, axis=1)
        assert (stretch < 1 + 1.5 * angle / (HEAD - TORSO) * reach * (1 + SLOPE)).all()


def test_how_often_and_how_far():
    """4,000 people: the share within 4.5 standard deviations, angles within their limits and symmetric."""
    rng = np.random.default_rng(0)
    angles = np.array([sample_turn(rng, 0.7) for _ in range(4000)])
    turned = (angles != 0).any(1)
    assert abs(turned.mean() - 0.7) < 4.5 * np.sqrt(0.21 / 4000)
    assert (np.abs(angles) <= MOST_DEG).all()
    assert (np.abs(angles[turned].mean(0)) < 4.5 * np.array(SPREAD_DEG) / np.sqrt(turned.sum())).all()
    assert not any(any(sample_turn(rng, 0.0)) for _ in range(100))


@pytest.mark.parametrize("share, expected", [(0.0, False), (1.0, True)])
def test_a_data_set_turns_its_share(share, expected, invented_basis_file, invented_root):
    spec = DatasetSpec("train", 1, 2, 16, 3, 1, 1, turned=share)
    row, description = ShardRenderer(spec, str(invented_root), str(invented_basis_file), "soft").render_subject(0)
    assert ("torso_deg" in description) == expected and row["rgba"].shape == (2, 16, 16, 4)


def test_data_sets_of_before_are_resumed_and_others_are_others(tmp_path):
    spec = DatasetSpec("train", 2, 3, 16, 0)
    assert spec.digest() == "12f2819b88c32e3f"
    assert len({replace(spec, turned=share).digest() for share in (0.0, 0.5, 1.0)}) == 3
    with pytest.raises(UsageError, match="turned is the share.*not 1.5"):
        render_dataset(tmp_path, "train", 1, 1, 16, basis="x", turned=1.5)
