"""The photo's camera from a network: crops of the training, training, the mean over crops, the shipped weights."""
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.ops.cameras import projected_landmarks
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_CROP
from portrait_diffusion.ops.similarity import apply, rotation_rad, scale, umeyama_2d
from portrait_diffusion.photo import camera_net
from portrait_diffusion.photo.camera_data import (
    CameraPool,
    crop_of,
    load_camera_pool,
    make_camera_batch,
    place,
    theta_of,
)
from portrait_diffusion.photo.camera_estimate import CameraEstimate, estimate_camera, landmark_camera
from portrait_diffusion.photo.camera_net import CAMERA_SIZE, CameraNet, load_camera_net
from portrait_diffusion.photo.head_pose import HeadPose
from portrait_diffusion.photo.matte_data import split_pool
from portrait_diffusion.photo.prepare import prepare_photo
from portrait_diffusion.photo.train_camera import CameraTrainConfig, CameraTrainer, main

from .photo_samples import ASTRONAUT

SIZE = 64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dots(points: torch.Tensor, size: int, radius: float = 0.02) -> torch.Tensor:
    """(B, size, size) soft dots at points (B, 2) of [0, 1]."""
    line = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(line, line, indexing="ij")
    distance = (u - points[:, 0, None, None]).square() + (v - points[:, 1, None, None]).square()
    return torch.exp(-distance / (2 * radius**2))


def centroid(picture: torch.Tensor) -> torch.Tensor:
    """(B, 2) of pictures (B, S, S), in [0, 1]."""
    line = (torch.arange(picture.shape[-1]) + 0.5) / picture.shape[-1]
    mass = picture.sum((1, 2))
    return torch.stack([(picture.sum(1) * line).sum(1), (picture.sum(2) * line).sum(1)], 1) / mass[:, None]


def heads(count: int = 4, size: int = SIZE) -> CameraPool:
    """Discs with a bright mark, seen from random angles; landmarks are the canonical ones of the angle."""
    angles = (torch.rand(count, 2, generator=generator(7)) - 0.5) * torch.tensor([60.0, 30.0])
    landmarks = projected_landmarks(angles[:, 0], angles[:, 1])
    alpha = (dots(torch.full((count, 2), 0.5), size, 0.25) > 0.5).float()
    colour = torch.stack([dots(landmarks[:, k], size, 0.05) for k in range(3)], -1)
    frames = torch.cat([colour, alpha[..., None]], -1)
    return CameraPool((frames * 255).to(torch.uint8), angles, landmarks)


def similarities(count: int = 5) -> tuple:
    noise = torch.randn(count, 4, generator=generator(1), dtype=torch.float64)
    z = torch.polar(torch.exp(0.1 * noise[:, 0]), 0.2 * noise[:, 1])
    return z, 0.05 * torch.complex(noise[:, 2], noise[:, 3])


def test_crop_of_undoes_a_similarity():
    z, s = similarities()
    canonical = torch.tensor(CANONICAL_LANDMARKS_CROP).expand(5, 4, 2)
    moved = place(canonical, z, s)
    back_z, back_s = crop_of(moved)
    torch.testing.assert_close(back_z, 1 / z)
    torch.testing.assert_close(place(moved, back_z, back_s), canonical)
    for row, factor, shift in zip(moved, z, s):  # the same as the similarity of numpy
        matrix = umeyama_2d(canonical[0] - 0.5, row - 0.5)
        assert scale(matrix) == pytest.approx(float(factor.abs()))
        assert rotation_rad(matrix) == pytest.approx(float(factor.angle()))
        assert np.allclose(matrix[:, 2], [float(shift.real), float(shift.imag)])


def test_what_is_shown_at_a_place_is_shown_where_the_place_goes():
    z, s = similarities()
    points = 0.5 + 0.1 * (torch.rand(5, 2, generator=generator(2), dtype=torch.float64) - 0.5)
    picture = dots(points, 96)[:, None].double()
    grid = torch.nn.functional.affine_grid(theta_of(z, s), [5, 1, 128, 128], align_corners=False)
    shown = torch.nn.functional.grid_sample(picture, grid, align_corners=False)[:, 0]
    torch.testing.assert_close(centroid(shown), place(points[:, None], z, s)[:, 0], rtol=0, atol=2e-3)


