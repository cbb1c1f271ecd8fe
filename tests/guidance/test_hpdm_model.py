"""HPDM: limits of its branches, guidance algebra, what is predicted, gates, files."""
import copy
import json
import math

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import AutoencoderKL  # noqa: E402
from diffusers.models.attention_processor import AttnProcessor  # noqa: E402
from portrait_diffusion.errors import EnvironmentProblem, UsageError  # noqa: E402
from portrait_diffusion.guidance.hpdm.conditions import (  # noqa: E402
    EXPLICIT_CHANNELS,
    GEOMETRY_CHANNELS,
    Conditions,
    References,
    angle_gate,
    explicit_image,
    geometry_maps,
)
from portrait_diffusion.guidance.hpdm.model import build_mini, guidance_factors, plain_attention  # noqa: E402
from portrait_diffusion.guidance.hpdm.storage import load_hpdm, save_hpdm  # noqa: E402
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w  # noqa: E402

SIZE = 32


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=SIZE).eval()


@pytest.fixture(scope="module")
def trained():
    """The same with its zero-initialised layers away from zero."""
    torch.manual_seed(0)
    model = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=SIZE).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if float(p.abs().max()) == 0:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def conditions(batch=2, references=2, gate=1.0):
    refs = References(
        noise(batch, references, 4, 8, 8, seed=1), noise(batch, references, GEOMETRY_CHANNELS, SIZE, SIZE, seed=2),
        noise(batch, references, 2, 16, seed=3), torch.full((batch, references), gate),
    )  # fmt: skip
    return Conditions(noise(batch, 2, 16, seed=4), noise(batch, EXPLICIT_CHANNELS, SIZE, SIZE, seed=5), refs)


@torch.no_grad()
def test_two_branches_start_equal_to_one_bit_for_bit(fresh):
    c, x, t = conditions(), noise(2, 4, 8, 8), torch.tensor([10, 700])
    with_references = fresh.denoise(x, t, c.tokens, c.explicit, fresh.bank(c.references), c.references.gate)
    without = fresh.denoise(x, t, c.tokens, c.explicit)
    assert torch.equal(with_references, without)
    assert torch.equal(without, fresh.denoise(x, t, c.tokens)), "the Explicit-Branch starts with no effect, too"


@torch.no_grad()
def test_each_condition_has_an_effect_once_trained(trained):
    c, x, t = conditions(), noise(2, 4, 8, 8), torch.tensor([10, 700])
    bank = trained.bank(c.references)
    plain, explicit = trained.denoise(x, t, c.tokens), trained.denoise(x, t, c.tokens, c.explicit)
    both = trained.denoise(x, t, c.tokens, c.explicit, bank, c.references.gate)
    implicit = trained.denoise(x, t, c.tokens, None, bank, c.references.gate)
    outputs = [plain, explicit, both, implicit]
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


@torch.no_grad()
def test_a_closed_gate_is_no_reference_and_closes_single_references(trained):
    c, x, t = conditions(), noise(2, 4, 8, 8), torch.tensor([10, 700])
    bank = trained.bank(c.references)
    without = trained.denoise(x, t, c.tokens, c.explicit)
    assert torch.equal(trained.denoise(x, t, c.tokens, c.explicit, bank, torch.zeros(2, 2)), without)
    first = {name: tokens[:, :1] for name, tokens in bank.items()}
    alone = trained.denoise(x, t, c.tokens, c.explicit, first, torch.ones(2, 1))
    gate = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(trained.denoise(x, t, c.tokens, c.explicit, bank, gate), alone, rtol=1e-4, atol=1e-5)
    swapped = {name: tokens.flip(1) for name, tokens in bank.items()}
    a = trained.denoise(x, t, c.tokens, c.explicit, swapped, c.references.gate)
    b = trained.denoise(x, t, c.tokens, c.explicit, bank, c.references.gate)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # references have no order


@torch.no_grad()
def test_guidance_is_the_stated_sum_and_1_1_the_conditional_model(trained):
    c, x, t = conditions(gate=0.7), noise(2, 4, 8, 8), torch.tensor([10, 700])
    bank = trained.bank(c.references)

    def eps(output):
        return trained.interpret(output, x, t).noise

    none, one = eps(trained.denoise(x, t, c.tokens)), eps(trained.denoise(x, t, c.tokens, c.explicit))
    both = eps(trained.denoise(x, t, c.tokens, c.explicit, bank, c.references.gate))
    for s1, s2 in ((1.0, 1.0), (3.0, 2.0), (0.0, 1.5), (2.0, 0.0), (2.0, 2.0)):
        expected = none + s1 * (one - none) + s2 * (both - one)
        got = trained.predict(x, t, c, s1, s2, bank).noise
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trained.predict(x, t, c, 1.0, 1.0).noise, both, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        trained.predict(x, t, c.without_references(), 2.0, 5.0).noise, none + 2 * (one - none), rtol=1e-3, atol=1e-4
    )
    bare = trained.predict(x, t, Conditions(c.tokens), 4.0, 5.0).noise
    torch.testing.assert_close(bare, none, rtol=1e-3, atol=1e-4)


