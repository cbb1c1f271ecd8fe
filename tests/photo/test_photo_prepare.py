"""prepare_photo from file to PreparedPhoto: frames, masks, alpha, equivariance, aligned pictures, refusals."""
import numpy as np
import pytest
import torch
from PIL import Image
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_CROP
from portrait_diffusion.ops.similarity import apply
from portrait_diffusion.photo import matte_net
from portrait_diffusion.photo.prepare import PreparedPhoto, prepare_photo

from .photo_samples import ASTRONAUT, portraits

pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def prepared() -> PreparedPhoto:
    return prepare_photo(ASTRONAUT, size=256, matte="grabcut")


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return Image.open(ASTRONAUT).convert("RGB")


def test_shapes_and_ranges(prepared):
    assert prepared.rgb.shape == (256, 256, 3) and prepared.alpha.shape == prepared.valid.shape == (256, 256, 1)
    assert prepared.landmarks.shape == (5, 2) and prepared.photo_to_crop.shape == (2, 3)
    for tensor in (prepared.rgb, prepared.alpha, prepared.valid, prepared.picture):
        assert tensor.dtype == torch.float32 and tensor.isfinite().all()
        assert 0 <= float(tensor.min()) and float(tensor.max()) <= 1
    assert prepared.source_size == (512, 512) and prepared.matte == "grabcut" and prepared.score > 0.8


@pytest.mark.parametrize("camera", ["network", "landmarks"])
def test_anchors_are_canonical(camera):
    prepared = prepare_photo(ASTRONAUT, size=256, matte="none", camera=camera)
    four = prepared.camera.anchors / 256
    assert np.abs(four.mean(0) - CANONICAL_LANDMARKS_CROP.mean(0)).max() < 1e-6  # centroids agree exactly
    assert np.abs(four - CANONICAL_LANDMARKS_CROP).max() < 0.02  # what is left is the shape of this face, or its pose
    assert np.abs(prepared.landmarks[[0, 1, 3, 4]] / 256 - four).max() < (0.04 if camera == "network" else 1e-9)
    scale, turn = prepared.photo_to_crop[:, 0]
    assert np.allclose(prepared.photo_to_crop[:, 1], [-turn, scale])


def test_matte_of_the_astronaut(prepared):
    alpha = prepared.alpha[..., 0]
    u, v = prepared.landmarks[2].astype(int)
    assert float(alpha[v - 30 : v + 30, u - 20 : u + 20].min()) > 0.99
    assert float(alpha[:100, :30].max()) < 0.1 and float(alpha[:100, -30:].max()) < 0.1
    assert float((alpha * (1 - prepared.valid[..., 0])).max()) == 0


