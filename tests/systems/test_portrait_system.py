"""The system on its own host: initialization, stages, gates, losses, resuming."""
import pytest
import torch

pl = pytest.importorskip("pytorch_lightning")
pytest.importorskip("diffusers")
from pathlib import Path  # noqa: E402

from portrait_diffusion import host  # noqa: E402
from portrait_diffusion.data.portrait import PortraitDataModule, camera_batch  # noqa: E402
from portrait_diffusion.errors import EnvironmentProblem, UsageError  # noqa: E402
from portrait_diffusion.geometry.triplane import TriplaneGeometry  # noqa: E402
from portrait_diffusion.guidance.hpdm.model import build_mini  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import save_hpdm  # noqa: E402
from portrait_diffusion.noise.transport import latent_depth  # noqa: E402
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w  # noqa: E402
from portrait_diffusion.systems.painting import Painted  # noqa: E402
from portrait_diffusion.systems.portrait import PortraitSystem  # noqa: E402

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "astronaut.png"
SIZE = 32
INVERSION = {
    "latent_steps": 2, "latent_size": 32, "latent_samples": 6, "novel_views": 2, "novel_size": 16, "detail_steps": 2,
    "detail_size": 48, "detail_resolution": 48, "lambda_perceptual": 0.0,
}  # fmt: skip
STAGES = {
    "restore": {"steps": 3, "resolution": [16], "loss": {"lambda_rgb": 1.0, "lambda_alpha": 1.0, "lambda_opaque": 0.1}},
    "refine": {
        "steps": 3, "resolution": [16, SIZE], "milestones": [2], "views_every": 2, "max_step_percent": [0, 0.6, 0.4, 3],
        "loss": {"lambda_rgb": 1.0, "lambda_tv": 0.1, "lambda_restoration": 0.1, "lambda_depth_smooth": 1.0},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    tiny = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=SIZE)
    return str(save_hpdm(tiny, tmp_path_factory.mktemp("hpdm")))


@pytest.fixture(scope="module")
def data():
    module = PortraitDataModule({"image_path": str(PHOTO), "stages": STAGES, "eval_size": SIZE, "n_val_views": 2,
                                 "n_test_views": 3})  # fmt: skip
    module.setup()
    return module


@pytest.fixture(scope="module")
def initialized(data, model):
    """State of a system after its initialization, and the fit of the prior that it took over."""
    system, fits = make(model, {}), []

    def adopt(found):
        fits.append(found)
        PortraitSystem.adopt(system, found)

    system.adopt = adopt
    fit(system, data, 0)
    (found,) = fits
    return {name: value.clone() for name, value in system.state_dict().items()}, found


@pytest.fixture(scope="module")
def head(initialized):
    return initialized[0]


@pytest.fixture(scope="module")
def fitted(initialized):
    return initialized[1]


def section(model, stages=STAGES, **changes) -> dict:
    return {
        "stages": stages, "inversion": INVERSION, "restoration_resolution": 12,
        "geometry_type": "portrait-diffusion-triplane", "material_type": "portrait-diffusion-no-material",
        "background_type": "portrait-diffusion-white-background", "renderer_type": "portrait-diffusion-volume-renderer",
        "renderer": {"num_samples_per_ray": 12, "num_importance_samples": 12},
        "guidance_type": "portrait-diffusion-hpdm-guidance", "guidance": {"pretrained_model_name_or_path": model},
        "optimizer": {"name": "Adam", "args": {"lr": 0.05}, "params": {"geometry.restoration": {}}}, **changes,
    }  # fmt: skip


def make(model, stages=STAGES, **changes) -> PortraitSystem:
    torch.manual_seed(0)
    return PortraitSystem(section(model, stages, **changes))


def fit(system, data, steps, checkpoint=None, folder=None):
    if folder is not None:
        system.set_save_dir(str(folder))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, max_epochs=-1,
    )  # fmt: skip
    trainer.fit(system, datamodule=data, ckpt_path=checkpoint)
    return trainer


def test_the_stages_change_the_restoration_grid_where_the_photo_does_not_see(data, model, head, monkeypatch):
    system = make(model)
    monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
    fit(system, data, 6)
    after = system.state_dict()
    changed = {name for name, value in head.items() if not torch.equal(value, after[name])}
    assert changed == {"geometry.restoration"}
    assert [name for name, p in system.named_parameters() if p.requires_grad] == ["geometry.restoration"]
    gate, grid = after["geometry.restoration_gate"], after["geometry.restoration"]
    assert 0 < float(gate.mean()) < 1 and float(gate.min()) == 0 and float(gate.max()) == 1
    assert float(grid[(gate == 0).expand_as(grid)].abs().max()) == 0, "what the photo shows is not touched"
    assert float(grid[(gate == 1).expand_as(grid)].abs().max()) > 0


