"""Weight files of the prior: what is written is read, everything else is refused in one clear sentence."""
import json
import struct

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem, UsageError
from portrait_diffusion.priors.bundled import WEIGHTS, BundledPrior
from portrait_diffusion.priors.networks import Generator
from portrait_diffusion.priors.storage import load_spec, load_weights, read_header, save_weights
from safetensors.torch import load_file, save_file

from .samples import save_tiny_prior, tiny_spec


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    generator = Generator(tiny_spec())
    return generator, save_weights(generator, tmp_path / "g.safetensors", tiny_spec(), "generator", {"step": 7})


def rewrite(path, target, **header):
    """The same tensors under another header."""
    save_file(load_file(path), target, metadata=read_header(path) | header)
    return target


def test_round_trip(saved):
    generator, path = saved
    assert load_spec(path, "generator") == tiny_spec() and read_header(path)["step"] == "7"
    torch.manual_seed(1)
    loaded = load_weights(Generator(load_spec(path, "generator")), path, "generator")
    for name, value in generator.state_dict().items():
        got = loaded.state_dict()[name]
        assert got.dtype == torch.float32 and torch.equal(got, value.half().float()), name
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_missing_file_says_where_it_should_be(tmp_path):
    with pytest.raises(EnvironmentProblem, match="nothing.safetensors"):
        load_spec(tmp_path / "nothing.safetensors", "generator")


def test_the_wrong_kind_is_named(saved):
    with pytest.raises(UsageError, match="'generator' weights, expected 'encoder'"):
        load_spec(saved[1], "encoder")


@pytest.mark.parametrize("keep", [0, 5, 200, -100])
def test_a_truncated_file(saved, tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved[1].read_bytes()[:keep])
    with pytest.raises(UsageError, match="cut.safetensors is not a readable safetensors file"):
        load_weights(Generator(tiny_spec()), path, "generator")


@pytest.mark.parametrize("length", [2**63, 2**40, 400_000_000])
def test_a_header_that_claims_to_be_huge(tmp_path, length):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" * 100)
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        load_spec(path, "generator")


def test_a_file_that_is_too_large_is_not_opened(saved, monkeypatch):
    monkeypatch.setattr("portrait_diffusion.priors.storage.MAX_BYTES", 1000)
    with pytest.raises(UsageError, match="MiB"):
        load_spec(saved[1], "generator")


@pytest.mark.parametrize(
    "spec, named",
    [
        (None, "spec"), ("{", "header"), ("[1]", "header"), ('{"z_dim": "many"}', "z_dim"), ('{"w_dim": 1e9}', "w_dim"),
        ('{"plane_resolution": 1048576}', "plane_resolution"), ('{"plane_resolution": 100}', "plane_resolution"),
        ('{"plane_channels": -1}', "plane_channels"), ('{"mapping_layers": 2000}', "mapping_layers"),
        ('{"channels": {"4": 99999}}', "channels"), ('{"channels": {"4": 8}}', "channels"),
        ('{"injected": [7]}', "injected"), ('{"encoder_channels": {}}', "encoder_channels"), ("[" * 100_000, "header"),
        ('{"encoder_input": 64}', "encoder_input"), ('{"frontal": [7]}', "frontal 7"),
        ('{"encoded_layers": 3}', "encoded_layers is 3, expected at most the 2"),
        ('{"frontal_layers": 0}', "frontal_layers"), ('{"injected": [32]}', "both injected and frontal 32"),
    ],
    ids=lambda value: None if value is None else value[:24],
)  # fmt: skip
def test_sizes_that_make_no_network(saved, tmp_path, spec, named):
    header = {"kind": "generator"} | ({} if spec is None else {"spec": spec})
    path = tmp_path / "odd.safetensors"
    save_file(load_file(saved[1]), path, metadata=header)
    with pytest.raises(UsageError, match=f"odd.safetensors.*{named}" if named != "header" else "sizes in the header"):
        load_spec(path, "generator")


def test_other_shapes_and_names_are_refused(saved, tmp_path):
    with pytest.raises(UsageError, match="does not fit the network: .*size mismatch"):
        load_weights(Generator(tiny_spec(w_dim=16)), saved[1], "generator")
    tensors = load_file(saved[1])
    del tensors["decoder.out.bias"]
    path = tmp_path / "less.safetensors"
    save_file(tensors, path, metadata=read_header(saved[1]))
    with pytest.raises(UsageError, match="decoder.out.bias"):
        load_weights(Generator(tiny_spec()), path, "generator")


def test_weights_that_are_not_finite_are_refused(saved, tmp_path):
    tensors = load_file(saved[1])
    tensors["synthesis.const"][0] = float("nan")
    path = tmp_path / "nan.safetensors"
    save_file(tensors, path, metadata=read_header(saved[1]))
    with pytest.raises(UsageError, match="not finite, in 'synthesis.const'"):
        load_weights(Generator(tiny_spec()), path, "generator")


def test_the_pair_of_files_is_one_prior(tmp_path):
    prior = BundledPrior(*save_tiny_prior(tmp_path))
    assert not any(p.requires_grad for p in prior.parameters()) and not prior.training
    g = torch.Generator().manual_seed(0)
    alpha = torch.rand(1, 1, 64, 64, generator=g)
    latent = prior.encode(torch.rand(1, 3, 64, 64, generator=g) * alpha, alpha, torch.ones_like(alpha), 10.0, -5.0)
    assert latent.ws.shape == (1, prior.generator.spec.num_ws, 12) and set(latent.features) == {8, 16, 32}
    assert not latent.ws.requires_grad
    latent.ws.requires_grad_(True)
    planes, grid = prior.synthesize(latent)
    assert planes.shape == (1, 3, 8, 32, 32) and grid.shape == (1, 1, 8, 2, 32, 32)
    assert torch.autograd.grad(planes.square().sum(), latent.ws)[0].abs().sum() > 0
    other = prior.encode(torch.zeros(1, 3, 64, 64), alpha, torch.ones_like(alpha), -10.0, -5.0)
    assert not torch.allclose(other.ws, latent.ws)


def test_samples_of_truncation_0_are_the_mean_head(tmp_path):
    prior = BundledPrior(*save_tiny_prior(tmp_path))
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    for level in prior.synthesize(prior.sample(z, 0.0)):
        torch.testing.assert_close(level[0], level[1])
    for level in prior.synthesize(prior.sample(z, 1.0)):
        assert not torch.allclose(level[0], level[1])


def test_an_encoder_of_another_training_is_refused(tmp_path):
    generator, encoder = save_tiny_prior(tmp_path)
    spec = json.loads(read_header(encoder)["spec"]) | {"decoder_hidden": 16}
    other = rewrite(encoder, tmp_path / "other.safetensors", spec=json.dumps(spec))
    with pytest.raises(UsageError, match="other.safetensors was not trained with"):
        BundledPrior(generator, other)


def test_the_shipped_prior_loads():
    assert (WEIGHTS / "prior.safetensors").is_file()
    prior = BundledPrior()
    assert prior.generator.spec.plane_resolution == 128
    assert sum(p.numel() for p in prior.parameters()) > 1e6 and (prior.generator.mapping.w_mean != 0).any()
