"""The registered tri-plane geometry: contract, boundary, normals, surface, weights."""
import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.geometry.triplane import TriplaneGeometry
from portrait_diffusion.host import BaseImplicitGeometry, find
from portrait_diffusion.ops.cameras import BOX_RADIUS

from geometry.ball import BALL_RADIUS, ball

SMALL = {"channels": 4, "resolution": 8, "hidden": 8, "init_std": 1.0, "init_density": 3.0}


def make(**config) -> TriplaneGeometry:
    return TriplaneGeometry({**SMALL, **config}).cpu()


def points(*shape: int, spread: float = 0.2) -> torch.Tensor:
    return spread * (2 * torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0)) - 1)


def test_registered_under_its_name():
    assert find("portrait-diffusion-triplane") is TriplaneGeometry
    geometry = make()
    assert isinstance(geometry, BaseImplicitGeometry)
    assert geometry.cfg.radius == BOX_RADIUS
    torch.testing.assert_close(geometry.bbox, torch.tensor([[-BOX_RADIUS] * 3, [BOX_RADIUS] * 3]))


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 1, 5), (0,)])
def test_shapes_and_agreement_of_the_entry_points(shape):
    geometry, p = make(), points(*shape)
    out = geometry(p, output_normal=True)
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "density": (*shape, 1), "features": (*shape, 3), "normal": (*shape, 3), "shading_normal": (*shape, 3),
    }  # fmt: skip
    assert set(geometry(p)) == {"density", "features"}
    assert torch.equal(geometry.forward_density(p), out["density"])
    field, deformation = geometry.forward_field(p)
    assert torch.equal(field, out["density"]) and deformation is None
    assert torch.equal(geometry.forward_level(field, 2.0), 2.0 - field)
    exported = geometry.export(p)["features"]
    assert torch.equal(exported, out["features"].clamp(0, 1))


def test_density_is_exactly_zero_outside_the_cylinder_and_positive_inside():
    geometry = make()
    p = points(4000, spread=0.6)
    inside = (p[:, 0] ** 2 + p[:, 1] ** 2 <= BOX_RADIUS**2) & (p[:, 2].abs() <= BOX_RADIUS)
    density = geometry(p)["density"][:, 0]
    assert 300 < inside.sum() < 3700
    assert (density[~inside] == 0).all()
    assert (density[inside] > 0).all()


@pytest.mark.parametrize("normal_type", ["analytic", "finite_difference"])
def test_normals_of_a_ball_point_outwards(normal_type):
    p = points(200, spread=0.15)
    p = p[p.norm(dim=-1) > 0.05]
    normal = ball(normal_type=normal_type)(p, output_normal=True)["normal"]
    cosine = (normal * torch.nn.functional.normalize(p, dim=-1)).sum(-1)
    assert cosine.min() > 0.99  # linear interpolation leaves facets of a texel


def test_finite_differences_carry_gradients_and_analytic_normals_do_not():
    p = points(5)
    difference = make(normal_type="finite_difference")
    difference(p, output_normal=True)["normal"][:, 0].sum().backward()
    assert difference.planes[0].grad.abs().sum() > 0
    assert not make(normal_type="analytic")(p, output_normal=True)["normal"].requires_grad


def test_analytic_normals_work_in_inference_mode():
    geometry, p = make(), points(5)
    expected = geometry(p, output_normal=True)["normal"]
    with torch.inference_mode():
        assert torch.equal(geometry(p.clone(), output_normal=True)["normal"], expected)


def test_surface_of_a_ball_has_its_radius():
    pytest.importorskip("skimage")
    mesh = ball(isosurface_resolution=64).isosurface()
    radii = mesh.v_pos.norm(dim=-1)
    torch.testing.assert_close(radii, torch.full_like(radii, BALL_RADIUS), atol=1e-3, rtol=0)
    outward = (mesh.v_nrm * torch.nn.functional.normalize(mesh.v_pos, dim=-1)).sum(-1)
    assert outward.min() > 0.9


def test_fresh_space_is_nearly_empty_and_seeds_decide():
    fresh = TriplaneGeometry({}).cpu()
    assert fresh.forward_density(points(500)).max() < 0.2
    assert torch.equal(make(seed=1).planes[0], make(seed=1).planes[0])
    assert not torch.equal(make(seed=1).planes[0], make(seed=2).planes[0])


