"""Orbit cameras of the renderer in numpy (the same geometry as ``ops.cameras``, which needs torch)."""

from dataclasses import dataclass

import numpy as np

from ..ops.canonical import CANONICAL_DISTANCE, CANONICAL_FOVY_DEG
from .mesh import unit


@dataclass(frozen=True)
class Camera:
    """A camera on a sphere around the origin that looks at ``target``: degrees, scene units, world frame (z up, the
    face looks along +x)."""

    azimuth_deg: float = 0.0
    elevation_deg: float = 0.0
    distance: float = CANONICAL_DISTANCE
    fovy_deg: float = CANONICAL_FOVY_DEG
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def c2w(self) -> np.ndarray:
        """(4,4) float64 camera-to-world matrix, OpenGL axes (x right, y up, looks along -z)."""
        a, e = np.radians([self.azimuth_deg, self.elevation_deg])
        position = self.distance * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        back = unit(position - np.asarray(self.target))
        right = unit(np.array([-back[1], back[0], 0.0]))
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1], matrix[:3, 2], matrix[:3, 3] = right, np.cross(back, right), back, position
        return matrix

    def head_to_camera(self) -> np.ndarray:
        """(4,4) matrix from head-frame points to camera coordinates."""
        return np.linalg.inv(self.c2w()) @ HEAD_TO_WORLD

    def position_head(self) -> np.ndarray:
        """(3,) camera centre in the head frame."""
        return HEAD_TO_WORLD[:3, :3].T @ self.c2w()[:3, 3]

    def projection(self, near: float = 0.5, far: float = 8.0) -> np.ndarray:
        """(4,4) OpenGL projection of a square image."""
        f = 1.0 / np.tan(np.radians(self.fovy_deg) / 2)
        return np.array(
            [
                [f, 0, 0, 0],
                [0, f, 0, 0],
                [0, 0, (far + near) / (near - far), 2 * far * near / (near - far)],
                [0, 0, -1, 0],
            ]
        )

    def project(self, points: np.ndarray, size: int) -> np.ndarray:
        """Head-frame points (n,3) -> pixel positions (n,2), origin at the top left corner of the image, pixel centres
        at +0.5."""
        camera = points @ self.head_to_camera()[:3, :3].T + self.head_to_camera()[:3, 3]
        f = 1.0 / np.tan(np.radians(self.fovy_deg) / 2)
        ndc = f * camera[:, :2] / -camera[:, 2:3]
        return np.stack([(ndc[:, 0] + 1) / 2, (1 - ndc[:, 1]) / 2], 1) * size

    def rays(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Origin (3,) and unit directions (size,size,3) through pixel centres, head frame."""
        t = np.tan(np.radians(self.fovy_deg) / 2) * ((np.arange(size) + 0.5) / size * 2 - 1)
        x, y = np.meshgrid(t, -t)
        directions = np.stack([x, y, -np.ones_like(x)], -1)
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        return self.position_head(), directions @ (HEAD_TO_WORLD[:3, :3].T @ self.c2w()[:3, :3]).T


#: head = (world_y, world_z, world_x), as a matrix acting on head-frame points.
HEAD_TO_WORLD = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float64)
