"""Small things for the tests of the prior: a tiny network, and multi-view pictures of balls with known geometry."""
from pathlib import Path

import numpy as np
import torch
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w
from portrait_diffusion.ops.canonical import CANONICAL_DISTANCE, CANONICAL_FOVY_DEG
from portrait_diffusion.priors.networks import Encoder, Generator, PriorSpec
from portrait_diffusion.priors.storage import save_weights

AZIMUTHS = (0.0, 10.0, -60.0, 170.0)


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


def ball(index: int) -> tuple[float, np.ndarray]:
    """Radius and colour of a subject."""
    rng = np.random.default_rng(index)
    return rng.uniform(0.12, 0.2), rng.uniform(0.3, 1.0, 3)


def ball_view(radius: float, colour: np.ndarray, azimuth: float, elevation: float, size: int) -> tuple:
    """Straight RGBA (S, S, 4) uint8, depth (S, S) float16 and c2w of a ball around the origin, lit from the front."""
    c2w = orbit_c2w(torch.tensor([azimuth]), torch.tensor([elevation]))
    origin, direction = (x[0].numpy() for x in get_rays(c2w, canonical_fovy(c2w), size, size))
    b = (origin * direction).sum(-1)
    root = b**2 - (origin**2).sum(-1) + radius**2
    hit = root > 0
    t = np.where(hit, -b - np.sqrt(root.clip(0)), 0)
    shade = 0.5 + 0.5 * (origin + t[..., None] * direction)[..., :1] / radius  # brighter towards +x, the front
    rgba = np.concatenate([colour * shade, np.ones_like(shade)], -1) * hit[..., None]
    return (rgba * 255).round().astype(np.uint8), t.astype(np.float16), c2w[0].numpy()


def write_shards(folder: Path, subjects: int = 3, per_shard: int = 2, depth: bool = True, size: int = 128) -> Path:
    """A data set of balls in the format of `synthetic.dataset`; view 0 is frontal."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, subjects, per_shard)):
        rows = []
        for index in range(start, min(start + per_shard, subjects)):
            radius, colour = ball(index)
            rows.append([ball_view(radius, colour, a, 0.0, size) for a in AZIMUTHS])
        camera = np.array([[a, 0.0, CANONICAL_DISTANCE, CANONICAL_FOVY_DEG] for a in AZIMUTHS], np.float32)
        arrays = {"rgba": 0, "depth": 1, "c2w": 2}
        stacked = {name: np.stack([[view[k] for view in views] for views in rows]) for name, k in arrays.items()}
        if not depth:
            del stacked["depth"]
        np.savez(folder / f"train_{shard:05d}.npz", camera=np.stack([camera] * len(rows)), **stacked)
    return folder
