"""3D-aware blocks of 3DPortraitGAN-Pyramid, the generator of Portrait3D: tri-grids at seven resolutions.

Wu et al., "Portrait3D: Text-Guided High-Quality 3D Portrait Generation Using Pyramid Representation and GANs Prior",
2024; the 3D-aware convolution is that of Wang et al., "Rodin", 2023, section 3.1.
"""
import torch
from torch import Tensor, nn

from .layers import SynthesisLayer, ToRGB, low_pass_kernel
from .synthesis import Synthesis


def cross_plane(planes: Tensor) -> Tensor:
    """Each plane with what the two others say about its rows and columns.

    With P' the plane with rows and columns exchanged, and the mean along the axis that is not shared spread over it:
    ``Q0 = [P0, mean_w P1', mean_h P2'], Q1 = [mean_h P0', P1, mean_w P2'], Q2 = [mean_w P0', mean_h P1', P2]``.

    Args: planes (3N,C,R,R), the three planes of an item next to one another. Returns: (3N,3C,R,R).
    """
    p0, p1, p2 = planes.unflatten(0, (-1, 3)).unbind(1)  # (N,C,R,R) each

    def over_columns(p: Tensor) -> Tensor:
        return p.transpose(-1, -2).mean(dim=-1, keepdim=True).expand_as(p)

    def over_rows(p: Tensor) -> Tensor:
        return p.transpose(-1, -2).mean(dim=-2, keepdim=True).expand_as(p)

    q0 = torch.cat([p0, over_columns(p1), over_rows(p2)], dim=1)
    q1 = torch.cat([over_rows(p0), p1, over_columns(p2)], dim=1)
    q2 = torch.cat([over_columns(p0), over_rows(p1), p2], dim=1)
    return torch.stack([q0, q1, q2], dim=1).flatten(0, 1)


class Block3D(nn.Module):
    """Two 3D-aware convolutions, the first to twice the size, and a 3D-aware colour head; three sets of styles each.

    Args: c channels of one plane; w_dim; resolution of the output.
    """

    def __init__(self, c: int, w_dim: int, resolution: int):
        super().__init__()
        self.register_buffer("resample_filter", low_pass_kernel())
        self.conv0 = SynthesisLayer(3 * c, c, w_dim, resolution, up=True, style_groups=3)
        self.conv1 = SynthesisLayer(3 * c, c, w_dim, resolution, style_groups=3)
        self.torgb = ToRGB(3 * c, c, w_dim, style_groups=3)

    def forward(self, planes: Tensor, w: Tensor, noise: bool = True) -> Tensor:
        """Args: planes (3N,C,R,R); w (N,W_DIM), for all three layers. Returns: (3N,C,2R,2R)."""
        x = self.conv0(cross_plane(planes), w, noise)
        x = self.conv1(cross_plane(x), w, noise)
        return self.torgb(cross_plane(x), w)


class Lifted(nn.Module):
    """Holder with the published name: ``b3d{R}.block``."""

    def __init__(self, block: Block3D):
        super().__init__()
        self.block = block


class PyramidSynthesis(Synthesis):
    """2D synthesis whose skip image at every resolution is lifted to a level of tri-grids at twice that resolution.

    The skip image (3 C channels) is read as three planes, the level before is added, and a `Block3D`, driven by the
    block's last latent row, makes the next level. Args: as `Synthesis`.
    """

    def __init__(self, w_dim: int, channels: dict[int, int], img_channels: int):
        super().__init__(w_dim, channels, img_channels, batched_const=True)
        for resolution in self.resolutions:
            setattr(self, f"b3d{resolution}", Lifted(Block3D(img_channels // 3, w_dim, 2 * resolution)))

    def forward(self, ws: Tensor, noise: bool = True) -> list[Tensor]:
        """Args: ws (N,num_ws,W_DIM). Returns: levels (N,3,C,2R,2R), coarsest first."""
        x = image = level = None
        levels = []
        for block, rows in self.steps(ws):
            x, image = block(x, image, rows, noise)
            planes = image.unflatten(1, (3, -1)).flatten(0, 1)  # (3N,C,R,R)
            lifted = getattr(self, f"b3d{image.shape[-1]}").block
            level = lifted(planes if level is None else planes + level, rows[-1], noise)
            levels.append(level.unflatten(0, (-1, 3)))
        return levels
