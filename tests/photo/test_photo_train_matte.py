"""Training of the matting network: composites, degradations, losses, resuming."""
import json

import numpy as np
import pytest
import torch
from portrait_diffusion.errors import UsageError
from portrait_diffusion.photo.backgrounds import GENERATORS, background, defocus, fractal_noise
from portrait_diffusion.photo.composites import FACE, close_up, make_batch, photo_border, swell
from portrait_diffusion.photo.degrade import dct_matrix, hue_matrix, jpeg_like, recolour
from portrait_diffusion.photo.matte_data import load_pool, read_frames, resize_frames, split_pool
from portrait_diffusion.photo.matte_loss import laplacian_l1, matte_loss
from portrait_diffusion.photo.matte_net import load_matte_net
from portrait_diffusion.photo.train_matte import MatteTrainConfig, MatteTrainer, main


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cutouts(count: int = 4, size: int = 64) -> torch.Tensor:
    """Soft discs on stalks, straight RGBA uint8."""
    v, u = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    u, v = u / size - 0.5, v / size - 0.5
    frames = []
    for index in range(count):
        alpha = torch.sigmoid((0.2 + 0.03 * index - (u.square() + v.square()).sqrt()) * 60)
        alpha = torch.maximum(alpha, ((u.abs() < 0.1) & (v > 0)).float())
        colour = torch.rand(3, generator=generator(index)).view(3, 1, 1).expand(3, size, size)
        frames.append(torch.cat([colour, alpha[None]]))
    return (torch.stack(frames) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def write_shard(folder, frames: torch.Tensor, azimuths) -> None:
    camera = np.zeros((1, len(frames), 4), np.float32)
    camera[0, :, 0] = azimuths
    np.savez(folder / "train_00000.npz", rgba=frames[None].numpy(), camera=camera)


@pytest.mark.parametrize("make", [*GENERATORS, background])
def test_backgrounds_are_pictures_and_repeat(make):
    first, second = make(generator(3), 5, 64), make(generator(3), 5, 64)
    assert first.shape == (5, 3, 64, 64) and torch.equal(first, second)
    assert 0 <= float(first.min()) and float(first.max()) <= 1 and not first.isnan().any()
    assert not torch.equal(first, make(generator(4), 5, 64))


def test_noise_spans_its_range():
    noise = fractal_noise(generator(), 6, 64)
    assert torch.allclose(noise.amin((1, 2, 3)), torch.zeros(6))
    assert torch.allclose(noise.amax((1, 2, 3)), torch.ones(6))


def test_defocus_limits():
    picture = torch.rand(3, 2, 64, 64, generator=generator())
    level = torch.tensor([0.0, 1.5, 9.0]).view(3, 1, 1, 1)
    blurred = defocus(picture, level)
    assert torch.allclose(blurred[0], picture[0])
    assert blurred[2].std() < blurred[1].std() < picture[1].std()
    assert torch.allclose(defocus(torch.full_like(picture, 0.3), level), torch.tensor(0.3))


def test_jpeg_like_limits():
    transform = dct_matrix()
    assert torch.allclose(transform @ transform.T, torch.eye(8), atol=1e-6)
    picture = torch.rand(1, 3, 64, 64, generator=generator()) * 0.8 + 0.1
    step = torch.tensor([1e-5]).view(1, 1, 1, 1)
    assert torch.allclose(jpeg_like(picture, step), picture, atol=1e-3)
    coarse = jpeg_like(picture, step * 3e4)
    error = (coarse - picture).abs().mean()
    assert error > 0.02
    flat = torch.full((1, 3, 64, 64), 0.5)
    # a flat block has one coefficient, 8 x 0.5 = 4, rounded to a multiple of the step
    assert torch.allclose(jpeg_like(flat, torch.full((1, 1, 1, 1), 0.5)), flat, atol=1e-5)


def test_hue_turns_are_rotations_that_keep_grey():
    matrix = hue_matrix(torch.tensor([0.0, 0.4, -2.0]))
    assert torch.allclose(matrix @ matrix.mT, torch.eye(3).expand(3, 3, 3), atol=1e-6)
    assert torch.allclose(matrix @ torch.ones(3), torch.ones(3, 3), atol=1e-6)
    picture = torch.rand(2, 3, 16, 16, generator=generator()) * 0.9 + 0.05
    assert torch.allclose(recolour(picture, generator(), strength=0.0), picture, atol=1e-5)


def test_batches_are_consistent():
    batch = make_batch(cutouts(6), generator())
    for layer in (batch.rgb, batch.alpha, batch.foreground, batch.background):
        assert not layer.isnan().any() and 0 <= float(layer.min()) and float(layer.max()) <= 1 + 1e-6
    assert set(batch.valid.unique().tolist()) <= {0.0, 1.0}
    assert float((batch.rgb * (1 - batch.valid)).abs().max()) == 0
    again = make_batch(cutouts(6), generator())
    assert torch.equal(batch.rgb, again.rgb) and torch.equal(batch.alpha, again.alpha)
    assert 0.03 < float(batch.alpha.mean()) < 0.8


def test_valid_borders_appear_on_every_side():
    valid = photo_border(300, 32, generator())
    middle = torch.stack([valid[:, 0, 0, 16], valid[:, 0, -1, 16], valid[:, 0, 16, 0], valid[:, 0, 16, -1]], 1)
    share = 1 - middle.mean(0)
    # each side enters with probability 1/4 and then nearly always reaches the outermost pixel; 5 sigma
    assert ((share - 0.25).abs() < 5 * (0.25 * 0.75 / 300) ** 0.5).all()
    assert (valid[:, 0, 16, 16] == 1).all()


def test_loss_is_zero_for_the_truth_and_positive_else():
    batch = make_batch(cutouts(3), generator())
    hard = type(batch)(batch.rgb, batch.valid, (batch.alpha > 0.5).float(), batch.foreground, batch.background)
    perfect = (hard.alpha * 2 - 1) * 40
    terms = matte_loss(perfect, hard)
    assert all(float(value) < 1e-5 for value in terms.values())
    wrong = matte_loss(-perfect, hard)
    assert all(float(value) > 0.01 for value in wrong.values())
    outside = torch.where(hard.valid > 0, perfect, -perfect)
    assert float(matte_loss(outside, hard)["alpha"]) < 1e-5
    assert float(laplacian_l1(torch.full((1, 1, 64, 64), 0.7))) == pytest.approx(0, abs=1e-6)


def test_frames_from_shards(tmp_path):
    frames = cutouts(4, 32)
    write_shard(tmp_path, frames, [0, 80, 350, -30])
    (chosen,) = read_frames(tmp_path, 75)
    assert np.array_equal(chosen, frames[[0, 2, 3]].numpy())
    pool = load_pool(read_frames(tmp_path), 64, torch.device("cpu"), 2)
    assert pool.shape == (2, 64, 64, 4) and pool.dtype == torch.uint8
    assert torch.equal(resize_frames(frames, 32), frames)
    first, held = split_pool(torch.zeros(200, 2, 2, 4))
    assert len(first) == 196 and len(held) == 4


def test_bad_data(tmp_path):
    with pytest.raises(UsageError, match="no shards"):
        next(read_frames(tmp_path))
    (tmp_path / "train_00000.npz").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="not a shard"):
        next(read_frames(tmp_path))
    with pytest.raises(UsageError):
        load_pool([], 64, torch.device("cpu"), 10)
    with pytest.raises(UsageError):
        load_pool([np.zeros((3, 8, 8, 3), np.uint8)], 64, torch.device("cpu"), 10)