def test_batches_are_photographs_with_their_cameras_and_repeat():
    pool = heads(64)
    batch = make_camera_batch(pool, SIZE, generator(3))
    assert batch.rgb.shape == (64, 3, SIZE, SIZE) and batch.valid.shape == (64, 1, SIZE, SIZE)
    assert 0 <= float(batch.rgb.min()) and float(batch.rgb.max()) <= 1
    assert float((batch.rgb * (1 - batch.valid)).max()) == 0
    again = make_camera_batch(pool, SIZE, generator(3))
    assert torch.equal(batch.rgb, again.rgb) and torch.equal(batch.anchors, again.anchors)
    mirrored = (batch.angles[:, 0] * pool.angles[:, 0]) < 0
    assert 15 < int(mirrored.sum()) < 49  # binomial, 64 of 1/2: outside once in 50,000
    assert torch.equal(batch.angles[:, 1], pool.angles[:, 1])
    assert torch.equal(batch.angles[:, 0].abs(), pool.angles[:, 0].abs())
    assert (batch.anchors[:, 0, 0] < batch.anchors[:, 1, 0]).all()  # left stays left
    off = (batch.anchors - batch.anchors.new_tensor(CANONICAL_LANDMARKS_CROP)).norm(dim=-1).mean()
    assert 0.01 < float(off) < 0.08


def test_anchors_are_where_the_picture_has_them(monkeypatch):
    """The red mark of the test heads is the left eye: in the crop, mirrored or not, it is at anchor 0 or 1."""
    from portrait_diffusion.photo import camera_data

    shown, real = [], camera_data.compose

    def compose(placed, *rest, **more):
        shown.append(placed)
        return real(placed, *rest, **more)

    monkeypatch.setattr(camera_data, "compose", compose)
    pool = heads(24, 128)
    batch = make_camera_batch(pool, 128, generator(4))
    red = (shown[0][:, 0] - 0.6 * shown[0][:, 0].amax((1, 2), keepdim=True)).clamp_min(0)
    mirrored = batch.angles[:, 0] * pool.angles[:, 0] < 0
    wanted = torch.where(mirrored[:, None], batch.anchors[:, 1], batch.anchors[:, 0])
    assert (centroid(red) - wanted).norm(dim=-1).max() < 0.01


def write_shard(folder, count: int = 4, azimuths=(0, 10, -20, 170)) -> None:
    pool = heads(count, 64)
    camera = np.zeros((1, count, 4), np.float32)
    camera[0, :, 0] = azimuths
    five = torch.cat([pool.landmarks[:, :2], pool.landmarks.mean(1, keepdim=True), pool.landmarks[:, 2:]], 1) * 64
    np.savez(folder / "train_00000.npz", rgba=pool.frames[None].numpy(), camera=camera, landmarks_px=five[None].numpy())


def test_the_pool_holds_frontal_views_with_their_landmarks(tmp_path):
    write_shard(tmp_path)
    pool = load_camera_pool(tmp_path, 32, torch.device("cpu"), 10, 45.0)
    assert pool.frames.shape == (3, 32, 32, 4) and pool.angles[:, 0].tolist() == [0, 10, -20]
    torch.testing.assert_close(pool.landmarks, heads().landmarks[:3])
    assert len(load_camera_pool(tmp_path, 32, torch.device("cpu"), 2, 45.0)) == 2
    with pytest.raises(UsageError, match="within 0.5 degrees"):
        (tmp_path / "train_00000.npz").unlink()
        write_shard(tmp_path, azimuths=(90, 100, 110, 170))
        load_camera_pool(tmp_path, 32, torch.device("cpu"), 10, 0.5)
    first, held = split_pool(heads(100, 16))
    assert len(first) == 98 and len(held) == 2