def test_without_preservation_everything_may_change(data, model, fitted):
    system = make(model, {"refine": {"steps": 1, "resolution": [16]}}, detail_preservation=False)
    system.start_from(fitted)
    fit(system, data, 0)
    assert bool((system.geometry.restoration_gate == 1).all())


def test_the_gate_is_closed_in_front_and_open_behind(head):
    gate = head["geometry.restoration_gate"][0, 0, 0]  # depth from the back to the front, rows, columns
    middle = gate[:, 4:8, 4:8].mean(dim=(1, 2))
    assert float(middle[0]) > 0.99 and float(middle[-1]) < 0.1, "0.1: at the nose the surface turns away"


def test_less_is_kept_where_the_surface_turns_away(data, model, fitted):
    """The later the gate fades, the more of the sides is open; what faces the camera stays closed."""
    gates = []
    for fade in ([0.15, 0.4], [0.5, 0.8]):
        system = make(model, {"refine": {"steps": 1, "resolution": [16]}}, preservation_facing=fade)
        system.start_from(fitted)
        fit(system, data, 0)
        gates.append(system.geometry.restoration_gate)
    assert (gates[1] >= gates[0] - 1e-6).all() and float(gates[1].mean() - gates[0].mean()) > 0.005
    assert float(gates[1].min()) == 0


def test_views_are_painted_from_the_head_before_its_colours_give_way(data, model, fitted, monkeypatch):
    """The first look is the initialization's with and without `restoration_blur`; the steps render the blurred one."""
    still = {"name": "Adam", "args": {"lr": 0.0}, "params": {"geometry.restoration": {}}}
    stages = {"restore": {"steps": 2, "resolution": [16], "painted": 2, "loss": {"lambda_painted": 1.0}}}
    batch = camera_batch(torch.tensor([90.0, 180.0]), torch.zeros(2), SIZE)
    first = {}

    def paint(system, stage, turn):
        first[blur] = system._look(batch["rays_o"], batch["rays_d"])["comp_rgb"]
        return Painted(first[blur].permute(0, 3, 1, 2), torch.tensor([90.0, 180.0]), torch.zeros(2))

    monkeypatch.setattr(PortraitSystem, "_paint", paint)
    for blur in (0.0, 2.0):
        system = make(model, stages, restoration_blur=blur, optimizer=still)
        system.start_from(fitted)
        fit(system, data, 2)  # the first step shows the photo
        later = system._look(batch["rays_o"], batch["rays_d"])["comp_rgb"]
        assert (later - first[blur]).abs().max() < 1e-6 if blur == 0 else (later - first[blur]).abs().max() > 1e-3
    torch.testing.assert_close(first[2.0], first[0.0])


@pytest.mark.parametrize("fade", [[0.4], [0.4, 0.4], [0.4, 1.2], ["a", "b"]])
def test_a_fade_that_is_none_is_refused(model, fade):
    with pytest.raises(UsageError, match="preservation_facing is .* expected two rising cosines"):
        make(model, {"refine": {"steps": 1, "resolution": [16]}}, preservation_facing=fade)


@pytest.mark.parametrize(
    ("sampler", "painted", "kept"),
    [("iid", 0, False), ("mvnrs", 0, False), ("object", 0, False), ("iid", 4, False), ("iid", 4, True)],
)
def test_resuming_equals_going_on_bit_for_bit(data, model, head, monkeypatch, tmp_path, sampler, painted, kept):
    """Cameras, noise, known and painted views, anchors: 4 steps and 2 more are 6, though views_every is 3 and not 4."""
    noise = {"azimuths": [-60, 0, 60], "elevations": [0], "resample_every": 2} if sampler == "mvnrs" else {}
    stages = {name: stage | {"views_every": 3, "painted": painted} for name, stage in STAGES.items()}
    stages["restore"]["remove_floaters"] = True
    if painted:
        stages["refine"] = stages["refine"] | {"loss": {"lambda_painted": 1.0}, "reference_every": 3}
        stages["refine"]["keep_samples"] = kept
    guidance = {"pretrained_model_name_or_path": model, "noise_sampler_type": f"portrait-diffusion-{sampler}-noise",
                "noise_sampler": noise}  # fmt: skip

    def started(resumed=False):
        system = PortraitSystem(section(model, stages, guidance=guidance), resumed=resumed)
        monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
        return system

    whole = started()
    fit(whole, data, 6)
    first = started()
    fit(first, data, 4).save_checkpoint(tmp_path / "four.ckpt")
    second = started(resumed=True)
    fit(second, data, 6, checkpoint=str(tmp_path / "four.ckpt"))
    assert torch.equal(whole.geometry.restoration, second.geometry.restoration)
    assert float((whole.geometry.restoration - first.geometry.restoration).abs().max()) > 0


