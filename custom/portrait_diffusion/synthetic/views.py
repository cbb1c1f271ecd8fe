"""Which views of a subject are rendered, and which landmarks they show."""

import numpy as np

from ..errors import UsageError
from .cameras import Camera

EVALUATION_AZIMUTHS = (0.0, 15.0, -15.0, 30.0, -30.0, 60.0, -60.0, 90.0, -90.0, 135.0, -135.0, 180.0)
BENCHMARK_AZIMUTHS = tuple(15.0 * k for k in range(24))
BENCHMARK_ELEVATIONS = (0.0, -15.0, 20.0)
VISIBLE_TOLERANCE = 0.02  # a landmark is visible if the surface lies at most this much in front of it, scene units


def training_cameras(rng: np.random.Generator, count: int) -> list[Camera]:
    """View 0 as a photograph would be taken; of the others half all around, half within 35 degrees of the front."""
    cameras = []
    for k in range(count):
        if k == 0:
            azimuth, elevation = rng.uniform(-20, 20), rng.uniform(-12, 12)
        else:
            azimuth = rng.uniform(-180, 180) if k % 2 else rng.uniform(-35, 35)
            elevation = rng.uniform(-20, 30)
        cameras.append(Camera(float(azimuth), float(elevation)))
    return cameras


def photograph_cameras(rng: np.random.Generator, count: int) -> list[Camera]:
    """Views as photographs of faces are taken, for networks that look at photographs."""
    return [Camera(float(rng.uniform(-45, 45)), float(rng.uniform(-20, 20))) for _ in range(count)]


def evaluation_cameras(count: int) -> list[Camera]:
    """The first ``count`` fixed azimuths at elevation 0; view 0 is frontal."""
    if count > len(EVALUATION_AZIMUTHS):
        raise UsageError(f"Evaluation sampling has {len(EVALUATION_AZIMUTHS)} fixed views; {count} were asked for.")
    return [Camera(azimuth, 0.0) for azimuth in EVALUATION_AZIMUTHS[:count]]


def benchmark_cameras(count: int) -> list[Camera]:
    """The first ``count`` views of full turns at each elevation; view 0 is frontal."""
    cameras = [Camera(azimuth, elevation) for elevation in BENCHMARK_ELEVATIONS for azimuth in BENCHMARK_AZIMUTHS]
    if count > len(cameras):
        raise UsageError(f"Benchmark sampling has {len(cameras)} fixed views; {count} were asked for.")
    return cameras[:count]


RANDOM_CAMERAS = {"training": training_cameras, "photographs": photograph_cameras}
"""Samplings that draw every subject's views, which keep their own light."""
FIXED_CAMERAS = {"evaluation": evaluation_cameras, "benchmark": benchmark_cameras}
"""Samplings whose views are the same for every subject, in canonical light."""


def landmark_visibility(view, landmarks: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Which landmarks (5,) no surface hides in a view: the depth at their pixel is not smaller than their own."""
    size = view.depth.shape[0]
    column, line = np.floor(pixels).astype(int).T
    inside = (column >= 0) & (line >= 0) & (column < size) & (line < size)
    distance = np.linalg.norm(landmarks - view.camera.position_head(), axis=1)
    depth = view.depth[line.clip(0, size - 1), column.clip(0, size - 1)]
    return inside & (depth > 0) & (depth > distance - VISIBLE_TOLERANCE)