def test_two_steps_from_the_command_line_then_resume(tmp_path):
    write_shard(tmp_path)
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--batch-size", "2", "--device", "cpu",
                 "--size", "64", "--eval-batches", "1"]  # fmt: skip
    path = main([*arguments, "--steps", "2"])
    card = json.loads((tmp_path / "out" / "camera.json").read_text())
    assert card["steps"] == 2 and card["parameters"] <= 2_000_000
    assert set(card["held_out_synthetic"]) == {"azimuth_deg", "elevation_deg", "size_percent", "shift_percent"}
    first = load_camera_net(path)
    main([*arguments, "--steps", "3"])
    second = load_camera_net(path)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_resumed_run_equals_an_uninterrupted_one(one_thread):
    config = CameraTrainConfig(steps=4, batch_size=2, size=SIZE)
    straight, first, second = (CameraTrainer(heads(), config) for _ in range(3))
    for _ in range(4):
        straight.train_step()
    for _ in range(3):  # in the middle of a batch that serves two steps
        first.train_step()
    second.load_state(first.state())
    second.train_step()
    for expected, value in zip(straight.net.parameters(), second.net.parameters()):
        assert torch.allclose(expected, value, atol=1e-6)


def test_the_mirrored_batch_is_the_mirrored_picture_from_the_mirrored_camera(monkeypatch):
    """The marks of the test heads, found in the mirrored pictures, are at the mirrored anchors."""
    from portrait_diffusion.photo import camera_data

    shown = []
    real = camera_data.compose
    monkeypatch.setattr(camera_data, "compose", lambda placed, *a, **k: shown.append(placed) or real(placed, *a, **k))
    trainer = CameraTrainer(heads(24, 128), CameraTrainConfig(steps=9, batch_size=16, size=128))
    first = trainer.batch()
    trainer.step = 1
    second = trainer.batch()
    assert len(shown) == 1  # made once
    assert torch.equal(second.rgb, first.rgb.flip(-1)) and torch.equal(second.valid, first.valid.flip(-1))
    assert torch.equal(second.angles, first.angles * torch.tensor([-1.0, 1.0]))
    assert (second.anchors[:, 0, 0] < second.anchors[:, 1, 0]).all()  # left stays left
    red = shown[0].flip(-1)[:, 0]
    marks = centroid((red - 0.6 * red.amax((1, 2), keepdim=True)).clamp_min(0))
    off = torch.minimum(*((marks - second.anchors[:, k]).norm(dim=-1) for k in (0, 1)))  # an eye, mirrored or not
    assert float(off.max()) < 0.01
    again = second.mirrored()
    torch.testing.assert_close(again.anchors, first.anchors)
    trainer.step = 2
    assert not torch.equal(trainer.batch().rgb, first.rgb)


