"""The registered volume renderer: keys, determinism, chunks, backgrounds, materials, normals, gradients."""
import math

import pytest
import torch
from geometry.ball import BALL_RADIUS, ball
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.geometry.triplane import TriplaneGeometry
from portrait_diffusion.host import VolumeRenderer, find
from portrait_diffusion.ops import cameras as cam
from portrait_diffusion.renderer.volume import PortraitVolumeRenderer
from torch import nn


def renderer(geometry=None, material=None, background=None, **config) -> PortraitVolumeRenderer:
    if geometry is None:
        small = {"channels": 4, "resolution": 8, "hidden": 8, "init_std": 2.0, "init_density": 3.0}
        geometry = TriplaneGeometry(small).cpu()
    config = {"num_samples_per_ray": 8, "num_importance_samples": 6, **config}
    return PortraitVolumeRenderer(config, geometry=geometry, material=material, background=background).cpu()


def views(count: int = 2, height: int = 6, width: int = 9):
    c2w = cam.orbit_c2w(torch.linspace(0, 200, count), 10.0)
    return cam.get_rays(c2w, cam.canonical_fovy(c2w), height, width)


IMAGE_KEYS = {"comp_rgb": 3, "comp_rgb_fg": 3, "comp_rgb_bg": 3, "opacity": 1, "depth": 1, "z_variance": 1}


def test_registered_under_its_name():
    assert find("portrait-diffusion-volume-renderer") is PortraitVolumeRenderer
    assert issubclass(PortraitVolumeRenderer, VolumeRenderer)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_keys_and_shapes_in_evaluation(batch):
    out = renderer(return_normals=True).eval()(*views(batch), elevation=torch.zeros(batch), index=0)
    expected = IMAGE_KEYS | {"comp_normal": 3}
    assert {key: tuple(value.shape) for key, value in out.items()} == {k: (batch, 6, 9, n) for k, n in expected.items()}
    assert out["comp_rgb"].min() >= 0 and out["comp_rgb"].max() <= 1
    torch.testing.assert_close(
        out["comp_rgb"], (out["comp_rgb_fg"] + out["comp_rgb_bg"] * (1 - out["opacity"])).clamp(0, 1)
    )


def test_training_adds_flat_samples_that_sum_to_the_image():
    rays_o, rays_d = views()
    out = renderer().train()(rays_o, rays_d)
    count = 2 * 6 * 9 * 14
    flat = {"weights": (count, 1), "t_points": (count, 1), "t_intervals": (count, 1), "points": (count, 3)}
    flat |= {"t_dirs": (count, 3), "ray_indices": (count,)}
    assert {key: tuple(out[key].shape) for key in flat} == flat
    assert set(out) == set(IMAGE_KEYS) | set(flat)
    opacity = torch.zeros(108).index_add(0, out["ray_indices"], out["weights"][:, 0])
    torch.testing.assert_close(opacity, out["opacity"].reshape(-1))
    on_ray = rays_o.reshape(-1, 3)[out["ray_indices"]] + out["t_points"] * out["t_dirs"]
    torch.testing.assert_close(on_ray, out["points"])


def test_evaluation_is_deterministic_and_training_follows_the_seed():
    rays, module = views(), renderer()
    module.eval()
    assert torch.equal(module(*rays)["comp_rgb"], module(*rays)["comp_rgb"])
    module.train()
    pictures = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        pictures.append(module(*rays)["comp_rgb"])
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    given = [module(*rays, generator=torch.Generator().manual_seed(3))["comp_rgb"] for _ in range(2)]
    assert torch.equal(*given)


def test_training_without_random_samples_equals_evaluation():
    rays, module = views(), renderer(randomized=False)
    torch.testing.assert_close(module.train()(*rays)["depth"], module.eval()(*rays)["depth"])


@pytest.mark.parametrize("chunk", [2, 10, 54, 1000])
def test_chunked_equals_unchunked(chunk):
    rays = views()
    geometry = ball()
    whole = renderer(geometry, eval_chunk_size=10**6, return_normals=True).eval()(*rays)
    parts = renderer(geometry, eval_chunk_size=chunk, return_normals=True).eval()(*rays)
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], atol=1e-5, rtol=1e-5, msg=key)


def test_a_subgrid_is_a_slice_of_the_full_picture():
    c2w = cam.orbit_c2w(torch.tensor([40.0]), 0.0)
    fovy = cam.canonical_fovy(c2w)
    module = renderer().eval()
    full = module(*cam.get_rays(c2w, fovy, 12, 10))["comp_rgb"]
    ys, xs = cam.subgrid_indices(12, 3, 1), cam.subgrid_indices(10, 4)
    part = module(*cam.subgrid_rays(c2w, fovy, 12, 10, ys, xs))["comp_rgb"]
    torch.testing.assert_close(part, full[:, ys][:, :, xs])


