"""The colour of the unseen back: measured at the outline, applied to hair behind the face only."""
import torch
from portrait_diffusion.inversion.target import Target
from portrait_diffusion.inversion.unseen import outline_colour, recoloured, upper_colour

HAIR, SKIN = torch.tensor([0.6, 0.4, 0.2]), torch.tensor([0.9, 0.7, 0.6])


def portrait(size=128, hair_to=0.3, valid_from=0.0) -> Target:
    """A disc: hair above `hair_to` of the frame, skin below; soft edge of one pixel; unknown above `valid_from`."""
    v, u = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    alpha = ((0.35 - ((u - 0.5) ** 2 + (v - 0.5) ** 2).sqrt()) * size + 0.5).clamp(0, 1)[None, None]
    colour = torch.where((v < hair_to)[..., None], HAIR, SKIN).permute(2, 0, 1)[None]
    valid = (v >= valid_from).float()[None, None]
    return Target(colour * alpha * valid, alpha * valid, valid)


def test_the_outline_of_the_top_gives_the_hair():
    for size in (64, 128, 200):
        torch.testing.assert_close(outline_colour(portrait(size)), HAIR, rtol=0, atol=1e-5)


def test_matte_errors_at_the_edge_do_not_count():
    photo = portrait()
    photo.rgb[(photo.alpha < 1).expand_as(photo.rgb)] = 0.0
    torch.testing.assert_close(outline_colour(photo), HAIR, rtol=0, atol=1e-5)


def test_short_hair_leaves_the_temples_out():
    """Hair ends above the eyes: skin at the outline between them and the hair is not taken for hair."""
    torch.testing.assert_close(outline_colour(portrait(hair_to=0.28)), HAIR, rtol=0, atol=1e-5)


def test_without_an_outline_there_is_no_colour():
    full = Target(HAIR.view(1, 3, 1, 1).expand(1, 3, 64, 64), torch.ones(1, 1, 64, 64), torch.ones(1, 1, 64, 64))
    assert outline_colour(full) is None
    nothing = Target(*(torch.zeros(1, c, 64, 64) for c in (3, 1)), torch.ones(1, 1, 64, 64))
    assert outline_colour(nothing) is None
    assert outline_colour(portrait(valid_from=0.46)) is None, "the photo ends at the forehead"


def test_upper_colour_is_the_median_above_the_eyes():
    rgb = SKIN.expand(32, 32, 3).clone()
    rgb[:14] = HAIR
    opacity = torch.ones(32, 32, 1)
    torch.testing.assert_close(upper_colour(rgb, opacity), HAIR)
    assert upper_colour(rgb, torch.zeros(32, 32, 1)) is None


def view(z: float, y: float = 0.1, opacity: float = 1.0) -> tuple:
    points = torch.tensor([0.0, y, z]).expand(24, 24, 3)
    return HAIR.expand(24, 24, 3) * opacity, torch.full((24, 24, 1), opacity), points


def test_guessed_hair_behind_becomes_the_wanted_colour():
    wanted = torch.tensor([0.2, 0.1, 0.1])
    for opacity in (1.0, 0.4):
        got = recoloured(*view(-0.2, opacity=opacity), HAIR, wanted)
        torch.testing.assert_close(got, (wanted * opacity).expand(24, 24, 3), rtol=1e-4, atol=1e-5)


def test_what_the_photo_shows_and_the_shoulders_stay():
    wanted = torch.tensor([0.2, 0.1, 0.1])
    for place in (view(0.1), view(-0.2, y=-0.25)):
        assert torch.equal(recoloured(*place, HAIR, wanted), place[0])


def test_other_colours_stay():
    rgb, opacity, points = view(-0.2)
    neck = SKIN.expand_as(rgb)
    got = recoloured(neck, opacity, points, HAIR, torch.tensor([0.2, 0.1, 0.1]))
    assert float((got - neck).abs().max()) < 0.01


def test_texture_is_kept_and_values_stay_in_range():
    rgb, opacity, points = view(-0.2)
    speckled = rgb * (1 + 0.02 * torch.randn(24, 24, 1, generator=torch.Generator().manual_seed(0)))
    got = recoloured(speckled, opacity, points, HAIR, torch.tensor([0.5, 0.5, 0.9]))
    assert (got >= 0).all() and (got <= 1).all()
    brightness = torch.stack([speckled.mean(-1).flatten(), got.mean(-1).flatten()])
    assert float(torch.corrcoef(brightness)[0, 1]) > 0.95
    dark = recoloured(speckled, opacity, points, HAIR, HAIR / 4)
    assert 0.4 < float(dark.mean(-1).std() / speckled.mean(-1).std()) < 0.8, "a darker head has less contrast"


def test_a_guess_that_is_right_but_for_the_light_stays():
    rgb, opacity, points = view(-0.2)
    torch.testing.assert_close(recoloured(rgb, opacity, points, HAIR, HAIR + 0.04), rgb, rtol=0, atol=1e-6)


def test_strong_tints_in_hair_go_and_faint_ones_stay():
    """One colour, with red stripes of zero mean brightness: at 0.1 most of the red goes, at 0.003 hardly any."""
    rgb, opacity, points = view(-0.2)
    red = torch.tensor([1.0, -0.5, -0.5]) * torch.cos(torch.arange(24.0) * 1.5)[None, :, None]
    for size, low, high in ((0.1, 0.0, 0.35), (0.003, 0.8, 1.0)):
        striped = rgb + size * red
        got = recoloured(striped, opacity, points, HAIR, HAIR)
        kept = (got - got.mean((0, 1))).norm() / (striped - striped.mean((0, 1))).norm()
        assert low <= float(kept) <= high, size
        torch.testing.assert_close(got.mean(-1), striped.mean(-1), rtol=0, atol=1e-5)  # brightness stays