def test_it_learns_a_few_heads():
    trainer = CameraTrainer(heads(), CameraTrainConfig(steps=10**6, batch_size=8, warmup_steps=5, size=SIZE))
    losses = [float(trainer.train_step()["total"]) for _ in range(30)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


class Reader(torch.nn.Module):
    """Reads anchors that are painted into a picture, eyes in red and mouth corners in green; the azimuth is positive
    where a blue dot is right of the middle."""

    def forward(self, rgb, valid):
        assert rgb.shape[2:] == (CAMERA_SIZE, CAMERA_SIZE) and valid.shape[1] == 1
        pairs = []
        for channel in (0, 1):
            mass = rgb[:, channel]
            middle = centroid(mass)[:, 0]
            left = (torch.arange(CAMERA_SIZE) + 0.5) / CAMERA_SIZE < middle[:, None]
            pairs += [centroid(mass * left[:, None]), centroid(mass * ~left[:, None])]
        azimuth = torch.where(centroid(rgb[:, 2])[:, 0] > 0.5, 12.0, -12.0)
        return torch.stack([azimuth, torch.full_like(azimuth, 5.0)], 1), torch.stack(pairs, 1)


def painted(anchors: np.ndarray, size: int) -> torch.Tensor:
    """(size, size, 3) picture for `Reader`, blue to the right of the eyes. Args: anchors (4, 2) in pixels."""
    points = torch.as_tensor(anchors, dtype=torch.float32) / size
    layers = [dots(points[k : k + 1], size, 0.008)[0] for k in range(4)]
    blue = dots(points[1:2] + torch.tensor([[0.03, -0.06]]), size, 0.008)[0]
    return torch.stack([layers[0] + layers[1], layers[2] + layers[3], blue], -1).clamp(0, 1)


def test_the_estimate_comes_back_to_the_photographs_pixels():
    turn = np.array([[0.9, -0.3], [0.3, 0.9]])
    anchors = (CANONICAL_LANDMARKS_CROP - 0.5) @ turn.T * 250 + [300, 220]
    wrong = (anchors - anchors.mean(0)) * 1.12 + anchors.mean(0) + [5, -4]  # as a detector errs
    found = estimate_camera(painted(anchors, 512), wrong, Reader())
    assert np.abs(found.anchors - anchors).max() < 0.5
    assert found.azimuth_deg == pytest.approx(12.0) and found.elevation_deg == pytest.approx(5.0)
    moved = found.moved(np.array([[2.0, 0, 10], [0, 2.0, -3]]))
    assert np.allclose(moved.anchors, found.anchors * 2 + [10, -3]) and moved.azimuth_deg == found.azimuth_deg


def test_landmarks_alone_make_a_camera_too():
    five = np.array([[10.0, 10], [30, 10], [20, 20], [12, 30], [28, 30]])
    assert landmark_camera(five, None) == CameraEstimate(0.0, 0.0, pytest.approx(five[[0, 1, 3, 4]]))
    far = landmark_camera(five, HeadPose(-60.0, 50.0, 0.0, 0.0))
    assert (far.azimuth_deg, far.elevation_deg) == (40.0, 20.0)


def test_bad_weights_are_told(tmp_path, monkeypatch):
    with pytest.raises(EnvironmentProblem, match="train-camera"):
        load_camera_net(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="CameraNet"):
        load_camera_net(tmp_path / "bad.safetensors")
    monkeypatch.setattr(camera_net, "WEIGHTS_FILE", tmp_path / "none.safetensors")
    with pytest.raises(EnvironmentProblem, match="camera: landmarks"):
        prepare_photo(ASTRONAUT, size=64, matte="none")
    assert prepare_photo(ASTRONAUT, size=64, matte="none", camera="landmarks").camera.anchors.shape == (4, 2)
    with pytest.raises(UsageError, match="expected one of: network, landmarks"):
        prepare_photo(ASTRONAUT, size=64, camera="magic")


def test_an_untrained_network_starts_from_the_canonical_camera():
    net = CameraNet().eval()
    with torch.no_grad():
        angles, anchors = net(torch.rand(2, 3, 128, 128, generator=generator()), torch.ones(2, 1, 128, 128))
    assert angles.abs().max() < 15
    assert (anchors - torch.tensor(CANONICAL_LANDMARKS_CROP)).abs().max() < 0.1


def test_the_shipped_network_sees_the_same_camera_in_mirrored_and_turned_photos(tmp_path):
    """The tolerances are a few times what a crop more or less changes."""
    picture = Image.open(ASTRONAUT).convert("RGB")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    turned = picture.rotate(15, Image.Resampling.BICUBIC, expand=True)
    turned.resize((round(turned.width * 1.3), round(turned.height * 1.3)), Image.Resampling.LANCZOS).save(
        tmp_path / "turned.png"
    )
    photos = (ASTRONAUT, tmp_path / "mirrored.png", tmp_path / "turned.png")
    plain, mirrored, turned = (prepare_photo(path, size=256, matte="none") for path in photos)
    for other, sign in ((mirrored, -1), (turned, 1)):
        assert abs(other.camera.azimuth_deg - sign * plain.camera.azimuth_deg) < 1.5
        assert abs(other.camera.elevation_deg - plain.camera.elevation_deg) < 1.5
    ratio = scale(turned.photo_to_crop) * 1.3 / scale(plain.photo_to_crop)
    assert abs(math.log(ratio)) < 0.015
    turn = math.degrees(rotation_rad(turned.photo_to_crop) - rotation_rad(plain.photo_to_crop))
    assert abs(turn - 15) < 1.0
    centre = apply(plain.photo_to_crop, np.array([[225.0, 120.0]]))
    assert abs(apply(mirrored.photo_to_crop, np.array([[512 - 225.0, 120.0]]))[0, 1] - centre[0, 1]) < 3
