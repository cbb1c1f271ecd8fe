"""Mapping network, StyleGAN2 synthesis with skip connections, and the super-resolution "8XDC" of the EG3D family.

Chan et al., "Efficient Geometry-aware 3D Generative Adversarial Networks" (EG3D), 2022, section 4 and supplement.
"""
import torch
from torch import Tensor, nn

from ...ops.resize import resized
from .layers import FullyConnected, SynthesisLayer, ToRGB, low_pass_kernel, normalize_2nd_moment, upsample2

SR_CLAMP = 256.0
"""Limit of every layer of the super-resolution; made for float16, in force in float32 too."""


class Mapping(nn.Module):
    """Latent z and condition c to a latent row w: two layers on ``[z / |z|, embed(c) / |embed(c)|]``.

    Args:
        z_dim, c_dim, w_dim: lengths; lr_mul: of the two layers; last_linear: no activation at the end (`t_mapping`).
    """

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, lr_mul: float = 0.01, last_linear: bool = False):
        super().__init__()
        self.embed = FullyConnected(c_dim, w_dim)
        self.fc0 = FullyConnected(z_dim + w_dim, w_dim, lr_mul, activate=True)
        self.fc1 = FullyConnected(w_dim, w_dim, lr_mul, activate=not last_linear)
        self.register_buffer("w_avg", torch.empty(w_dim))

    def forward(self, z: Tensor, c: Tensor, truncation: float = 1.0) -> Tensor:
        """Args: z (N,z_dim); c (N,c_dim). Returns: w (N,w_dim) = ``w_avg + truncation (w - w_avg)``."""
        x = torch.cat([normalize_2nd_moment(z), normalize_2nd_moment(self.embed(c))], dim=1)
        w = self.fc1(self.fc0(x))
        return w if truncation == 1 else torch.lerp(self.w_avg, w, truncation)


class SynthesisBlock(nn.Module):
    """One resolution of the generator: conv0 (up 2, not in the first block), conv1, and the skip image.

    Args:
        c_in: channels of the input, 0 in the first block, which starts from a learned constant.
        c_out, img_channels, w_dim, resolution: sizes; clamp: limit of the layers or None.
        batched_const: whether the constant is stored with a batch axis (3DPortraitGAN).
    """

    def __init__(
        self, c_in: int, c_out: int, img_channels: int, w_dim: int, resolution: int, clamp: float | None = None,
        batched_const: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.register_buffer("resample_filter", low_pass_kernel())
        if c_in:
            self.conv0 = SynthesisLayer(c_in, c_out, w_dim, resolution, up=True, clamp=clamp)
        else:
            self.const = nn.Parameter(torch.empty(*([1] * batched_const), c_out, resolution, resolution))
        self.conv1 = SynthesisLayer(c_out, c_out, w_dim, resolution, clamp=clamp)
        self.torgb = ToRGB(c_out, img_channels, w_dim, clamp)
        self.first = not c_in

    @property
    def num_conv(self) -> int:
        return 1 if self.first else 2

    def forward(self, x: Tensor | None, image: Tensor | None, rows: list[Tensor], noise: bool = True) -> tuple:
        """Args: x (N,C,H,W) or None, image (N,I,H,W) or None; rows: one w (N,W_DIM) for each layer, torgb's last.

        Returns: features (N,C,2H,2W), skip image (N,I,2H,2W).
        """
        if self.first:
            const = self.const[None] if self.const.ndim == 3 else self.const
            x = self.conv1(const.expand(rows[0].shape[0], -1, -1, -1), rows[0], noise)
        else:
            x = self.conv1(self.conv0(x, rows[0], noise), rows[1], noise)
        colour = self.torgb(x, rows[-1])
        return x, colour if image is None else upsample2(image) + colour


class Synthesis(nn.Module):
    """StyleGAN2 generator with skip connections.

    Args:
        w_dim: length of a latent row; channels: {resolution: features}, ascending from 4; img_channels: of the image.
        batched_const: see `SynthesisBlock`.
    """

    def __init__(self, w_dim: int, channels: dict[int, int], img_channels: int, batched_const: bool = False):
        super().__init__()
        self.resolutions = list(channels)
        c_in = 0
        for resolution, c_out in channels.items():
            block = SynthesisBlock(c_in, c_out, img_channels, w_dim, resolution, batched_const=batched_const)
            setattr(self, f"b{resolution}", block)
            c_in = c_out

    @property
    def num_ws(self) -> int:
        """Latent rows read: one for each convolution and one for the last colour head."""
        return 2 * len(self.resolutions)

    def steps(self, ws: Tensor):
        """Pairs of (block, its latent rows): a block's colour head reads the row of the next block's first convolution.

        Args: ws (N,num_ws,W_DIM), more rows are left alone.
        """
        start = 0
        for resolution in self.resolutions:
            block = getattr(self, f"b{resolution}")
            yield block, list(ws[:, start : start + block.num_conv + 1].unbind(1))
            start += block.num_conv

    def forward(self, ws: Tensor, noise: bool = True) -> Tensor:
        """Args: ws (N,num_ws,W_DIM); noise: add the stored noise maps. Returns: (N,img_channels,R,R)."""
        x = image = None
        for block, rows in self.steps(ws):
            x, image = block(x, image, rows, noise)
        return image


class SuperResolution(nn.Module):
    """EG3D's hybrid super-resolution 8XDC: features and colours to four times the size in two blocks.

    Args: channels (input, block 0, block 1), w_dim; resolution: edge of block 0's output, twice the input's.
    """

    def __init__(self, channels: tuple[int, int, int], w_dim: int, resolution: int):
        super().__init__()
        self.input_resolution = resolution // 2
        self.block0 = SynthesisBlock(channels[0], channels[1], 3, w_dim, resolution, SR_CLAMP)
        self.block1 = SynthesisBlock(channels[1], channels[2], 3, w_dim, 2 * resolution, SR_CLAMP)

    def forward(self, rgb: Tensor, features: Tensor, w: Tensor) -> Tensor:
        """Args: rgb (N,3,n,n), features (N,C,n,n) of any size; w (N,W_DIM), the last row. Returns: (N,3,4n',4n')."""
        features, rgb = (resized(t, (self.input_resolution,) * 2) for t in (features, rgb))
        rows = [w] * 3
        x, rgb = self.block0(features, rgb, rows, noise=False)
        return self.block1(x, rgb, rows, noise=False)[1]
