"""Forward projection: identity, analytic spheres, occlusion, conservation, gradients."""
import math

import pytest
import torch
from portrait_diffusion.ops.cameras import get_rays, orbit_c2w
from portrait_diffusion.ops.projection import cells_of, forward_project, limited_slopes

FOVY = math.radians(14.0)
SIZE = 96


def sphere_hit(rays_o, rays_d, radius=0.25, centre=(0.0, 0.0, 0.0)):
    """Distance to a sphere, 0 where the ray misses."""
    o = rays_o - rays_o.new_tensor(centre)
    b, c = (o * rays_d).sum(-1), o.square().sum(-1) - radius**2
    root = b.square() - c
    return torch.where(root > 0, -b - root.clamp(min=0).sqrt(), torch.zeros_like(b))


def texture(points):
    """Smooth colours of world points."""
    return 0.5 + 0.5 * torch.sin(12.0 * points + torch.tensor([0.0, 1.0, 2.0]).to(points))


def sphere_view(azimuth, size=SIZE, elevation=0.0, dtype=torch.float32, crop=None, **sphere):
    """c2w (1,4,4), fovy (1,), depth (1,S,S), picture (1,3,S,S) of a textured sphere."""
    c2w = orbit_c2w(torch.tensor([float(azimuth)], dtype=dtype), torch.tensor([float(elevation)], dtype=dtype))
    fovy = torch.tensor([FOVY], dtype=dtype)
    rays_o, rays_d = get_rays(c2w, fovy, size, size, crop)
    depth = sphere_hit(rays_o, rays_d, **sphere)
    picture = texture(rays_o + depth[..., None] * rays_d) * (depth > 0)[..., None]
    return c2w, fovy, depth, picture.permute(0, 3, 1, 2)


def project(sources, target, **options):
    """`forward_project` of a list of views into a view of `sphere_view`."""
    c2w, fovy, depth, picture = (torch.stack(x, dim=1) for x in zip(*sources, strict=True))
    return forward_project(picture, depth, c2w, fovy, target[0], target[1], *target[2].shape[-2:], **options)


@pytest.mark.parametrize("crop", [None, (1.3, 0.05, -0.02)])
def test_a_view_projects_onto_itself(crop):
    crop = None if crop is None else torch.tensor([crop])
    view = sphere_view(20, elevation=10, crop=crop)
    source = None if crop is None else crop[:, None]
    projected, valid = project([view], view, crop=source, target_crop=crop)
    steep = cells_of(view[2][:, None], view[0][:, None], view[1][:, None], view[0], view[1], SIZE, SIZE, 1,
                     source, crop).facing.view(1, SIZE, SIZE)  # fmt: skip
    inner = (view[2] > 0) & (steep > 0.2)
    assert inner.sum() > 0.9 * (view[2] > 0).sum()
    assert bool((valid[:, 0][inner] == 1).all()) and float(valid[:, 0][view[2] <= 0].sum()) == 0
    torch.testing.assert_close(projected.permute(0, 2, 3, 1)[inner], view[3].permute(0, 2, 3, 1)[inner])


@pytest.mark.parametrize("azimuth", [10, 30, 60])
def test_a_sphere_from_the_side_shows_its_true_colours(azimuth):
    source, target = sphere_view(0), sphere_view(azimuth)
    projected, valid = project([source], target)
    on = valid[:, 0] > 0
    error = (projected - target[3]).abs().mean(1)[on & (target[2] > 0)]  # the outline cuts pixels
    assert float(error.mean()) < 0.02 and float(error.quantile(0.99)) < 0.12
    # of a sphere's disc the cap that both cameras see, less what either sees at grazing angles
    rays_o, rays_d = get_rays(target[0], target[1], SIZE, SIZE)
    points = rays_o + target[2][..., None] * rays_d
    normal = points / 0.25
    from_source = source[0][0, :3, 3] - points
    cosine = (normal * from_source).sum(-1) / from_source.norm(dim=-1)
    plain = (target[2] > 0) & (-(normal * rays_d).sum(-1) > 0.25)  # not within a pixel of the outline
    inner, never = plain & (cosine > 0.4), plain & (cosine < -0.05)
    assert float(on[inner].float().mean()) > 0.98
    assert not bool(on[never].any())
    known, still = project([source], target, target_depth=target[2])
    assert float((known - target[3]).abs().mean(1)[still[:, 0] > 0].mean()) < 0.02
    assert float((still[:, 0][inner] > 0).float().mean()) > 0.98


