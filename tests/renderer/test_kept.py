"""Renders with kept samples: the same pictures and gradients as the renderer's, of less work."""
import pytest
import torch
from geometry.ball import ball
from portrait_diffusion.errors import UsageError
from portrait_diffusion.geometry.triplane import TriplaneGeometry
from portrait_diffusion.host import BaseMaterial
from portrait_diffusion.ops import cameras as cam
from portrait_diffusion.ops.volrend import composite
from portrait_diffusion.renderer.kept import check_keeps, keep_rays, render_kept
from portrait_diffusion.renderer.plain import PlainColour, WhiteBackground
from portrait_diffusion.renderer.volume import PortraitVolumeRenderer

SIZE = 20
GRID = [pytest.param(0, id="two passes"), pytest.param(24, id="occupancy grid")]


def head(replaces: bool = False, seed: int = 3) -> TriplaneGeometry:
    """Blobs with a restoration grid that is not empty; only that grid takes gradients."""
    made = TriplaneGeometry(
        {"channels": 4, "resolution": 8, "hidden": 8, "init_std": 2.0, "init_density": 2.0, "seed": seed,
         "restoration_resolution": 6, "restoration_replaces": replaces}
    ).cpu()  # fmt: skip
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name == "restoration")
    generator = torch.Generator().manual_seed(seed)
    if replaces:
        made.set_restoration(torch.rand(made.restoration_gate.shape, generator=generator), 1.0)
    return made


def shown(geometry, occupancy: int = 0, material=None, background=None) -> PortraitVolumeRenderer:
    config = {"num_samples_per_ray": 12, "num_importance_samples": 12, "occupancy_resolution": occupancy}
    return PortraitVolumeRenderer(config, geometry=geometry, material=material, background=background).cpu()


def views(count: int = 3):
    c2w = cam.orbit_c2w(torch.linspace(0, 200, count), 10.0)
    return cam.get_rays(c2w, cam.canonical_fovy(c2w), SIZE, SIZE)


