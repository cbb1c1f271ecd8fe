"""The two callables an export needs of a 3D head, and their evaluation on many points with bounded memory."""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import PortraitError


class FieldFns(NamedTuple):
    """A radiance field without view dependence; any object with these two attributes serves.

    density: points (N,3) in the world frame -> (N,1), optical density per unit length, >= 0.
    colour: points (N,3) in the world frame -> (N,3), display (sRGB-encoded) colour in [0,1].
    """

    density: Callable[[Tensor], Tensor]
    colour: Callable[[Tensor], Tensor]


class FieldSampler:
    """Evaluates a field on NumPy points in chunks, without gradients, and counts the evaluations.

    Args:
        field: density and colour callables, see FieldFns.
        device: where the field's tensors live.
        chunk: points per call, bounds the memory.
    """

    def __init__(self, field: FieldFns, device: torch.device | str = "cpu", chunk: int = 131072):
        self.field = field
        self.device = torch.device(device)
        self.chunk = int(chunk)
        self.density_points = 0
        self.colour_points = 0

    def density(self, points: np.ndarray) -> np.ndarray:
        """Density (N,) at world points (N,3); raises PortraitError when a value is not finite."""
        self.density_points += len(points)
        return self._evaluate(self.field.density, points, 1, "density")[:, 0]

    def colour(self, points: np.ndarray) -> np.ndarray:
        """Colour (N,3), clipped to [0,1], at world points (N,3); raises PortraitError when a value is not finite."""
        self.colour_points += len(points)
        return self._evaluate(self.field.colour, points, 3, "colour").clip(0.0, 1.0)

    def _evaluate(self, function: Callable, points: np.ndarray, channels: int, name: str) -> np.ndarray:
        out = np.empty((len(points), channels), np.float32)
        with torch.no_grad():
            for start in range(0, len(points), self.chunk):
                part = torch.as_tensor(np.ascontiguousarray(points[start : start + self.chunk], np.float32))
                values = function(part.to(self.device))
                if tuple(values.shape) != (len(part), channels):
                    raise PortraitError(
                        f"The field's {name} function must return shape ({len(part)}, {channels}) for "
                        f"{len(part)} points, got {tuple(values.shape)}."
                    )
                out[start : start + len(part)] = values.float().cpu().numpy()
        if not np.isfinite(out).all():
            raise PortraitError(
                f"The field's {name} is not finite at {int((~np.isfinite(out)).any(1).sum())} of {len(points)} points; "
                "the optimisation has diverged: try again with a smaller learning rate or another seed."
            )
        return out
