"""What the encoder is given: alignment onto the frontal plane and the augmentations."""
import pytest
import torch
import torch.nn.functional as F
from portrait_diffusion.ops.cameras import canonical_fovy, head_to_world, orbit_c2w, project_points
from portrait_diffusion.ops.canonical import BOX_RADIUS
from portrait_diffusion.ops.triplane import sample_planes
from portrait_diffusion.priors.alignment import FACE_DEPTH, encoder_input, plane_grid
from portrait_diffusion.priors.augment import (
    affine_jitter,
    colour_jitter,
    degrade,
    disguise,
    surface_texture,
    turn_hue,
    unknown_border,
)

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def project(points: torch.Tensor, size: int) -> torch.Tensor:
    """Pixels (N, 2) of head-frame points (N, 3) in the canonical crop."""
    c2w = orbit_c2w(torch.zeros(1, dtype=F64), torch.zeros(1, dtype=F64))
    return project_points(head_to_world(points)[None], c2w, canonical_fovy(c2w), size, size)[0][0]


def test_the_grid_is_the_projection_of_the_plane_through_the_face():
    size, crop = 16, 128
    grid = plane_grid(size, "cpu", F64)[0]
    assert grid.shape == (size, size, 2)
    centres = ((torch.arange(size, dtype=F64) + 0.5) / size * 2 - 1) * BOX_RADIUS
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([x, y, torch.full_like(x, FACE_DEPTH)], dim=-1).reshape(-1, 3)
    pixels = (grid.reshape(-1, 2) + 1) / 2 * crop  # align_corners=False: -1 is the left edge of the first pixel
    torch.testing.assert_close(pixels, project(points, crop), rtol=0, atol=1e-9)


@pytest.mark.parametrize("x, y", [(0.1, 0.17), (-0.21, -0.08), (0.0, 0.0)])
def test_a_dot_in_the_photo_lands_on_its_place_in_the_frontal_plane(x, y):
    """Its centre of mass, seen through `sample_planes`' own coordinates: right is +x, row 0 is the bottom."""
    size, crop = 256, 128
    u, v = project(torch.tensor([[x, y, FACE_DEPTH]], dtype=F64), crop)[0]
    rows, columns = torch.meshgrid(*[torch.arange(crop, dtype=F64) + 0.5] * 2, indexing="ij")
    dot = torch.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 8)[None, None]
    one = torch.ones(1, 1, crop, crop, dtype=F64)
    plane = encoder_input(dot.expand(-1, 3, -1, -1), one, one, torch.zeros(1), torch.zeros(1), size)[0, 0]
    centres = ((torch.arange(size, dtype=F64) + 0.5) / size * 2 - 1) * BOX_RADIUS
    found = (plane.sum(0) @ centres / plane.sum(), plane.sum(1) @ centres / plane.sum())
    assert abs(float(found[0]) - x) < 2e-4 and abs(float(found[1]) - y) < 2e-4  # a tenth of a pixel
    planes = torch.zeros(1, 3, 1, size, size, dtype=F64)
    planes[0, 0, 0] = plane
    here = sample_planes(planes, torch.tensor([[[x, y, 0.0]]], dtype=F64) / BOX_RADIUS, reduce="sum")
    assert float(here) > 0.95 * float(plane.max())


def test_encoder_input_stacks_what_it_says():
    g = generator()
    rgb, alpha = torch.rand(2, 3, 32, 32, generator=g), torch.rand(2, 1, 32, 32, generator=g)
    valid = torch.ones(2, 1, 32, 32)
    valid[:, :, 20:] = 0
    x = encoder_input(rgb, alpha, valid, torch.tensor([45.0, -90.0]), torch.tensor([9.0, 0.0]), 64)
    assert x.shape == (2, 7, 64, 64)
    assert torch.equal(x[:, 5, 0, 0], torch.tensor([0.5, -1.0]))
    assert torch.allclose(x[:, 6, 3, 5], torch.tensor([0.1, 0.0]))
    unknown = x[:, 4] == 0
    assert unknown[:, :20].all() and not unknown[:, 32:44, 20:44].any(), "the lower part of the photo is the first rows"
    assert (x[:, :4].permute(0, 2, 3, 1)[unknown] == 0).all()
    noisy = encoder_input(rgb + (1 - valid) * 0.7, alpha, valid, torch.zeros(2), torch.zeros(2), 64)
    assert torch.equal(noisy[:, :5], x[:, :5]), "what lies outside the photo changes nothing"