def test_render_is_deterministic_in_any_mode_and_has_normals():
    c2w = cam.orbit_c2w(torch.tensor([0.0, 90.0]), 0.0)
    module = renderer()
    trained, evaluated = (module.train(mode).render(c2w, cam.canonical_fovy(c2w), 5, 7) for mode in (True, False))
    assert set(evaluated) == set(IMAGE_KEYS) | {"comp_normal"}
    assert set(trained) == set(evaluated)
    torch.testing.assert_close(trained["depth"], evaluated["depth"])
    assert not evaluated["comp_rgb"].requires_grad


def test_a_look_without_normals_is_the_same_look():
    rays, module = views(), renderer()
    whole, plain = module.look(*rays), module.look(*rays, normals=False)
    assert set(whole) - set(plain) == {"comp_normal"}
    assert all(torch.equal(value, whole[name]) for name, value in plain.items())


def expected_depth_of_the_ball() -> float:
    """Distance at which the ray through the centre is absorbed on average, by fine quadrature of its density."""
    r = torch.linspace(cam.BOX_RADIUS, -cam.BOX_RADIUS, 100001, dtype=torch.float64)
    density = torch.nn.functional.softplus(10 + 2500 * (BALL_RADIUS**2 - r**2))
    passed = torch.exp(-torch.cumsum(density, 0) * (r[0] - r[1]))
    weights = passed[:-1] - passed[1:]
    return cam.CANONICAL_DISTANCE - float((weights * r[1:]).sum() / weights.sum())


def test_a_ball_has_its_silhouette_depth_and_normals():
    c2w = cam.orbit_c2w(torch.tensor([70.0]), 0.0)
    module = renderer(ball(), num_samples_per_ray=48, num_importance_samples=48)
    size = 33
    out = module.render(c2w, cam.canonical_fovy(c2w), size, size)
    focal = 0.5 * size / math.tan(math.radians(cam.CANONICAL_FOVY_DEG) / 2)
    expected = focal * math.tan(math.asin(BALL_RADIUS / cam.CANONICAL_DISTANCE))
    assert math.sqrt(out["opacity"].sum().item() / math.pi) == pytest.approx(expected, abs=0.5)
    middle = size // 2
    assert out["depth"][0, middle, middle].item() == pytest.approx(expected_depth_of_the_ball(), abs=0.002)
    towards_camera = torch.nn.functional.normalize(c2w[0, :3, 3], dim=0)
    normal = out["comp_normal"][0, middle, middle] / out["opacity"][0, middle, middle] * 2 - 1
    assert (normal @ towards_camera).item() > 0.995
    right = out["comp_normal"][0, middle, middle + 6] / out["opacity"][0, middle, middle + 6] * 2 - 1
    assert (right @ c2w[0, :3, 0]).item() > 0.3  # the normal leans to the right on the right side
    corner = out["comp_normal"][0, 0, 0]
    assert (corner <= 1e-3).all() and (out["depth"][0, 0, 0] == 0).all()
    torch.testing.assert_close(out["comp_rgb"][0, 0, 0], torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out["comp_rgb"][0, middle, middle], torch.full((3,), 0.5), atol=0.01, rtol=0)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_background_colour_shows_where_nothing_is(per_pixel):
    rays_o, rays_d = views()
    colour = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    bg = colour[:, None, None].expand(2, 6, 9, 3).clone() if per_pixel else colour
    out = renderer().eval()(rays_o, -rays_d, bg_color=bg)  # looking away
    assert (out["opacity"] == 0).all()
    torch.testing.assert_close(out["comp_rgb"], colour[:, None, None].expand(2, 6, 9, 3))


def test_wrong_background_shapes_are_usage_errors():
    for shape in ((3, 3), (2, 4), (2, 1, 3)):
        with pytest.raises(UsageError, match="bg_color"):
            renderer().eval()(*views(), bg_color=torch.zeros(shape))


class Recorder(nn.Module):
    """Stands for a material or a background; keeps what it was called with."""

    requires_normal = True

    def forward(self, **kwargs):
        self.seen = kwargs
        return kwargs["dirs"].abs() if "dirs" in kwargs else kwargs["shading_normal"].abs()


def test_material_and_background_get_what_threestudio_gives_them():
    rays_o, rays_d = views(2)
    material, background = Recorder(), Recorder()
    lights = torch.tensor([[3.0, 0, 0], [0, 4.0, 0]])
    module = renderer(ball(), material, background, num_importance_samples=0).train()
    out = module(rays_o, rays_d, light_positions=lights)
    seen = material.seen
    assert {"features", "viewdirs", "positions", "light_positions", "shading_normal", "density"} <= set(seen)
    assert seen["positions"].shape == seen["viewdirs"].shape == seen["light_positions"].shape
    assert torch.equal(seen["light_positions"][1, 0], lights[1])
    torch.testing.assert_close(seen["viewdirs"].norm(dim=-1), torch.ones_like(seen["viewdirs"][..., 0]))
    reached = torch.nn.functional.normalize(seen["positions"] - rays_o.reshape(2, -1, 3)[:, :1], dim=-1)
    torch.testing.assert_close(seen["viewdirs"], reached)
    assert torch.equal(background.seen["dirs"], rays_d)
    assert torch.equal(out["comp_rgb_bg"], rays_d.abs())


