"""Draws docs/images/haircuts.png, one training head of each style of grown hair from four sides:

    python docs/make_haircuts_figure.py --assets data_cache/makehuman_cc0 --basis data_cache/head_basis.npz
"""
import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "custom"))

from portrait_diffusion.files import atomic_path  # noqa: E402
from portrait_diffusion.synthetic.assets import find_assets  # noqa: E402
from portrait_diffusion.synthetic.cameras import Camera  # noqa: E402
from portrait_diffusion.synthetic.dataset import open_rasterizer  # noqa: E402
from portrait_diffusion.synthetic.haircuts import STYLES  # noqa: E402
from portrait_diffusion.synthetic.heads import load_head_basis  # noqa: E402
from portrait_diffusion.synthetic.sampling import grown_hair, sample_subject  # noqa: E402
from portrait_diffusion.synthetic.scene import SceneBuilder  # noqa: E402
from portrait_diffusion.synthetic.subjects import canonical_lighting  # noqa: E402

AZIMUTHS_DEG = (0.0, 50.0, 90.0, 180.0)
SIZE = 120


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True, help="folder of the MakeHuman CC0 assets")
    parser.add_argument("--basis", type=Path, required=True, help="file of portrait_diffusion.synthetic.heads")
    parser.add_argument("--seed", type=int, default=0, help="of the training heads")
    args = parser.parse_args()
    basis, assets = load_head_basis(args.basis), find_assets(args.assets)
    builder, rasterizer = SceneBuilder(basis, assets), open_rasterizer("auto", SIZE, 3)
    cameras = [Camera(azimuth) for azimuth in AZIMUTHS_DEG]
    columns: dict[str, np.ndarray] = {}
    index = 0
    while len(columns) < len(STYLES):
        subject = grown_hair(sample_subject(args.seed, "train", index, basis, assets), 1.0)
        index += 1
        if subject.haircut is None or subject.haircut.style in columns:
            continue
        rasterizer.upload(builder.build(replace(subject, lighting=canonical_lighting())))
        pictures = []
        for camera in cameras:
            rgba = rasterizer.render(camera).rgba.astype(np.float64) / 255
            pictures.append(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
        columns[subject.haircut.style] = np.concatenate(pictures)
    sheet = np.concatenate([columns[style] for style in STYLES], axis=1)
    with atomic_path(DOCS / "images" / "haircuts.png") as partial:
        Image.fromarray((sheet * 255).round().astype(np.uint8)).save(partial, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
