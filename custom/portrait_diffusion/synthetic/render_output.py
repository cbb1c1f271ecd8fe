"""What a rasteriser returns for one view."""

from dataclasses import dataclass

import numpy as np

from .cameras import HEAD_TO_WORLD, Camera


@dataclass(frozen=True)
class RenderOutput:
    """One view.

    ``rgba (S,S,4)`` uint8, straight (un-premultiplied) colour and coverage; ``depth (S,S)`` float32 distance along
    the pixel's ray, 0 where nothing opaque is hit; ``normal (S,S,3)`` float32 unit vectors in the world frame,
    towards the viewer, 0 there;
    ``label (S,S)`` uint8 (``scene.LABELS``). Depth, normal and label belong to the nearest opaque subsample of the
    pixel.
    """

    rgba: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    label: np.ndarray
    camera: Camera

    @classmethod
    def from_head_frame(cls, rgba, depth, normal, label, camera: Camera) -> "RenderOutput":
        """Build from arrays whose normals are in the head frame."""
        world = np.ascontiguousarray(normal @ HEAD_TO_WORLD[:3, :3].T.astype(np.float32))
        return cls(np.ascontiguousarray(rgba), np.ascontiguousarray(depth), world, np.ascontiguousarray(label), camera)

    def over(self, background: float = 1.0) -> np.ndarray:
        """(S,S,3) float32 picture over a grey background in [0,1]."""
        alpha = self.rgba[..., 3:].astype(np.float32) / 255.0
        return self.rgba[..., :3].astype(np.float32) / 255.0 * alpha + background * (1 - alpha)