def test_colour_jitter_of_strength_0_is_the_identity():
    rgb = torch.rand(3, 2, 8, 8, 3, generator=generator())
    rgb[0, 0, 0] = 0.0
    rgb[0, 0, 1] = 1.0
    torch.testing.assert_close(colour_jitter(rgb, torch.zeros(3), generator(1)), rgb, rtol=0, atol=2e-7)


def test_colour_jitter_is_one_change_a_subject_for_all_its_views():
    view = torch.rand(4, 1, 8, 8, 3, generator=generator())
    out = colour_jitter(view.expand(-1, 3, -1, -1, -1), torch.ones(4), generator(1))
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])
    assert 0 <= float(out.min()) and float(out.max()) <= 1
    assert (out[:, 0] - view[:, 0]).abs().amax(dim=(1, 2, 3)).min() > 0.01
    same = torch.rand(1, 1, 8, 8, 3, generator=generator()).expand(4, -1, -1, -1, -1)
    changed = colour_jitter(same, torch.ones(4), generator(1))
    assert not torch.allclose(changed[0], changed[1], atol=1e-3), "subjects change independently"
    assert torch.equal(changed, colour_jitter(same, torch.ones(4), generator(1)))


def test_grey_stays_nearly_grey():
    """Channel gains differ by at most exp(0.16), so a grey picture keeps its channels within that ratio."""
    out = colour_jitter(torch.full((64, 1, 1, 1, 3), 0.4), torch.ones(64), generator())
    ratio = out.amax(dim=-1) / out.amin(dim=-1)
    assert 1.0 < float(ratio.max()) <= 1.18


def test_hue_turns_about_grey():
    rgb = 0.2 + 0.4 * torch.rand(3, 5, 3, dtype=torch.float64)
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(turn_hue(rgb, 0 * one, one), rgb)
    third = turn_hue(rgb, 2 * torch.pi / 3 * one, one)  # a third of a turn permutes the channels: red becomes green
    torch.testing.assert_close(third, rgb.roll(1, dims=-1))
    there = turn_hue(rgb, 0.3 * one, one)
    torch.testing.assert_close(turn_hue(there, -0.3 * one, one), rgb)
    torch.testing.assert_close(there.mean(-1), rgb.mean(-1))
    grey = turn_hue(rgb, one, 0 * one)
    torch.testing.assert_close(grey, rgb.mean(-1, keepdim=True).expand_as(rgb))


def test_affine_jitter_moves_little_and_repeats():
    size, shift, scale = 64, 0.003, 0.01
    ramp = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    images = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)])[None].expand(16, -1, -1, -1)
    out = affine_jitter(images, generator(), shift, scale)
    inner = slice(4, -4)
    moved = (out - images)[:, :, inner, inner].abs()
    limit = 2 * shift + scale + 0.01 * 1.01 + 1e-4  # shift in [-1, 1] coordinates, scale, angle of 0.01 rad
    assert 1e-4 < float(moved.max()) <= limit
    assert torch.equal(out, affine_jitter(images, generator(), shift, scale))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(out[0], out[1])
    still = affine_jitter(images, generator(), 0.0, 0.0)  # rotation about the centre is left
    turned = (still - images)[:, :, inner, inner].abs()
    assert float(turned.max()) <= 0.0101


def test_disguise_changes_by_its_amount_and_never_the_matte():
    size = 64
    alpha = torch.rand(4, 1, size, size, generator=generator(3))
    rgb = alpha * torch.rand(4, 3, size, size, generator=generator(4))
    amount = torch.tensor([0.0, 0.3, 1.0, 1.0])
    first, again = (disguise(rgb, alpha, amount, generator(1)) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first[0], rgb[0], rtol=0, atol=1e-6)
    assert (first >= 0).all() and (first <= alpha).all()
    change = (first - rgb).abs().mean(dim=(1, 2, 3))
    assert change[0] < 1e-6 < 0.01 < change[2:].mean()


