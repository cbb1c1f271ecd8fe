"""The inversion as a whole, with a tiny random prior: determinism, resuming, unknown pixels, progress."""
import pytest
import torch
from portrait_diffusion.geometry.triplane import TriplaneGeometry, settings_for
from portrait_diffusion.inversion.camera import PhotoCamera
from portrait_diffusion.inversion.config import InversionConfig
from portrait_diffusion.inversion.detail import render_cached
from portrait_diffusion.inversion.engine import Inversion, psnr_inside
from portrait_diffusion.inversion.target import Target
from portrait_diffusion.ops.cameras import head_to_world
from portrait_diffusion.ops.volrend import composite, inside_cylinder
from portrait_diffusion.priors.bundled import BundledPrior
from priors.samples import save_tiny_prior

SMALL = {
    "latent_steps": 3, "latent_size": 32, "latent_samples": 4, "novel_views": 2, "novel_size": 8, "detail_steps": 3,
    "detail_size": 32, "detail_resolution": 24, "detail_depth": 4, "detail_samples": 6, "detail_rays": 1024,
    "lambda_perceptual": 0.0, "checkpoint_every": 1,
}  # fmt: skip


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A random prior made dense enough to have a surface."""
    result = BundledPrior(*save_tiny_prior(tmp_path_factory.mktemp("prior")))
    with torch.no_grad():
        result.generator.decoder.out.bias[0] = 1.0
    return result


def photo(size=64, unknown=0.0) -> Target:
    """A head-shaped blob of two colours; its lowest quarter lies outside the photograph and holds `unknown`."""
    v, u = torch.meshgrid(*[(torch.arange(size) + 0.5) / size - 0.5] * 2, indexing="ij")
    alpha = torch.sigmoid((0.3 - (u**2 + (v / 1.2) ** 2).sqrt()) * 60)[None, None]
    colour = torch.stack([0.8 - 0.5 * (v > 0), 0.5 + 0.3 * (u > 0), torch.full_like(u, 0.3)])[None]
    valid = torch.ones_like(alpha)
    valid[:, :, size * 3 // 4 :] = 0
    return Target(colour * alpha * valid + unknown * (1 - valid), alpha * valid + unknown * (1 - valid), valid)


def inversion(prior, target=None, seed=0, checkpoint=None, on_step=None, **changes) -> Inversion:
    config = InversionConfig(**(SMALL | changes))
    return Inversion(prior, target or photo(), PhotoCamera(5.0, -3.0), config, None, seed, checkpoint, on_step)


def assert_equal_results(a: Inversion, b: Inversion) -> None:
    for x, y in zip(a.planes(), b.planes(), strict=True):
        assert torch.equal(x, y)
    assert torch.equal(a.camera.values, b.camera.values) and a.curves == b.curves


def test_a_run_goes_through_both_stages(prior):
    seen = []
    fit = inversion(prior, on_step=lambda stage, step, steps, losses: seen.append((stage, step, steps, sorted(losses))))
    start = [fit.latent.ws.detach().clone(), fit.camera.values.detach().clone()]
    fit.run()
    assert [s[:3] for s in seen] == [(stage, k, 3) for stage in ("latent", "detail") for k in (1, 2, 3)]
    assert fit.stage == "done" and {len(curve) for curve in fit.curves.values()} == {3}
    assert {f"{s[0]}/{name}" for s in seen for name in s[3]} == set(fit.curves)
    assert not torch.equal(fit.latent.ws, start[0]) and not torch.equal(fit.camera.values, start[1])
    base, frontal, grid = fit.planes()
    assert base.shape == (1, 3, 8, 32, 32) and frontal.shape == (1, 1, 8, 2, 32, 32)
    assert grid.shape == (1, 1, 4, 4, 24, 24) and (grid != 0).any()
    assert all(level.isfinite().all() and not level.requires_grad for level in fit.planes())


def test_the_seed_decides(prior):
    first = inversion(prior).run()
    torch.manual_seed(123)  # the global generator plays no part
    assert_equal_results(first, inversion(prior).run())
    assert not torch.equal(first.planes()[0], inversion(prior, seed=1).run().planes()[0])


@pytest.mark.parametrize("stage, step", [("latent", 2), ("latent", 3), ("detail", 1), ("detail", 3)])
def test_resuming_equals_going_on_bit_for_bit(prior, tmp_path, stage, step):
    def stop(*now):
        if now[:2] == (stage, step):
            raise Interrupted

    checkpoint = tmp_path / "run" / "fit.pt"
    with pytest.raises(Interrupted):
        inversion(prior, checkpoint=checkpoint, on_step=stop).run()
    resumed = inversion(prior, seed=77, checkpoint=checkpoint)
    assert (resumed.stage, resumed.step) == (stage, step - 1)
    assert_equal_results(resumed.run(), inversion(prior).run())
    assert [p.name for p in checkpoint.parent.iterdir()] == ["fit.pt"]


def test_a_finished_run_is_only_read(prior, tmp_path):
    first = inversion(prior, checkpoint=tmp_path / "fit.pt").run()
    again = inversion(prior, checkpoint=tmp_path / "fit.pt", on_step=lambda *_: pytest.fail("nothing is left to do"))
    assert again.stage == "done" and again.novel == [], "nothing that only the latent stage needs"
    assert_equal_results(first, again.run())


def test_what_lies_outside_the_photograph_changes_nothing(prior):
    for size in (32, 64, 128):  # resized to the working sizes, or not
        results = [inversion(prior, photo(size, unknown)).run() for unknown in (0.0, 1.0)]
        assert_equal_results(*results)


def test_no_steps_keep_the_encoders_answer(prior):
    fit = inversion(prior, latent_steps=0, detail_steps=0).run()
    assert not fit.has_detail
    for level, expected in zip(fit.planes(), prior.synthesize(fit.start), strict=True):
        assert torch.equal(level, expected)
    assert torch.equal(fit.camera.values, PhotoCamera(5.0, -3.0).values)


def test_the_head_is_as_hard_as_it_was_fitted(prior):
    """The geometry made from a fit is the field that the detail stage rendered, whatever the factor on the density."""
    fit = inversion(prior, latent_steps=0, density_scale=3.0).run()
    planes, points = fit.planes(), head_to_world(fit.cache.coords * fit.radius)
    rows = inside_cylinder(points, fit.radius).all(dim=1)[:, 0].nonzero()[::9, 0]
    geometry = TriplaneGeometry(settings_for(planes, fit.weights, fit.radius, fit.has_detail, fit.frame))
    geometry.set_planes(planes)
    geometry.set_decoder(fit.weights)
    with torch.no_grad():
        out = geometry(points[rows])
        shown = composite(out["density"], out["features"], fit.cache.t[rows], fit.cache.deltas[rows])
        fitted = render_cached(fit.cache, rows, fit.grid)
    for a, b in zip(fitted, shown):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    soft = inversion(prior, latent_steps=0, density_scale=1.0).run()
    assert len(rows) > 30 and torch.equal(soft.planes()[0], planes[0]), "planes are the encoder's answer"
    assert float(fit.cache.depth.mean()) < float(soft.cache.depth.mean()) - 0.01


def test_the_latent_stage_comes_closer_to_the_photo(prior):
    fit = inversion(prior, latent_steps=25, detail_steps=0, novel_views=0, latent_lr=0.1).run()
    rgb = fit.curves["latent/rgb"]
    assert sum(rgb[-5:]) < 0.8 * sum(rgb[:5])


def test_the_detail_stage_comes_closer_to_the_photo_and_leaves_the_prior_alone(prior):
    fit = inversion(prior, latent_steps=0, detail_steps=40).run()
    rgb, alpha = fit.curves["detail/rgb"], fit.curves["detail/alpha"]
    assert rgb[-1] < 0.5 * rgb[0] and alpha[-1] <= 1.02 * alpha[0]
    for level, expected in zip(fit.planes(), prior.synthesize(fit.start)):
        assert torch.equal(level, expected), "planes and camera are frozen"
    assert (fit.grid[fit.gate.expand_as(fit.grid) == 0] == 0).all(), "nothing where the photo's camera cannot see"


def test_a_window_without_any_matter_is_no_trouble(prior):
    """Dense windows fall on empty corners of the frame: the loss stays a number."""
    v, u = torch.meshgrid(*[(torch.arange(64) + 0.5) / 64 - 0.5] * 2, indexing="ij")
    alpha = ((u**2 + v**2).sqrt() < 0.1).float()[None, None]
    valid = ((u.abs() < 0.2) & (v.abs() < 0.2)).float()[None, None]
    target = Target(0.5 * alpha.expand(-1, 3, -1, -1), alpha, valid)
    fit = inversion(prior, target, latent_steps=0, detail_steps=12, detail_size=64, detail_rays=256).run()
    assert fit.planes()[-1].isfinite().all()
    assert all(value == value for curve in fit.curves.values() for value in curve)


def test_more_rays_than_pixels_take_the_whole_picture(prior):
    fits = [inversion(prior, latent_steps=0, detail_rays=rays).run() for rays in (0, 32**2, 90**2)]
    assert_equal_results(*fits[:2])
    assert_equal_results(*fits[1:])


def test_a_step_sees_the_whole_picture_unless_told_otherwise():
    assert InversionConfig(detail_size=256).detail_side == 256
    assert InversionConfig(detail_size=128, detail_rays=400).detail_side == 20
    assert InversionConfig(detail_size=128, detail_rays=10**6).detail_side == 128


def test_psnr_counts_the_inside_alone():
    target = photo(32)
    inside = (target.alpha > 0.5) & (target.valid > 0)
    rubbish = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rgb = torch.where(inside, target.rgb + 0.1, rubbish)
    assert psnr_inside(rgb, torch.where(inside, target.alpha, rubbish[:, :1]), target) == pytest.approx(20.0, abs=1e-3)


@pytest.mark.parametrize(
    "change",
    [{"latent_size": 16}, {"detail_size": 31}, {"latent_steps": -1}, {"detail_steps": -1}, {"detail_rays": -1},
     {"density_scale": 0.0}, {"detail_thickness": 0.0}, {"detail_before": -0.01}, {"lambda_smooth": float("nan")}],
    ids=str,
)
def test_settings_out_of_range_are_named(change):
    with pytest.raises(ValueError, match=f"inversion.{next(iter(change))} must"):
        InversionConfig(**change)
