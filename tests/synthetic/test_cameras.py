"""The numpy cameras equal ops.cameras and project what the architecture says."""

import numpy as np
import pytest
import torch
from portrait_diffusion.ops.cameras import orbit_c2w
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_CROP, CANONICAL_LANDMARKS_HEAD
from portrait_diffusion.synthetic.cameras import Camera


@pytest.mark.parametrize(
    "azimuth,elevation,distance,target",
    [(0, 0, 2.7, None), (33.0, -12.0, 2.6, None), (-140.0, 25.0, 2.9, (0.02, -0.03, 0.05))],
)
def test_same_matrix_as_ops(azimuth, elevation, distance, target):
    camera = Camera(azimuth, elevation, distance, target=target or (0.0, 0.0, 0.0))
    reference = orbit_c2w(
        torch.tensor(float(azimuth), dtype=torch.float64),
        elevation,
        distance,
        None if target is None else torch.tensor(target, dtype=torch.float64),
    )
    assert np.allclose(camera.c2w(), reference.numpy(), atol=1e-6)


def test_canonical_landmarks_project_to_the_crop():
    assert np.allclose(Camera().project(CANONICAL_LANDMARKS_HEAD, 128), CANONICAL_LANDMARKS_CROP * 128, atol=1e-9)


def test_rays_and_projection_are_inverse():
    camera = Camera(40, 10, 2.6, 15.0, (0.01, 0.02, -0.03))
    origin, directions = camera.rays(16)
    assert np.allclose(np.linalg.norm(directions, axis=-1), 1)
    pixels = camera.project((origin + 2.5 * directions).reshape(-1, 3), 16).reshape(16, 16, 2)
    x, y = np.meshgrid(np.arange(16) + 0.5, np.arange(16) + 0.5)
    assert np.allclose(pixels, np.stack([x, y], -1), atol=1e-9)