def test_factors_add_up_to_one_and_unneeded_rows_are_not_run(trained):
    for explicit in (True, False):
        for implicit in (True, False):
            factors = guidance_factors(3.5, 1.25, explicit, implicit)
            assert math.isclose(sum(factors.values()), 1.0)
            assert implicit or factors["both"] == 0
    assert guidance_factors(1.0, 1.0, True, True) == {"none": 0.0, "explicit": 0.0, "both": 1.0}
    rows = []
    handle = trained.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    with torch.no_grad():
        for scales in ((1.0, 1.0), (2.0, 2.0), (3.0, 2.0)):
            trained.predict(noise(2, 4, 8, 8), torch.tensor([5, 6]), conditions(), *scales)
    handle.remove()
    assert rows == [2, 4, 6]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_the_denoiser_predicts_is_read_back(fresh, kind):
    """A denoiser that is right gives back the noise and the latents that were mixed, at every level but the limits."""
    x, e, t = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=9), torch.tensor([20, 500, 900])
    noisy = fresh.add_noise(x, e, t)
    signal, spread = fresh.levels(t)
    torch.testing.assert_close(signal.square() + spread.square(), torch.ones_like(signal))
    output = {"epsilon": e, "v_prediction": signal * e - spread * x, "sample": x}[kind]
    before = fresh.scheduler.config.prediction_type
    fresh.scheduler.register_to_config(prediction_type=kind)
    try:
        prediction = fresh.interpret(output, noisy, t)
    finally:
        fresh.scheduler.register_to_config(prediction_type=before)
    torch.testing.assert_close(prediction.noise, e, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(prediction.clean, x, rtol=1e-2, atol=1e-2)
    fresh.scheduler.register_to_config(prediction_type="magic")
    try:
        with pytest.raises(ValueError, match="magic"):
            fresh.interpret(output, noisy, t)
    finally:
        fresh.scheduler.register_to_config(prediction_type=before)


def test_encoding_is_differentiable_in_the_picture(fresh):
    picture = torch.rand(1, 3, SIZE, SIZE, requires_grad=True)
    latents = fresh.encode(picture)
    assert latents.shape == (1, 4, SIZE // fresh.factor, SIZE // fresh.factor) and fresh.factor == 4
    assert float(torch.autograd.grad(latents.square().sum(), picture)[0].abs().sum()) > 0
    assert fresh.decode(latents.detach()).shape == (1, 3, SIZE, SIZE)


def test_gate_by_angle_between_views():
    cameras = orbit_c2w(torch.tensor([0.0, 60.0, 90.0, 120.0, 180.0]), torch.zeros(5))
    gate = angle_gate(cameras[:1], cameras[None])[0]
    assert gate[0] == 1 and gate[1] > 0.999 and abs(float(gate[2]) - 0.5) < 1e-3
    assert float(gate[3]) < 1e-4 and gate[4] == 0
    torch.testing.assert_close(angle_gate(cameras, cameras[None, :1].expand(5, -1, -1, -1))[:, 0], gate)


def test_a_place_has_the_same_geometry_values_in_every_view():
    """The nearest point of a sphere to a camera half way: seen from both sides with the same values."""
    fovy = canonical_fovy(torch.zeros(1))
    found = []
    for azimuth in (0.0, 40.0):
        c2w = orbit_c2w(torch.tensor([azimuth]), torch.zeros(1))
        rays_o, rays_d = get_rays(c2w, fovy, 255, 255)
        b = (rays_o * rays_d).sum(-1)
        root = (b.square() - rays_o.square().sum(-1) + 0.2**2).clamp(min=0).sqrt()
        depth = torch.where(root > 0, -b - root, torch.zeros_like(b))
        normals = torch.nn.functional.normalize(rays_o + depth[..., None] * rays_d, dim=-1)
        maps = geometry_maps(depth, normals, torch.ones_like(depth), c2w, fovy)
        assert maps.shape == (1, GEOMETRY_CHANNELS, 255, 255) and float(maps[0, :, 0, 0].abs().max()) == 0
        place = torch.tensor([math.sin(math.radians(20)), 0.0, math.cos(math.radians(20))])  # x right, z front
        nearest = (maps[0, :3] - place[:, None, None]).square().sum(0).argmin()
        found.append(maps[0].flatten(1)[:, nearest])
    torch.testing.assert_close(found[0], found[1], atol=0.02, rtol=0)
    torch.testing.assert_close(found[0][3:6], found[0][:3] * 0.2 / 0.36, atol=0.02, rtol=0)


def test_explicit_image_hides_what_is_not_valid():
    valid = (torch.rand(1, 1, 8, 8) > 0.5).float()
    image = explicit_image(torch.rand(1, 3, 8, 8), valid, torch.zeros(1, GEOMETRY_CHANNELS, 8, 8))
    assert image.shape == (1, EXPLICIT_CHANNELS, 8, 8) and float((image[:, :3] * (1 - valid)).abs().max()) == 0


@torch.no_grad()
def test_a_model_survives_its_folder(trained, tmp_path):
    save_hpdm(trained, tmp_path / "m", half=False)
    again = load_hpdm(tmp_path / "m")
    c, x, t = conditions(), noise(2, 4, 8, 8), torch.tensor([10, 700])
    torch.testing.assert_close(trained.predict(x, t, c, 2.0, 3.0).noise, again.predict(x, t, c, 2.0, 3.0).noise)
    pose = orbit_c2w(torch.tensor([10.0]), torch.zeros(1))
    torch.testing.assert_close(trained.cameras(pose), again.cameras(pose))
    save_hpdm(trained, tmp_path / "h")
    sizes = [sum(f.stat().st_size for f in (tmp_path / k).rglob("*.safetensors")) for k in ("m", "h")]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    small = load_hpdm(tmp_path / "h").state_dict()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value.half().float(), small[name])


def test_loading_warns_of_nothing(fresh, tmp_path, monkeypatch):
    """diffusers tells of keys that it does not know; a user of our own folders should not read that."""
    from diffusers.configuration_utils import logger

    said = []
    monkeypatch.setattr(logger, "warning", lambda text, *args: said.append(text))
    load_hpdm(save_hpdm(fresh, tmp_path / "m"))
    assert said == []


@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(trained):
    """Hooks of a copy work on the copy: its answer changes with its own weights and leaves the original alone."""
    c, x, t = conditions(), noise(2, 4, 8, 8), torch.tensor([10, 700])
    before = trained.predict(x, t, c, 1.0, 1.0).noise
    twin = copy.deepcopy(trained)
    torch.testing.assert_close(twin.predict(x, t, c, 1.0, 1.0).noise, before)
    for merge in twin.implicit.merges.values():
        merge.zero.weight.mul_(-3.0)
    for parameter in twin.reference.parameters():
        parameter.mul_(0.5)
    assert not torch.allclose(twin.predict(x, t, c, 1.0, 1.0).noise, before)
    assert torch.equal(trained.predict(x, t, c, 1.0, 1.0).noise, before)


@torch.no_grad()
def test_half_precision_weights_and_autocast_give_nearly_the_same(trained):
    c, x, t = conditions(), noise(2, 4, 8, 8), torch.tensor([10, 700])
    exact = trained.predict(x, t, c, 2.0, 1.5).noise
    with torch.autocast("cpu", torch.bfloat16):
        mixed = trained.predict(x, t, c, 2.0, 1.5).noise
    half = copy.deepcopy(trained).bfloat16().predict(x, t, c, 2.0, 1.5).noise
    for other in (mixed, half):
        assert float((other.float() - exact).norm() / exact.norm()) < 0.05


def test_broken_folders_are_named(fresh, tmp_path):
    with pytest.raises(EnvironmentProblem, match="model_index.json"):
        load_hpdm(tmp_path)
    folder = save_hpdm(fresh, tmp_path / "m")
    index = json.loads((folder / "model_index.json").read_text())

    def broken(change):
        (folder / "model_index.json").write_text(json.dumps(index | change) if isinstance(change, dict) else change)
        return folder

    with pytest.raises(UsageError, match="UNet2DConditionModel"):
        load_hpdm(broken({"unet": "os.system"}))
    with pytest.raises(UsageError, match="cannot be read"):
        load_hpdm(broken("[1"))
    with pytest.raises(UsageError, match="JSON object"):
        load_hpdm(broken("[1]"))
    weights = next((broken({}) / "implicit").glob("*.safetensors"))
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(UsageError, match="implicit"):
        load_hpdm(folder)
    weights.unlink()
    with pytest.raises(UsageError, match="implicit"):
        load_hpdm(folder)


def test_a_branch_of_another_network_is_refused(fresh):
    other = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=SIZE)
    blocks = dict(list(other.implicit.config.blocks.items())[1:])
    with pytest.raises(ValueError, match="another network"):
        type(other.implicit)(blocks=blocks).attach(other.explicit)


def test_plain_attention_of_an_autoencoder_gives_the_same_latents_and_gradients():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    ).eval()  # fmt: skip
    found = []
    for change in (lambda vae: None, plain_attention):
        change(vae)
        picture = noise(2, 3, SIZE, SIZE).requires_grad_(True)
        latents = vae.encode(picture).latent_dist.mode()
        latents.square().sum().backward()
        found.append((latents.detach(), picture.grad))
    assert type(vae.encoder.mid_block.attentions[0].processor) is AttnProcessor
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
