"""The photo as a target of the fit: premultiplied colour, alpha and validity at the working resolution."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Target:
    """Aligned photo for the fit.

    Attributes:
        rgb: (1, 3, S, S) premultiplied by alpha, in [0, 1].
        alpha: (1, 1, S, S).
        valid: (1, 1, S, S): 1 where the photograph has pixels; elsewhere nothing is known and no loss is taken.
    """

    rgb: Tensor
    alpha: Tensor
    valid: Tensor

    @property
    def size(self) -> int:
        return self.rgb.shape[-1]

    def resized(self, size: int) -> "Target":
        """The same at another resolution (area average, exact for whole factors)."""
        if size == self.size:
            return self
        rgb, alpha, valid = (
            F.interpolate(x, size=(size, size), mode="area") if size < self.size
            else F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
            for x in (self.rgb, self.alpha, self.valid)
        )
        return Target(rgb, alpha, (valid > 0.999).float())


def target_from_photo(rgb, alpha, valid, size: int) -> Target:
    """Arrays (S, S, 3), (S, S, 1), (S, S, 1) of a prepared photo (straight colour) to a `Target` of the given size."""
    def tensor(x):
        return torch.as_tensor(x, dtype=torch.float32).permute(2, 0, 1)[None]

    alpha, valid = tensor(alpha), tensor(valid)
    return Target(tensor(rgb) * alpha * valid, alpha * valid, valid).resized(size)