def test_two_steps_from_the_command_line_then_resume(tmp_path):
    write_shard(tmp_path, cutouts(4, 64), [0, 10, -10, 20])
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--batch-size", "2", "--device", "cpu",
                 "--size", "64", "--eval-batches", "1"]  # fmt: skip
    path = main([*arguments, "--steps", "2"])
    card = json.loads((tmp_path / "out" / "matte.json").read_text())
    assert card["steps"] == 2 and card["parameters"] <= 5_000_000
    first = load_matte_net(path)
    assert all(parameter.isfinite().all() for parameter in first.parameters())
    main([*arguments, "--steps", "3"])
    assert json.loads((tmp_path / "out" / "matte.json").read_text())["steps"] == 3
    second = load_matte_net(path)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_resumed_run_equals_an_uninterrupted_one(one_thread):
    config = MatteTrainConfig(steps=4, batch_size=2, size=64)
    straight = MatteTrainer(cutouts(4), config)
    for _ in range(4):
        straight.train_step()
    first = MatteTrainer(cutouts(4), config)
    for _ in range(3):  # in the middle of a batch that serves two steps
        first.train_step()
    second = MatteTrainer(cutouts(4), config)
    second.load_state(first.state())
    second.train_step()
    for expected, value in zip(straight.net.parameters(), second.net.parameters()):
        assert torch.allclose(expected, value, atol=1e-6)


