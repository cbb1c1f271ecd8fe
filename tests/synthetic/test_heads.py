"""The head basis: interpolation, quantisation, and agreement with Anny."""

import numpy as np
import pytest
from portrait_diffusion.errors import UsageError
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_HEAD
from portrait_diffusion.synthetic.heads import (
    anny_rest_vertices,
    build_anny,
    hat_weights,
    load_head_basis,
    quantise,
    read_obj_groups,
    to_decimetres,
    triangulate,
    write_npz,
)
from portrait_diffusion.synthetic.normalise import normalise_head

PLAIN = {"gender": 0.5, "age": 0.7, "muscle": 0.5, "weight": 0.5, "african": 0.0, "asian": 0.0, "caucasian": 1.0}


def test_hat_weights_interpolate_linearly():
    anchors = np.array([0.0, 0.5, 1.0])
    for value in (-1.0, 0.0, 0.2, 0.5, 0.9, 1.0, 3.0):
        weights = hat_weights(value, anchors)
        assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
        assert weights @ anchors == pytest.approx(np.clip(value, 0, 1))


def test_quantisation_error_is_half_a_step():
    rows = np.random.default_rng(0).standard_normal((5, 300)) * np.array([[1e-3], [1.0], [10.0], [0.0], [0.1]])
    codes, scale = quantise(rows)
    assert (np.abs(codes * scale - rows) <= 0.501 * scale).all() and codes.dtype == np.int16


def test_frame_change_is_a_rotation():
    assert np.allclose(to_decimetres(np.eye(3)), 10 * np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]))


def test_obj_groups_and_triangles(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text("v 0 0 0\ng first\nf 1/1 2/2 3/3 4/4\ng second\nf 2 3 4 5\nf 5 4 3 2\n")
    groups = read_obj_groups(path)
    assert groups["first"].tolist() == [[0, 1, 2, 3]] and groups["second"].shape == (2, 4)
    assert triangulate(groups["first"]).tolist() == [[0, 1, 2], [0, 2, 3]]


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_head_basis(tmp_path / "none.npz")
    write_npz(tmp_path / "other.npz", meta=np.array('{"format": 0}'))
    with pytest.raises(UsageError, match="format"):
        load_head_basis(tmp_path / "other.npz")


def test_mean_is_at_the_average_of_anchors_and_shapes_are_linear(basis):
    still = basis.evaluate(PLAIN)
    label = basis.local_labels[3]
    one, two = basis.evaluate(PLAIN, {label: 0.3}), basis.evaluate(PLAIN, {label: 0.6})
    assert np.allclose(two - still, 2 * (one - still), atol=1e-5) and np.abs(one - still).max() > 1e-3
    smile = basis.evaluate(PLAIN, {}, {"mouthSmileLeft": 0.5, "mouthSmileRight": 0.5})
    corners = basis.landmark_index[[3, 4]]
    widths = [np.linalg.norm(v[corners[1]] - v[corners[0]]) for v in (still, smile)]
    assert widths[1] > widths[0] * 1.05  # a smile widens the mouth


def test_phenotypes_matter_and_bad_input_is_refused(basis):
    male, female = basis.evaluate({**PLAIN, "gender": 0.0}), basis.evaluate({**PLAIN, "gender": 1.0})
    assert np.abs(male - female).max() > 0.1
    with pytest.raises(UsageError, match="no shape"):
        basis.evaluate(PLAIN, {"nose-of-pinocchio": 1.0})
    with pytest.raises(UsageError, match="at least one"):
        basis.evaluate({**PLAIN, "caucasian": 0.0})


def test_normalised_landmarks_are_canonical(basis):
    rng = np.random.default_rng(1)
    for _ in range(4):
        changes = {label: float(rng.normal(0, 0.2)) for label in basis.local_labels}
        v = basis.evaluate(PLAIN, changes)
        head, scale, translation = normalise_head(v, v[basis.landmark_index])
        landmarks = head[basis.landmark_index[[0, 1, 3, 4]]]
        assert (
            np.abs(landmarks.mean(0) - CANONICAL_LANDMARKS_HEAD.mean(0)).max() < 1e-6
        )  # a least-squares fit keeps the centroid
        assert np.abs(landmarks - CANONICAL_LANDMARKS_HEAD).max() < 0.02
        assert np.allclose(head, v * scale + translation)


def test_left_and_right_landmarks_mirror_on_the_mean_head(basis):
    right, left, nose, mouth_right, mouth_left = basis.mean[basis.landmark_index]
    assert np.allclose(right * [-1, 1, 1], left, atol=1e-3) and np.allclose(
        mouth_right * [-1, 1, 1], mouth_left, atol=1e-3
    )
    assert right[0] < 0 < left[0] and abs(nose[0]) < 1e-3 and nose[2] > max(right[2], mouth_left[2])


@pytest.mark.slow
def test_basis_agrees_with_anny(basis):
    pytest.importorskip("anny")
    model = build_anny()
    rng = np.random.default_rng(5)
    for _ in range(3):
        phenotypes = {
            "gender": rng.random(),
            "age": rng.uniform(1 / 3, 1),
            "muscle": rng.random(),
            "weight": rng.random(),
            "african": rng.random(),
            "asian": rng.random(),
            "caucasian": rng.random(),
        }
        changes = {label: float(rng.uniform(-1, 1) * 0.4) for label in basis.local_labels}
        actions = {label: float(rng.uniform(0, 0.5)) for label in basis.expression_labels}
        exact = anny_rest_vertices(model, phenotypes, changes, actions)[basis.vertex_index]
        assert (
            np.abs(basis.evaluate(phenotypes, changes, actions) - exact).max() < 5e-3
        )  # decimetres: half a millimetre
