"""CLIP-I, ArcFace ID and LPIPS: closed forms, the code run with stand-ins for the weights that nobody ships."""
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.evaluation import canonical
from portrait_diffusion.evaluation.canonical import (
    ALEXNET,
    FACE_TEMPLATE,
    ArcFace,
    ClipImages,
    Lpips,
    template_matrix,
)
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


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    """A checkpoint of AlexNet's shapes, random, and channel weights."""
    folder, g = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    state = {}
    for place, out, inputs, kernel, _, _ in ALEXNET:
        shape = (out, inputs, kernel, kernel)
        state[f"features.{place}.weight"] = torch.randn(shape, generator=g) / (inputs * kernel * kernel) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(out, generator=g)
    heads = {f"lin{k}.model.1.weight": torch.rand((1, a[1], 1, 1), generator=g) for k, a in enumerate(ALEXNET)}
    torch.save(state, folder / "alexnet.pth")
    torch.save(heads, folder / "heads.pth")
    return folder / "alexnet.pth", folder / "heads.pth"


def test_lpips_is_a_distance_that_is_linear_in_its_channel_weights(lpips_files, tmp_path):
    net = Lpips(*lpips_files, sha256="")
    a, b = torch.rand(2, 2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    found = net(a, b)
    assert found.shape == (2,) and (found > 0).all() and torch.equal(net(a, a), torch.zeros(2))
    assert torch.allclose(found, net(b, a)) and torch.allclose(net(a[1:], b[1:]), found[1:], atol=1e-6)
    heads = torch.load(lpips_files[1], weights_only=True)
    torch.save({k: 3 * v for k, v in heads.items()}, tmp_path / "heads.pth")
    assert torch.allclose(Lpips(lpips_files[0], tmp_path / "heads.pth", sha256="")(a, b), 3 * found)
    columns = net.columns(a)
    assert [tuple(c.shape[1:]) for c in columns] == [(64, 15, 11), (192, 7, 5), (384, 3, 2), (256, 3, 2), (256, 3, 2)]
    for column in columns:
        lengths = column.square().sum(1)
        assert torch.allclose(lengths[lengths > 0], torch.tensor(1.0), atol=1e-4)


def test_lpips_of_opposite_features_in_closed_form(lpips_files, tmp_path):
    """One channel sees light, another sees dark: columns (1, 0) and (0, 1), so layer one is w_0 + w_1, others equal."""
    state = {k: torch.zeros_like(v) for k, v in torch.load(lpips_files[0], weights_only=True).items()}
    state["features.0.weight"][0], state["features.0.weight"][1] = 1.0, -1.0
    torch.save(state, tmp_path / "alexnet.pth")
    net = Lpips(tmp_path / "alexnet.pth", lpips_files[1], sha256="")
    weights = torch.load(lpips_files[1], weights_only=True)["lin0.model.1.weight"].flatten()
    light, dark = torch.ones(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    assert float(net(light, dark)) == pytest.approx(float(weights[:2].sum()), rel=1e-5)


def test_lpips_is_that_of_its_package(lpips_files):
    """Where lpips and torchvision are installed; weights of ours in their network."""
    lpips = pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    theirs = lpips.LPIPS(net="alex", pretrained=True, pnet_rand=True, verbose=False)
    trunk = torchvision.models.alexnet(weights=None)
    trunk.load_state_dict(torch.load(lpips_files[0], weights_only=True), strict=False)
    for own, layer in zip(("slice1", "slice2", "slice3", "slice4", "slice5"), (0, 3, 6, 8, 10)):
        getattr(theirs.net, own)._modules[str(layer)].load_state_dict(trunk.features[layer].state_dict())
    a, b = torch.rand(2, 2, 3, 96, 80)
    wanted = theirs(2 * a - 1, 2 * b - 1).flatten()
    assert torch.allclose(Lpips(lpips_files[0], sha256="")(a, b), wanted, rtol=1e-4, atol=1e-6)


def test_lpips_names_wrong_and_missing_files(lpips_files, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="does not exist"):
        Lpips(tmp_path / "no.pth")
    with pytest.raises(UsageError, match="not torchvision's AlexNet"):
        Lpips(*lpips_files)
    with pytest.raises(UsageError, match="H, W >= 32"):
        Lpips(*lpips_files, sha256="")(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 16, 64))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="pip install --no-deps 'lpips==0.1.4'"):
        Lpips(lpips_files[0], sha256="")


@pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="the package lpips is not installed")
def test_the_packages_channel_weights_are_found():
    heads = torch.load(canonical.find_lpips_heads(), weights_only=True)
    assert [heads[f"lin{k}.model.1.weight"].shape[1] for k in range(5)] == [a[1] for a in ALEXNET]