def test_floaters_go_with_the_last_step_of_the_stage_that_says_so(data, model, head, monkeypatch):
    """Once, before the checkpoint of that step can be written."""
    seen = []
    monkeypatch.setattr(TriplaneGeometry, "remove_floaters", lambda geometry: seen.append(system.global_step))
    stages = {name: stage | {"remove_floaters": name == "restore"} for name, stage in STAGES.items()}
    system = make(model, stages)
    monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
    fit(system, data, system.schedule.total)
    assert seen == [STAGES["restore"]["steps"] - 1], "global steps count after the step"
    with pytest.raises(UsageError, match="system.stages.restore: remove_floaters must be true or false; got 1."):
        make(model, {"restore": {"steps": 1, "resolution": [16], "remove_floaters": 1}})


def test_the_head_is_fitted_to_what_is_painted(data, model, head, monkeypatch):
    """A model that paints everything grey greys the back; other guidances are asked beside; looks come in turn."""
    found = {"grey": Grey}
    original = host.find
    monkeypatch.setattr("portrait_diffusion.systems.portrait.find", lambda name: found.get(name) or original(name))
    Grey.calls = 0
    stage = {"steps": 12, "resolution": [16], "painted": 4, "paint_steps": 2, "views_every": 6, "reference_every": 0,
             "azimuths": [[135, 225]], "loss": {"lambda_painted": 1.0}}  # fmt: skip
    system = make(model, {"refine": stage}, extra_guidances=[{"type": "grey"}])
    monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
    looks = []

    def paint(self, rgb, steps, c2w, fovy, depth, normals, opacity):
        looks.append((rgb.shape, steps))
        return torch.full((len(rgb), 3, SIZE, SIZE), 0.5)

    monkeypatch.setattr(type(original("portrait-diffusion-hpdm-guidance")({"pretrained_model_name_or_path": model})),
                        "paint", paint)  # fmt: skip
    fit(system, data, 12)
    curve = system.curves["refine/painted"]
    assert looks == [((4, SIZE, SIZE, 3), 2)] * 2 and len(curve) == 12 and Grey.calls == 12
    assert sum(curve[-4:]) < 0.8 * sum(curve[:4])


def test_kept_samples_fit_as_fresh_ones_do_without_rendering(data, model, head, monkeypatch):
    """The same pictures and steps: what is learned agrees, and no step asks the renderer."""
    stage = {"steps": 12, "resolution": [16], "painted": 4, "paint_steps": 2, "views_every": 0, "reference_every": 3,
             "azimuths": [[135, 225]], "loss": {"lambda_painted": 1.0, "lambda_rgb": 1.0}}  # fmt: skip
    learned, curves = [], []
    for kept in (False, True):
        system = make(model, {"refine": stage | {"keep_samples": kept}})
        monkeypatch.setattr(system, "initialize", lambda photo, system=system: system.load_state_dict(head))
        grey = Painted(torch.full((4, 3, SIZE, SIZE), 0.5), torch.tensor([140.0, 160, 180, 220]), torch.zeros(4))
        monkeypatch.setattr(system, "_paint", lambda stage, turn, grey=grey: grey)
        if kept:
            monkeypatch.setattr(system, "forward", None)
        fit(system, data, 12)
        learned.append(system.geometry.restoration.detach().flatten())
        curves.append(torch.tensor(system.curves["refine/painted"]))
    assert float(curves[1][-1]) < 0.8 * float(curves[1][0])
    torch.testing.assert_close(curves[0], curves[1], rtol=0.1, atol=0.01)
    assert float(torch.nn.functional.cosine_similarity(*learned, dim=0)) > 0.8


