"""Fit of published priors, tiny and random: it recovers its own heads, resumes, and gives up in a sentence."""
import copy

import pytest
import torch
from portrait_diffusion.errors import UsageError
from portrait_diffusion.inversion.camera import PhotoCamera
from portrait_diffusion.inversion.published import PublishedFit, overlap, ramp
from portrait_diffusion.inversion.published_config import PublishedFitConfig
from portrait_diffusion.inversion.target import Target
from portrait_diffusion.priors.published.adapter import PublishedPrior
from portrait_diffusion.priors.published.sizes import FAMILIES
from portrait_diffusion.settings import load_pipeline_config
from portrait_diffusion.shipped import find_config
from priors.published_pickles import write_published

INIT = find_config("portrait-init")
SETTINGS = {
    "latent_steps": 6, "tuning_steps": 4, "size": 32, "rays": 256, "ray_chunk": 400, "samples": 6,
    "lambda_perceptual": 0.0, "min_overlap": 0.0, "checkpoint_every": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for family in FAMILIES:
        write_published(folder / f"{family}.pkl", family)
    return {family: PublishedPrior.open(folder / f"{family}.pkl", family) for family in FAMILIES}


def fit_of(prior, target=None, checkpoint=None, on_step=None, face=True, **changes) -> PublishedFit:
    target = target or Target(torch.full((1, 3, 32, 32), 0.5), torch.ones(1, 1, 32, 32), torch.ones(1, 1, 32, 32))
    cfg = PublishedFitConfig(**(SETTINGS | changes))
    return PublishedFit(prior, target, PhotoCamera(), cfg, None, 0, checkpoint, on_step, lambda picture: face)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_fitted(family, priors):
    fit = fit_of(priors[family], latent_steps=25, tuning_steps=25, plane_lr=0.1).run()
    colours = fit.curves["latent/rgb"] + fit.curves["tuning/rgb"]
    assert sum(colours[-5:]) < sum(colours[:5])
    assert fit.stage == "done" and all(torch.isfinite(level).all() for level in fit.planes())
    assert fit.weights.output_weight.shape[0] == 4 and not fit.has_detail


def test_pivotal_tuning_changes_the_generator_and_not_its_image_heads(priors):
    prior = copy.deepcopy(priors["panohead"])
    before = {k: v.clone() for k, v in prior.generator.state_dict().items()}
    fit_of(prior, tuning="generator", latent_steps=1, generator_lr=1e-2).run()
    after = prior.generator.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert any(k.startswith("backbone.synthesis") for k in changed) and any(k.startswith("decoder") for k in changed)
    assert not any(k.startswith(("superresolution", "bcg_synthesis", "backbone.mapping")) for k in changed)


def test_without_tuning_the_planes_are_the_generators(priors):
    prior = priors["eg3d"]
    fit = fit_of(prior, tuning="none").run()
    torch.testing.assert_close(fit.planes(), prior.planes(fit.ws.detach()))


def test_chunks_change_nothing(priors):
    def gradient(chunk: int) -> tuple:
        fit = fit_of(priors["panohead"], ray_chunk=chunk, rays=4096)
        rays = fit.camera.rays(32)
        rgb, alpha = fit._render(fit._generated(), fit.prior.decoder(fit.ws), *rays)
        (rgb.square().sum() + alpha.sum()).backward()
        return rgb.detach(), fit.ws.grad

    for a, b in zip(gradient(100), gradient(4096)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_steps_look_anywhere_within_the_pixels(priors, monkeypatch):
    """Through the centres alone, texels between them stay as they were and show when the head is rendered finer."""
    seen, rays = [], PhotoCamera.rays

    def noting(camera, size, ys=None, xs=None):
        if ys is not None:
            seen.append(torch.stack([ys[0], xs[0]]))
            assert len(ys) == len(xs) == 16  # every second one of 32 pixels: 256 rays
        return rays(camera, size, ys, xs)

    monkeypatch.setattr(PhotoCamera, "rays", noting)
    fit_of(priors["eg3d"]).run()
    starts = torch.stack(seen)
    places = starts - starts.round()
    assert len(starts) == 10 and len({tuple(x) for x in starts.tolist()}) == 10
    assert float(places.abs().max()) <= 0.5 and float(places.abs().max()) > 0.25
    assert set(starts.round().long().flatten().tolist()) <= {0, 1, 2} and float(starts.min()) >= -0.5


@pytest.fixture(scope="module")
def whole(priors):
    """A fit that is not interrupted."""
    return fit_of(priors["eg3d"], rays=1024).run()


@pytest.mark.parametrize("stop", [3, 9])
def test_resuming_is_exact(stop, priors, whole, tmp_path):
    class Stop(Exception):
        pass

    steps = []

    def stopping(*args):
        steps.append(args)
        if len(steps) == stop + 1:
            raise Stop

    path = tmp_path / "fit.pt"
    with pytest.raises(Stop):
        fit_of(priors["eg3d"], checkpoint=path, on_step=stopping, rays=1024).run()
    again = fit_of(priors["eg3d"], checkpoint=path, rays=1024)
    assert (again.stage, again.step) == (("latent", 3) if stop == 3 else ("tuning", 3))
    for a, b in zip(again.run().planes(), whole.planes()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    done = fit_of(priors["eg3d"], checkpoint=path, rays=1024)
    assert done.stage == "done"
    torch.testing.assert_close(done.planes(), whole.planes(), rtol=0, atol=0)


def test_a_bad_fit_is_tried_again_and_then_given_up(priors, caplog):
    starts = []
    fit = fit_of(priors["eg3d"], face=False, attempts=3, on_step=None)
    begin = fit._begin
    fit._begin = lambda attempt: (begin(attempt), starts.append((attempt, fit.ws.detach().clone())))
    with pytest.raises(UsageError, match="no face is found in it after 3 attempts; use") as caught:
        fit.run()
    assert "\n" not in str(caught.value)
    assert [attempt for attempt, _ in starts] == [1, 2] and not torch.equal(starts[0][1], starts[1][1])
    empty = Target(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32))
    empty.alpha[..., :2, :2] = 1
    with pytest.raises(UsageError, match="silhouette overlaps"):
        fit_of(priors["eg3d"], empty, min_overlap=1.0, attempts=1, latent_steps=1, tuning_steps=1).run()


def test_a_second_start_can_succeed(priors):
    answers = iter([False, True])
    fit = fit_of(priors["eg3d"], latent_steps=2, tuning_steps=2)
    fit.face_check = lambda picture: next(answers)
    assert fit.run().attempt == 1 and fit.stage == "done"


def test_schedule_and_overlap():
    assert ramp(0, 100) == pytest.approx(0.2) and ramp(50, 100) == 1 and 0 < ramp(99, 100) < 0.01
    a = torch.zeros(1, 1, 4, 4)
    a[..., :2] = 1
    target = Target(torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    assert overlap(a, target) == pytest.approx(0.5) and overlap(torch.ones_like(a), target) == 1


@pytest.mark.parametrize(
    "words,message",
    [
        (["system.prior.type=stylegan"], "must be one of bundled, eg3d"),
        (["system.prior.type=eg3d"], "needs prior.checkpoint"),
        (["system.prior.type=eg3d", "system.prior.checkpoint=a.pkl", "system.prior.encoder=b.safetensors"],
         "prior.encoder 'b.safetensors' would not be used, .* leave it empty, or set prior.type to bundled"),
        (["system.published_fit.tuning=all"], "published_fit.tuning must be one of"),
        (["system.prior.type=eg3d", "system.prior.checkpoint=a.pkl", "system.stages={restore: {steps: 5}}"],
         "stages after the initialization need .* use --config portrait-init"),
    ],
)
def test_settings_are_checked(words, message):
    with pytest.raises(UsageError, match=message):
        load_pipeline_config(None, words)


def test_settings_arrive():
    config, _ = load_pipeline_config(INIT, ["system.prior.type=panohead", "system.prior.checkpoint=a.pkl"])
    assert config.system.prior.type == "panohead" and config.system.published_fit.tuning == "planes"


def test_the_pipeline_looks_at_the_file_before_the_photo(tmp_path, monkeypatch):
    """A wrong kind, a foreign file or none at all: one sentence, before detection and matting, and nothing written."""
    from portrait_diffusion import pipeline as module

    monkeypatch.setattr(module, "prepare_photo", lambda *a: pytest.fail("the photo was prepared"))
    write_published(tmp_path / "net.pkl", "panohead")
    (tmp_path / "other.pkl").write_text("<html>quota exceeded</html>")
    reports = []
    for name, kind, message in (
        ("net.pkl", "eg3d", "holds a generator of PanoHead, but prior.type is 'eg3d'; set prior.type to 'panohead'"),
        ("other.pkl", "panohead", "no checkpoint"), ("none.pkl", "panohead", "does not exist"),
    ):  # fmt: skip
        words = [f"system.prior.type={kind}", f"system.prior.checkpoint={tmp_path / name}"]
        pipeline = module.PortraitPipeline.from_config(INIT, words)
        with pytest.raises(UsageError, match=message) as caught:
            pipeline.run("me.jpg", tmp_path / "out", lambda *report: reports.append(report))
        assert "\n" not in str(caught.value)
    assert not reports and not (tmp_path / "out").exists()


def test_the_pipeline_takes_a_published_file(tmp_path, monkeypatch):
    """A photo, a tiny file of a published kind: a head that is saved and comes back."""
    import functools
    from pathlib import Path

    from portrait_diffusion import pipeline as module
    from portrait_diffusion.result import PortraitResult, save_head

    write_published(tmp_path / "net.pkl", "panohead")
    photo = Path(__file__).resolve().parents[2] / "examples" / "astronaut.png"
    fit = functools.partial(PublishedFit, face_check=lambda picture: True)
    monkeypatch.setattr(module, "PublishedFit", fit)
    words = [f"system.published_fit.{key}={value}" for key, value in SETTINGS.items()]
    words += ["system.prior.type=panohead", f"system.prior.checkpoint={tmp_path / 'net.pkl'}", "data.matte=none"]
    words += ["system.renderer.num_samples_per_ray=8", "system.renderer.num_importance_samples=8"]
    result = module.PortraitPipeline.from_config(INIT, words).run(photo, tmp_path / "out")
    assert result.geometry.cfg.plane_layout == "panohead" and result.curves["tuning/rgb"]
    save_head(result, tmp_path / "out")
    told = {}
    monkeypatch.setattr("portrait_diffusion.result.export_all", lambda *a, **settings: told.update(settings))
    result.save(tmp_path / "out")
    assert "CC BY-NC-SA 4.0" in told["warnings"][0] and "An et al." in told["warnings"][0]
    again = PortraitResult.load(tmp_path / "out")
    for key, value in result.geometry.state_dict().items():
        torch.testing.assert_close(again.geometry.state_dict()[key], value)
    seen = again.render_input_fn(16, 16)["comp_rgb"]
    torch.testing.assert_close(seen, result.render_input_fn(16, 16)["comp_rgb"])
