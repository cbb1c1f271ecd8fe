"""The camera that took the photo: an orbit camera with a similarity of its image plane, all free to be fitted."""
import math

import torch
from torch import Tensor, nn

from ..ops.cameras import get_rays, orbit_c2w, projected_landmarks, subgrid_rays
from ..ops.canonical import CANONICAL_FOVY_DEG
from ..ops.similarity import rotation_rad, scale, umeyama_2d

SCALES = {"azimuth": 10.0, "elevation": 10.0, "roll": 5.0, "log_scale": 0.05, "shift": 0.03}
"""Natural step of each parameter (degrees, log units, image heights): stored parameters are divided by it."""


class PhotoCamera(nn.Module):
    """Canonical portrait camera at (azimuth, elevation) with roll, zoom and shift; the parameters are dimensionless.

    Args:
        azimuth_deg, elevation_deg: start values, degrees, the host's camera convention.
        crop: start value (scale, shift_u, shift_v) of the image plane's similarity, see `ops.cameras`.
        roll_deg: start value, positive turns the picture clockwise.
    """

    def __init__(
        self, azimuth_deg: float = 0.0, elevation_deg: float = 0.0, crop: tuple = (1.0, 0.0, 0.0), roll_deg: float = 0.0
    ):
        super().__init__()
        start = [
            azimuth_deg / SCALES["azimuth"], elevation_deg / SCALES["elevation"], roll_deg / SCALES["roll"],
            math.log(crop[0]) / SCALES["log_scale"], crop[1] / SCALES["shift"], crop[2] / SCALES["shift"],
        ]  # fmt: skip
        self.values = nn.Parameter(torch.tensor(start))
        self.register_buffer("start", torch.tensor(start))

    @classmethod
    def from_landmarks(cls, azimuth_deg: float, elevation_deg: float, landmarks) -> "PhotoCamera":
        """Camera whose similarity puts the canonical head's landmarks where the photo has them.

        Args:
            azimuth_deg, elevation_deg: of the photo's camera.
            landmarks: (4, 2) where they stand in the crop, in [0, 1] (u, v): eyes, mouth corners; not all equal.
        """
        angles = torch.tensor([[float(azimuth_deg)], [float(elevation_deg)]], dtype=torch.float64)
        here = projected_landmarks(*angles)[0] - 0.5
        there = torch.as_tensor(landmarks, dtype=torch.float64) - 0.5
        found = umeyama_2d(here, there)
        return cls(
            azimuth_deg, elevation_deg, (scale(found), *found[:, 2].tolist()), math.degrees(rotation_rad(found))
        )

    def degrees(self) -> tuple:
        """(azimuth, elevation, roll) in degrees as tensors."""
        v = self.values
        return v[0] * SCALES["azimuth"], v[1] * SCALES["elevation"], v[2] * SCALES["roll"]

    def pose(self) -> tuple:
        """c2w (1, 4, 4), fovy (1,) radians, crop (1, 3): everything `ops.cameras` needs."""
        azimuth, elevation, roll = self.degrees()
        c2w = orbit_c2w(azimuth[None], elevation[None])
        r = torch.deg2rad(roll)
        zero, one = torch.zeros_like(r), torch.ones_like(r)
        turn = torch.stack(
            [torch.stack([r.cos(), -r.sin(), zero, zero]), torch.stack([r.sin(), r.cos(), zero, zero]),
             torch.stack([zero, zero, one, zero]), torch.stack([zero, zero, zero, one])]
        )
        v = self.values
        crop = torch.stack([torch.exp(v[3] * SCALES["log_scale"]), v[4] * SCALES["shift"], v[5] * SCALES["shift"]])
        fovy = v.new_full((1,), math.radians(CANONICAL_FOVY_DEG))
        return c2w @ turn, fovy, crop[None]

    def rays(self, size: int, ys: Tensor | None = None, xs: Tensor | None = None) -> tuple:
        """rays_o, rays_d (1, h, w, 3) through the pixels of the photo's crop of so many pixels a side.

        Args: ys, xs: (h,), (w,) rows and columns, which may be fractional; all pixel centres without them.
        """
        c2w, fovy, crop = self.pose()
        if ys is None or xs is None:
            return get_rays(c2w, fovy, size, size, crop)
        return subgrid_rays(c2w, fovy, size, size, ys, xs, crop)

    def deviation(self) -> Tensor:
        """Squared distance from the start, the pull that keeps a fit from running away."""
        return (self.values - self.start).square().sum()
