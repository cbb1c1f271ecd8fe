"""Where the optional inputs of these tests are: the asset pack and a head basis; tests that need them are skipped
without. The ``invented`` ones are made on the spot (`invented.py`)."""

import os
from pathlib import Path

import numpy as np
import pytest
from portrait_diffusion.errors import EnvironmentProblem
from portrait_diffusion.synthetic.assets import ASSETS_VARIABLE, find_assets
from portrait_diffusion.synthetic.heads import load_head_basis
from portrait_diffusion.synthetic.parts import Part, Scene
from portrait_diffusion.synthetic.scene import SceneBuilder

from synthetic.invented import write_assets, write_basis

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def assets_root() -> Path:
    root = Path(os.environ.get(ASSETS_VARIABLE) or REPOSITORY.parent / "shared" / "data" / "makehuman_cc0")
    if not root.is_dir():
        pytest.skip(f"no asset pack: set {ASSETS_VARIABLE}")
    return root


@pytest.fixture(scope="session")
def assets(assets_root):
    return find_assets(assets_root)


@pytest.fixture(scope="session")
def basis_file() -> Path:
    path = Path(os.environ.get("PORTRAIT_DIFFUSION_HEAD_BASIS") or REPOSITORY / ".carry" / "head_basis.npz")
    if not path.is_file():
        pytest.skip(
            "no head basis: make one with python -m portrait_diffusion.synthetic.heads FILE "
            "and set PORTRAIT_DIFFUSION_HEAD_BASIS"
        )
    return path


@pytest.fixture(scope="session")
def basis(basis_file):
    return load_head_basis(basis_file)


@pytest.fixture(scope="session")
def builder(basis, assets):
    return SceneBuilder(basis, assets)


@pytest.fixture(scope="session")
def invented_basis_file(tmp_path_factory) -> Path:
    return write_basis(tmp_path_factory.mktemp("invented") / "head_basis.npz")


@pytest.fixture(scope="session")
def invented_root(tmp_path_factory) -> Path:
    return write_assets(tmp_path_factory.mktemp("invented_assets"))


@pytest.fixture(scope="session")
def gl_rasterizer():
    """Factory of OpenGL rasterisers; skips where EGL is absent."""
    from portrait_diffusion.synthetic.raster_gl import GLRasterizer

    def make(size, supersample=2, anisotropy=1.0):
        try:
            return GLRasterizer(size, supersample, anisotropy)
        except EnvironmentProblem as problem:
            pytest.skip(f"EGL is absent: {problem}")

    return make


def quad(
    centre, half, name="quad", label=1, mode="opaque", texture="asset:white", tint=(1.0, 1.0, 1.0), opacity=1.0
) -> Part:
    """A square that faces +z of the head frame, lit so that its texture shows unchanged."""
    x, y, z = centre
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    positions = np.concatenate([corners * half + [x, y], np.full((4, 1), z)], 1)
    return Part(
        name,
        label,
        positions,
        np.tile([0.0, 0.0, 1.0], (4, 1)),
        (corners + 1) / 2,
        np.array([[0, 1, 2], [0, 2, 3]]),
        texture,
        mode,
        tint,
        opacity,
        light=np.ones((4, 3)),
        sheen=np.zeros(4),
    )


def scene_of(*parts: Part, textures=None) -> Scene:
    """A scene of hand-made parts."""
    white = np.full((1, 1, 4), 255, np.uint8)
    return Scene(list(parts), {"asset:white": white, **(textures or {})}, np.zeros((5, 3)), 1.0)
