"""CLIP-I and ArcFace ID: alignment in closed form, the code run with stand-ins for the weights that nobody ships."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from portrait_diffusion.errors import UsageError
from portrait_diffusion.evaluation.canonical import FACE_TEMPLATE, ArcFace, ClipImages, template_matrix
from portrait_diffusion.evaluation.identity import sface_path

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "astronaut.png"


def test_a_turned_and_scaled_template_is_brought_back():
    assert np.allclose(template_matrix(FACE_TEMPLATE), [[1, 0, 0], [0, 1, 0]])
    turn = 2.5 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    moved = FACE_TEMPLATE @ turn.T + [30, -7]
    matrix = template_matrix(moved)
    assert np.allclose(moved @ matrix[:, :2].T + matrix[:, 2], FACE_TEMPLATE)
    assert np.linalg.norm(matrix[:, 0]) == pytest.approx(1 / 2.5) and np.linalg.det(matrix[:, :2]) > 0


def test_a_recogniser_of_the_same_shape_tells_a_face_from_none_and_from_another():
    recogniser = ArcFace(sface_path())  # another network than ArcFace's, with the same input
    photo = np.asarray(Image.open(PHOTO).convert("RGB"))
    one = recogniser(photo)
    assert np.linalg.norm(one) == pytest.approx(1) and one @ recogniser(photo) == pytest.approx(1)
    smaller = np.asarray(Image.fromarray(photo).resize([side // 2 for side in photo.shape[1::-1]]))
    changed = photo.copy()
    changed[..., :] = changed[..., ::-1]
    assert one @ recogniser(smaller) > 0.7 and recogniser(np.full((64, 64, 3), 255, np.uint8)) is None
    assert one @ recogniser(smaller) > one @ recogniser(changed)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        ArcFace(tmp_path / "no.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(UsageError, match="no ONNX file"):
        ArcFace(tmp_path / "bad.onnx")


def test_a_clip_model_of_the_users(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=8,
    )  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    clip = ClipImages(tmp_path / "clip")
    pictures = torch.rand(3, 3, 48, 48)
    found = clip(pictures)
    assert found.shape == (3, 8) and torch.allclose(found.norm(dim=1), torch.ones(3))
    assert torch.allclose(clip(pictures[1:2]), found[1:2], atol=1e-5)
    with pytest.raises(UsageError, match="no CLIP model"):
        ClipImages(tmp_path)
