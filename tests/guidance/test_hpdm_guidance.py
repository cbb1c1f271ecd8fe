"""The HPDM guidance plug-in: contract of the host, where gradients go, limits of the losses, what it is told."""
import pytest
import torch

pytest.importorskip("diffusers")
from omegaconf import OmegaConf  # noqa: E402
from portrait_diffusion import host  # noqa: E402
from portrait_diffusion.errors import EnvironmentProblem, UsageError  # noqa: E402
from portrait_diffusion.guidance import hpdm_guidance  # noqa: E402
from portrait_diffusion.guidance.hpdm.model import build_mini  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import save_hpdm  # noqa: E402
from portrait_diffusion.guidance.hpdm.views import KnownViews, Target, Views  # noqa: E402
from portrait_diffusion.noise.samplers import NoiseRequest  # noqa: E402
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w  # noqa: E402

SIZE = 32
NAME = "portrait-diffusion-hpdm-guidance"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random tiny model whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    model = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=SIZE)
    with torch.no_grad():
        for p in model.parameters():
            if float(p.abs().max()) == 0:
                p.normal_(std=0.05)
    return save_hpdm(model, tmp_path_factory.mktemp("hpdm"), half=False)


def make(folder, **changes):
    return host.find(NAME)({"pretrained_model_name_or_path": str(folder), **changes})


def ball(azimuths):
    """Views of a ball whose colour is its place."""
    azimuths = torch.tensor(azimuths)
    c2w, fovy = orbit_c2w(azimuths, torch.zeros_like(azimuths)), canonical_fovy(azimuths).expand(len(azimuths))
    rays_o, rays_d = get_rays(c2w, fovy, SIZE, SIZE)
    b = (rays_o * rays_d).sum(-1)
    root = b.square() - rays_o.square().sum(-1) + 0.2**2
    depth = torch.where(root > 0, -b - root.clamp(min=0).sqrt(), 0)
    solid = (depth > 0).float()
    normals = torch.nn.functional.normalize(rays_o + depth[..., None] * rays_d, dim=-1) * solid[..., None]
    rgb = ((0.5 + 0.5 * normals) * solid[..., None] + 1 - solid[..., None]).permute(0, 3, 1, 2)
    return Views(rgb, depth, normals, solid, c2w, fovy)


def geometry_of(views):
    return {"depth": views.depth[..., None], "normals": views.normals, "opacity": views.opacity[..., None]}


def render(b=2, size=SIZE, seed=0):
    picture = torch.rand(b, size, size, 3, generator=torch.Generator().manual_seed(seed))
    return picture.requires_grad_(True)


def angles(*azimuths):
    return {"azimuth": torch.tensor(azimuths), "elevation": torch.zeros(len(azimuths)),
            "camera_distances": torch.full((len(azimuths),), 2.7)}  # fmt: skip


@pytest.mark.parametrize("loss", ["sds", "csd", "sdi", "ism"])
def test_the_hosts_contract_and_where_gradients_go(folder, loss):
    guidance = make(folder, loss_type=loss, inversion_steps=2, explicit_scale=2.0, implicit_scale=1.5)
    guidance.set_views(ball([0.0, 90.0]))
    views, rgb = ball([10.0, 120.0]), render()
    out = guidance(rgb, None, **angles(10.0, 120.0), **geometry_of(views), rgb_as_latents=False, height=SIZE, extra=1)
    assert set(out) == {f"loss_{loss}", "grad_norm", "min_step", "max_step"}
    assert out[f"loss_{loss}"].shape == () and (out["min_step"], out["max_step"]) == (20, 980)
    assert float(out["grad_norm"]) > 0
    out[f"loss_{loss}"].backward()
    assert float(rgb.grad.abs().sum()) > 0 and bool(rgb.grad.isfinite().all())
    assert all(p.grad is None and not p.requires_grad for p in guidance.model.parameters())


