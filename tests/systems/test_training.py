"""The stages through the pipeline: what a run does, that it resumes, what an interruption leaves."""
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning"), pytest.importorskip("diffusers")
from portrait_diffusion import training  # noqa: E402
from portrait_diffusion.errors import UsageError  # noqa: E402
from portrait_diffusion.guidance.hpdm.model import build_mini  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import save_hpdm  # noqa: E402
from portrait_diffusion.pipeline import PortraitPipeline  # noqa: E402
from portrait_diffusion.result import PortraitResult  # noqa: E402
from priors.samples import save_tiny_prior  # noqa: E402

pytestmark = pytest.mark.usefixtures("photo_prepared_once")
PHOTO = Path(__file__).resolve().parents[2] / "examples" / "astronaut.png"
STAGES = {
    "restore": {"steps": 2, "resolution": [16], "loss": {"lambda_rgb": 1.0}},
    "refine": {"steps": 3, "resolution": [16], "views_every": 2, "loss": {"lambda_tv": 0.1}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    tiny = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=32)
    return str(save_hpdm(tiny, tmp_path_factory.mktemp("hpdm")))


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """Section of a tiny random prior: what the stages do and keep does not depend on the head they start from."""
    checkpoint, encoder = save_tiny_prior(tmp_path_factory.mktemp("prior"))
    return {"checkpoint": str(checkpoint), "encoder": str(encoder)}


def pipeline(model, prior, stages=STAGES, **changes) -> PortraitPipeline:
    inversion = {
        "latent_steps": 1, "latent_size": 32, "latent_samples": 6, "novel_views": 1, "novel_size": 16,
        "detail_steps": 1, "detail_size": 48, "detail_resolution": 48, "lambda_perceptual": 0.0,
    }  # fmt: skip
    system = {
        "prior": prior, "inversion": inversion, "stages": stages, "restoration_resolution": 8,
        "guidance_type": "portrait-diffusion-hpdm-guidance", "guidance": {"pretrained_model_name_or_path": model},
        "renderer": {"num_samples_per_ray": 8, "num_importance_samples": 8}, **changes,
    }  # fmt: skip
    data = {"size": 128, "matte": "none"}
    return PortraitPipeline.from_config({"name": "staged", "data": data, "system": system})


def test_a_look_around_is_told_before_the_step_that_waits_for_it(model, prior, recwarn):
    """With its own begin and end, so that the stage's remaining time is that of its steps."""
    stage = {"steps": 2, "resolution": [16], "views_every": 1, "reference_every": 0, "painted": 2, "paint_steps": 1,
             "loss": {"lambda_painted": 1.0}}  # fmt: skip
    seen = []
    pipeline(model, prior, {"restore": stage}).run(PHOTO, None, lambda *report: seen.append(report[:3]))
    told = [report for report in seen if report[0] in ("restore", "paint")]
    around = [("paint", 0, 2), ("paint", 2, 2)]
    assert told == [*around, ("restore", 1, 2), *around, ("restore", 2, 2)]
    assert not [w for w in recwarn if "LeafSpec" in str(w.message)], "Lightning's own affairs"


def test_a_run_goes_through_all_stages_and_an_interrupted_one_ends_the_same(model, prior, tmp_path, monkeypatch):
    seen = []
    whole = pipeline(model, prior).run(PHOTO, tmp_path / "whole", lambda *report: seen.append(report[:3]))
    stages = [report for report in seen if report[0] in STAGES]
    assert stages == [("restore", 1, 2), ("restore", 2, 2), ("refine", 1, 3), ("refine", 2, 3), ("refine", 3, 3)]
    assert {"latent/rgb", "restore/rgb", "refine/guidance_loss_sds"} <= set(whole.curves)
    grid = whole.geometry.restoration
    assert float(grid.abs().max()) > 0 and whole.timings["stages"] > 0

    def stop(name, done, total, values):
        if (name, done) == ("refine", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline(model, prior).run(PHOTO, tmp_path / "broken", stop)
    assert len(list((tmp_path / "broken" / "ckpts").glob("stages-*.ckpt"))) == 1, "the end of a stage is kept"
    again = []
    second = pipeline(model, prior).run(PHOTO, tmp_path / "broken", lambda *report: again.append(report[:3]))
    assert [report for report in again if report[0] in STAGES] == stages[2:]
    assert torch.equal(second.geometry.restoration, grid)
    assert second.curves == whole.curves, "those of the steps before the interruption, too"
    finished = pipeline(model, prior).run(PHOTO, tmp_path / "broken")
    assert finished.curves == whole.curves and finished.field_id() == whole.field_id()

    from portrait_diffusion.result import save_head

    save_head(second, tmp_path / "broken")
    loaded = PortraitResult.load(tmp_path / "broken")
    points = 0.1 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.geometry.forward_density(points), whole.geometry.forward_density(points))


def test_a_stage_alone_goes_on_from_the_end_of_the_one_before(model, prior, tmp_path):
    """Other settings of the last stage, or one that was not there before, leave what the first stage made."""
    other = {**STAGES, "refine": {**STAGES["refine"], "steps": 1, "loss": {"lambda_tv": 10.0}}}
    pipeline(model, prior, {"restore": STAGES["restore"]}).run(PHOTO, tmp_path)
    for stages in (STAGES, other):
        seen = []
        again = pipeline(model, prior, stages).run(PHOTO, tmp_path, lambda *report, seen=seen: seen.append(report[:3]))
        steps = stages["refine"]["steps"]
        assert [r for r in seen if r[0] in STAGES] == [("refine", k + 1, steps) for k in range(steps)]
        fresh = pipeline(model, prior, stages).run(PHOTO)
        assert torch.equal(again.geometry.restoration, fresh.geometry.restoration) and again.curves == fresh.curves


def test_stopping_in_a_stage_gives_the_head_so_far_and_goes_on_later(model, prior, tmp_path):
    from portrait_diffusion.interrupt import Stopped

    def stop(name, done, total, values):
        if (name, done) == ("refine", 2):
            raise Stopped

    half = pipeline(model, prior).run(PHOTO, tmp_path, stop)
    assert half.stopped and float(half.geometry.restoration.detach().abs().max()) > 0
    seen = []
    whole = pipeline(model, prior).run(PHOTO, tmp_path, lambda *report: seen.append(report[:3]))
    assert [report for report in seen if report[0] in STAGES] == [("refine", 3, 3)] and not whole.stopped
    unbroken = pipeline(model, prior).run(PHOTO)
    assert torch.equal(whole.geometry.restoration, unbroken.geometry.restoration)


def test_a_learning_rate_that_falls_goes_on_where_it_was(model, prior, tmp_path):
    """With lr 0 from step 2 on the grid stays as two steps made it, also in a run that is taken up again there."""
    stage = {"resolution": [16], "reference_every": 0, "views_every": 0, "guidance": 0,
             "loss": {"lambda_sparsity": 1.0}}  # fmt: skip
    falling = {"name": "LinearLR", "interval": "step",
               "args": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 2}}  # fmt: skip

    def grid(steps: int, scheduler: dict | None, out=None):
        stages = {"restore": {**stage, "steps": 2}, "refine": {**stage, "steps": steps}}
        made = pipeline(model, prior, stages, scheduler=scheduler)
        return made.run(PHOTO, out).geometry.restoration.detach()

    short, long, steady = grid(0, falling, tmp_path), grid(3, falling, tmp_path), grid(3, None)
    assert float(short.abs().max()) > 0 and torch.equal(short, long) and not torch.equal(long, steady)


