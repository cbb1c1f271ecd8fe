"""HPDM's training: batches, schedule, stages, resuming, what it writes."""
import json
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers"), pytest.importorskip("pytorch_lightning"), pytest.importorskip("tensorboard")
from balls import add_normals, write_shards  # noqa: E402
from portrait_diffusion.errors import UsageError  # noqa: E402
from portrait_diffusion.files import sha256_file  # noqa: E402
from portrait_diffusion.guidance.hpdm import train  # noqa: E402
from portrait_diffusion.guidance.hpdm.assess import CLEAN, conditions_of, held_out, scores  # noqa: E402
from portrait_diffusion.guidance.hpdm.batches import BatchConfig, choose_views, make_batch, smooth_error  # noqa: E402
from portrait_diffusion.guidance.hpdm.model import build_mini  # noqa: E402
from portrait_diffusion.guidance.hpdm.sampling import sample  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import load_hpdm, save_hpdm  # noqa: E402
from portrait_diffusion.multiview import DEPTH_SCALE, MultiViewData, load_shards  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

SIZE = 32


class Distance(torch.nn.Module):
    """In the place of ST-LPIPS."""

    def forward(self, a, b):
        return (a - b).square().mean(dim=(1, 2, 3))


def tiny(**changes):
    sizes = {"vae_channels": 8, "token_dim": 16, "head_dim": 8, "image_size": SIZE}
    return build_mini((16, 16, 32), **(sizes | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Balls with normals."""
    return add_normals(write_shards(tmp_path_factory.mktemp("balls"), subjects=4, per_shard=2, size=SIZE))


@pytest.fixture(scope="module")
def data(folder):
    return load_shards(folder, "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_targets_are_never_their_own_reference(data):
    subjects = torch.arange(4).repeat(50)
    views = choose_views(data, subjects, generator())
    target, photo, other = views.unbind(1)
    assert not bool((target == photo).any() | (target == other).any() | (photo == other).any())
    front = (data.azimuth[subjects, photo].abs() <= 32)
    assert bool(front.all()) and set(target.tolist()) == {0, 1, 2, 3}


def test_a_clean_batch_projects_what_is_true(data):
    """Balls are lit by position, so that a projected colour equals the target's own."""
    batch = make_batch(data, torch.arange(4), generator(), CLEAN, torch.tensor([[1, 0, 2]]).expand(4, -1))
    projected, valid = batch.explicit[:, :3] / 2 + 0.5, batch.explicit[:, 3:4]
    inner = (valid > 0) & (batch.depth > 0)[:, None]
    assert float(inner.float().mean()) > 0.08
    error = (projected - batch.target).abs().mean(1, keepdim=True)[inner]
    assert float(error.mean()) < 0.03
    assert float((batch.explicit[:, :3].abs() * (1 - valid)).max()) == 0
    torch.testing.assert_close(batch.explicit[:, 10:], (batch.depth > 0).float()[:, None])
    assert batch.gate.shape == (4, 2) and float(batch.gate.min()) >= BatchConfig().gate_floor


def test_a_spoilt_batch_differs_and_repeats(data):
    views = torch.tensor([[1, 0, 2]]).expand(4, -1)
    clean = make_batch(data, torch.arange(4), generator(), CLEAN, views)
    spoilt = [make_batch(data, torch.arange(4), generator(s), BatchConfig(jitter=0.0), views) for s in (1, 1, 2)]
    assert torch.equal(spoilt[0].explicit, spoilt[1].explicit)
    assert not torch.equal(spoilt[0].explicit, spoilt[2].explicit)
    assert torch.equal(spoilt[0].target, clean.target), "targets stay as they are"
    assert torch.equal(spoilt[0].references[:, 0], clean.references[:, 0]), "the photo is believed"
    assert not torch.equal(spoilt[0].explicit, clean.explicit)
    field = smooth_error((200, 3, SIZE, SIZE), generator(), "cpu")
    assert field.shape == (200, 3, SIZE, SIZE) and 0.5 < float(field.std()) < 1.1
    assert float((field[..., 1:] - field[..., :-1]).std()) < 0.4 * float(field.std())


def drafts_like(data):
    """Drafts that are easy to tell from the data: grey, flat at one distance, opaque in a corner."""
    rgba, normal = torch.full_like(data.rgba, 77), torch.zeros_like(data.normal)
    rgba[..., 3] = 0
    rgba[..., :9, :9, 3], normal[..., 0] = 255, 127
    depth = torch.full_like(data.depth, int(2.5 * DEPTH_SCALE)) * (rgba[..., 3] > 0)
    return MultiViewData(**{**vars(data), "rgba": rgba, "normal": normal, "depth": depth.to(torch.int16)})


def test_rows_that_are_told_of_a_draft(data):
    """Geometry and the second reference are the draft's, the photo's colours, target and its depth the truth's."""
    subjects, views, drafts = torch.arange(4), torch.tensor([[1, 0, 2]]).expand(4, -1), drafts_like(data)
    clean = make_batch(data, subjects, generator(), CLEAN, views)
    told = make_batch(data, subjects, generator(), CLEAN, views, drafts)
    assert torch.equal(told.target, clean.target) and torch.equal(told.depth, clean.depth)
    assert torch.equal(told.references[:, 0], clean.references[:, 0])
    corner = told.references[:, 1, :, :9, :9]
    torch.testing.assert_close(corner, torch.full_like(corner, 77 / 255))
    assert (told.references[:, 1, :, 9:] == 1).all()
    for opacity in (told.explicit[:, 10], told.geometry[:, 0, 6], told.geometry[:, 1, 6]):
        assert (opacity[:, :9, :9] == 1).all() and (opacity[:, 9:] == 0).all()
    assert (told.drafted == 1).all() and (clean.drafted == 0).all() and torch.equal(clean.begun, clean.target)
    torch.testing.assert_close(told.begun[..., :9, :9], torch.full_like(told.begun[..., :9, :9], 77 / 255))
    assert (told.begun[..., 9:, :] == 1).all(), "painting begins with the draft's picture of the target"
    half = replace(CLEAN, drafted=0.5)
    rows = torch.arange(4).repeat(100)
    mixed = make_batch(data, rows, generator(), half, None, drafts)
    drafted = mixed.explicit[:, 10, :9, :9].amin(dim=(1, 2)) == 1
    assert 150 < int(drafted.sum()) < 250, "binomial(400, 1/2) leaves this range once in 1.4 million"
    assert torch.equal(mixed.drafted, drafted.float())
    assert torch.equal(mixed.begun[~drafted], mixed.target[~drafted])
    photo = data.c2w[rows, 0]
    torch.testing.assert_close(mixed.reference_c2w[drafted, 0], photo[drafted])
    assert not torch.allclose(mixed.reference_c2w[~drafted, 0], photo[~drafted])
    assert torch.equal(make_batch(data, subjects, generator(), replace(CLEAN, drafted=0.0), views, drafts).explicit,
                       make_batch(data, subjects, generator(), replace(CLEAN, drafted=0.0), views, data).explicit)


def test_learning_rate_limits():
    c = train.HPDMTrainConfig(warmup_steps=10, decay_from=0.5)
    assert train.learning_rate_factor(0.0, 0, c) == pytest.approx(0.1)
    assert train.learning_rate_factor(0.3, 50, c) == 1 and train.learning_rate_factor(0.5, 50, c) == 1
    assert train.learning_rate_factor(1.0, 50, c) == pytest.approx(0.05)


def config(**changes):
    small = {"batch": 8, "warmup_steps": 1, "w_perceptual": 0.0, "learning_rate": 1e-3}
    return train.HPDMTrainConfig(**(small | changes))


def fit(stage, out, seconds=600.0):
    return train.run_stage(stage, out, seconds, accelerator="cpu", progress=False)


def weights(stage):
    return {name: value.clone() for name, value in stage.model.state_dict().items()}


def test_stages_change_their_own_parts_and_resume_as_if_never_stopped(data, tmp_path):
    torch.manual_seed(0)
    model = tiny()
    start = {k: v.clone() for k, v in model.state_dict().items()}

    def stage(steps):
        torch.manual_seed(0)
        return train.DenoiserStage(tiny(), data, config(total_steps=steps, decay_from=1.0))

    once = weights(fit(stage(4), tmp_path / "once"))
    fit(stage(2), tmp_path / "twice")
    twice = weights(fit(stage(4), tmp_path / "twice"))
    for name, value in once.items():
        assert torch.equal(value, twice[name]), name
    changed = {name.split(".")[0] for name, value in once.items() if not torch.equal(value, start[name])}
    assert changed == {"unet", "explicit", "reference", "implicit", "cameras"}
    torch.manual_seed(0)
    autoencoder = fit(train.AutoencoderStage(tiny(), data, config(total_steps=2)), tmp_path / "vae")
    after = weights(autoencoder)
    assert {name.split(".")[0] for name, value in after.items() if not torch.equal(value, start[name])} == {"vae"}
    factor = train.unit_latents(autoencoder.model, data)
    batch = make_batch(data, torch.arange(4), generator(), CLEAN)
    with torch.no_grad():
        assert factor > 0 and 0.3 < float(autoencoder.model.encode(batch.target).std()) < 3


def test_the_model_of_so_far_is_written_beside_the_checkpoint(data, tmp_path):
    """It has the averaged weights of what is trained and the exact ones of what is not; writing it changes nothing."""
    def run(out, every):
        torch.manual_seed(0)
        stage = train.DenoiserStage(tiny(), data, config(total_steps=2, ema_decay=0.9))
        return weights(train.run_stage(stage, out, 600.0, accelerator="cpu", progress=False, every=every))

    often, seldom = run(tmp_path / "often", 0.0), run(tmp_path / "seldom", 600.0)
    assert all(torch.equal(value, seldom[name]) for name, value in often.items())
    assert not (tmp_path / "seldom" / "hpdm").exists()
    written = load_hpdm(tmp_path / "often" / "hpdm").state_dict()
    torch.manual_seed(0)
    start = tiny().half().float().state_dict()
    half = {name: value.half().float() for name, value in often.items()}
    for name, value in written.items():
        if name.startswith("vae."):
            assert torch.equal(value, start[name]), name
    trained = [name for name in written if name.startswith("unet.") and not torch.equal(half[name], start[name])]
    assert trained and any(not torch.equal(written[name], start[name]) for name in trained)


def test_the_average_follows_quickly_at_first_and_slowly_later():
    callback = train.MovingAverage(0.9)
    for step, expected in ((0, 0.9), (1000, 0.1)):
        old, new = [torch.zeros(2)], [torch.ones(2)]
        assert callback.should_update(step_idx=step) and not callback.should_update(epoch_idx=1)
        callback._kwargs["multi_avg_fn"](old, new, torch.tensor(step))
        torch.testing.assert_close(old[0], torch.full((2,), expected))


def test_pairs_share_subject_timestep_and_noise(data):
    torch.manual_seed(0)
    stage = train.DenoiserStage(tiny(), data, config(batch=8, pairs=0.5))
    batch, pairs = stage.draw(generator())
    assert pairs == 2
    noise = torch.randn(2, 4, SIZE // 4, SIZE // 4, generator=generator(1))
    partner = stage.partner_noise(noise, batch, pairs, generator(2))
    assert partner.shape == noise.shape and bool(partner.isfinite().all())
    # latents that live on the surface agree from both views; others do not
    latents = torch.nn.functional.avg_pool2d(batch.target[:4], 4)
    agreement = stage.disagreement(latents, batch, pairs)
    assert float(agreement) < 0.3 * float(stage.disagreement(latents.flip(-1, -2) * 3 - 1, batch, pairs))
    assert stage.draw(generator())[0].target.shape == (8, 3, SIZE, SIZE)
    assert train.DenoiserStage(tiny(), data, config(w_equivariance=0.0)).draw(generator())[1] == 0


def test_a_step_in_mixed_precision_is_finite(data):
    """What a GPU does: bfloat16 autocast over float32 weights, both branches, pairs, backward."""
    torch.manual_seed(0)
    stage = train.DenoiserStage(tiny().train(), data, config(batch=4, pairs=0.5))
    stage.configure_optimizers()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(stage.losses(generator()).values())
    loss.backward()
    gradients = [p.grad for p in stage.parameters() if p.grad is not None]
    assert bool(loss.isfinite()) and gradients and all(bool(g.isfinite().all()) for g in gradients)


def test_pictures_pull_on_the_denoiser_alone(data):
    torch.manual_seed(0)
    stage = train.DenoiserStage(tiny().train(), data, config(w_picture=1.0, pictured=0.5), perceptual=Distance())
    stage.configure_optimizers()
    losses = stage.losses(generator())
    losses["picture"].backward()
    assert all(p.grad is None for p in stage.model.vae.parameters())
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in stage.model.unet.parameters())
    stage.config.w_picture = 3.0
    again = stage.losses(generator())
    torch.testing.assert_close(again["picture"], 3 * losses["picture"])
    torch.testing.assert_close(again["denoise"], losses["denoise"])
    stage.config.w_picture = 0.0
    assert "picture" not in stage.losses(generator())


def test_a_velocity_leads_from_a_draft_to_the_truth():
    """Whatever the noise is put on, the velocity's clean latents are the true ones; on the truth it is plain."""
    torch.manual_seed(0)
    model = tiny().double()
    clean, begun, noise = (torch.randn(5, 4, 8, 8, generator=generator(s), dtype=torch.float64) for s in range(3))
    steps = torch.tensor([0, 50, 400, 600, 999])
    signal, spread = model.levels(steps)
    noisy, velocity = train.repair_target(clean, begun, noise, signal, spread)
    torch.testing.assert_close(model.interpret(velocity, noisy, steps).clean, clean, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(noisy, signal * begun + spread * noise)
    noisy, velocity = train.repair_target(clean, clean, noise, signal, spread)
    torch.testing.assert_close(noisy, model.add_noise(clean, noise, steps))
    torch.testing.assert_close(velocity, signal * noise - spread * clean)


def test_rows_that_begin_with_a_draft(data):
    """Those told of one, no pairs, half of them with nothing but the draft; the others keep their timesteps."""
    torch.manual_seed(0)
    stage = train.DenoiserStage(tiny(), data, config(painted=0.5), drafts_like(data))
    steps, drafted = torch.full((2000,), 990), (torch.arange(2000) % 2).float()
    part, few = stage.begin(drafted, steps, 100, generator())
    part = part.flatten()
    begun = part > 0
    assert not bool((begun & ((drafted == 0) | (torch.arange(2000) < 200))).any())
    assert 360 < int(begun.sum()) < 540, "binomial(900, 1/2) leaves this range once in 500 million"
    assert 0.35 < float((part[begun] == 1).float().mean()) < 0.65, "binomial(450, 1/2), once in 5 billion"
    assert torch.equal(few[~begun], steps[~begun]) and 50 <= int(few[begun].min()) and int(few[begun].max()) < 600
    assert float(few[begun].float().std()) > 100


def test_a_draft_to_begin_with_changes_those_rows_alone(data):
    """Without such rows the losses are what they were; with them the denoiser's differ, and drafts that are the truth
    leave the plain loss of other timesteps."""
    def loss(painted, drafts):
        torch.manual_seed(0)
        stage = train.DenoiserStage(tiny(), data, config(painted=painted, spoil=replace(CLEAN, drafted=1.0)), drafts)
        with torch.no_grad():
            return stage.losses(generator())["denoise"]

    assert bool(loss(0.0, drafts_like(data)).isfinite())
    assert not torch.equal(loss(1.0, drafts_like(data)), loss(0.0, drafts_like(data)))
    assert not torch.equal(loss(1.0, drafts_like(data)), loss(1.0, data))


class HostTraffic(TorchDispatchMode):
    """Notes operations that wait for the device or copy from the host: they cannot be replayed as a CUDA graph."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "is_nonzero", "bincount")

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masks or any(word in name for word in self.FORBIDDEN):
            self.seen.add(name)
        return function(*args, **(kwargs or {}))


def test_a_step_could_be_replayed_by_a_gpu(data):
    torch.manual_seed(0)
    perceptual = Distance()
    for stage in (
        train.DenoiserStage(
            tiny().train(), data, config(batch=8, pairs=0.5, w_picture=1.0, painted=0.9), drafts_like(data), perceptual
        ),
        train.AutoencoderStage(tiny().train(), data, config(w_perceptual=1.0), perceptual=perceptual),
    ):
        stage.configure_optimizers()
        with HostTraffic() as traffic:
            sum(stage.losses(generator()).values()).backward()
        assert traffic.seen == set()
    with HostTraffic() as traffic:
        torch.ones(2)[torch.tensor([True, False])].sum().item()
    assert traffic.seen >= {"lift_fresh", "index", "_local_scalar_dense"}, "the watch sees what it should"


@pytest.mark.slow
def test_a_compiled_step_is_the_step_and_the_model_is_plain_afterwards(data, monkeypatch):
    """The networks are captured whole, forward and backward; the graphs run without C++, which takes minutes here."""
    monkeypatch.setattr(train, "COMPILER", "aot_eager")

    def gradients(compiled):
        torch.manual_seed(0)
        stage = train.DenoiserStage(tiny().train(), data, config(compile=compiled))
        parameters = [p for group in stage.configure_optimizers().param_groups for p in group["params"]]
        step = stage.gradients_of(parameters)
        step.generator.manual_seed(0)
        losses = step()
        stage.on_train_end()
        assert all(network._compiled_call_impl is None for network in stage.networks())
        return losses, [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    (plain, a), (compiled, b) = gradients(False), gradients(True)
    for name, loss in plain.items():
        torch.testing.assert_close(compiled[name], loss)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(y, x, atol=1e-4 * float(x.abs().max()) + 1e-7, rtol=1e-3)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_training_starts_from_a_given_model(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "build_mini", lambda image_size: tiny(image_size=image_size))
    given = save_hpdm(tiny(), tmp_path / "given")
    start = load_hpdm(given).state_dict()
    common = {"accelerator": "cpu", "progress": False, "initial": given}
    digest = sha256_file(given / "unet" / "diffusion_pytorch_model.safetensors")
    c = config(batch=4, total_steps=1, learning_rate=0.0)
    for stage in train.STAGES:
        model = train.run(folder, None, tmp_path / stage, stage, 60.0, c, **common)
        for name, value in model.state_dict().items():
            assert torch.equal(value, start[name]), name
        assert json.loads((tmp_path / stage / f"{stage}.json").read_text())["initial"] == digest


def test_a_run_writes_model_card_and_sheet_and_the_next_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "build_mini", lambda image_size: tiny(image_size=image_size))
    common = ["--data", str(folder), "--val", str(folder), "--out", str(tmp_path)]
    common += ["--batch", "4", "--accelerator", "cpu", "--w-perceptual", "0", "--quiet", "--sample-steps", "1"]
    with pytest.raises(UsageError, match="--stage autoencoder first"):
        train.main([*common, "--stage", "denoiser"])
    other = add_normals(write_shards(tmp_path / "other", subjects=3, size=SIZE))
    assert train.main([*common, "--stage", "autoencoder", "--total-steps", "2"]) == 0
    with pytest.raises(UsageError, match="were not made from the data"):
        train.main([*common, "--stage", "denoiser", "--drafts", str(other)])
    with pytest.raises(UsageError, match="give --drafts"):
        train.main([*common, "--stage", "denoiser", "--painted", "0.5"])
    drafted = [*common, "--stage", "denoiser", "--drafts", str(shutil.copytree(folder, tmp_path / "drafts"))]
    drafted += ["--painted", "0.5", "--drafted", "0.7"]
    assert train.main([*drafted, "--total-steps", "1"]) == 0
    assert train.main([*drafted, "--total-steps", "2"]) == 0
    card = json.loads((tmp_path / "denoiser.json").read_text())
    assert card["config"]["painted"] == 0.5 and card["config"]["spoil"]["drafted"] == 0.7
    kinds = ("none", "explicit", "implicit", "hybrid")
    assert card["step"] == 2 and {f"psnr_{k}_back" for k in kinds} <= set(card["scores"])
    assert json.loads((tmp_path / "autoencoder.json").read_text())["scores"]["psnr_autoencoder"] > 0
    assert (tmp_path / "denoiser.png").is_file() and (tmp_path / "autoencoder.png").is_file()
    model = load_hpdm(tmp_path / "hpdm")
    assert model.vae.config.scaling_factor != 1.0


def test_data_without_normals_is_refused(tmp_path):
    write_shards(tmp_path / "d", subjects=1, size=SIZE)
    with pytest.raises(UsageError, match="--extras depth normal"):
        train.run(tmp_path / "d", None, tmp_path / "o", "autoencoder", 1.0, config())
    with pytest.raises(UsageError, match="autoencoder or denoiser"):
        train.run(tmp_path / "d", None, tmp_path / "o", "both", 1.0, config())


def test_sampling_is_deterministic_and_scored_by_kind(data):
    torch.manual_seed(0)
    model = tiny().eval()
    batch = held_out(data, torch.arange(2), 2)
    conditions = conditions_of(model, batch)
    a, b = (sample(model, conditions, 3, 2.0, 2.0, generator=generator(5)) for _ in range(2))
    assert a.shape == (2, 3, SIZE, SIZE) and torch.equal(a, b) and 0 <= float(a.min()) and float(a.max()) <= 1
    from diffusers import DPMSolverMultistepScheduler

    other = DPMSolverMultistepScheduler.from_config(model.scheduler.config)
    assert sample(model, conditions, 3, scheduler=other, generator=generator(5)).shape == a.shape
    found = scores(model, data, steps=1, kinds=("none", "hybrid"))
    assert set(found) == {f"psnr_{k}_{b}" for k in ("none", "hybrid") for b in ("below45", "45to135", "back")}


def test_ddim_with_a_perfect_denoiser_returns_the_picture(data):
    """If the denoiser knows the clean latents, every step keeps them and the sample is their decoding."""
    torch.manual_seed(0)
    model = tiny().eval()
    clean = torch.randn(1, 4, SIZE // 4, SIZE // 4, generator=generator(3))

    def perfect(noisy, timesteps, conditions, *scales):
        signal, spread = model.levels(timesteps)
        noise = (noisy - signal * clean) / spread
        return model.interpret(signal * noise - spread * clean, noisy, timesteps)

    model.predict = perfect
    conditions = conditions_of(model, held_out(data, torch.arange(1), 2), "none")
    with torch.no_grad():
        made, expected = sample(model, conditions, 7, generator=generator(4)), model.decode(clean).clamp(0, 1)
    torch.testing.assert_close(made, expected, atol=5e-3, rtol=0.0)