def test_the_loss_is_weight_times_prediction_less_noise(folder):
    """Recomputed by hand from the guidance's own draws."""
    guidance, rgb = make(folder, weighting_strategy="uniform"), render()
    out = guidance(rgb, **angles(0.0, 60.0))
    g = torch.Generator().manual_seed(0)
    t = torch.randint(20, 981, (2,), generator=g)
    noise = torch.randn(2, 4, SIZE // 4, SIZE // 4, generator=g)
    model = guidance.model
    with torch.no_grad():
        clean = model.encode(rgb.permute(0, 3, 1, 2))
        tokens = model.cameras(orbit_c2w(torch.tensor([0.0, 60.0]), torch.zeros(2)))
        noisy = model.add_noise(clean, noise, t)
        expected = model.interpret(model.denoise(noisy, t, tokens), noisy, t).noise - noise
    torch.testing.assert_close(out["grad_norm"], expected.norm(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out["loss_sds"].detach(), 0.5 * expected.square().sum() / 2, rtol=1e-4, atol=1e-4)


def test_limits_of_the_losses(folder, monkeypatch):
    nothing_known = make(folder, loss_type="csd", explicit_scale=5.0)
    assert float(nothing_known(render(), **angles(0.0, 60.0))["grad_norm"]) == 0, "no condition, no classifier"
    clipped = make(folder, grad_clip=1e-3)
    assert float(clipped(render(), **angles(0.0, 60.0))["grad_norm"]) <= 1e-3 * (2 * 4 * (SIZE // 4) ** 2) ** 0.5 + 1e-6
    # a denoiser that always finds the same noise and these very latents is at rest under inversion
    guidance, rgb = make(folder, loss_type="sdi", inversion_steps=3), render()
    clean = guidance.model.encode(rgb.permute(0, 3, 1, 2)).detach()
    fixed = torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))
    from portrait_diffusion.guidance.hpdm.model import Prediction

    monkeypatch.setattr(guidance.model, "predict", lambda *args: Prediction(fixed, fixed, clean))
    assert float(guidance(rgb, **angles(0.0, 60.0))["grad_norm"]) < 1e-2


def test_csd_takes_the_row_without_conditions_from_the_batch_that_had_it(folder):
    losses, calls = [], []
    for keep in (True, False):
        guidance = make(folder, loss_type="csd", explicit_scale=2.0, implicit_scale=1.5)
        guidance.set_views(ball([0.0, 90.0]))
        guidance.model.unet.register_forward_pre_hook(lambda module, args, keep=keep: calls.append(keep))
        plainly = guidance.model.predict

        def predict(*args, plainly=plainly, keep=keep):
            found = plainly(*args)
            found.alone = found.alone if keep else None
            return found

        guidance.model.predict = predict
        views = ball([10.0, 120.0])
        losses.append(float(guidance(render(), **angles(10.0, 120.0), **geometry_of(views))["loss_csd"].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] > 0
    assert calls == [True, False, False]


def test_cells_cut_once_project_what_the_views_do(folder):
    """Known views as constants: the same picture, bit for bit, as when all of it is computed for the target."""
    guidance, known, views = make(folder), ball([0.0, 90.0]), ball([10.0, 120.0])
    guidance.set_views(known)
    from portrait_diffusion.guidance.hpdm.views import Target
    from portrait_diffusion.ops.projection import forward_project

    def repeat(x):
        return x[None].expand(2, *x.shape)

    for depth in (None, views.depth):
        found = guidance._known.conditions(Target(views.c2w, views.fovy, depth)).explicit
        projected, valid = forward_project(
            *map(repeat, (known.rgb, known.depth, known.c2w, known.fovy)), views.c2w, views.fovy, *known.rgb.shape[-2:],
            target_depth=depth, weights=repeat((known.opacity > 0.5).float()),
        )  # fmt: skip
        assert torch.equal(found[:, :3], (2 * projected - 1) * valid) and torch.equal(found[:, 3:4], valid)
        assert 0.05 < float(valid.mean()) < 0.95


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_graphs_without_a_gpu_are_refused(folder):
    for key in ("compile", "cuda_graphs"):
        with pytest.raises(UsageError, match=f"{key} needs a GPU"):
            make(folder, **{key: True})


def test_one_timestep_for_all_views(folder):
    guidance, seen = make(folder, one_timestep=True), []
    guidance.set_views(ball([0.0, 90.0]))
    hook = guidance.model.unet.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    out = guidance(render(), **angles(10.0, 120.0), **geometry_of(ball([10.0, 120.0])))
    hook.remove()
    assert [len(t) for t in seen] == [1] and float(out["grad_norm"]) > 0


def test_the_seed_and_only_the_seed_decides(folder):
    a, b, c = (make(folder, seed=s)(render(), **angles(0.0, 60.0))["loss_sds"].item() for s in (1, 1, 2))
    assert a == b != c
    torch.manual_seed(99)
    assert make(folder, seed=1)(render(), **angles(0.0, 60.0))["loss_sds"].item() == a


def test_cameras_come_as_matrices_or_angles(folder):
    c2w = orbit_c2w(torch.tensor([0.0, 60.0]), torch.zeros(2))
    losses = [make(folder)(render(), **given)["loss_sds"].item() for given in ({"c2w": c2w}, angles(0.0, 60.0))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(UsageError, match="c2w, or elevation and azimuth"):
        make(folder)(render())


def test_schedules_are_followed(folder):
    schedule = OmegaConf.create({"max_step_percent": [0, 0.98, 0.5, 100], "explicit_scale": [0, 1.0, 3.0, 100],
                                 "pretrained_model_name_or_path": str(folder)})  # fmt: skip
    guidance = host.find(NAME)(schedule)
    assert guidance.max_step == 980 and guidance.scales == (1.0, 1.0)
    guidance.update_step(0, 50)
    assert guidance.max_step == 740 and guidance.scales == (2.0, 1.0)
    with pytest.raises(UsageError, match="above max_step_percent"):
        make(folder, min_step_percent=0.9, max_step_percent=0.1)


def test_renders_of_other_sizes_and_latents(folder):
    guidance = make(folder)
    assert guidance(render(size=48), **angles(0.0, 60.0))["loss_sds"].item() > 0
    latents = torch.randn(2, SIZE // 4, SIZE // 4, 4).requires_grad_(True)
    guidance(latents, **angles(0.0, 60.0), rgb_as_latents=True)["loss_sds"].backward()
    assert float(latents.grad.abs().sum()) > 0
    guidance.set_views(ball([0.0]))
    views = ball([10.0, 120.0])
    double = {k: v.repeat_interleave(2, 1).repeat_interleave(2, 2) for k, v in geometry_of(views).items()}
    assert guidance(render(size=2 * SIZE), c2w=views.c2w, **double)["loss_sds"].item() > 0


def test_evaluation_pictures(folder):
    out = make(folder, max_items_eval=1)(render(), **angles(0.0, 60.0), guidance_eval=True)["eval"]
    assert out["bs"] == 1 and len(out["texts"]) == 1 and 0 <= out["noise_levels"][0] <= 1
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert out[name].shape == (1, SIZE, SIZE, 3) and 0 <= float(out[name].min()) and float(out[name].max()) <= 1


def test_known_views_become_conditions(folder):
    model = make(folder).model
    known = KnownViews(model, ball([0.0, 90.0]), gate_floor=0.0)
    target = ball([0.0, 180.0])
    told = known.conditions(Target(target.c2w, target.fovy, target.depth, target.normals, target.opacity))
    projected, valid = told.explicit[:, :3] / 2 + 0.5, told.explicit[:, 3]
    inner = (valid[0] > 0) & (target.depth[0] > 0)
    assert float(inner.float().sum()) > 0.9 * float((target.depth[0] > 0).float().sum())
    assert float((projected[0] - target.rgb[0]).abs().mean(0)[inner].mean()) < 0.02
    assert float(valid[1].sum()) < 0.6 * float(valid[0].sum()), "only one of them sees the back, from the side"
    assert told.references.gate.tolist() == [[1.0, 0.5], [0.0, 0.5]]
    bank = known.bank_for(2)
    for name, tokens in model.bank(told.references).items():
        torch.testing.assert_close(bank[name], tokens, rtol=1e-3, atol=1e-4)
    unknown = known.conditions(Target(target.c2w, target.fovy), implicit=False)
    assert unknown.references is None and float(unknown.explicit[:, 4:].abs().max()) == 0
    assert known.conditions(Target(target.c2w, target.fovy), explicit=False).explicit is None


def test_views_change_the_answer_and_can_be_forgotten(folder):
    def loss(views):
        guidance = make(folder)
        guidance.set_views(ball([0.0]))
        guidance.set_views(views)
        return guidance(render(), **angles(0.0, 60.0))["loss_sds"].item()

    plain = make(folder)(render(), **angles(0.0, 60.0))["loss_sds"].item()
    assert loss(None) == plain and loss(ball([0.0])) != plain


def test_noise_samplers_are_pluggable(folder):
    request = NoiseRequest((3, 4, 8, 8), torch.eye(4).expand(3, 4, 4), torch.ones(3), None, torch.Generator())
    fixed = host.find("portrait-diffusion-fixed-noise")({"seed": 3})
    a, b = fixed(request), fixed(request)
    assert torch.equal(a, b) and torch.equal(a[0], a[2]) and 0.8 < float(a.std()) < 1.2
    a, b = (host.find("portrait-diffusion-iid-noise")({})(request) for _ in range(2))
    assert a.shape == (3, 4, 8, 8) and not torch.equal(a, b)
    guidance = make(folder, noise_sampler_type="portrait-diffusion-fixed-noise", noise_sampler={"seed": 3})
    assert torch.equal(guidance.noise_sampler(request), fixed(request))


def test_object_noise_is_shared_between_near_views_and_slowly_renewed(folder):
    name = "portrait-diffusion-object-noise"
    views = ball([0.0, 0.5, 180.0])
    request = NoiseRequest((3, 64, 8, 8), views.c2w, views.fovy, views.depth, torch.Generator().manual_seed(0))
    sampler = host.find(name)({"resolution": 48, "gamma": 0.0})
    a = sampler(request)
    inside = torch.nn.functional.avg_pool2d(views.depth[:1], 4)[0] > 2.0
    near, far = ((a[0] * a[i])[:, inside].mean().item() for i in (1, 2))
    assert near > 0.5 and abs(far) < 0.1
    assert torch.equal(sampler(request)[0][:, inside], a[0][:, inside])
    renewed = host.find(name)({"resolution": 48, "gamma": 1.0})
    assert abs((renewed(request)[0] * renewed(request)[0])[:, inside].mean().item()) < 0.1
    guidance = make(folder, noise_sampler_type=name, noise_sampler={"resolution": 32})
    with pytest.raises(UsageError, match="needs the depth"):
        guidance(render(), **angles(0.0, 60.0))
    told = ball([0.0, 60.0])
    assert guidance(render(), c2w=told.c2w, **geometry_of(told))["loss_sds"].item() > 0


def test_what_cannot_be_used_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hpdm_guidance, "BUNDLED", tmp_path / "none")
    with pytest.raises(EnvironmentProblem, match="train-hpdm"):
        host.find(NAME)({})
    with pytest.raises(EnvironmentProblem, match="model_index.json"):
        make(tmp_path)
    for key in ("loss_type", "weighting_strategy"):
        with pytest.raises(UsageError, match=f"guidance.{key} is 'magic'"):
            make(folder, **{key: "magic"})


def test_painting_keeps_what_little_noise_leaves_and_follows_its_conditions(folder):
    """With the smallest noise the picture is the render through the autoencoder; with much it depends on the views."""
    guidance = make(folder)
    guidance.set_views(ball([0.0, 90.0]))
    views = ball([10.0, 120.0])
    rgb = views.rgb.permute(0, 2, 3, 1)
    told = views.c2w, views.fovy, *geometry_of(views).values()

    def paint(low, high, **changes):
        guidance.update_step(0, 0)
        guidance.set_min_max_steps(low, high)
        return guidance.paint(rgb, 3, *told, **changes)

    through = guidance.model.decode(guidance.model.encode(views.rgb)).clamp(0, 1)
    little = paint(0.0, 0.001)
    assert little.shape == (2, 3, SIZE, SIZE) and not little.requires_grad
    much = paint(0.02, 0.98)
    assert float((little - through).abs().mean()) < 0.25 * float((much - through).abs().mean())
    assert torch.equal(much, paint(0.02, 0.98)), "noise is a function of seed and step"
    guidance.set_views(ball([180.0, 90.0]))
    assert not torch.equal(much, paint(0.02, 0.98))
