"""MatteNet: a small U-Net from a canonical crop to its soft alpha, and its weight file."""
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .net_files import load_net

MATTE_SIZE = 256
WEIGHTS_FILE = Path(__file__).resolve().parents[1] / "weights" / "matte.safetensors"
WIDTHS = (16, 32, 64, 128, 192, 256)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation and a shortcut (He et al. 2016, pre-activation)."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int = 1):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=dilation, dilation=dilation)
        self.norm_first, self.norm_second = _group_norm(channels_out), _group_norm(channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(self.norm_first(self.first(x)))
        return F.silu(self.norm_second(self.second(inner)) + self.shortcut(x))


class SelfAttention(nn.Module):
    """Multi-head attention over all positions (Vaswani et al. 2017): compares far-apart colours of one picture."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = _group_norm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = self.query_key_value(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, -1)
        query, key, value = parts.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(-1, -2).reshape(batch, channels, height, width))


class MatteNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) from a canonical crop and its valid mask to alpha logits.

    The crop is canonical, so position carries meaning: two coordinate channels are appended to the input
    (Liu et al. 2018, CoordConv).
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.encoders = nn.ModuleList()
        channels = 6
        for width in widths:
            self.encoders.append(ResidualBlock(channels, width))
            channels = width
        self.middle = nn.Sequential(SelfAttention(channels), ResidualBlock(channels, channels))
        self.decoders = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.decoders.append(ResidualBlock(channels + width, width) if width < 64 else _light(channels, width))
            channels = width
        self.head = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, rgb: Tensor, valid: Tensor) -> Tensor:
        """Predict alpha logits.

        Args:
            rgb: (B, 3, H, W) in [0, 1]; H and W multiples of 32, trained at ``MATTE_SIZE``.
            valid: (B, 1, H, W), 1 inside the photograph.

        Returns: (B, 1, H, W) logits; alpha is their sigmoid.
        """
        x = torch.cat([(rgb * 2 - 1) * valid, valid, coordinates(rgb)], 1)
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x if level == 0 else F.avg_pool2d(x, 2))
            skips.append(x)
        x = self.middle(skips.pop())
        for decoder in self.decoders:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = decoder(torch.cat([x, skips.pop()], 1))
        return self.head(x)


def _light(channels: int, width: int) -> nn.Module:
    """Decoder of a deep level: squeeze the concatenation first, so that its parameters stay few."""
    return nn.Sequential(nn.Conv2d(channels + width, width, 1), ResidualBlock(width, width))


def coordinates(like: Tensor) -> Tensor:
    """Two channels (B, 2, H, W) from -1 to 1: across and down. Args: like (B, C, H, W)."""
    batch, _, height, width = like.shape
    v = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype).view(1, 1, -1, 1)
    u = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype).view(1, 1, 1, -1)
    return torch.cat([u.expand(batch, 1, height, width), v.expand(batch, 1, height, width)], 1)


def load_matte_net(path=None) -> MatteNet:
    """Read MatteNet from a safetensors file onto the CPU, in evaluation mode.

    Args:
        path: weight file; default: the one shipped in ``weights/``.

    Returns: the network in float32.
    Raises: EnvironmentProblem when the file is missing; UsageError when it does not hold a MatteNet.
    """
    path = Path(path) if path is not None else WEIGHTS_FILE
    return load_net(
        MatteNet(), path,
        "train them with 'python launch_portrait.py train-matte' or choose matte: grabcut",
    )  # fmt: skip
