"""ST-LPIPS: a learned perceptual distance that tolerates small shifts.

Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", ECCV 2022. Image pairs pass through an AlexNet or
VGG16 whose strided and pooling layers are replaced by a stride-1 operation followed by an anti-aliasing blur
(reflection padding 2, binomial filter [1 2 1]/4 in both directions, stride 2). With unit-length feature columns f_l at
five depths and learned channel weights w_l >= 0:

    d(a, b) = sum_l mean_{h,w} sum_c w_lc (f_lc(a) - f_lc(b))^2

The trained weights are data of the Python package ``stlpips-pytorch`` 0.0.2 (BSD-2-Clause); they are read as tensors,
the package itself is never imported.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import EnvironmentProblem, UsageError
from ..optional import file_in_package

MIN_SIZE = 32
PACKAGE = "stlpips-pytorch==0.0.2"
WEIGHT_FILES = {
    "alex": ("alex_shift_tolerant.pth", "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee"),
    "vgg": ("vgg_shift_tolerant.pth", "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250"),
}
# Input statistics of LPIPS for images in [-1, 1] (Zhang et al., CVPR 2018).
INPUT_SHIFT = (-0.030, -0.088, -0.188)
INPUT_SCALE = (0.458, 0.448, 0.450)


class BlurPool(nn.Module):
    """Anti-aliased downsampling by 2: reflection padding 2, then the binomial filter [1 2 1]/4 per axis at stride 2.

    R. Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019; the doubled padding is ST-LPIPS's.
    The filter is applied as two box filters of width 2, [1 2 1]/4 = [1 1]/2 * [1 1]/2.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = _reflected(x) if torch.are_deterministic_algorithms_enabled() else F.pad(x, (2, 2, 2, 2), mode="reflect")
        return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1), 2, stride=2)


def _reflected(x: Tensor) -> Tensor:
    """Reflection padding 2 whose gradient is formed in a fixed order on a GPU, too."""
    x = torch.cat([x[..., 2:3], x[..., 1:2], x, x[..., -2:-1], x[..., -3:-2]], dim=-1)
    return torch.cat([x[..., 2:3, :], x[..., 1:2, :], x, x[..., -2:-1, :], x[..., -3:-2, :]], dim=-2)


