"""The geometry's colours as they are, before white: the material and the background of portraits."""
from typing import Any

import torch
from torch import Tensor

from ..host import BaseBackground, BaseMaterial, register


@register("portrait-diffusion-no-material")
class PlainColour(BaseMaterial):
    """Material that shows the geometry's features as colours."""

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Args: features (..., 3) in [0, 1]. Returns: the same."""
        return features

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Albedo of surface points, in [0, 1]."""
        return {"albedo": features[..., :3].clamp(0, 1)}


@register("portrait-diffusion-white-background")
class WhiteBackground(BaseBackground):
    """White in every direction."""

    def forward(self, dirs: Tensor) -> Tensor:
        """Args: dirs (..., 3). Returns: (..., 3) of 1."""
        return torch.ones_like(dirs)
