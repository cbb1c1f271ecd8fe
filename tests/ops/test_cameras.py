"""Cameras: threestudio's golden facts, rays against projection, crops, sub-grids, projection matrices."""
import math

import pytest
import torch
from portrait_diffusion.ops import cameras as cam
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_CROP, CANONICAL_LANDMARKS_HEAD

F64 = torch.float64


def random_cameras(count: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    azimuth = torch.rand(count, generator=g, dtype=F64) * 360
    elevation = torch.rand(count, generator=g, dtype=F64) * 120 - 60
    distance = 2 + torch.rand(count, generator=g, dtype=F64)
    target = 0.1 * torch.randn(count, 3, generator=g, dtype=F64)
    fovy = 0.2 + 0.5 * torch.rand(count, generator=g, dtype=F64)
    scale = 0.5 + torch.rand(count, generator=g, dtype=F64)
    shift = 0.1 * torch.randn(2, count, generator=g, dtype=F64)
    return cam.orbit_c2w(azimuth, elevation, distance, target), fovy, torch.stack([scale, *shift], dim=1)


def test_azimuth_zero_is_plus_x_looking_back_with_right_plus_y():
    c2w = cam.orbit_c2w(0.0, 0.0, 2.0)
    expected = torch.tensor([[0.0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(c2w, expected)  # columns: right +y, up +z, backward +x, position


def test_positions_follow_azimuth_and_elevation():
    a, e, d = 50.0, 20.0, 1.7
    ra, re = math.radians(a), math.radians(e)
    position = cam.orbit_c2w(torch.tensor(a, dtype=F64), e, d)[:3, 3]
    expected = [d * math.cos(re) * math.cos(ra), d * math.cos(re) * math.sin(ra), d * math.sin(re)]
    torch.testing.assert_close(position, torch.tensor(expected, dtype=F64))
    torch.testing.assert_close(cam.orbit_c2w(90.0, 0.0)[:3, 3], torch.tensor([0.0, 2.7, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_poses_are_proper_rotations_that_look_at_the_target(count):
    g = torch.Generator().manual_seed(count)
    target = 0.2 * torch.randn(count, 3, generator=g, dtype=F64)
    azimuth = torch.rand(count, generator=g, dtype=F64) * 360
    c2w = cam.orbit_c2w(azimuth, torch.linspace(-80, 80, count, dtype=F64), 2.7, target)
    rotation = c2w[:, :3, :3]
    identity = torch.eye(3, dtype=F64).expand(count, 3, 3)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), identity)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(count, dtype=F64))
    pixel, depth = cam.project_points(target[:, None], c2w, 0.3, 40, 60)
    torch.testing.assert_close(pixel, torch.tensor([[30.0, 20.0]], dtype=F64).expand(count, 1, 2))
    assert (depth > 0).all()
    assert rotation[:, 2, 0].abs().max() < 1e-12  # the horizontal stays level


def test_explicit_origin_equals_default_target_and_poles_are_finite():
    azimuth = torch.linspace(0, 330, 7, dtype=F64)
    torch.testing.assert_close(
        cam.orbit_c2w(azimuth, 33.0), cam.orbit_c2w(azimuth, 33.0, target=torch.zeros(3, dtype=F64))
    )
    pole = cam.orbit_c2w(torch.tensor([0.0, 40.0], dtype=F64), 90.0)[:, :3, :3]
    torch.testing.assert_close(torch.linalg.det(pole), torch.ones(2, dtype=F64))


def test_leading_axes_and_integer_arguments():
    assert cam.orbit_c2w(torch.zeros(2, 5), torch.zeros(5)).shape == (2, 5, 4, 4)
    assert cam.orbit_c2w(0, 0).dtype == torch.get_default_dtype()


@pytest.mark.parametrize("with_crop", [False, True])
def test_a_point_on_a_ray_projects_to_that_pixel_centre(with_crop):
    c2w, fovy, crop = random_cameras(3)
    crop = crop if with_crop else None
    height, width = 6, 9
    rays_o, rays_d = cam.get_rays(c2w, fovy, height, width, crop)
    torch.testing.assert_close(rays_d.norm(dim=-1), torch.ones(3, height, width, dtype=F64))
    t = 0.5 + torch.rand(3, height, width, 1, dtype=F64, generator=torch.Generator().manual_seed(1))
    points = (rays_o + t * rays_d).reshape(3, -1, 3)
    pixels, depth = cam.project_points(points, c2w, fovy, height, width, crop)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    expected = torch.stack([x, y], -1).reshape(1, -1, 2).to(F64).expand(3, -1, -1)
    torch.testing.assert_close(pixels, expected)
    along = (t * rays_d).reshape(3, -1, 3) @ -c2w[:, :3, 2:3]
    torch.testing.assert_close(depth, along[..., 0])


def test_known_points_land_right_and_up():
    c2w = cam.orbit_c2w(torch.zeros(1, dtype=F64), 0.0, 2.0)
    points = torch.tensor([[[0.0, 0.1, 0.0], [0.0, 0.0, 0.1], [0.0, 0.0, 0.0]]], dtype=F64)
    pixels, depth = cam.project_points(points, c2w, math.pi / 2, 100, 100)  # focal 50: 0.1 at distance 2 is 2.5 px
    expected = torch.tensor([[[52.5, 50.0], [50.0, 47.5], [50.0, 50.0]]], dtype=F64)
    torch.testing.assert_close(pixels, expected)
    torch.testing.assert_close(depth, torch.full((1, 3), 2.0, dtype=F64))


def test_canonical_landmarks_project_onto_the_canonical_crop():
    c2w = cam.orbit_c2w(torch.zeros(1, dtype=F64), 0.0)
    world = cam.head_to_world(torch.from_numpy(CANONICAL_LANDMARKS_HEAD))[None]
    pixels, _ = cam.project_points(world, c2w, cam.canonical_fovy(c2w), 256, 256)
    torch.testing.assert_close(pixels[0] / 256, torch.from_numpy(CANONICAL_LANDMARKS_CROP))
    assert abs(cam.METRES_PER_UNIT - 0.562) < 0.001


def test_crop_is_a_similarity_about_the_image_centre_in_image_heights():
    c2w, fovy, crop = random_cameras(4, seed=3)
    points = 0.2 * torch.randn(4, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    plain, _ = cam.project_points(points, c2w, fovy, 48, 64)
    cropped, _ = cam.project_points(points, c2w, fovy, 48, 64, crop)
    centre = torch.tensor([32.0, 24.0], dtype=F64)
    expected = centre + crop[:, None, :1] * (plain - centre) + 48 * crop[:, None, 1:]
    torch.testing.assert_close(cropped, expected)


def test_neutral_crop_changes_nothing_and_one_crop_serves_all_views():
    c2w, fovy, _ = random_cameras(2)
    neutral = torch.tensor([1.0, 0, 0], dtype=F64)
    torch.testing.assert_close(cam.get_rays(c2w, fovy, 5, 7, neutral)[1], cam.get_rays(c2w, fovy, 5, 7)[1])


def test_subgrids_are_slices_of_the_full_image():
    c2w, fovy, crop = random_cameras(2)
    full_o, full_d = cam.get_rays(c2w, fovy, 11, 13, crop)
    for ys, xs in [
        (cam.subgrid_indices(11, 3, 1), cam.subgrid_indices(13, 4, 2)),
        (cam.subgrid_indices(11, 1, 4, 5), cam.subgrid_indices(13, 1, 0, 2)),
    ]:
        sub_o, sub_d = cam.subgrid_rays(c2w, fovy, 11, 13, ys, xs, crop)
        assert torch.equal(sub_o, full_o[:, ys][:, :, xs])
        assert torch.equal(sub_d, full_d[:, ys][:, :, xs])


def test_strided_subgrids_cover_the_image_once():
    rows = torch.cat([cam.subgrid_indices(10, 4, offset) for offset in range(4)])
    assert sorted(rows.tolist()) == list(range(10))


@pytest.mark.parametrize("arguments", [(10, 0, 0), (10, 2, 10), (10, 2, -1), (10, 4, 2, 3), (10, 4, 2, 0)])
def test_subgrid_indices_refuse_to_leave_the_image(arguments):
    with pytest.raises(ValueError, match="10 px"):
        cam.subgrid_indices(*arguments)


def test_ray_directions_follow_the_pinhole_formula_and_agree_with_rays():
    directions = cam.get_ray_directions(4, 6, focal=5.0)
    torch.testing.assert_close(directions[0, 0], torch.tensor([-0.5, 0.3, -1.0]))
    corner = cam.get_ray_directions(4, 6, (5.0, 10.0), (0.0, 0.0), use_pixel_centers=False)
    torch.testing.assert_close(corner[2, 3], torch.tensor([0.6, -0.2, -1.0]))
    c2w = cam.orbit_c2w(torch.tensor([25.0]), 10.0)
    _, rays_d = cam.get_rays(c2w, 2 * math.atan(0.5 * 4 / 5.0), 4, 6)
    world = torch.nn.functional.normalize(directions, dim=-1) @ c2w[0, :3, :3].T
    torch.testing.assert_close(rays_d[0], world)


def test_projection_matrices_agree_with_project_points():
    c2w, fovy, _ = random_cameras(3)
    height, width = 30, 50
    points = 0.3 * torch.randn(3, 8, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    mvp = cam.get_mvp_matrix(c2w, cam.get_projection_matrix(fovy, width / height, 0.1, 10.0))
    clip = torch.cat([points, torch.ones(3, 8, 1, dtype=F64)], -1) @ mvp.transpose(1, 2)
    ndc = clip[..., :2] / clip[..., 3:]
    pixels, depth = cam.project_points(points, c2w, fovy, height, width)
    torch.testing.assert_close((ndc + 1) / 2 * torch.tensor([width, height], dtype=F64), pixels)  # y row is negated
    torch.testing.assert_close(clip[..., 3], depth)


def test_projection_maps_near_and_far_to_the_clip_planes():
    projection = cam.get_projection_matrix(torch.tensor([0.7], dtype=F64), 1.5, 0.1, 10.0)[0]
    near, far = (projection @ torch.tensor([0, 0, -z, 1.0], dtype=F64) for z in (0.1, 10.0))
    torch.testing.assert_close(torch.stack([near[2] / near[3], far[2] / far[3]]), torch.tensor([-1.0, 1.0], dtype=F64))


def test_frames_are_inverse_rotations_and_the_face_looks_to_the_camera():
    vectors = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cam.head_to_world(cam.world_to_head(vectors)), vectors)
    matrix = cam.world_to_head(torch.eye(3))  # row i: image of axis i
    assert torch.linalg.det(matrix).item() == pytest.approx(1.0)
    assert torch.equal(cam.world_to_head(torch.tensor([1.0, 0, 0])), torch.tensor([0.0, 0, 1]))  # front is head +z


def test_the_frontal_camera_is_eg3ds_after_the_change_of_frame():
    permutation = torch.eye(4, dtype=F64)
    permutation[:3, :3] = cam.world_to_head(torch.eye(3, dtype=F64)).T
    flip = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=F64))  # OpenGL to OpenCV camera
    expected = flip.clone()
    expected[2, 3] = 2.7  # EG3D: diag(1, -1, -1), camera at (0, 0, 2.7)
    found = permutation @ cam.orbit_c2w(torch.tensor(0.0, dtype=F64), 0.0) @ flip
    torch.testing.assert_close(found, expected)
    focal = cam.intrinsics(cam.canonical_fovy(expected), 1, 1)[0].item()
    assert focal == pytest.approx(4.2647, abs=2e-4)


def test_evaluation_azimuths():
    assert cam.validation_azimuths_deg(4).tolist() == [0, 90, 180, 270]
    assert cam.test_azimuths_deg(5).tolist() == [0, 90, 180, 270, 360]


def test_rays_and_projection_are_differentiable_in_camera_parameters():
    c2w, fovy, crop = (x.requires_grad_() for x in random_cameras(2))
    assert torch.autograd.gradcheck(lambda *p: cam.get_rays(p[0], p[1], 2, 3, p[2]), (c2w, fovy, crop))
    points = 0.1 * torch.randn(2, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    points.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *p: cam.project_points(p[0], p[1], p[2], 4, 5, p[3]), (points, c2w, fovy, crop)
    )


def test_autocast_leaves_geometry_alone():
    """Half precision would move projected points by pixels."""
    c2w = cam.orbit_c2w(torch.tensor([20.0, 75.0]), torch.tensor([5.0, -10.0]))
    points = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    projection = cam.get_projection_matrix(torch.tensor([0.2, 0.3]), 1.0)

    def everything():
        rays = cam.get_rays(c2w, 0.23, 4, 4)
        return *cam.project_points(points, c2w, 0.23, 512, 512), *rays, cam.get_mvp_matrix(c2w, projection)

    exact = everything()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = everything()
    for a, b in zip(exact, mixed, strict=True):
        assert torch.equal(a, b)