@pytest.mark.parametrize("occupancy", GRID)
@pytest.mark.parametrize("replaces", [False, True])
def test_with_an_empty_grid_it_is_the_renderers_picture(occupancy, replaces):
    geometry = head(replaces)
    with torch.no_grad():
        geometry.restoration_gate.zero_()
    renderer = shown(geometry, occupancy, PlainColour({}), WhiteBackground({}))
    found = render_kept(geometry, keep_rays(geometry, renderer, *views()))
    expected = renderer.eval()(*views())
    assert {k: v.shape for k, v in found.items()} == {k: expected[k].shape for k in found}
    assert float(expected["opacity"].detach().max()) > 0.5
    for key, value in found.items():
        torch.testing.assert_close(value.detach(), expected[key], rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("occupancy", GRID)
@pytest.mark.parametrize("replaces", [False, True])
def test_values_and_gradients_are_those_of_the_field_at_the_kept_places(occupancy, replaces):
    geometry = head(replaces)
    kept = keep_rays(geometry, shown(geometry, occupancy), *views(2))
    with torch.no_grad():
        geometry.restoration.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    found = render_kept(geometry, kept)
    weight = torch.randn(found["comp_rgb"].shape, generator=torch.Generator().manual_seed(2))
    (given,) = torch.autograd.grad((found["comp_rgb"] * weight).sum() + found["depth"].sum(), geometry.restoration)
    total = 0.0
    for k, view in enumerate(kept):
        field = geometry(view.points)
        rgb, opacity, depth, _ = composite(field["density"], field["features"], view.t, view.deltas)
        pixels = weight[k].view(-1, 3)
        torch.testing.assert_close(found["comp_rgb_fg"][k].view(-1, 3)[view.index], rgb)
        total = total + ((rgb + 1 - opacity) * pixels[view.index]).sum() + depth.sum()
    (expected,) = torch.autograd.grad(total, geometry.restoration)
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("occupancy", GRID)
def test_only_pixels_at_and_around_the_head_are_kept(occupancy):
    geometry = ball(restoration_resolution=6)
    (view,) = keep_rays(geometry, shown(geometry, occupancy), *views(1))
    found, kept = render_kept(geometry, [view]), torch.zeros(SIZE * SIZE, dtype=torch.bool)
    kept[view.index] = True
    solid = found["opacity"].flatten() > 0.5
    assert bool(kept[solid].all()) and int(solid.sum()) < int(kept.sum()) < 0.9 * SIZE**2
    assert bool((found["comp_rgb"].view(-1, 3)[~kept] == 1).all()) and not bool(found["depth"].flatten()[~kept].any())


def test_places_do_not_depend_on_what_the_grid_has_become():
    geometry = head()
    first = keep_rays(geometry, shown(geometry, 24), *views())
    with torch.no_grad():
        geometry.restoration.normal_(std=2.0)
    again = keep_rays(geometry, shown(geometry, 24), *views())
    for a, b in zip(first, again, strict=True):
        for name in ("index", "t", "deltas", "raw", "points"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_the_grid_is_looked_up_as_it_is_after_every_change():
    """Without gradients the gated grid is kept between calls: steps, gates, loaded states and dtypes must be seen."""
    geometry, points = head(True), torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5

    def ask(inference: bool = False) -> torch.Tensor:
        with torch.inference_mode() if inference else torch.no_grad():
            return geometry(points)["features"].clone()

    def truth() -> torch.Tensor:
        return geometry(points)["features"].detach()  # with gradients: made anew

    answers = [ask(), ask(inference=True)]
    torch.testing.assert_close(answers[0], answers[1])
    optimizer = torch.optim.Adam([geometry.restoration], lr=0.5)
    geometry(points)["features"].sum().backward()
    optimizer.step()
    changes = [ask()]
    saved = {name: value.clone() for name, value in geometry.state_dict().items()}
    with geometry.without_restoration():
        changes.append(ask())
        torch.testing.assert_close(changes[-1], truth())
    torch.testing.assert_close(ask(), changes[0])
    geometry.set_restoration(torch.ones_like(geometry.restoration_gate), 2.0)
    changes.append(ask())
    torch.testing.assert_close(changes[-1], truth())
    geometry.load_state_dict(saved)
    torch.testing.assert_close(ask(inference=True), changes[0])
    for a, b in ((answers[0], changes[0]), (changes[0], changes[1]), (changes[0], changes[2])):
        assert float((a - b).abs().max()) > 1e-3
    points = points.double()
    geometry.double()
    torch.testing.assert_close(ask().float(), changes[0], rtol=1e-4, atol=1e-5)


class Shiny(BaseMaterial):
    """A material that changes colours."""

    def forward(self, features, **kwargs):
        return features * 0.5


def test_what_cannot_be_kept_is_named():
    geometry = head()
    check_keeps(geometry, shown(geometry))
    with pytest.raises(UsageError, match="keep_samples needs .*no-material"):
        check_keeps(geometry, shown(geometry, material=Shiny({})))
    marching = shown(geometry, 24)
    marching.cfg.estimator = "nerfacc"
    with pytest.raises(UsageError, match="estimator nerfacc has not; set it to occupancy"):
        check_keeps(geometry, marching)
    plain = TriplaneGeometry({"channels": 4, "resolution": 8, "hidden": 8})
    with pytest.raises(UsageError, match="needs portrait-diffusion-triplane with a restoration grid"):
        check_keeps(plain, shown(plain))
    with pytest.raises(UsageError, match="This geometry has no restoration grid"):
        plain.restored(torch.zeros(1, 4), torch.zeros(1, 3))
    geometry.planes[0].requires_grad_(True)
    with pytest.raises(UsageError, match="the optimizer changes geometry.planes.0; set optimizer.params"):
        check_keeps(geometry, shown(geometry))
