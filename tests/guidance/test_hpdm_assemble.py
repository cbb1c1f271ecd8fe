"""HPDM from public parts: holes, layouts, reference attention's limits, loading, text, the guidance with it."""
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel  # noqa: E402
from portrait_diffusion import host  # noqa: E402
from portrait_diffusion.errors import EnvironmentProblem, UsageError  # noqa: E402
from portrait_diffusion.guidance.hpdm import assemble as module  # noqa: E402
from portrait_diffusion.guidance.hpdm.assemble import (  # noqa: E402
    AssembledHPDM,
    Control,
    assemble,
    control_image,
    fill_holes,
)
from portrait_diffusion.guidance.hpdm.conditions import EXPLICIT_CHANNELS, Conditions, References  # noqa: E402
from portrait_diffusion.guidance.hpdm.sampling import sample  # noqa: E402
from portrait_diffusion.seeds import step_seed  # noqa: E402

TEXT, SIZE = 16, 32


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts(width=TEXT):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=width, norm_num_groups=4,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4, sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8))
    with torch.no_grad():
        for p in control.parameters():
            if float(p.abs().max()) == 0:
                p.normal_(std=0.1)
    return unet, vae, DDIMScheduler(), control


@pytest.fixture(scope="module")
def model():
    unet, vae, scheduler, control = parts()
    return AssembledHPDM(
        unet, vae, scheduler, [(control, "inpaint", 1.0)], noise(1, 5, TEXT, seed=1), noise(1, 5, TEXT, seed=2)
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model and a ControlNet as users have them on disk; the text encoder's folder is empty."""
    path = tmp_path_factory.mktemp("sd")
    unet, vae, scheduler, control = parts()
    for name, part in (("unet", unet), ("vae", vae), ("scheduler", scheduler), ("control", control)):
        part.save_pretrained(path / name)
    (path / "text_encoder").mkdir()
    parts(24)[3].save_pretrained(path / "other")
    return path


@pytest.fixture
def no_text(monkeypatch):
    said = []

    def embed(base, prompt, offline):
        said.append(prompt)
        return noise(1, 5, TEXT, seed=len(prompt))

    monkeypatch.setattr(module, "embed_prompt", embed)
    return said


def references(b=2, r=2, gate=1.0):
    return References(noise(b, r, 4, 8, 8, seed=3), noise(b, r, 7, SIZE, SIZE), noise(b, r, 5, TEXT, seed=4),
                      torch.full((b, r), gate))  # fmt: skip


def test_holes_are_filled_with_what_is_near_and_the_rest_stays():
    rgb, valid = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    valid[..., :8] = 1
    rgb[..., :8] = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1)
    filled = fill_holes(rgb, valid)
    assert torch.equal(filled[..., :8], rgb[..., :8])
    torch.testing.assert_close(filled, torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand_as(filled))
    assert bool((fill_holes(rgb, torch.zeros_like(valid)) == 0.5).all())
    assert torch.equal(fill_holes(rgb, torch.ones_like(valid)), rgb)


def test_layouts_of_public_controlnets():
    explicit = torch.zeros(1, EXPLICIT_CHANNELS, 8, 8)
    explicit[:, 3, :, :4] = 1
    explicit[:, :3, :, :4] = 0.5
    inpaint = control_image(explicit, "inpaint")
    assert bool((inpaint[..., :4] == 0.75).all()) and bool((inpaint[..., 4:] == -1).all())
    torch.testing.assert_close(control_image(explicit, "tile"), torch.full((1, 3, 8, 8), 0.75))
    with pytest.raises(UsageError, match="layout is 'canny'"):
        Control("x", "canny")