def test_other_stages_keep_the_initialization(model, prior, tmp_path, monkeypatch):
    pipeline(model, prior, {"restore": STAGES["restore"]}).run(PHOTO, tmp_path)
    (first,) = (tmp_path / "ckpts").glob("inversion-*.pt")
    changed = first.stat().st_mtime_ns
    pipeline(model, prior, {"restore": STAGES["restore"] | {"steps": 1}}).run(PHOTO, tmp_path)
    assert [p.stat().st_mtime_ns for p in (tmp_path / "ckpts").glob("inversion-*.pt")] == [changed]
    assert len(list((tmp_path / "ckpts").glob("stages-*.ckpt"))) == 2
    monkeypatch.setattr(training, "PortraitSystem", lambda *args, **kwargs: pytest.fail("nothing to train"))
    plain = pipeline(model, prior, {}).run(PHOTO, tmp_path)
    assert plain.geometry.restoration is None


def test_a_run_with_a_perceptual_loss_is_taken_up_again(model, prior, tmp_path):
    pytest.importorskip("stlpips_pytorch")
    stages = {"refine": {"steps": 2, "resolution": [32], "loss": {"lambda_rgb": 1.0, "lambda_perceptual": 1.0}}}
    first = pipeline(model, prior, stages).run(PHOTO, tmp_path)
    second = pipeline(model, prior, stages).run(PHOTO, tmp_path)
    assert torch.equal(first.geometry.restoration, second.geometry.restoration)
    assert second.denoiser_rows == first.denoiser_rows > 0, "what was counted before counts"


def test_what_comparisons_of_noises_came_to_is_told(model, prior, tmp_path):
    stages = {"refine": {"steps": 4, "resolution": [32], "views": 2, "reference_every": 0, "loss": {}}}
    guidance = {
        "pretrained_model_name_or_path": model, "noise_sampler_type": "portrait-diffusion-mvnrs-noise",
        "noise_sampler": {"azimuths": [-60, 0, 60], "elevations": [0], "resample_every": 2},
    }  # fmt: skip
    result = pipeline(model, prior, stages, guidance=guidance).run(PHOTO, tmp_path)
    (told,) = result.noise.values()
    assert list(result.noise) == ["refine/guidance"]
    assert told["comparisons"] == 2 and told["extra_denoiser_rows"] == 2 * 2, "two candidates of two views, twice"
    assert 0 <= told["accepted"] <= 1 and -1 <= told["score"] <= told["score_kept"] <= 1 and -1 <= told["control"] <= 1
    assert len(result.curves["refine/guidance_noise_accepted"]) == 2
    assert 0 < result.timings["stages.noise"] < result.timings["stages"]
    again = pipeline(model, prior, stages, guidance=guidance).run(PHOTO, tmp_path)
    assert again.noise == result.noise, "of the finished run, which is not repeated"

    plain = pipeline(model, prior, stages).run(PHOTO, tmp_path)
    assert plain.noise == {} and "stages.noise" not in plain.timings


def test_wrong_stages_stop_before_any_work(model, prior):
    with pytest.raises(UsageError, match="system.stages has no stage 'polish'"):
        pipeline(model, prior, {"polish": {"steps": 1}})
    with pytest.raises(UsageError, match="guidance.*nearest valid name|unknown key"):
        pipeline(model, prior, guidance={"explicit_scal": 1.0})