def test_a_batch_serves_twice_the_second_time_mirrored():
    trainer = MatteTrainer(cutouts(4), MatteTrainConfig(steps=9, batch_size=2, size=64))
    batches = []
    for trainer.step in range(4):
        batches.append(trainer.batch())
    for name in vars(batches[0]):
        first, second, third, _ = (getattr(batch, name) for batch in batches)
        assert torch.equal(first.flip(-1), second), name
    assert not torch.equal(batches[0].rgb, batches[2].rgb)
    once = MatteTrainer(cutouts(4), MatteTrainConfig(steps=9, batch_size=2, size=64, repeats=1))
    once.step = 1
    assert torch.equal(once.batch().rgb, batches[2].rgb)


def test_outlines_swell_and_faces_stay():
    line = (torch.arange(64) + 0.5) / 32 - 1
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None].expand(200, -1, -1, -1)
    moved = swell(places, generator())
    centre, axes = (torch.tensor(pair) for pair in FACE)
    radius = ((places - centre) / axes).norm(dim=-1)
    after = ((moved - centre) / axes).norm(dim=-1)
    assert torch.allclose(moved[radius < 1], places[radius < 1], atol=1e-6)
    outside = radius > 1
    assert (after[outside] <= radius[outside] + 1e-5).all() and (after[outside] >= 1 - 1e-5).all()
    least = 1 + (radius - 1) * (1 - 0.55)
    assert (after >= least - 1e-5)[outside].all()
    # half of them move; 5 sigma
    share = ((after - radius).abs().amax((1, 2)) > 1e-3).float().mean()
    assert abs(float(share) - 0.5) < 5 * (0.25 / 200) ** 0.5
    # places on one line through the centre stay on it
    cross = (places - centre)[..., 0] * (moved - centre)[..., 1] - (places - centre)[..., 1] * (moved - centre)[..., 0]
    assert float(cross.abs().max()) < 1e-5


def test_close_ups_are_pieces_of_others():
    scene = torch.full((300, 3, 16, 16), 0.25)
    people = torch.linspace(0.3, 1, 300)[:, None, None, None].expand(-1, 3, 16, 16)
    got = close_up(scene, people, generator())
    taken = (got - scene).abs().amax((1, 2, 3)) > 1e-6
    # 12 % are close-ups; 5 sigma
    assert abs(float(taken.float().mean()) - 0.12) < 5 * (0.12 * 0.88 / 300) ** 0.5
    assert torch.allclose(got[taken], people.roll(1, 0)[taken], atol=1e-5)


def test_it_learns_a_single_batch():
    torch.manual_seed(0)
    trainer = MatteTrainer(cutouts(4), MatteTrainConfig(steps=10**6, batch_size=4, warmup_steps=5, size=64))
    losses = [float(trainer.train_step()["alpha"]) for _ in range(20)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_wrong_frames_are_refused():
    with pytest.raises(UsageError, match="frames must be"):
        MatteTrainer(torch.zeros(2, 8, 8, 3), MatteTrainConfig())
    with pytest.raises(UsageError, match="at least one step; repeats is 0"):
        MatteTrainConfig(repeats=0)
