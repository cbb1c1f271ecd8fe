"""Similarity transforms: exact recovery, least squares, group laws, pixel conventions."""
import ast
from pathlib import Path

import numpy as np
import pytest
from portrait_diffusion.errors import UsageError
from portrait_diffusion.ops import canonical, similarity


def matrix(scale: float, angle: float, tx: float, ty: float) -> np.ndarray:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, tx], [s, c, ty]])


@pytest.mark.parametrize("seed", range(3))
def test_umeyama_recovers_a_similarity_exactly(seed):
    rng = np.random.default_rng(seed)
    truth = matrix(rng.uniform(0.1, 5), rng.uniform(-np.pi, np.pi), *rng.normal(size=2) * 100)
    points = rng.normal(size=(5, 2)) * 50
    found = similarity.umeyama_2d(points, similarity.apply(truth, points))
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-9)
    assert similarity.scale(found) == pytest.approx(np.hypot(*truth[:, 0]))
    assert similarity.rotation_rad(found) == pytest.approx(np.arctan2(truth[1, 0], truth[0, 0]))


def test_umeyama_is_the_least_squares_optimum():
    rng = np.random.default_rng(0)
    src, dst = rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
    found = similarity.umeyama_2d(src, dst)

    def error(p):
        return ((similarity.apply(np.array([[p[0], -p[1], p[2]], [p[1], p[0], p[3]]]), src) - dst) ** 2).sum()

    best = np.array([found[0, 0], found[1, 0], found[0, 2], found[1, 2]])
    gradient = [(error(best + 1e-5 * e) - error(best - 1e-5 * e)) / 2e-5 for e in np.eye(4)]
    np.testing.assert_allclose(gradient, 0, atol=1e-8)  # the error is a convex quadratic, so this is its minimum


def test_umeyama_never_mirrors():
    src = np.array([[0.0, 0], [1, 0], [0, 1], [2, 3]])
    found = similarity.umeyama_2d(src, src * [-1, 1])
    assert np.linalg.det(found[:, :2]) >= 0


def test_inverse_and_compose_obey_the_group_laws():
    a, b = matrix(2, 0.3, 5, -1), matrix(0.5, -2, 1, 7)
    points = np.random.default_rng(0).normal(size=(4, 2))
    identity = np.array([[1.0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(similarity.compose(a, similarity.inverse(a)), identity, atol=1e-12)
    composed = similarity.apply(similarity.compose(a, b), points)
    np.testing.assert_allclose(composed, similarity.apply(a, similarity.apply(b, points)))


def test_opencv_matrix_moves_a_picture_to_the_same_continuous_place():
    cv2 = pytest.importorskip("cv2")
    y, x = np.mgrid[:60, :60] + 0.5
    blob = np.exp(-((x - 22.3) ** 2 + (y - 31.8) ** 2) / 18.0)
    transform = matrix(1.4, 0.5, 14, -20)
    warped = cv2.warpAffine(blob, similarity.opencv_matrix(transform), (60, 60), flags=cv2.INTER_CUBIC)
    centre = np.array([(warped * x).sum(), (warped * y).sum()]) / warped.sum()
    np.testing.assert_allclose(centre, similarity.apply(transform, np.array([22.3, 31.8])), atol=0.02)


def test_crop_puts_eyes_and_mouth_onto_their_canonical_places_and_ignores_the_nose():
    truth = matrix(0.7, 0.2, -30, 12)  # photo to crop
    eyes_mouth = similarity.apply(similarity.inverse(truth), canonical.CANONICAL_LANDMARKS_CROP * 256)
    five = np.insert(eyes_mouth, 2, [[1e3, -1e3]], axis=0)
    np.testing.assert_allclose(similarity.crop_from_landmarks(five, 256), truth, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(similarity.crop_from_landmarks(eyes_mouth, 256), truth, rtol=1e-9, atol=1e-9)


def test_scale_and_translation_in_3d():
    rng = np.random.default_rng(1)
    src = rng.normal(size=(4, 3))
    scale, translation = similarity.fit_scale_translation_3d(src, 1.78 * src + [1, 2, 3])
    assert scale == pytest.approx(1.78)
    np.testing.assert_allclose(translation, [1, 2, 3])


@pytest.mark.parametrize(
    "src, dst",
    [
        (np.zeros((1, 2)), np.zeros((1, 2))),
        (np.zeros((3, 3)), np.zeros((3, 3))),
        (np.full((3, 2), 1e4), np.zeros((3, 2))),
        (np.array([[0.0, np.nan], [1, 1]]), np.zeros((2, 2))),
        (np.zeros((3, 2)), np.zeros((4, 2))),
    ],
)
def test_bad_points_are_usage_errors(src, dst):
    with pytest.raises(UsageError):
        similarity.umeyama_2d(src, dst)


def test_bad_landmarks_and_singular_matrices_are_usage_errors():
    with pytest.raises(UsageError, match="landmarks"):
        similarity.crop_from_landmarks(np.zeros((3, 2)), 64)
    with pytest.raises(UsageError, match="size"):
        similarity.crop_from_landmarks(canonical.CANONICAL_LANDMARKS_CROP, 0)
    with pytest.raises(UsageError, match="inverse"):
        similarity.inverse(np.zeros((2, 3)))


def test_apply_is_differentiable_for_tensors():
    torch = pytest.importorskip("torch")
    transform = torch.from_numpy(matrix(2, 0.3, 5, -1)).requires_grad_()
    points = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(similarity.apply, (transform, points))


@pytest.mark.parametrize("module", [similarity, canonical])
def test_only_numpy_is_imported(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    absolute = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0}
    assert names | absolute <= {"numpy", "math"}