def test_samples_are_kept_for_painted_views_alone(model):
    with pytest.raises(UsageError, match="stages.refine: keep_samples is for stages with painted views"):
        make(model, {"refine": {"steps": 1, "resolution": [16], "keep_samples": True}})
    with pytest.raises(UsageError, match="keep_samples must be true or false"):
        make(model, {"refine": {"steps": 1, "resolution": [16], "painted": 2, "keep_samples": "yes"}})


def test_a_guidance_that_cannot_paint_is_named(data, model, head, monkeypatch):
    system = make(model, {"refine": {"steps": 1, "resolution": [16], "painted": 2, "reference_every": 0}})
    monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
    monkeypatch.delattr("portrait_diffusion.guidance.hpdm_guidance.HPDMGuidance.paint")
    with pytest.raises(UsageError, match="cannot paint views; set painted: 0"):
        fit(system, data, 1)


def test_missing_public_models_are_named_before_the_photo_is_fitted(data, model, monkeypatch):
    system = make(model, guidance={"pretrained_model_name_or_path": "nobody/nothing", "offline": True})
    monkeypatch.setattr(system, "initialize", lambda photo: pytest.fail("minutes of work before the message"))
    with pytest.raises(EnvironmentProblem, match="Not in the local cache: nobody/nothing.* models --config"):
        fit(system, data, 1)


def test_losses_that_do_not_exist_are_named(model):
    with pytest.raises(UsageError, match="system.stages.refine: loss has no 'lambda_magic'"):
        make(model, {"refine": {"steps": 1, "loss": {"lambda_magic": 1.0}}})


def test_another_prior_is_refused_not_replaced(model):
    with pytest.raises(UsageError, match="starts from the bundled prior; system.prior.type is 'eg3d'"):
        make(model, prior={"type": "eg3d", "checkpoint": "x.pkl"})


class Grey(host.BaseObject):
    """A guidance of another system's kind: wants grey pictures, knows nothing of geometry."""

    calls = 0

    def __call__(self, rgb, prompt_utils, elevation, azimuth, camera_distances, rgb_as_latents=False, **kwargs):
        type(self).calls += 1
        return {"loss_sds": (rgb - 0.5).square().mean(), "grad_norm": rgb.norm(), "eval": {}}


def test_other_guidances_mix_in_by_stage(data, model, head, monkeypatch):
    found = {"grey": Grey}
    original = host.find
    monkeypatch.setattr("portrait_diffusion.systems.portrait.find", lambda name: found.get(name) or original(name))
    Grey.calls = 0
    system = make(model, guidance_type="", extra_guidances=[{"type": "grey", "weight": 2.0, "stages": ["refine"]}])
    monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
    logged = {}
    monkeypatch.setattr(system, "log", lambda name, value, **kwargs: logged.setdefault(name, float(value)))
    fit(system, data, 6)
    assert Grey.calls == 1, "of the refining steps 0, 1, 2 every second shows the photo"
    weighted = logged["train/guidance_extra0_loss_sds"]
    assert weighted > 0 and "train/guidance_loss_sds" not in logged


def test_noise_of_another_guidance_goes_on_where_it_was(data, model, head, monkeypatch, tmp_path):
    extra = {"type": "portrait-diffusion-hpdm-guidance", "stages": ["restore", "refine"], "weight": 0.5,
             "guidance": {"pretrained_model_name_or_path": model,
                          "noise_sampler_type": "portrait-diffusion-object-noise"}}  # fmt: skip

    def started(resumed=False):
        system = PortraitSystem(section(model, extra_guidances=[extra], guidance_type=""), resumed=resumed)
        monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
        return system

    whole = started()
    fit(whole, data, 6)
    fit(started(), data, 4).save_checkpoint(tmp_path / "four.ckpt")
    second = started(resumed=True)
    fit(second, data, 6, checkpoint=str(tmp_path / "four.ckpt"))
    assert torch.equal(whole.geometry.restoration, second.geometry.restoration)


def test_a_host_that_goes_on_after_the_stages_is_warned_and_cleans_once(data, model, head, monkeypatch):
    stages = {"restore": STAGES["restore"] | {"remove_floaters": True}}
    system = make(model, stages)
    monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
    cleaned, told = [], []
    system.geometry.remove_floaters = lambda: cleaned.append(system.true_global_step)
    monkeypatch.setattr("portrait_diffusion.systems.portrait.warn", told.append)
    fit(system, data, 5)
    assert len(cleaned) == 1 and len(told) == 1 and "trainer.max_steps is 5, but the stages have 3 steps" in told[0]


