"""Layers of StyleGAN2 in plain PyTorch, with the parameter names of the published state dicts.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (StyleGAN2), 2020; gains as in the EG3D family.
Axes: ``N`` batch, ``C`` channels, ``H, W`` rows and columns, ``W_DIM`` length of a latent row w.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQRT2 = math.sqrt(2.0)
TAPS = (1.0, 3.0, 3.0, 1.0)
"""The binomial low-pass filter along one axis, before division by its sum (StyleGAN2, appendix B)."""


def normalize_2nd_moment(x: Tensor) -> Tensor:
    """``x / sqrt(mean(x^2) + 1e-8)`` along the last axis."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-8).rsqrt()


def leaky(x: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky ReLU of slope 0.2 times sqrt(2), then limited to +-clamp if one is given."""
    y = F.leaky_relu(x, 0.2) * SQRT2
    return y if clamp is None else y.clamp(-clamp, clamp)


def low_pass_kernel() -> Tensor:
    """(4,4) outer product of `TAPS` with itself, divided by 64: ``resample_filter`` of the published files."""
    taps = torch.tensor(TAPS)
    return torch.outer(taps, taps) / taps.sum() ** 2


def _shift_sum(x: Tensor, dim: int, weights: tuple[float, float]) -> Tensor:
    """``weights[0] x[i] + weights[1] x[i + 1]`` along one axis, one element shorter."""
    n = x.shape[dim] - 1
    return torch.add(x.narrow(dim, 0, n) * weights[0], x.narrow(dim, 1, n), alpha=weights[1])


def upsample2(x: Tensor) -> Tensor:
    """Twice the size by the low-pass filter: each output is 3/4 of the nearer and 1/4 of the farther neighbour.

    Equals zero insertion, `low_pass_kernel` times 4 and padding: (N,C,H,W) to (N,C,2H,2W), zeros outside.
    """
    for dim in (2, 3):
        pad = (0, 0, 1, 1) if dim == 2 else (1, 1)
        padded = F.pad(x, pad)  # n + 2 along dim
        before = _shift_sum(padded, dim, (0.25, 0.75))  # output 2i comes from i - 1 and i
        after = _shift_sum(padded, dim, (0.75, 0.25))  # output 2i + 1 comes from i and i + 1
        n = x.shape[dim]
        pair = torch.stack([before.narrow(dim, 0, n), after.narrow(dim, 1, n)], dim=dim + 1)
        x = pair.flatten(dim, dim + 1)
    return x


def smooth_after_up(x: Tensor) -> Tensor:
    """`low_pass_kernel` times 4, one zero around: (N,C,2H+1,2W+1), left by a stride-2 transposed 3x3, to 2H, 2W.

    (1,3,3,1) / 4 is three times a sum of neighbours, so it takes six additions and no convolution.
    """
    for dim in (2, 3):
        x = F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1))
        for weights in ((0.25, 0.25), (1.0, 1.0), (1.0, 1.0)):
            x = _shift_sum(x, dim, weights)
    return x


def modulated_conv(x: Tensor, weight: Tensor, styles: Tensor, up: bool = False, demodulate: bool = True) -> Tensor:
    """Convolution whose input channels are scaled by styles and, demodulated, whose filters have unit length.

    ``y_o = sum_i (s_i W_oi) * x_i / sqrt(sum_ik (s_i W_oik)^2 + 1e-8)`` (StyleGAN2, section 2.2). Scaling inputs and
    outputs instead of filters is the same, works for a batch, and needs no gradient of filters where those are fixed.

    Args:
        x: (N,Cin,H,W); weight: (Cout,Cin,k,k); styles: (N,Cin).
        up: twice the size: stride-2 transposed convolution, then the low-pass filter.

    Returns: (N,Cout,H,W), or (N,Cout,2H,2W).
    """
    x = x * styles[:, :, None, None].to(x.dtype)
    kernel = weight.to(x.dtype)
    if up:
        y = smooth_after_up(F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2))
    else:
        y = F.conv2d(x, kernel, padding=weight.shape[-1] // 2)
    if demodulate:
        power = weight.square().sum(dim=(2, 3))  # (Cout,Cin)
        gain = (F.linear(styles.square(), power) + 1e-8).rsqrt()
        y = y * gain[:, :, None, None].to(y.dtype)
    return y


class FullyConnected(nn.Module):
    """Equalised linear layer: effective weight ``weight * lr_mul / sqrt(fan_in)``, bias ``bias * lr_mul``."""

    def __init__(self, fan_in: int, fan_out: int, lr_mul: float = 1.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))
        self.bias = nn.Parameter(torch.empty(fan_out))
        self.lr_mul, self.activate = lr_mul, activate

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with their gains."""
        return self.weight * (self.lr_mul / math.sqrt(self.weight.shape[1])), self.bias * self.lr_mul

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (...,fan_in). Returns: (...,fan_out)."""
        y = F.linear(x, *self.effective())
        return leaky(y) if self.activate else y


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU.

    Args:
        c_in, c_out: channels; w_dim: length of a latent row.
        resolution: edge of the output; up: whether the input has half of it; clamp: limit of the output or None.
        style_groups: how many sets of styles the affine map makes (3 in 3D-aware blocks, one for each plane).
    """

    def __init__(
        self, c_in: int, c_out: int, w_dim: int, resolution: int, up: bool = False, clamp: float | None = None,
        style_groups: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.up, self.clamp, self.style_groups = up, clamp, style_groups
        self.affine = FullyConnected(w_dim, c_in * style_groups)
        self.weight = nn.Parameter(torch.empty(c_out, c_in, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.empty(c_out))
        self.register_buffer("noise_const", torch.empty(resolution, resolution))
        self.register_buffer("resample_filter", low_pass_kernel())

    def forward(self, x: Tensor, w: Tensor, noise: bool = True) -> Tensor:
        """Args: x (N,Cin,H,W); w (N,W_DIM); noise: whether the stored noise map is added. Returns: (N,Cout,...)."""
        styles = self.affine(w)
        if self.style_groups > 1:
            styles = styles.view(-1, styles.shape[1] // self.style_groups)  # (3N,Cin)
        y = modulated_conv(x, self.weight, styles, self.up)
        if noise:
            y = y + (self.noise_const * self.noise_strength).to(y.dtype)
        return leaky(y + self.bias[:, None, None].to(y.dtype), self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation: the colour head, an affine map of the features for a given w."""

    def __init__(self, c_in: int, c_out: int, w_dim: int, clamp: float | None = None, style_groups: int = 1):
        super().__init__()
        self.clamp, self.style_groups = clamp, style_groups
        self.affine = FullyConnected(w_dim, c_in * style_groups)
        self.weight = nn.Parameter(torch.empty(c_out, c_in, 1, 1))
        self.bias = nn.Parameter(torch.empty(c_out))

    def styles(self, w: Tensor) -> Tensor:
        """(N * style_groups, Cin) scales of the input channels, gain included: 1 / sqrt(channels of a group's map)."""
        styles = self.affine(w)
        if self.style_groups > 1:
            styles = styles.view(-1, styles.shape[1] // self.style_groups)
        return styles / math.sqrt(self.gain_channels)

    @property
    def gain_channels(self) -> int:
        """Channels that the gain counts: one plane's, where planes are concatenated (3D-aware blocks)."""
        return self.weight.shape[1] // self.style_groups

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Args: x (N,Cin,H,W); w (N,W_DIM). Returns: (N,Cout,H,W), float32 at least."""
        y = modulated_conv(x, self.weight, self.styles(w), demodulate=False)
        y = y + self.bias[:, None, None].to(y.dtype)
        y = y if self.clamp is None else y.clamp(-self.clamp, self.clamp)
        return y if y.dtype == torch.float64 else y.float()

    def affine_map(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The head for one latent row as ``matrix @ feature + bias``.

        Args: w (1,W_DIM). Returns: matrix (Cout,Cin), bias (Cout,).
        """
        return self.weight[:, :, 0, 0] * self.styles(w)[0], self.bias


class PlainConv1x1(nn.Module):
    """Linear 1x1 convolution without bias, weight divided by sqrt(Cin) (SphereHead's ConvA and ConvB)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in, 1, 1))
        self.register_buffer("resample_filter", low_pass_kernel())

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (N,Cin,H,W). Returns: (N,Cout,H,W)."""
        return F.conv2d(x, self.weight.to(x.dtype) / math.sqrt(self.weight.shape[1]))
