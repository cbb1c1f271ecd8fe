"""The photo's camera: its parameters mean what `ops.cameras` says."""
import math

import pytest
import torch
from portrait_diffusion.inversion.camera import SCALES, PhotoCamera
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, head_to_world, orbit_c2w, project_points
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_CROP, CANONICAL_LANDMARKS_HEAD

POINTS = torch.tensor([[[0.15, 0.02, 0.2], [0.1, -0.2, -0.1], [-0.3, 0.12, 0.05]]])


def camera(azimuth=0.0, elevation=0.0, roll=0.0, log_scale=0.0, shift_u=0.0, shift_v=0.0) -> PhotoCamera:
    result = PhotoCamera(azimuth, elevation)
    moved = torch.tensor([roll / SCALES["roll"], log_scale / SCALES["log_scale"], shift_u / SCALES["shift"],
                          shift_v / SCALES["shift"]])  # fmt: skip
    with torch.no_grad():
        result.values[2:] = moved
    return result


def offsets(camera: PhotoCamera, points=POINTS) -> torch.Tensor:
    """Projections (N, 2) of world points, offset from the image centre in image heights, v down."""
    c2w, fovy, crop = camera.pose()
    return (project_points(points, c2w, fovy, 1, 1, crop)[0][0] - 0.5).detach()


def test_at_zero_it_is_the_canonical_camera():
    rays_o, rays_d = PhotoCamera().rays(8)
    c2w = orbit_c2w(torch.zeros(1), torch.zeros(1))
    expected_o, expected_d = get_rays(c2w, canonical_fovy(c2w), 8, 8)
    torch.testing.assert_close(rays_o, expected_o)
    torch.testing.assert_close(rays_d, expected_d, rtol=0, atol=1e-7)
    assert PhotoCamera().pose()[2].tolist() == [[1.0, 0.0, 0.0]]


def test_azimuth_and_elevation_are_those_of_an_orbit_camera():
    c2w, _, _ = PhotoCamera(25.0, -8.0).pose()
    torch.testing.assert_close(c2w, orbit_c2w(torch.tensor([25.0]), torch.tensor([-8.0])))
    torch.testing.assert_close(torch.stack(PhotoCamera(25.0, -8.0).degrees()).detach(), torch.tensor([25.0, -8.0, 0.0]))


def test_positive_roll_turns_the_camera_to_the_left_and_the_picture_to_the_right():
    plain, rolled = offsets(camera(20.0, 5.0)), offsets(camera(20.0, 5.0, roll=12.0))
    a = math.radians(12.0)
    clockwise = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])  # v down
    torch.testing.assert_close(rolled, plain @ clockwise.t(), rtol=0, atol=1e-6)


def test_scale_and_shift_act_on_the_picture_after_the_roll():
    plain = offsets(camera(20.0, 5.0, roll=12.0))
    moved = offsets(camera(20.0, 5.0, 12.0, math.log(1.1), 0.03, -0.02))
    torch.testing.assert_close(moved, 1.1 * plain + torch.tensor([0.03, -0.02]), rtol=0, atol=1e-6)
    start = PhotoCamera(20.0, 5.0, (1.1, 0.03, -0.02)).pose()[2][0].detach()
    torch.testing.assert_close(start, torch.tensor([1.1, 0.03, -0.02]))


@pytest.mark.parametrize("row, column", [(0, 0), (3, 9), (11, 5)])
def test_a_point_on_a_pixels_ray_is_projected_to_its_centre(row, column):
    fitted = camera(-30.0, 10.0, -7.0, -0.1, 0.05, 0.02)
    rays_o, rays_d = fitted.rays(12)
    point = (rays_o + 2.6 * rays_d)[:, row, column][:, None]
    c2w, fovy, crop = fitted.pose()
    pixel = project_points(point, c2w, fovy, 12, 12, crop)[0][0, 0].detach()
    torch.testing.assert_close(pixel, torch.tensor([column + 0.5, row + 0.5]), rtol=0, atol=2e-4)


def test_from_landmarks_finds_the_similarity_of_the_picture():
    still = PhotoCamera.from_landmarks(0.0, 0.0, CANONICAL_LANDMARKS_CROP)
    torch.testing.assert_close(still.pose()[2].detach(), torch.tensor([[1.0, 0.0, 0.0]]), rtol=0, atol=1e-6)
    true = PhotoCamera(18.0, -6.0, (0.93, -0.04, 0.025), roll_deg=9.0)
    head = head_to_world(torch.as_tensor(CANONICAL_LANDMARKS_HEAD, dtype=torch.float32))[None]
    found = PhotoCamera.from_landmarks(18.0, -6.0, offsets(true, head) + 0.5)
    for part, wanted in zip(found.pose(), true.pose()):
        torch.testing.assert_close(part.detach(), wanted.detach(), rtol=0, atol=1e-5)
    assert float(found.deviation().detach()) == 0.0


def test_all_six_parameters_can_be_fitted():
    fitted = camera(5.0, 3.0, 2.0, 0.02, 0.01, 0.01)
    weights = torch.randn(1, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    (sum(rays for rays in fitted.rays(4)) * weights).sum().backward()
    assert (fitted.values.grad.abs() > 1e-4).all()


def test_deviation_counts_natural_steps_from_the_start():
    fitted = PhotoCamera(15.0, 5.0, (1.2, 0.1, 0.0)).requires_grad_(False)
    assert float(fitted.deviation()) == 0.0
    fitted.values[0] += 20.0 / SCALES["azimuth"]
    assert float(fitted.deviation()) == pytest.approx(4.0, rel=1e-5)
    copy = PhotoCamera().requires_grad_(False)
    copy.load_state_dict(fitted.state_dict())
    assert float(copy.deviation()) == pytest.approx(4.0, rel=1e-5), "the start is part of the state"


def test_rays_through_chosen_and_fractional_pixels():
    shot = camera(azimuth=20.0, shift_u=0.03)
    ys, xs = torch.tensor([1, 4]), torch.tensor([0, 2, 7])
    for chosen, centre in zip(shot.rays(8, ys, xs), shot.rays(8), strict=True):
        torch.testing.assert_close(chosen, centre[:, ys][:, :, xs])
    half = shot.rays(8, ys + 0.5, xs)[1]
    between = torch.nn.functional.normalize(shot.rays(8)[1][:, ys] + shot.rays(8)[1][:, ys + 1], dim=-1)[:, :, xs]
    torch.testing.assert_close(half, between, rtol=1e-4, atol=1e-5)