def test_training_gradients_reach_all_parameters_and_are_finite():
    rays_o, rays_d = views()
    rays_d = torch.where(torch.arange(9)[:, None] < 3, -rays_d, rays_d)  # a third of the rays misses
    geometry = TriplaneGeometry({"channels": 4, "resolution": 8, "hidden": 8, "levels": 2, "init_density": 2.0}).cpu()
    out = renderer(geometry, return_normals=True).train()(rays_o, rays_d)
    sum(value.sum() for value in out.values() if value.is_floating_point()).backward()
    for name, parameter in geometry.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_the_scene_is_not_registered_twice():
    assert not list(renderer().parameters())


def test_impossible_sample_counts_are_usage_errors():
    for key, value in (("num_samples_per_ray", 0), ("num_importance_samples", -1), ("eval_chunk_size", -1)):
        with pytest.raises(UsageError, match=key):
            renderer(**{key: value})


def test_the_implementation_is_checked_and_used():
    with pytest.raises(UsageError, match="renderer.implementation must be one of auto, torch, triton.*got 'cuda'"):
        renderer(implementation="cuda")
    with pytest.raises(EnvironmentProblem, match="compositing: implementation 'nerfacc' cannot be used"):
        renderer(implementation="nerfacc").eval()(*views())


# ---- with a grid of densities as first pass -------------------------------------------------------------------------
SKIPPING = {"occupancy_resolution": 32, "num_importance_samples": 24}


class Counting(nn.Module):
    """Stands for a geometry and counts the points that it is asked for."""

    def __init__(self, geometry):
        super().__init__()
        self.inner, self.rendered, self.refreshed = geometry, 0, 0

    def forward(self, points, **kwargs):
        self.rendered += points[..., 0].numel()
        return self.inner(points, **kwargs)

    def forward_density(self, points):
        self.refreshed += len(points)
        return self.inner.forward_density(points)


def test_skipping_renders_the_same_picture_from_fewer_points():
    counting, rays = Counting(ball()), views(2, 24, 24)
    plain = renderer(counting, num_samples_per_ray=96, num_importance_samples=0).eval()(*rays)
    asked, counting.rendered = counting.rendered, 0
    skipping = renderer(counting, **SKIPPING).eval()(*rays)
    assert counting.rendered < asked / 4
    fine = renderer(ball(), num_samples_per_ray=1000, num_importance_samples=0).eval()(*rays)
    assert (skipping["comp_rgb"] - fine["comp_rgb"]).square().mean() < 1e-6  # 60 dB
    assert set(skipping) == set(plain)


def test_the_grid_of_evaluation_follows_the_geometry():
    counting, rays = Counting(ball()), views(1)
    module = renderer(counting, **SKIPPING).eval()
    module(*rays)
    module(*rays)
    assert counting.refreshed == 32**3
    with torch.no_grad():
        counting.inner.decoder["output_bias"][0] = -10000.0  # nothing is left
    assert (module(*rays)["opacity"] == 0).all() and counting.refreshed == 2 * 32**3


def test_the_grid_of_training_is_made_at_its_steps_and_resumes():
    counting, rays = Counting(ball()), views(1)
    module = renderer(counting, occupancy_every=4, **SKIPPING).train()
    grids = []
    for step in range(6):
        module.update_step(0, step)
        module(*rays)
        grids.append(module.occupancy.clone())
        with torch.no_grad():
            counting.inner.decoder["output_bias"][0] -= 5.0
    assert counting.refreshed == 2 * 32**3
    assert torch.equal(grids[3], grids[0]) and torch.equal(grids[5], grids[4]) and not torch.equal(grids[4], grids[0])
    again = renderer(counting, occupancy_every=4, **SKIPPING).train()
    again.load_state_dict(module.state_dict())
    for one in (module, again):
        one.update_step(0, 6)
    same = [one(*rays, generator=torch.Generator().manual_seed(1))["comp_rgb"] for one in (module, again)]
    assert torch.equal(*same) and counting.refreshed == 2 * 32**3


def test_training_by_the_grid_has_finite_gradients_also_of_rays_in_empty_space():
    geometry = TriplaneGeometry({"channels": 4, "resolution": 8, "hidden": 8, "init_density": -4.0}).cpu()
    out = renderer(geometry, occupancy_resolution=8).train()(*views())
    out["opacity"].sum().backward()
    for parameter in geometry.planes:
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0
    opacity = torch.zeros(108).index_add(0, out["ray_indices"], out["weights"][:, 0])
    torch.testing.assert_close(opacity, out["opacity"].reshape(-1))


def test_impossible_grids_are_usage_errors():
    for config in ({"occupancy_resolution": -1}, {"occupancy_resolution": 8, "num_importance_samples": 0},
                   {"occupancy_every": 0}):  # fmt: skip
        with pytest.raises(UsageError, match="occupancy"):
            renderer(**config)
