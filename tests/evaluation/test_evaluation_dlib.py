"""The second recogniser, on people who are known; missing and altered files."""
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from portrait_diffusion.errors import EnvironmentProblem
from portrait_diffusion.evaluation import dlib_identity
from portrait_diffusion.evaluation.dlib_identity import DlibFaces, descriptor_distance

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PORTRAITS = Path(__file__).absolute().parents[3] / "shared" / "data" / "portraits_cc0"
INSTALLED = all(importlib.util.find_spec(name) is not None for name in ("dlib", "face_recognition_models"))
needs_models = pytest.mark.skipif(not INSTALLED, reason="dlib-bin or face-recognition-models is not installed")


def read(path, size=None):
    picture = Image.open(path).convert("RGB")
    return np.asarray(picture if size is None else picture.resize(size, Image.LANCZOS))


@pytest.fixture(scope="module")
def faces():
    return DlibFaces()


@needs_models
def test_a_person_is_near_herself(faces):
    photo = read(EXAMPLES / "astronaut.png")
    own = faces(photo)
    assert own.shape == (128,) and descriptor_distance(own, faces(photo)) == 0
    mirrored = descriptor_distance(own, faces(photo[:, ::-1]))
    smaller = descriptor_distance(own, faces(read(EXAMPLES / "astronaut.png", (128, 128))))
    assert 0 < mirrored < 0.4 and 0 < smaller < 0.4


@needs_models
def test_no_face_is_missing(faces):
    assert faces(np.full((128, 128, 3), 200, np.uint8)) is None


@needs_models
@pytest.mark.skipif(not PORTRAITS.is_dir(), reason=f"the CC0 portraits are not at {PORTRAITS}")
def test_persons_are_told_apart(faces):
    """Its maker's limit, 0.6: mirrored pictures are of one person; of different ones 1 pair in 120 may be below."""
    pictures = [read(path) for path in sorted(PORTRAITS.glob("*.jpg"))]
    found = [faces(picture) for picture in pictures]
    same = [descriptor_distance(a, faces(picture[:, ::-1])) for a, picture in zip(found, pictures)]
    others = [descriptor_distance(a, b) for k, a in enumerate(found) for b in found[:k]]
    assert max(same) < 0.4 and sum(d < 0.6 for d in others) <= len(others) / 120 and np.median(others) > 0.75


def test_missing_and_altered_files_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="pip install dlib-bin 'face-recognition-models==0.3.0'"):
        dlib_identity.find_model(*dlib_identity.LANDMARKS)
    (tmp_path / "models").mkdir()
    for name, _ in (dlib_identity.LANDMARKS, dlib_identity.RECOGNISER):
        (tmp_path / "models" / name).write_bytes(b"no model")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(EnvironmentProblem, match="is not the file 'shape_predictor_5_face_landmarks.dat'"):
        dlib_identity.find_model(*dlib_identity.LANDMARKS)