def test_pyramids_and_grids_have_their_shapes_and_train():
    geometry = make(levels=3, depth=2, frontal_layers=3, detail_resolution=12, detail_depth=5)
    expected = [(1, 3, 4, 2, size, size) for size in (8, 4, 2)]
    expected += [(1, 1, 4, 3, 8, 8), (1, 1, 4, 5, 12, 12)]
    assert [tuple(p.shape) for p in geometry.planes] == expected == geometry.plane_shapes()
    out = geometry(points(40))
    (out["density"].sum() + out["features"].sum()).backward()
    for name, parameter in geometry.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_an_empty_frontal_grid_changes_nothing_and_a_filled_one_does():
    plain, detailed = make(), make(detail_resolution=12, seed=7)
    detailed.set_decoder(plain.decoder_weights())
    detailed.set_planes([*plain.planes, torch.zeros(1, 1, 4, 8, 12, 12)])
    p = points(30)
    torch.testing.assert_close(detailed(p)["density"], plain(p)["density"])
    detailed.set_planes([*plain.planes, torch.ones(1, 1, 4, 8, 12, 12)])
    assert (detailed(p)["density"] - plain(p)["density"]).abs().min() > 1e-4


@pytest.mark.parametrize("normal_type", ["analytic", "finite_difference"])
def test_normals_do_not_vanish_where_density_is_at_its_limit(normal_type):
    """The ball's density made far denser than a detail grid allows: its normals still point outwards."""
    plain = ball(normal_type=normal_type)
    detailed = ball(normal_type=normal_type, detail_resolution=12)
    with torch.no_grad():
        for geometry in (plain, detailed):
            geometry.decoder["output_weight"][0] *= 4
            geometry.decoder["output_bias"][0] *= 4
    p = points(50, spread=0.1)
    expected, got = (g(p, output_normal=True)["normal"] for g in (plain, detailed))
    assert (detailed.forward_density(p) < plain.forward_density(p)).any(), "the limit is at work"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert float(got.detach().norm(dim=-1).min()) > 0.99


def test_planes_can_be_set_with_or_without_batch_axis_and_copy():
    geometry, new = make(), torch.randn(1, 3, 4, 8, 8)
    parameter = geometry.planes[0]
    geometry.set_planes(new)
    assert geometry.planes[0] is parameter and torch.equal(parameter, new)
    geometry.set_planes([new[0] * 2])
    assert torch.equal(parameter, new * 2)


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (2, 3, 4, 8, 8), (1, 3, 5, 8, 8), (1, 3, 4, 1, 8, 8)])
def test_planes_that_do_not_fit_are_refused_and_nothing_changes(shape):
    geometry = make()
    before = geometry.planes[0].clone()
    with pytest.raises(UsageError, match="do not fit"):
        geometry.set_planes(torch.zeros(shape))
    with pytest.raises(UsageError, match="do not fit"):
        geometry.set_planes([torch.zeros(1, 3, 4, 8, 8)] * 2)
    assert torch.equal(geometry.planes[0], before)


def test_decoder_weights_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="hidden_weight"):
        make().set_decoder(make(hidden=9).decoder_weights())


def test_create_from_copies_and_state_dicts_load():
    geometry, p = make(levels=2, seed=5), points(20)
    copy = TriplaneGeometry.create_from(geometry)
    assert torch.equal(copy(p)["features"], geometry(p)["features"])
    with torch.no_grad():
        copy.planes[0].zero_()
    assert geometry.planes[0].abs().sum() > 0
    loaded = make(levels=2, seed=6)
    loaded.load_state_dict(geometry.state_dict())
    assert torch.equal(loaded(p)["density"], geometry(p)["density"])
    with pytest.raises(TypeError, match="Linear"):
        TriplaneGeometry.create_from(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "config, match",
    [
        ({"channels": 0}, "channels"),
        ({"resolution": 10, "levels": 3}, "multiple of 4"),
        ({"normal_type": "pred"}, "normal_type"),
        ({"detail_resolution": -1}, "detail_resolution"), ({"frontal_layers": -1}, "frontal_layers"),
    ],
)
def test_impossible_configurations_are_usage_errors(config, match):
    with pytest.raises(UsageError, match=match):
        make(**config)


def test_the_restoration_grid_changes_what_its_gate_lets_it():
    plain, restored = make(), make(restoration_resolution=6, seed=3)
    restored.set_planes(list(plain.planes))
    restored.set_decoder(plain.decoder_weights())
    p = points(300)
    front = p[:, 0] > 0  # the world's x points to the front, the third axis of the grid's coordinates
    for key in ("density", "features"):
        torch.testing.assert_close(restored(p)[key], plain(p)[key])
    with torch.no_grad():
        restored.restoration.fill_(0.7)
        restored.restoration_gate[:, :, :, 3:] = 0  # depth runs from the back to the front
    changed = (restored(p)["features"] - plain(p)["features"]).abs().amax(-1)
    layer = 2 * restored.cfg.radius / 6
    assert changed[p[:, 0] > layer].max() < 1e-6 and changed[~front].min() > 1e-3
    restored(p)["features"].sum().backward()
    gradient = restored.restoration.grad.abs().sum((0, 1, 2, 4, 5))
    assert gradient[3:].max() == 0 and gradient[:3].min() > 0
    copy = TriplaneGeometry.create_from(restored)
    torch.testing.assert_close(copy(p)["density"], restored(p)["density"])
    assert "restoration_gate" in copy.state_dict() and "restoration" not in plain.state_dict()


