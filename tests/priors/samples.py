"""A tiny network for the tests of the prior."""
from pathlib import Path

import torch
from portrait_diffusion.priors.networks import Encoder, Generator, PriorSpec
from portrait_diffusion.priors.storage import save_weights


def tiny_spec(**changes) -> PriorSpec:
    """A prior of a few thousand weights."""
    sizes = {
        "z_dim": 8, "w_dim": 12, "mapping_layers": 2, "plane_channels": 8, "plane_resolution": 32, "decoder_hidden": 8,
        "channels": {4: 8, 8: 8, 16: 8, 32: 8}, "injected": (16,), "frontal": (8, 32), "latent_rank": 6,
        "encoder_channels": {128: 4, 64: 8, 32: 8, 16: 8, 8: 8, 4: 8},
    }  # fmt: skip
    return PriorSpec(**(sizes | changes))


def save_tiny_prior(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Generator and encoder files of a random tiny prior whose injections and layer-wise styles are not zero."""
    torch.manual_seed(seed)
    spec = tiny_spec()
    generator, encoder = Generator(spec), Encoder(spec)
    torch.nn.init.normal_(encoder.w_delta.weight, std=0.02)
    generator.set_latent_gaussian(torch.randn(20, spec.num_ws, spec.w_dim))
    for layer in encoder.inject.values():
        torch.nn.init.normal_(layer.weight, std=0.2)
    paths = folder / "prior.safetensors", folder / "encoder.safetensors"
    for module, path, kind in zip((generator, encoder), paths, ("generator", "encoder")):
        save_weights(module, path, spec, kind)
    return paths