def test_crop_shows_what_the_photo_shows(prepared, astronaut):
    """Colours at a few places, mapped back through photo_to_crop."""
    source = np.asarray(astronaut, np.float32) / 255
    back = np.linalg.inv(prepared.photo_to_crop[:, :2])
    for place in prepared.landmarks + [[0, 20]]:
        x, y = back @ (place - prepared.photo_to_crop[:, 2])
        around = source[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean((0, 1))
        u, v = place.astype(int)
        seen = prepared.picture[v - 3 : v + 4, u - 3 : u + 4].mean((0, 1)).numpy()
        assert np.abs(seen - around).max() < 0.12


def test_photos_that_differ_by_a_similarity_give_one_crop(prepared, astronaut, tmp_path):
    turned = astronaut.rotate(20, Image.Resampling.BICUBIC, expand=True).resize((900, 900), Image.Resampling.LANCZOS)
    turned.save(tmp_path / "a.png")
    other = prepare_photo(tmp_path / "a.png", size=256, matte="none")
    inner = (slice(60, 200), slice(70, 186))
    assert (other.picture[inner] - prepared.picture[inner]).abs().mean() < 0.02
    assert abs(other.pose.roll - prepared.pose.roll + 20) < 2


def test_own_alpha_is_used_and_hidden_colours_do_not_matter(prepared, astronaut, tmp_path):
    pixels = np.dstack([np.asarray(astronaut), np.zeros((512, 512), np.uint8)])
    yy, xx = np.mgrid[:512, :512]
    inside = ((xx - 225) / 95) ** 2 + ((yy - 110) / 130) ** 2 < 1
    pixels[..., 3] = inside * 255
    crops = []
    for hidden in (0, 255):
        pixels[~inside, :3] = hidden
        Image.fromarray(pixels).save(tmp_path / "a.png")
        crops.append(prepare_photo(tmp_path / "a.png", size=192))
    assert crops[0].matte == "own"
    assert torch.equal(crops[0].alpha, crops[1].alpha) and torch.equal(crops[0].rgb, crops[1].rgb)
    expected = apply(crops[0].photo_to_crop, np.array([[225.0, 110.0]]))[0].astype(int)
    assert float(crops[0].alpha[expected[1], expected[0]]) > 0.999 and float(crops[0].alpha[-1, 0]) == 0


def test_fully_opaque_corner_alpha_does_not_replace_the_matte(astronaut, tmp_path):
    image = astronaut.copy()
    alpha = np.full((512, 512), 255, np.uint8)
    alpha[:20, :20] = 0
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    assert prepare_photo(tmp_path / "a.png", size=128).matte in ("grabcut", "network")


def test_the_crop_of_a_large_photo_is_as_sharp_as_the_file(astronaut, tmp_path):
    """A face in the corner of a photo of 5000 pixels is cut from the file, not from the 2048-pixel working copy."""
    canvas = Image.new("RGB", (5000, 2500), (90, 90, 90))
    canvas.paste(astronaut, (4200, 300))
    canvas.save(tmp_path / "large.png")
    small = prepare_photo(ASTRONAUT, size=512, matte="none")
    large = prepare_photo(tmp_path / "large.png", size=512, matte="none")
    assert large.source_size == (5000, 2500)

    def sharpness(photo):
        face = photo.picture[200:380, 160:350].mean(-1)
        return float(((face[1:] - face[:-1]) ** 2).mean())

    assert sharpness(large) > 0.8 * sharpness(small)


def test_aligned_pictures_keep_their_frame(prepared, tmp_path):
    picture = (prepared.picture.numpy() * 255).round().astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    again = prepare_photo(tmp_path / "a.png", size=256, aligned=True, matte="none")
    assert np.allclose(again.photo_to_crop, [[1, 0, 0], [0, 1, 0]])
    assert (again.picture - prepared.picture).abs().max() < 0.01 and float(again.valid.min()) == 1
    assert np.abs(again.landmarks - prepared.landmarks).max() < 2 and again.warnings == []
    Image.fromarray(picture[:, :200]).save(tmp_path / "b.png")
    with pytest.raises(UsageError, match="square"):
        prepare_photo(tmp_path / "b.png", size=256, aligned=True)
    Image.fromarray(np.full((100, 100, 3), 80, np.uint8)).save(tmp_path / "c.png")
    faceless = prepare_photo(tmp_path / "c.png", size=64, aligned=True, matte="none")
    assert faceless.pose is None and "No face" in faceless.warnings[0]
    assert np.allclose(faceless.landmarks[[0, 1, 3, 4]], CANONICAL_LANDMARKS_CROP * 64)


def test_a_head_cut_by_the_photo_is_marked_and_warned_about(astronaut, tmp_path):
    astronaut.crop((120, 70, 330, 300)).save(tmp_path / "a.png")
    cut = prepare_photo(tmp_path / "a.png", size=128, matte="none")
    assert any("outside the photo" in warning for warning in cut.warnings)
    assert 0.1 < float(cut.valid.mean()) < 0.9
    assert torch.equal(cut.alpha, cut.valid)


def test_refusals(tmp_path, monkeypatch, astronaut):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with pytest.raises(UsageError, match="No face"):
        prepare_photo(tmp_path / "noise.png")
    with pytest.raises(UsageError, match="expected one of"):
        prepare_photo(ASTRONAUT, matte="magic")
    with pytest.raises(UsageError, match="at least 64"):
        prepare_photo(ASTRONAUT, size=16)
    with pytest.raises(UsageError, match="no file"):
        prepare_photo(tmp_path / "missing.png")
    monkeypatch.setattr(matte_net, "WEIGHTS_FILE", tmp_path / "none.safetensors")
    with pytest.raises(EnvironmentProblem, match="train"):
        prepare_photo(ASTRONAUT, size=64, matte="network")


@pytest.mark.slow
def test_all_portraits_can_be_prepared():
    for row in portraits():
        photo = prepare_photo(row["path"], size=256)
        four = photo.landmarks[[0, 1, 3, 4]] / 256
        assert np.abs(four - CANONICAL_LANDMARKS_CROP).max() < 0.035
        assert 0.1 < float(photo.alpha.mean()) < 0.9