def replacing(plain, gate: float, blur: float = 1.5):
    """A copy whose restoration grid replaces colours as far as a constant gate lets it."""
    restored = make(restoration_resolution=16, restoration_replaces=True, seed=3)
    restored.set_planes(list(plain.planes))
    restored.set_decoder(plain.decoder_weights())
    restored.set_restoration(torch.full_like(restored.restoration_gate, gate), blur)
    return restored


def test_a_replacing_grid_leaves_alone_what_is_closed_and_what_has_no_detail():
    plain = make(init_std=1.0)
    p = points(300) * 0.8  # between the outermost voxels' centres
    torch.testing.assert_close(replacing(plain, 0.0)(p), plain(p))
    plain.set_planes([torch.full_like(level, 0.3) for level in plain.planes])
    for gate in (0.4, 1.0):
        torch.testing.assert_close(replacing(plain, gate)(p), plain(p), rtol=2e-3, atol=1e-3)


def test_a_replacing_grid_takes_detail_from_colours_and_none_from_density():
    """Where it is open they are those of the grid alone, and vary less the more the grid was blurred."""
    plain = make(init_std=1.0)
    p = points(400) * 0.8
    spread = []
    for blur in (1.0, 3.0):
        restored = replacing(plain, 1.0, blur)
        torch.testing.assert_close(restored(p)["density"], plain(p)["density"])
        spread.append(float(restored(p)["features"].detach().std(dim=0).mean()))
        with torch.no_grad():
            before = restored(p)["features"]
            restored.decoder["output_bias"][1:] += 2.0
            torch.testing.assert_close(restored(p)["features"], before)
            restored.restoration[:, :, 1:] += 1.0
            assert ((restored(p)["features"] - before) > 0).all()
    assert spread[1] < spread[0] < float(plain(p)["features"].detach().std(dim=0).mean())
    copy = TriplaneGeometry.create_from(restored)
    torch.testing.assert_close(copy(p), restored(p))


def test_no_density_is_added_far_from_matter():
    """Near a ball it grows as without a limit, well beyond the reach not at all; colours may change anywhere."""
    free, bound = (ball(restoration_resolution=64, restoration_reach=reach) for reach in (0.0, 0.05))
    for geometry in (free, bound):
        geometry.set_restoration(torch.ones_like(geometry.restoration_gate))
        with torch.no_grad():
            geometry.restoration.fill_(0.4)
    p = points(4000)
    away, voxel = p.norm(dim=-1) - BALL_RADIUS, 2 * bound.cfg.radius / 64
    density = {name: g.forward_density(p) for name, g in (("free", free), ("bound", bound))}
    with free.without_restoration():
        density["plain"] = free.forward_density(p)
    near, far = away < 0.05 - 2 * voxel, away > 0.05 + 4.5 * voxel  # known and looked up by voxels
    assert bool(near.any()) and bool(far.any())
    torch.testing.assert_close(density["bound"][near], density["free"][near])
    torch.testing.assert_close(density["bound"][far], density["plain"][far])
    assert float((density["free"] - density["plain"])[far].abs().max()) > 0
    torch.testing.assert_close(bound(p)["features"], free(p)["features"])
    copy = TriplaneGeometry.create_from(bound)
    torch.testing.assert_close(copy.forward_density(p), density["bound"])
    with pytest.raises(UsageError, match="restoration_reach must be at least 0"):
        ball(restoration_resolution=8, restoration_reach=-0.1)


def test_a_look_without_the_restoration_shows_planes_and_detail_alone():
    plain = make(init_std=1.0)
    restored = replacing(plain, 1.0, 2.0)
    p = points(100) * 0.8
    with torch.no_grad():
        restored.restoration.fill_(0.3)
    before = restored(p)
    with restored.without_restoration():
        torch.testing.assert_close(restored(p), plain(p))
    torch.testing.assert_close(restored(p), before)
    with plain.without_restoration():  # there is none
        assert plain.restoration is None


@pytest.mark.parametrize("implementation", ["triton", "tcnn"])
def test_points_with_gradients_are_looked_up_with_torch_where_kernels_are_chosen(implementation, monkeypatch):
    """Normals and surface points ask for gradients that the kernels do not have; else the choice stands."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    chosen, reference, p = make(implementation=implementation), make(), points(9)
    assert torch.equal(chosen(p.clone().requires_grad_())["density"], reference(p)["density"])
    with pytest.raises(EnvironmentProblem, match=implementation):
        chosen(p)