def test_what_is_hidden_in_the_target_does_not_show():
    """A small ball in front of a large one: seen from the side camera the small one hides a part of the large one."""
    c2w, fovy, far, _ = sphere_view(0, radius=0.2, centre=(-0.1, -0.1, 0.0))
    near = sphere_view(0, radius=0.08, centre=(0.2, 0.12, 0.0))[2]
    depth = torch.where(near > 0, near, far)
    label = torch.where(near > 0, 1.0, 0.0)[:, None].expand(-1, 3, -1, -1)
    target = sphere_view(30, radius=0.2, centre=(-0.1, -0.1, 0.0))
    target_near = sphere_view(30, radius=0.08, centre=(0.2, 0.12, 0.0))[2]
    assert int(((target_near > 0) & (target[2] > 0)).sum()) > 50, "the scene must have an overlap"
    projected, valid = project([(c2w, fovy, depth, label)], target)
    cover = -torch.nn.functional.max_pool2d(-(target_near > 0).float()[:, None], 3, 1, 1)  # one pixel inside its edge
    shown = (valid > 0) & (cover > 0)
    assert int(shown.sum()) > 50 and float(projected[:, :1][shown].min()) == 1.0


def test_constants_and_means_are_kept():
    views = [sphere_view(a)[:3] + (torch.full((1, 2, SIZE, SIZE), 0.7),) for a in (0, 40)]
    projected, valid = project(views, sphere_view(20))
    torch.testing.assert_close(projected, 0.7 * valid.expand_as(projected))
    assert float(valid.sum()) > 0.9 * float((sphere_view(20)[2] > 0).sum())


def test_background_and_disbelieved_pixels_project_nothing():
    view, target = sphere_view(0), sphere_view(15)
    empty = view[:2] + (torch.zeros_like(view[2]), view[3])
    assert all(float(x.abs().sum()) == 0 for x in project([empty], target))
    none = project([view], target, weights=torch.zeros(1, 1, SIZE, SIZE))
    assert all(float(x.abs().sum()) == 0 for x in none)
    other = sphere_view(10)[:3] + (torch.ones(1, 3, SIZE, SIZE),)
    weights = torch.stack([torch.ones(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)], dim=1)
    both, alone = project([view, other], target, weights=weights), project([view], target)
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_the_view_that_looks_straight_at_a_place_decides():
    target = sphere_view(60)
    near = sphere_view(60)[:3] + (torch.ones(1, 1, SIZE, SIZE),)
    far = sphere_view(0)[:3] + (torch.zeros(1, 1, SIZE, SIZE),)
    projected, _ = project([far, near], target)
    assert float(projected[0, 0, SIZE // 2, SIZE // 2]) > 0.75  # cos^2 of 60 degrees is a quarter


def test_cells_stay_on_the_known_surface():
    """A target whose geometry is elsewhere takes nothing."""
    view, target = sphere_view(0), sphere_view(20)
    moved = torch.where(target[2] > 0, target[2] + 0.2, target[2])
    assert float(project([view], target, target_depth=moved)[1].sum()) == 0


def test_slopes_do_not_reach_over_edges():
    """Two planes with a step between them: each keeps its own slope, solid or not beside it."""
    x = torch.arange(8.0)
    depth = torch.where(x < 4, 1.0 + 0.1 * x, 5.0 - 0.2 * x).expand(1, 6, 8).contiguous()
    dx, dy = limited_slopes(depth, torch.ones_like(depth, dtype=torch.bool))
    torch.testing.assert_close(dx[0, 0, [0, 1, 2, 5, 6, 7]], torch.tensor([0.1, 0.1, 0.1, -0.2, -0.2, -0.2]))
    torch.testing.assert_close(dx[0, 0, 3], torch.tensor(0.1)), torch.testing.assert_close(dy, torch.zeros_like(dy))
    solid = (x < 4).expand(1, 6, 8)
    torch.testing.assert_close(limited_slopes(depth, solid)[0][0, 0, 3], torch.tensor(0.1))


def test_gradients_of_values_float64():
    view, target = sphere_view(0, 12, dtype=torch.float64), sphere_view(25, 12, dtype=torch.float64)
    values = view[3].clone().requires_grad_(True)
    torch.autograd.gradcheck(lambda v: project([(*view[:3], v)], target, subdivide=2)[0], (values,))


def test_wrong_shapes_are_named():
    view = sphere_view(0)
    with pytest.raises(ValueError, match="depth must be"):
        project([(*view[:2], view[2][:, 1:], view[3])], view)
