"""Views that agree and views that do not, on balls whose geometry is known."""
import pytest
import torch
from portrait_diffusion.errors import UsageError
from portrait_diffusion.evaluation.consistency import flicker, warp_error
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w

SIZE = 64


def ball(azimuths, painted_from=None):
    """Views of a ball: colour by place in space, or, `painted_from` the camera, by place in the picture."""
    azimuths = torch.tensor(azimuths, dtype=torch.float32)
    c2w, fovy = orbit_c2w(azimuths, torch.zeros_like(azimuths)), canonical_fovy(azimuths).expand(len(azimuths))
    rays_o, rays_d = get_rays(c2w, fovy, SIZE, SIZE)
    b = (rays_o * rays_d).sum(-1)
    root = b.square() - rays_o.square().sum(-1) + 0.2**2
    depth = torch.where(root > 0, -b - root.clamp(min=0).sqrt(), 0)
    place = (rays_o + depth[..., None] * rays_d) / 0.2
    if painted_from:
        place = (c2w[:, None, None, :3, :3].transpose(-1, -2) @ place[..., None])[..., 0]
    rgb = (0.5 + 0.4 * torch.sin(4 * place)) * (depth > 0)[..., None] + (depth <= 0)[..., None]
    return rgb.permute(0, 3, 1, 2), depth, c2w, fovy


def compared(views, perceptual=None):
    rgb, depth, c2w, fovy = views
    return warp_error(
        rgb[:1], depth[:1], rgb[1:], depth[1:], (c2w[:1], c2w[1:]), (fovy[:1], fovy[1:]), perceptual
    )  # fmt: skip


def test_colour_that_lives_on_the_surface_agrees_and_colour_that_lives_in_the_picture_does_not():
    for yaw in (5.0, 15.0, 30.0):
        true, false = (compared(ball([0.0, yaw], painted)) for painted in (False, True))
        assert float(true["l1"]) < 0.015, "interpolation alone"
        assert float(false["l1"]) > 4 * float(true["l1"])
        assert 0.6 < float(true["covered"]) <= 1.0


def test_a_view_agrees_with_itself_and_sees_less_of_far_ones():
    same = compared(ball([20.0, 20.0]))
    assert float(same["l1"]) < 1e-4 and float(same["covered"]) > 0.97
    covered = [float(compared(ball([0.0, yaw]))["covered"]) for yaw in (10.0, 60.0, 120.0)]
    assert covered[0] > covered[1] > covered[2]
    behind = compared(ball([0.0, 180.0]))
    assert bool(behind["l1"].isnan()) and float(behind["covered"]) == 0


def test_wrong_depth_is_seen_by_true_depth_only():
    """A head rendered from the right colours at the wrong place agrees with itself, not with the truth's depth."""
    rgb, depth, c2w, fovy = ball([0.0, 20.0])
    shifted = rgb.roll(3, dims=-1)  # as if the whole head stood elsewhere
    own = depth.roll(3, dims=-1)
    cameras = (c2w[:1], c2w[1:]), (fovy[:1], fovy[1:])
    with_truth = warp_error(shifted[:1], depth[:1], shifted[1:], depth[1:], *cameras)["l1"]
    with_own = warp_error(shifted[:1], own[:1], shifted[1:], own[1:], *cameras)["l1"]
    assert float(with_truth) > 1.5 * float(with_own)


def test_the_perceptual_distance_sees_what_is_covered():
    class Mean(torch.nn.Module):
        def forward(self, a, b, mask):
            return ((a - b).abs().mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))

    found = compared(ball([0.0, 15.0]), Mean())
    assert float(found["perceptual"]) == pytest.approx(float(found["l1"]), rel=1e-3)


def test_flicker_is_zero_for_a_still_and_grows_with_noise():
    rgb, depth, c2w, fovy = ball([0.0, 1.0, 2.0, 3.0])
    calm = float(flicker(rgb, depth, c2w, fovy))
    noise = 0.1 * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(0))
    assert calm < 0.01 and float(flicker(rgb + noise, depth, c2w, fovy)) > 5 * calm
    with pytest.raises(UsageError, match="at least two frames"):
        flicker(rgb[:1], depth[:1], c2w[:1], fovy[:1])
    with pytest.raises(UsageError, match="one shape"):
        warp_error(rgb, depth[:1], rgb, depth, (c2w, c2w), (fovy, fovy))
