"""What hangs in the air beside the head is found and taken away; the head, and what the photo shows, stays."""
import numpy as np
import pytest
import torch
from portrait_diffusion.geometry.floaters import SOLID, outside_the_body
from portrait_diffusion.geometry.triplane import TriplaneGeometry
from portrait_diffusion.ops.canonical import BOX_RADIUS
from portrait_diffusion.ops.triplane import voxel_centres

from geometry.ball import BALL_RADIUS, ball

EDGE = 32


def boxes(*slices: tuple) -> np.ndarray:
    """A grid that is solid in some boxes, (first, last + 1) a side."""
    grid = np.zeros((12, 12, 12), np.float32)
    for low, high in slices:
        grid[low:high, low:high, low:high] = 0.9
    return grid


def test_all_but_the_largest_body_and_its_border_is_outside():
    outside = outside_the_body(boxes((1, 5), (8, 10)))
    body = np.zeros_like(outside)
    body[0:6, 0:6, 0:6] = True  # the box and one voxel around it
    assert np.array_equal(outside, ~body)


@pytest.mark.parametrize("second", [(5, 7), (4, 7)], ids=["at a corner", "overlapping"])
def test_bodies_that_touch_are_one(second):
    outside = outside_the_body(boxes((1, 5), second))
    assert not outside[second[0] : second[1] + 1, second[0] : second[1] + 1, second[0] : second[1] + 1].all()
    assert not outside[6, 6, 6] and outside[9, 9, 9]


def test_haze_is_no_body_and_bridges_nothing():
    grid = boxes((1, 5), (7, 9))
    grid[5:7, 5:7, 5:7] = 0.99 * SOLID
    assert outside_the_body(grid)[7:9, 7:9, 7:9].all()


def test_without_matter_nothing_is_outside():
    assert not outside_the_body(np.full((4, 4, 4), 0.9 * SOLID)).any()


def dusty(gate: float = 1.0) -> tuple[TriplaneGeometry, torch.Tensor]:
    """A ball with a speck and a veil of haze beside it, and where these are, (R,R,R) bool."""
    geometry = ball(restoration_resolution=EDGE)
    geometry.set_restoration(torch.full_like(geometry.restoration_gate, gate))
    away = voxel_centres((EDGE, EDGE, EDGE), BOX_RADIUS, "cpu").norm(dim=-1).view(EDGE, EDGE, EDGE) - BALL_RADIUS
    dust = torch.zeros(EDGE, EDGE, EDGE, dtype=torch.bool)
    dust[16, 16, 2:4] = True
    dust |= (away > 0.09) & (away < 0.12)
    with torch.no_grad():
        geometry.restoration[0, 0, 0, dust] = 0.3
    geometry.restoration.data[0, 0, 0, 16, 16, 3] = 25.0
    return geometry, dust


def test_dust_goes_and_the_ball_stays():
    geometry, dust = dusty()
    centres = torch.stack(torch.nonzero(dust).unbind(-1)[::-1], dim=-1)
    points = ((centres + 0.5) / EDGE * 2 - 1) * BOX_RADIUS  # head frame; density alone is compared, and is symmetric
    inner = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    inner = inner * BALL_RADIUS * torch.linspace(0, 1.05, 500)[:, None]
    before, colour = geometry.forward_density(inner), geometry(inner)["features"]
    assert geometry.remove_floaters() > int(dust.sum())
    torch.testing.assert_close(geometry.forward_density(inner), before)
    torch.testing.assert_close(geometry(inner)["features"], colour)
    assert float(geometry.restoration.detach()[0, 0, 0][dust].max()) == -1
    assert float(geometry.forward_density(points).detach().max()) < 1e-3
    assert geometry.remove_floaters() == 0, "once is enough"


@pytest.mark.parametrize("gate", [0.0, 0.9])
def test_where_the_photo_has_a_say_nothing_changes(gate):
    geometry, _ = dusty(gate)
    points = (torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 2 * BOX_RADIUS
    before = geometry.forward_density(points)
    geometry.remove_floaters()
    assert torch.equal(geometry.forward_density(points), before)


def test_without_a_restoration_grid_there_is_nothing_to_do():
    assert ball().remove_floaters() == 0