def test_mvnrs_gets_its_geometry_and_the_photo_is_among_the_known_views(data, model, head, monkeypatch):
    stages = {"refine": STAGES["refine"] | {"reference_every": 0}}
    sampler = {"noise_sampler_type": "portrait-diffusion-mvnrs-noise",
               "noise_sampler": {"azimuths": [-60, 0, 60], "elevations": [0], "resample_every": 1}}  # fmt: skip
    system = make(model, stages, guidance={"pretrained_model_name_or_path": model, **sampler})
    monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
    look, with_normals = system.renderer.look, []
    system.renderer.look = lambda *rays, normals: with_normals.append(normals) or look(*rays, normals=normals)
    fit(system, data, 2)
    camera = orbit_c2w(torch.tensor([0.0]), torch.zeros(1))
    seen = system._latent_depth(system.guidance.model)(camera, canonical_fovy(camera))
    del system.renderer.look
    edge = SIZE // system.guidance.model.factor
    whole = look(*get_rays(camera, canonical_fovy(camera), SIZE, SIZE), normals=False)
    exact = latent_depth(whole["depth"][..., 0] * (whole["opacity"][..., 0] > 0.5), system.guidance.model.factor)
    assert seen.shape == exact.shape == (1, edge, edge)
    both = (seen > 0) & (exact > 0)
    assert both.float().mean() > 0.8 * (exact > 0).float().mean() and (seen - exact)[both].abs().median() < 0.02
    assert system.guidance.noise_sampler.anchors is not None
    assert with_normals.count(True) == 1, "the known views; anchors need depth alone"
    assert with_normals.count(False) >= 1
    views = system.known_views([90.0, 180.0], SIZE)
    photo = system._target.resized(SIZE)
    assert len(views) == 3
    inside = photo.valid[0] > 0
    over_white = (photo.rgb + 1 - photo.alpha)[0]
    torch.testing.assert_close(views.rgb[0][inside.expand(3, -1, -1)], over_white[inside.expand(3, -1, -1)])
    length = views.normals.norm(dim=-1)
    assert bool(((length - 1).abs() < 1e-4)[views.opacity > 0.5].all())


def test_validation_and_test_write_pictures_and_a_film(data, model, head, monkeypatch, tmp_path):
    system = make(model)
    system.load_state_dict(head)
    system.set_save_dir(str(tmp_path))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.validate(system, datamodule=data, verbose=False)
    trainer.test(system, datamodule=data, verbose=False)
    assert (tmp_path / "it0-0.png").is_file() and (tmp_path / "it0-test" / "2.png").is_file()
    assert (tmp_path / "it0-test.mp4").stat().st_size > 1000


def test_the_guidance_is_told_of_the_renders_geometry(data, model, head, monkeypatch):
    system = make(model, {"refine": STAGES["refine"] | {"steps": 1, "milestones": [2], "reference_every": 0}})
    monkeypatch.setattr(system, "initialize", lambda photo: system.load_state_dict(head))
    seen = []

    def guidance(rgb, prompts, **told):
        seen.append(told)
        return {"loss_sds": rgb.sum()}

    monkeypatch.setattr(system, "_prepare_guidance", lambda place: setattr(system, "guidance", guidance))
    fit(system, data, 1)
    (told,) = seen
    solid = told["opacity"][..., 0] > 0.5
    assert 0.05 < float(solid.float().mean()) < 0.9 and told["c2w"].shape == (2, 4, 4)
    assert ((told["normals"].norm(dim=-1) - 1).abs() < 1e-4)[solid].all() and (told["normals"][~solid] == 0).all()
    assert ((told["depth"][..., 0] - 2.7).abs() < 0.6)[solid].all()


def test_a_renderer_without_normals_is_named(model, head):
    system = make(model)

    class Bare(torch.nn.Module):
        def forward(self, rays_o, rays_d, **kwargs):
            return {"comp_rgb": rays_o, "opacity": rays_o[..., :1], "depth": rays_o[..., :1]}

    system.renderer = Bare()
    with pytest.raises(UsageError, match="gives no normals"):
        system.known_views([90.0], SIZE)


def test_other_data_modules_are_refused_where_a_photo_is_needed(data, model):
    class Cameras(pl.LightningDataModule):
        def train_dataloader(self):
            return data.train_dataloader()

    with pytest.raises(UsageError, match="needs a photo: use data_type portrait-diffusion-datamodule"):
        fit(make(model), Cameras(), 1)