class MaxPool(nn.MaxPool2d):
    """A GPU forms its gradient in a fixed order for contiguous inputs, for channels-last ones it does not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if torch.are_deterministic_algorithms_enabled() else x)


class ConvBlurPool(nn.Module):
    """A stride-1 convolution (zero padding 2) followed by `BlurPool`, evaluated as one stride-2 convolution.

    Both steps are linear, so away from the border their composition is a convolution with kernel * binomial. At the
    border the reflection makes the first output equal the second one; the last output equals the one before it for an
    odd size, and for an even size is a convolution with kernel * box: reflection folds [1 2 1]/4 into [1 1]/2.
    About five times faster on CPU than the two steps for the 11x11 kernel of AlexNet.
    """

    def set_kernel(self, weight: Tensor, bias: Tensor) -> None:
        """Compose the kernels of `weight` (O,I,K,K), K odd, with the binomial and box filters."""
        taps = {"binomial": torch.tensor([0.25, 0.5, 0.25]), "box": torch.tensor([0.5, 0.5])}
        for vertical, v in taps.items():
            for horizontal, h in taps.items():
                kernel = weight.flatten(0, 1).unsqueeze(1)
                kernel = F.conv2d(kernel, torch.outer(v, h).to(weight)[None, None], padding=(len(v) - 1, len(h) - 1))
                kernel = kernel.view(*weight.shape[:2], *kernel.shape[2:])
                if vertical == horizontal == "binomial":  # even size for pixel_unshuffle
                    kernel = F.pixel_unshuffle(F.pad(kernel, (0, 1, 0, 1)), 2)
                self.register_buffer(f"{vertical}_{horizontal}", kernel, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        odd = (height % 2, width % 2)
        x = F.pad(x, (2, 2, 2, 2))
        # Stride 2 on 3 channels = stride 1 on 12 channels; extra zeros meet the zero row and column of the kernel.
        blocks = F.pixel_unshuffle(F.pad(x, (0, odd[1], 0, odd[0])), 2)
        blocks = blocks.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(blocks, self.binomial_binomial, self.bias)
        box = self.box_box.shape[-1]
        if not odd[1]:
            y = torch.cat([y, F.conv2d(x[..., -box:], self.binomial_box, self.bias, stride=2)], dim=3)
        if not odd[0]:
            bottom = x[:, :, -box:]
            row = F.conv2d(bottom, self.box_binomial, self.bias, stride=2)
            if not odd[1]:
                row = torch.cat([row, F.conv2d(bottom[..., -box:], self.box_box, self.bias)], dim=3)
            y = torch.cat([y, row], dim=2)
        return F.pad(y, (1, odd[1], 1, odd[0]), mode="replicate")


def _alexnet_stages() -> list[nn.Sequential]:
    """Five stages of the shift-tolerant AlexNet; channels 64, 192, 384, 256, 256."""
    return [
        nn.Sequential(ConvBlurPool(), nn.ReLU()),  # 11x11, 3 -> 64 channels
        nn.Sequential(MaxPool(3, stride=1), BlurPool(), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
        nn.Sequential(MaxPool(3, stride=1), BlurPool(), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]


def _vgg16_stages() -> list[nn.Sequential]:
    """Five stages of the shift-tolerant VGG16; channels 64, 128, 256, 512, 512."""
    stages, previous = [], 3
    for index, (channels, convolutions) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        layers: list[nn.Module] = [MaxPool(2, stride=1), BlurPool()] if index else []
        for _ in range(convolutions):
            layers += [nn.Conv2d(previous, channels, 3, padding=1), nn.ReLU()]
            previous = channels
        stages.append(nn.Sequential(*layers))
    return stages


def find_weights(net: str) -> Path:
    """Locate the weight file of one network inside the installed ``stlpips-pytorch`` package without importing it.

    Args:
        net: ``"alex"`` or ``"vgg"``.
    Returns: path of the .pth file.
    Raises: UsageError for an unknown network; EnvironmentProblem with the install command when the file is missing.
    """
    if net not in WEIGHT_FILES:
        raise UsageError(f"ST-LPIPS has the networks 'alex' and 'vgg'; got {net!r}.")
    path = file_in_package("stlpips_pytorch", "weights", "vST0.0", WEIGHT_FILES[net][0])
    if path is not None:
        return path
    raise EnvironmentProblem(
        f"The ST-LPIPS weights ({WEIGHT_FILES[net][0]}) come with a package that is not installed; "
        f"run: pip install '{PACKAGE}' (or: pip install -e '.[eval]')."
    )


def _read_weights(net: str, path: Path) -> dict[str, Tensor]:
    """Read a .pth file as plain tensors after checking its SHA-256."""
    if not path.is_file():
        raise EnvironmentProblem(f"The ST-LPIPS weight file {path} does not exist; get it by: pip install '{PACKAGE}'.")
    name, expected = WEIGHT_FILES[net]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise EnvironmentProblem(
            f"{path} is not the file '{name}' of {PACKAGE}: its SHA-256 is {digest}, expected {expected}; reinstall it."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


class STLPIPS(nn.Module):
    """Shift-tolerant perceptual distance between images in [0, 1]; frozen, differentiable with respect to both images.

    Args:
        net: ``"alex"`` (fast, 2.5 M parameters) or ``"vgg"`` (14.7 M parameters).
        weights: path of the weight file; default: the installed ``stlpips-pytorch`` package.
    Raises: UsageError (unknown network), EnvironmentProblem (weights missing or altered).
    """

    def __init__(self, net: str = "alex", weights: str | Path | None = None):
        super().__init__()
        if net not in WEIGHT_FILES:
            raise UsageError(f"ST-LPIPS has the networks 'alex' and 'vgg'; got {net!r}.")
        self.net = net
        self.stages = nn.ModuleList(_alexnet_stages() if net == "alex" else _vgg16_stages())
        self.register_buffer("shift", torch.tensor(INPUT_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(INPUT_SCALE).view(1, 3, 1, 1), persistent=False)
        state = _read_weights(net, Path(weights) if weights is not None else find_weights(net))
        kernels = [key for key in state if key.startswith("net.") and key.endswith(".weight")]
        convolutions = [module for module in self.stages.modules() if isinstance(module, (nn.Conv2d, ConvBlurPool))]
        for convolution, key in zip(convolutions, kernels, strict=True):
            weight, bias = state[key], state[key.removesuffix("weight") + "bias"]
            if isinstance(convolution, ConvBlurPool):
                convolution.set_kernel(weight, bias)
            else:
                convolution.weight = nn.Parameter(weight, requires_grad=False)
                convolution.bias = nn.Parameter(bias, requires_grad=False)
        for index in range(len(self.stages)):
            self.register_buffer(f"head{index}", state[f"lin{index}.model.1.weight"], persistent=False)
        self.to(memory_format=torch.channels_last)  # about twice as fast on CPU and with half precision on GPU

    def features(self, image: Tensor) -> list[Tensor]:
        """Unit-length feature columns at five depths.

        Args:
            image: (B,3,H,W) in [0, 1], H and W at least 32.
        Returns: five tensors (B,C_l,H_l,W_l) of length 1 over channels (0 where no feature fires), float32 or wider.
        Raises: UsageError for other shapes.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < MIN_SIZE:
            raise UsageError(f"ST-LPIPS needs images (B,3,H,W) with H, W >= {MIN_SIZE}; got {tuple(image.shape)}.")
        x = ((2 * image - 1 - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        columns = []
        for stage in self.stages:
            x = stage(x)
            wide = x if x.dtype == torch.float64 else x.float()
            # 1e-20 keeps the derivative of the square root finite at an all-zero column.
            columns.append(wide / ((wide.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10))
        return columns

    def layer_maps(self, features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> list[Tensor]:
        """Weighted squared feature differences, one map (B,1,H_l,W_l) per depth."""
        return [
            ((a - b).square() * getattr(self, f"head{index}").to(a.dtype)).sum(1, keepdim=True)
            for index, (a, b) in enumerate(zip(features_a, features_b, strict=True))
        ]

    def compare(self, features_a: Sequence[Tensor], features_b: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """Distance from features made by `features`, so that a fixed target is passed through the network only once.

        Args:
            features_a, features_b: results of `features`.
            mask: optional (B,1,H,W) non-negative weights; averaged down to every depth's resolution. All ones equals no
                mask exactly; an all-zero mask gives distance 0.
        Returns: (B,) distances >= 0.
        """
        total = 0
        for layer in self.layer_maps(features_a, features_b):
            if mask is None:
                total = total + layer.mean((1, 2, 3))
            else:
                weight = F.adaptive_avg_pool2d(mask.to(layer.dtype), layer.shape[2:])
                total = total + (layer * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1e-8)
        return total

    def distance_map(self, a: Tensor, b: Tensor) -> Tensor:
        """Per-pixel distance (B,1,H,W): every depth's map enlarged bilinearly to the image size and summed."""
        maps = self.layer_maps(self.features(a), self.features(b))
        return sum(F.interpolate(m, size=a.shape[2:], mode="bilinear", align_corners=False) for m in maps)

    def forward(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        """Distance of each image pair.

        Args:
            a, b: (B,3,H,W) in [0, 1], H and W at least 32 (not clamped: gradients also flow outside the range).
            mask: optional (B,1,H,W) spatial weights, see `compare`.
        Returns: (B,) distances, 0 for identical images.
        Raises: UsageError for other shapes.
        """
        if a.shape != b.shape:
            raise UsageError(f"ST-LPIPS compares images of one shape; got {tuple(a.shape)} and {tuple(b.shape)}.")
        if mask is not None and (mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != a.shape[2:]):
            raise UsageError(f"The mask must be (B,1,{a.shape[2]},{a.shape[3]}); got {tuple(mask.shape)}.")
        return self.compare(self.features(a), self.features(b), mask)
