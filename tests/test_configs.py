"""Every configuration that ships is valid and trains: two steps of each stage on the example photo, made small."""
import math
from pathlib import Path

import pytest
from portrait_diffusion.pipeline import PortraitPipeline

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
SMALL = [
    "system.inversion.latent_steps=2", "system.inversion.latent_size=32", "system.inversion.latent_samples=6",
    "system.inversion.novel_views=2", "system.inversion.novel_size=16", "system.inversion.detail_steps=2",
    "system.inversion.detail_size=48", "system.inversion.detail_resolution=48",
]  # fmt: skip


def test_there_are_configurations():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_steps(path):
    result = PortraitPipeline.from_config(path, SMALL).run(ROOT / "examples" / "astronaut.png")
    assert {name.split("/")[0] for name in result.curves} == {"latent", "detail"}
    for name, curve in result.curves.items():
        assert len(curve) == 2 and all(math.isfinite(value) for value in curve), name
    image = result.render_input_fn(32, 32)["comp_rgb"]
    assert image.shape == (1, 32, 32, 3) and bool(image.isfinite().all())
