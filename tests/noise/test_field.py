"""The object-space noise field: whiteness in every view, sharing between views, refresh, state."""
import math

import pytest
import torch
from portrait_diffusion.noise import field as module
from portrait_diffusion.noise.field import NoiseField, faced_axis
from portrait_diffusion.noise.transport import radial_spectrum

from .test_transport import SIZE, view

CHANNELS = 300


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_view_is_white():
    """300 draws (channels) of 32 x 32 in three views; 4 sigma each, a false alarm in 1 of 10,000 checks."""
    field = NoiseField(CHANNELS, 64, generator())
    for azimuth in (0.0, 40.0, 170.0):
        c2w, fovy, depth = view(azimuth)
        noise, carried = field.render(depth, c2w, fovy, generator(1))
        n = noise.numel()
        assert abs(float(noise.mean())) < 4 / math.sqrt(n)
        assert abs(float(noise.square().mean()) - 1) < 4 * math.sqrt(2 / n)
        assert abs(float((noise**4).mean()) - 3) < 4 * math.sqrt(96 / n)
        inside = carried.expand_as(noise) > 0
        assert abs(float(noise[inside].square().mean()) - 1) < 4 * math.sqrt(2 / int(inside.sum()))
        for dy, dx in ((0, 1), (1, 0), (1, 1)):
            a, b = noise[..., : SIZE - dy, : SIZE - dx], noise[..., dy:, dx:]
            assert abs(float((a * b).mean())) < 4 / math.sqrt(a.numel())
        assert float((radial_spectrum(noise) - 1).abs().max()) < 4 / math.sqrt(12 * CHANNELS)
        assert float(carried.sum()) > 0.95 * float((depth > 0).sum())


def test_a_view_repeats_and_near_views_share_more_than_far_ones():
    field = NoiseField(CHANNELS, 96, generator())

    def seen(azimuth, seed=2):
        c2w, fovy, depth = view(azimuth)
        return field.render(depth, c2w, fovy, generator(seed))

    (a, carried), (b, _) = seen(0.0), seen(0.0, seed=3)
    inside = carried[0, 0] > 0
    assert torch.equal(a[:, :, inside], b[:, :, inside]) and not torch.equal(a, b)
    shift = [float((a * seen(azimuth)[0])[:, :, inside].mean()) for azimuth in (0.5, 2.0, 90.0)]
    assert shift[0] > shift[1] > shift[2] and shift[0] > 0.5 and abs(shift[2]) < 0.05


def test_views_of_a_batch_do_not_touch_each_other():
    field = NoiseField(4, 64, generator())
    c2w, fovy, depth = (torch.cat(x) for x in zip(view(0.0), view(50.0), strict=True))
    fresh = torch.zeros(2, 4, SIZE, SIZE)
    both = field.render(depth, c2w, fovy, generator(1), fresh=fresh)[0]
    for i in range(2):
        alone = field.render(depth[i : i + 1], c2w[i : i + 1], fovy[i : i + 1], generator(1), fresh=fresh[:1])[0]
        torch.testing.assert_close(both[i : i + 1], alone)


def test_a_patch_looks_into_the_grid_of_the_axis_it_faces():
    grid = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), dim=-1)
    for axis in range(3):
        points = torch.zeros(4, 4, 3)
        points[..., [i for i in range(3) if i != axis]] = grid
        points[..., axis] = 0.3 * grid[..., 0]  # tilted by 17 degrees
        assert faced_axis(points.view(1, 2, 2, 2, 2, 3)).flatten().tolist() == [axis] * 4


def test_long_cells_forgive_errors_of_depth(monkeypatch):
    """The same view with its depth off by a third of a latent pixel shares far more than with cubic cells."""
    c2w, fovy, depth = view(20.0)
    wrong = depth + 0.007 * (depth > 0)
    shared = []
    for thickness in (1, module.THICKNESS):
        monkeypatch.setattr(module, "THICKNESS", thickness)
        field = NoiseField(CHANNELS, 48, generator())
        (a, inside), (b, _) = (field.render(d, c2w, fovy, generator(1)) for d in (depth, wrong))
        shared.append(float((a * b)[inside.expand_as(a) > 0].mean()))
    assert shared[1] > shared[0] + 0.15 and shared[1] > 0.8, shared


def test_refreshing_forgets_by_the_stated_share_and_stays_normal():
    field = NoiseField(4, 48, generator())
    before = field.values.clone()
    field.refresh(0.19, generator(4))
    n = before.numel()
    assert float((field.values * before).mean()) == pytest.approx(0.9, abs=4 * 2 / math.sqrt(n))
    assert abs(float(field.values.square().mean()) - 1) < 4 * math.sqrt(2 / n)
    kept = field.values.clone()
    field.refresh(0.0, generator(5))
    assert torch.equal(field.values, kept)


def test_state_restores_bit_for_bit_and_wrong_sizes_are_named():
    a, b = NoiseField(4, 32, generator()), NoiseField(4, 32, generator(1))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.values, b.values)
    with pytest.raises(ValueError, match="32 cells"):
        a.load_state_dict(NoiseField(4, 16, generator()).state_dict())