def test_disguised_blur_keeps_what_is_flat():
    """The shares of the blurred copies sum to one, whatever the level: grey stays grey but for shading and texture."""
    size, n = 32, 200
    alpha = torch.ones(n, 1, size, size)
    grey = torch.full((n, 3, size, size), 0.4)
    out = disguise(grey, alpha, torch.ones(n), generator(2))
    assert (out.mean(dim=1, keepdim=True) - out).abs().mean() < 0.04  # shading is faintly coloured, noise too
    assert abs(float(out.mean()) - 0.4) < 0.03


def test_degrade_ranges_determinism_and_empty_pictures():
    alpha = torch.zeros(6, 1, 32, 32)
    alpha[:, :, 8:24, 8:24] = 1.0
    alpha = F.avg_pool2d(alpha, 3, stride=1, padding=1)
    rgb = torch.rand(6, 3, 32, 32, generator=generator()) * alpha
    first = degrade(rgb, alpha, generator(1))
    for a, b in zip(first, degrade(rgb, alpha, generator(1))):
        assert torch.equal(a, b)
    colour, matte = first
    assert colour.shape == rgb.shape and matte.shape == alpha.shape
    assert 0 <= float(colour.min()) and float(colour.max()) <= 1 and 0 <= float(matte.min()) and float(matte.max()) <= 1
    assert (colour[:, :, :5, :5] == 0).all() and (matte[:, :, :5, :5] == 0).all(), "the background stays empty"
    assert (matte[:, :, 12:20, 12:20] == 1).all(), "opaque stays opaque"
    assert float((matte - alpha).abs().max()) > 0.02 and float((colour - rgb).abs().max()) > 0.01
    assert float((colour - rgb).abs().mean()) < 0.1
    assert not torch.equal(matte[0], matte[1])


def test_unknown_border_is_a_rectangle_with_bounded_sides():
    size, n = 100, 400
    valid = unknown_border(n, size, generator(), "cpu")
    assert valid.shape == (n, 1, size, size) and set(valid.unique().tolist()) == {0.0, 1.0}
    rows, columns = valid[:, 0].amax(dim=2), valid[:, 0].amax(dim=1)
    assert torch.equal(valid[:, 0], rows[:, :, None] * columns[:, None, :])
    first, last = rows.argmax(dim=1), size - 1 - rows.flip(1).argmax(dim=1)
    left, right = columns.argmax(dim=1), size - 1 - columns.flip(1).argmax(dim=1)
    assert first.max() <= 5 and last.min() >= 69 and left.max() <= 12 and right.min() >= 87
    assert first.max() >= 3 and last.min() <= 75, "all sides are cut at times"
    assert torch.equal(valid, unknown_border(n, size, generator(), "cpu"))


def test_how_often_a_border_is_unknown():
    """Four sides of probability 0.2 each: none with 0.8^4 = 0.41; binomial, 5 sigma of 2000 is 0.055."""
    valid = unknown_border(2000, 100, generator(), "cpu")
    complete = (valid.amin(dim=(1, 2, 3)) == 1).float().mean()
    assert abs(float(complete) - 0.8**4) < 0.06
    assert (unknown_border(50, 16, generator(), "cpu", probability=0.0) == 1).all()


def test_a_solid_texture_is_a_function_of_the_position_alone():
    """The same points in any order and shape get the same values; other subjects and seeds get others."""
    points = torch.rand(3, 40, 3, generator=generator(1)) * 0.5
    here = surface_texture(points, generator(2))
    assert here.shape == (3, 40)
    again = surface_texture(points.flip(1).view(3, 8, 5, 3), generator(2)).reshape(3, 40).flip(1)
    torch.testing.assert_close(again, here, rtol=0, atol=1e-4)
    one = points[:1].expand(3, -1, -1)
    assert (surface_texture(one, generator(2))[0] - surface_texture(one, generator(2))[1]).abs().max() > 0.1
    assert (surface_texture(points, generator(3)) - here).abs().max() > 0.1


def test_a_solid_texture_is_fine_across_the_strands_and_long_along_them():
    """Over many draws: mean 0, variance at most 1, and steps along the vertical, the usual strand, change it less."""
    points = torch.rand(400, 200, 3, generator=generator(1)) * 0.5
    values = surface_texture(points, generator(5))
    assert abs(float(values.mean())) < 0.02 and 0.15 < float(values.var()) < 1.0
    change = []
    for step in torch.eye(3) * 0.006:
        change.append(float((surface_texture(points + step, generator(5)) - values).square().mean()))
    assert change[2] < 0.6 * min(change[:2])
