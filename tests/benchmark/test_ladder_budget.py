"""Equal numbers of denoiser rows: what is predicted is what a run needs, and stages are stretched in proportion."""
from pathlib import Path

import pytest
import torch
from portrait_diffusion.benchmark.budget import denoiser_rows, factor_for, rows_a_view, stretched, stretched_system
from portrait_diffusion.errors import UsageError

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "astronaut.png"
STAGES = {
    "restore": {"steps": 4, "resolution": [16], "views_every": 2},
    "refine": {"steps": 5, "resolution": [16], "views_every": 3, "views": 3, "loss": {"lambda_tv": 0.1}},
}
CASES = {
    "sds": {"explicit_scale": 2.0, "implicit_scale": 1.5},
    "csd": {"loss_type": "csd"},
    "sdi": {"loss_type": "sdi", "inversion_steps": 3, "explicit_scale": 2.0},
    "ism": {"loss_type": "ism", "inversion_steps": 3},
    "mvnrs": {"noise_sampler_type": "portrait-diffusion-mvnrs-noise",
              "noise_sampler": {"resample_every": 2, "candidates": 3, "azimuths": [0, 180], "elevations": [0]}},
    "painted": {},
}  # fmt: skip


def system(**guidance) -> dict:
    return {"stages": STAGES, "guidance_type": "portrait-diffusion-hpdm-guidance", "guidance": guidance}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("pytorch_lightning"), pytest.importorskip("diffusers")
    from portrait_diffusion.guidance.hpdm.model import build_mini
    from portrait_diffusion.guidance.hpdm.storage import save_hpdm

    torch.manual_seed(0)
    tiny = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=32)
    return str(save_hpdm(tiny, tmp_path_factory.mktemp("hpdm")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    "name", [name if name == "mvnrs" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_prediction_is_what_a_run_needs(name, model, folder):
    from portrait_diffusion.pipeline import PortraitPipeline

    inversion = {
        "latent_steps": 1, "latent_size": 32, "latent_samples": 6, "novel_views": 1, "novel_size": 16,
        "detail_steps": 0, "detail_size": 48, "detail_resolution": 48, "lambda_perceptual": 0.0,
    }  # fmt: skip
    own = system(pretrained_model_name_or_path=model, **CASES[name])
    if name == "painted":
        own["stages"] = {key: {**stage, "painted": 4, "paint_steps": 2} for key, stage in STAGES.items()}
    config = {"name": name, "preview_every": 0, "data": {"size": 128, "matte": "none"}, "system": {
        **own, "inversion": inversion, "restoration_resolution": 8,
        "renderer": {"num_samples_per_ray": 6, "num_importance_samples": 6}}}  # fmt: skip
    result = PortraitPipeline.from_config(config).run(PHOTO, folder)
    assert result.denoiser_rows == denoiser_rows(own) > 0


def test_terms_of_guidance_cost_rows():
    assert rows_a_view({}) == 1 and rows_a_view({"explicit_scale": 0, "implicit_scale": 0}) == 1
    assert rows_a_view({"explicit_scale": 2.0, "implicit_scale": 1.5}) == 3
    assert denoiser_rows({"stages": STAGES}) == 0, "nothing is asked without a guidance"
    silent = {name: {**stage, "guidance": 0} for name, stage in STAGES.items()}
    assert denoiser_rows({**system(), "stages": silent}) == 0


def test_a_stage_is_stretched_with_all_that_counts_its_steps():
    stage = {"steps": 100, "resolution": [32, 64], "milestones": [40], "max_step_percent": [0, 0.6, 0.2, 100],
             "azimuths": [[70, 290]], "loss": {"lambda_rgb": 10, "lambda_tv": [10, 0.1, 0.3, 50]}}  # fmt: skip
    half = stretched(stage, 0.5)
    assert (half["steps"], half["milestones"], half["max_step_percent"]) == (50, [20], [0, 0.6, 0.2, 50])
    assert half["loss"] == {"lambda_rgb": 10, "lambda_tv": [5, 0.1, 0.3, 25]} and half["azimuths"] == [[70, 290]]
    assert stage["steps"] == 100 and stretched(stage, 1.0) == stage


@pytest.mark.parametrize("name", [name for name in CASES if name != "painted"])
@pytest.mark.parametrize("rows", [60, 2000])
def test_all_ways_get_the_same_rows(name, rows):
    own = system(**CASES[name])
    made = stretched_system(own, factor_for(own, rows))
    step = 3 * max(denoiser_rows({**own, "stages": {"refine": {"steps": 2}}}), 1)
    assert rows - step <= denoiser_rows(made) <= rows


def test_too_few_rows_are_refused_and_none_change_nothing():
    with pytest.raises(UsageError, match="too few"):
        factor_for(system(loss_type="ism", inversion_steps=50), 20)
    assert factor_for({"stages": STAGES}, 100) == 1.0


@pytest.mark.slow
def test_every_shipped_rung_runs_and_costs_what_was_predicted(model, folder):
    from portrait_diffusion.benchmark.ladder import changed, make_rungs, read_ladder, why_not
    from portrait_diffusion.pipeline import PortraitPipeline

    small = {
        "data.size": 128, "data.matte": "none", "preview_every": 0, "system.inversion.latent_steps": 1,
        "system.inversion.latent_size": 32, "system.inversion.latent_samples": 6, "system.inversion.novel_views": 1,
        "system.inversion.novel_size": 16, "system.inversion.detail_steps": 0, "system.restoration_resolution": 8,
        "system.renderer": {"num_samples_per_ray": 6, "num_importance_samples": 6},
    }  # fmt: skip
    rungs = make_rungs(read_ladder(), rows=20, hpdm=model)
    assert [rung.name for rung in rungs if rung.cannot] == ["painted"] and "too few" in why_not(rungs[-1])
    for rung in rungs[:-1]:
        config = changed(rung.config, small)
        for name in config["system"].get("stages", {}):
            changes = {"resolution": [32], "milestones": []}
            config = changed(config, {f"system.stages.{name}.{k}": v for k, v in changes.items()})
        result = PortraitPipeline.from_config(config).run(PHOTO, folder)
        assert result.denoiser_rows == denoiser_rows(config["system"]) <= 20, rung.name
        assert (result.denoiser_rows > 0) == bool(config["system"].get("guidance_type")), rung.name
