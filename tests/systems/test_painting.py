"""Views that the model paints and the head is fitted to: where they are, when they are shown, what it costs."""
import math

import pytest
import torch
from portrait_diffusion.systems.painting import look_around, painting_losses, rows_of
from portrait_diffusion.systems.stages import StageConfig


def test_a_look_is_even_and_the_next_one_lies_between():
    stage = StageConfig(painted=12, azimuths=[[60.0, 300.0]], elevations=[-10.0, 20.0])
    first, height = look_around(stage, 0)
    torch.testing.assert_close(first, 60.0 + 20.0 * torch.arange(12))
    assert -10 <= float(height.min()) < -5 and 15 < float(height.max()) <= 20
    looks = torch.cat([look_around(stage, turn)[0] for turn in range(3)]).sort().values
    assert float(looks.diff().min()) > 3.0, "three looks do not repeat a view"
    assert torch.equal(look_around(stage, 1)[0], look_around(stage, 1)[0])
    both = look_around(StageConfig(painted=4, azimuths=[[-90.0, -60.0], [60.0, 90.0]]), 0)[0]
    assert both.tolist() == [-90.0, -75.0, 60.0, 75.0]


@pytest.mark.parametrize(("painted", "views"), [(12, 2), (12, 3), (7, 2), (1, 2), (2, 2), (16, 1)])
def test_all_pictures_are_shown_equally_often(painted, views):
    shown = [row for step in range(painted) for row in rows_of(step, views, painted)]
    counts = {row: shown.count(row) for row in range(painted)}
    assert set(counts.values()) == {min(views, painted)}
    assert all(len(set(rows_of(step, views, painted))) == min(views, painted) for step in range(5))


def test_views_of_a_step_lie_apart():
    for step in range(12):
        a, b = rows_of(step, 2, 12)
        assert min((a - b) % 12, (b - a) % 12) >= 4, "at least a third of the way round"


def test_the_loss_is_a_distance_at_the_renders_size():
    painted = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    same = painted.permute(0, 2, 3, 1).clone().requires_grad_(True)
    assert float(painting_losses(same, painted, None)["painted"]) == 0
    found = painting_losses(same + 0.25, painted, None)
    assert set(found) == {"painted"} and float(found["painted"].detach()) == pytest.approx(0.25, abs=1e-6)
    flat = torch.full((2, 3, 32, 32), 0.3)
    assert float(painting_losses(torch.full((2, 16, 16, 3), 0.3), flat, None)["painted"]) == pytest.approx(0, abs=1e-6)

    class Mean(torch.nn.Module):
        def forward(self, a, b):
            return (a - b).square().mean(dim=(1, 2, 3))

    assert float(painting_losses(same, painted, Mean())["painted_perceptual"]) == 0
    assert math.isclose(float(painting_losses(flat.permute(0, 2, 3, 1) * 0, flat, Mean())["painted_perceptual"]), 0.09,
                        rel_tol=1e-5)  # fmt: skip