@torch.no_grad()
def test_a_closed_gate_is_no_reference_and_an_open_one_changes_the_answer(model):
    x, t, tokens = noise(2, 4, 8, 8), torch.tensor([10, 700]), noise(2, 5, TEXT, seed=5)
    bank = model.bank(references())
    without = model.denoise(x, t, tokens)
    torch.testing.assert_close(model.denoise(x, t, tokens, None, bank, torch.zeros(2, 2)), without)
    open_ = model.denoise(x, t, tokens, None, bank, torch.ones(2, 2))
    assert not torch.allclose(open_, without, atol=1e-4)
    assert torch.equal(open_, model.denoise(x, t, tokens, None, bank, torch.ones(2, 2))), "the same on every call"
    first = {name: value[:, :1] for name, value in bank.items()}
    alone = model.denoise(x, t, tokens, None, first, torch.ones(2, 1))
    one_closed = model.denoise(x, t, tokens, None, bank, torch.tensor([[1.0, 0.0]] * 2))
    torch.testing.assert_close(one_closed, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.denoise(x, t, tokens), without), "nothing is left behind"


@torch.no_grad()
def test_a_view_attends_to_itself_without_harm(model):
    """A reference that is the very input, noised alike, doubles every key: softmax weights and the output stay."""
    t = torch.tensor([500])
    refs = references(1, 1)
    start = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(0))
    noisy = model.add_noise(refs.latents[0], start[None], t)
    tokens = refs.tokens[:, 0]
    twice = model.denoise(noisy, t, tokens, None, model.bank(refs), torch.ones(1, 1))
    torch.testing.assert_close(twice, model.denoise(noisy, t, tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_guidance_is_the_stated_sum_with_text_in_the_plain_row(model):
    x, t = noise(2, 4, 8, 8), torch.tensor([10, 700])
    tokens, plain = noise(2, 5, TEXT, seed=5), noise(2, 5, TEXT, seed=6)
    explicit, refs = noise(2, EXPLICIT_CHANNELS, SIZE, SIZE, seed=7), references(gate=0.6)
    bank = model.bank(refs)

    def eps(output):
        return model.interpret(output, x, t).noise

    none, one = eps(model.denoise(x, t, plain)), eps(model.denoise(x, t, tokens, explicit))
    both = eps(model.denoise(x, t, tokens, explicit, bank, refs.gate))
    got = model.predict(x, t, Conditions(tokens, explicit, refs, plain), 7.5, 2.0, bank).noise
    torch.testing.assert_close(got, none + 7.5 * (one - none) + 2.0 * (both - one), rtol=1e-3, atol=1e-4)
    text_only = model.predict(x, t, Conditions(tokens, plain_tokens=plain), 7.5, 2.0).noise
    expected = none + 7.5 * (eps(model.denoise(x, t, tokens)) - none)
    torch.testing.assert_close(text_only, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_networks_see_each_row_once(model):
    """The ControlNet has no rows for the references' sake, and references are read for the rows that see them alone."""
    rows: dict[str, list] = {"unet": [], "control": []}
    hooks = [
        part.register_forward_pre_hook(lambda module, args, name=name: rows[name].append(len(args[0])))
        for name, part in (("unet", model.unet), ("control", model.controls[0]))
    ]
    x, tokens = noise(2, 4, 8, 8), noise(2, 5, TEXT, seed=5)
    explicit, refs = noise(2, EXPLICIT_CHANNELS, SIZE, SIZE, seed=7), references(gate=0.6)
    conditions = Conditions(tokens, explicit, refs, tokens)
    model.predict(x, torch.tensor([10, 700]), conditions, 7.5, 2.0, model.bank(refs))
    shared = {name: value[:1].expand(2, *value.shape[1:]) for name, value in model.bank(refs).items()}
    once = model.predict(x, torch.tensor([300]), conditions, 7.5, 2.0, shared)
    for hook in hooks:
        hook.remove()
    assert rows == {"unet": [2 * 2, 6, 2, 6], "control": [2, 2]}
    copied = {name: value.clone() for name, value in shared.items()}
    apart = model.predict(x, torch.tensor([300, 300]), conditions, 7.5, 2.0, copied)
    torch.testing.assert_close(once.noise, apart.noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(once.alone, model.predict(x, torch.tensor([300]), conditions.alone()).noise,
                               rtol=1e-4, atol=1e-4)  # fmt: skip


def test_parts_are_loaded_from_folders(folder, no_text):
    made = assemble(str(folder), [Control(str(folder / "control"), "tile", 0.5)], prompt="a person", offline=True)
    assert no_text == ["a person", ""] and made.layouts == [("tile", 0.5)] and made.factor == 4
    c2w = torch.eye(4).expand(3, 4, 4)
    assert made.cameras(c2w).shape == made.plain(c2w).shape == (3, 5, TEXT)
    conditions = Conditions(made.cameras(c2w[:1]), noise(1, EXPLICIT_CHANNELS, SIZE, SIZE), references(1, 1))
    assert sample(made, conditions, 2, 2.0, 2.0).shape == (1, 3, SIZE, SIZE)


def test_missing_and_wrong_parts_are_named(folder, tmp_path, no_text):
    with pytest.raises(EnvironmentProblem, match="unet of .* was not found"):
        assemble(str(tmp_path), [], offline=True)
    with pytest.raises(EnvironmentProblem, match="ControlNetModel of .* was not found"):
        assemble(str(folder), [Control(str(tmp_path / "none"))], offline=True)
    with pytest.raises(UsageError, match="another model family"):
        assemble(str(folder), [Control(str(folder / "other"))], offline=True)


def test_the_guidance_takes_public_models_and_the_hosts_prompts(folder, no_text):
    name = "portrait-diffusion-hpdm-guidance"
    settings = {"pretrained_model_name_or_path": str(folder), "offline": True, "explicit_scale": 7.5,
                "controlnets": [{"path": str(folder / "control"), "layout": "inpaint"}]}  # fmt: skip
    guidance = host.find(name)(settings)
    rgb = torch.rand(2, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    angles = {"elevation": torch.zeros(2), "azimuth": torch.tensor([0.0, 90.0]), "camera_distances": torch.ones(2)}
    own = guidance(rgb, **angles)["loss_sds"]
    asked = []

    def get_text_embeddings(*arguments):
        asked.append(arguments)
        return noise(4, 5, TEXT, seed=8)

    guidance.generator.manual_seed(0)
    theirs = guidance(rgb, SimpleNamespace(get_text_embeddings=get_text_embeddings), **angles)["loss_sds"]
    assert len(asked) == 1 and asked[0][3] is True and own.item() != theirs.item()
    theirs.backward()
    assert float(rgb.grad.abs().sum()) > 0
    with pytest.raises(UsageError, match="controlnets"):
        host.find(name)({**settings, "controlnets": [{"folder": "x"}]})


def test_the_plain_guidance_counts_its_scale_as_the_host_does(folder, no_text):
    settings = {"pretrained_model_name_or_path": str(folder), "offline": True, "guidance_scale": 6.5, "seed": 4}
    guidance = host.find("portrait-diffusion-sd-guidance")(settings)
    assert guidance.model.attention is None and guidance.scales == (7.5, 1.0)
    rgb = torch.rand(1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
    view = {"elevation": torch.zeros(1), "azimuth": torch.zeros(1)}
    out = guidance(rgb, **view)
    g, model = torch.Generator().manual_seed(step_seed(4, 0)), guidance.model
    with torch.no_grad():
        clean = model.encode(rgb.permute(0, 3, 1, 2))
        t = torch.randint(20, 981, (1,), generator=g)
        added = torch.randn(clean.shape, generator=g)
        noisy = model.add_noise(clean, added, t)
        text, plain = (model.denoise(noisy, t, tokens) for tokens in (model.tokens, model.plain_tokens))
        expected = (1 - model.alphas_cumprod[t]) * (text + 6.5 * (text - plain) - added)  # threestudio's form
    torch.testing.assert_close(out["grad_norm"], expected.norm(), rtol=1e-3, atol=1e-4)


def test_prompts_by_clip(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=TEXT, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(tmp_path / "text_encoder")
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3, "a": 4, "b": 5}
    (tmp_path / "vocab.json").write_text(__import__("json").dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    a, b = (module.embed_prompt(str(tmp_path), text, True) for text in ("a", "b"))
    assert a.shape == (1, 8, TEXT) and not torch.allclose(a, b)
