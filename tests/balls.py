"""Multi-view pictures of balls with known geometry, in the format of `portrait_diffusion.multiview`."""
from pathlib import Path

import numpy as np
import torch
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w
from portrait_diffusion.ops.canonical import CANONICAL_DISTANCE, CANONICAL_FOVY_DEG

AZIMUTHS = (0.0, 10.0, -60.0, 170.0)


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


def add_normals(folder: Path) -> Path:
    """Give the shards of `write_shards` the normals of their balls."""
    for path in folder.glob("*.npz"):
        with np.load(path) as shard:
            arrays = dict(shard)
        size = arrays["depth"].shape[-1]
        fovy = torch.tensor(np.radians(arrays["camera"][..., 3])).flatten()
        rays_o, rays_d = get_rays(torch.from_numpy(arrays["c2w"]).flatten(0, 1), fovy, size, size)
        depth = torch.from_numpy(arrays["depth"].astype(np.float32)).flatten(0, 1)[..., None]
        normals = torch.nn.functional.normalize(rays_o + depth * rays_d, dim=-1) * (depth > 0)
        arrays["normal"] = (normals * 127).round().to(torch.int8).view(*arrays["depth"].shape, 3).numpy()
        np.savez(path, **arrays)
    return folder
