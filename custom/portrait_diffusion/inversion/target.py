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

    def to(self, device: torch.device) -> "Target":
        """The same on a device."""
        return Target(*(x.to(device) for x in (self.rgb, self.alpha, self.valid)))

    def resized(self, size: int) -> "Target":
        """The same at another resolution: area average (exact for whole factors), bicubic when enlarging.

        A pixel of the result is valid where everything it was made from is.
        """
        if size == self.size:
            return self
        rgb, alpha, valid = self.rgb, self.alpha, self.valid
        if size < self.size:
            rgb, alpha, valid = (F.interpolate(x, size=(size, size), mode="area") for x in (rgb, alpha, valid))
        else:
            how = {"size": (size, size), "mode": "bicubic", "align_corners": False, "antialias": True}
            rgb, alpha = (F.interpolate(x, **how).clamp(0, 1) for x in (rgb, alpha))
            known = 1 - F.max_pool2d(1 - valid, 3, stride=1, padding=1)  # bicubic reaches two pixels to each side
            valid = F.interpolate(known, size=(size, size), mode="bilinear", align_corners=False)
        return Target(rgb, alpha, (valid > 0.999).float())


def photo_losses(rgb: Tensor, alpha: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Huber losses (beta 0.05) of premultiplied colour and of alpha, means over the photograph's pixels.

    Args: rgb (1, 3, S, S) premultiplied and alpha (1, 1, S, S) of a render, of the target's size.
    """
    count = target.valid.sum().clamp(min=1.0)

    def huber(a: Tensor, b: Tensor) -> Tensor:
        error = F.smooth_l1_loss(a, b, reduction="none", beta=0.05).mean(dim=1, keepdim=True)
        return (error * target.valid).sum() / count

    return huber(rgb, target.rgb), huber(alpha, target.alpha)


def over_white(rgb: Tensor, alpha: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Render and photo over white for a perceptual distance, black where the photograph knows nothing."""
    return (rgb + 1 - alpha) * target.valid, (target.rgb + 1 - target.alpha) * target.valid


def uncropped(target: Target, crop: Tensor) -> Target:
    """The photo as the plain camera would show it, without its similarity of the image plane.

    What the plain camera shows at q stands at scale * q + shift in the crop (`ops.cameras`).

    Args: crop (1, 3) = (scale, shift_u, shift_v). Returns: same size; what falls outside the crop is not valid.
    """
    scale, shift = crop[0, 0], 2 * crop[0, 1:]
    zero = torch.zeros_like(scale)
    theta = torch.stack([torch.stack([scale, zero, shift[0]]), torch.stack([zero, scale, shift[1]])])[None]
    stack = torch.cat([target.rgb * target.valid, target.alpha * target.valid, target.valid], dim=1)
    grid = F.affine_grid(theta, list(stack.shape), align_corners=False)
    out = F.grid_sample(stack, grid, align_corners=False, padding_mode="zeros")
    return Target(out[:, :3], out[:, 3:4], out[:, 4:])


def target_from_photo(rgb, alpha, valid, size: int) -> Target:
    """Arrays (S, S, 3), (S, S, 1), (S, S, 1) of a prepared photo (straight colour) to a `Target` of the given size."""
    def tensor(x):
        return torch.as_tensor(x, dtype=torch.float32).permute(2, 0, 1)[None]

    alpha, valid = tensor(alpha), tensor(valid)
    return Target(tensor(rgb) * alpha * valid, alpha * valid, valid).resized(size)
