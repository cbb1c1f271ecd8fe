"""Metrics that the literature names and whose weights no package brings: CLIP-I, ArcFace ID, LPIPS, from the user's.

CLIP-I: cosine of CLIP image embeddings (Radford et al., ICML 2021). ID: cosine of ArcFace embeddings (Deng et al., CVPR
2019) of faces aligned to its template of 112 x 112 pixels. Both are comparable only with the same weights. LPIPS (Zhang
et al., CVPR 2018), version 0.1 on AlexNet: with unit-length feature columns f_l behind the five rectifiers and learned
channel weights w_l, d(a, b) = sum_l mean_{h,w} sum_c w_lc (f_lc(a) - f_lc(b))^2. The weights w_l are data of the
package ``lpips`` 0.1.4, which is not imported; the network's are torchvision's, whose file name begins their hash.
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import EnvironmentProblem, UsageError
from ..files import sha256_file
from ..optional import file_in_package, require
from ..photo.detect import Face
from .identity import largest_face
from .stlpips import INPUT_SCALE, INPUT_SHIFT

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FACE_SIZE = 112
FACE_TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Eyes, nose tip and mouth corners in the aligned face, pixels, as ArcFace's published models are trained."""
ALEXNET_SHA256 = "7be5be79"
"""Start of the SHA-256 of torchvision's AlexNet, ``alexnet-owt-7be5be79.pth``."""
ALEXNET = (
    (0, 64, 3, 11, 4, 2), (3, 192, 64, 5, 1, 2), (6, 384, 192, 3, 1, 1), (8, 256, 384, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
)  # fmt: skip
"""Convolutions: place in the checkpoint, channels out and in, kernel, stride, padding. Pooling before two and three."""
LPIPS_PACKAGE = "lpips==0.1.4"
LPIPS_HEADS = ("weights/v0.1/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0")


class ClipImages:
    """Embeddings of pictures by a CLIP model.

    Args: folder: a CLIP model as transformers writes them; nothing is downloaded.
    Raises: EnvironmentProblem without transformers; UsageError for a folder that holds no such model.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu"):
        transformers = require("transformers", extra="sd")
        try:
            model = transformers.CLIPVisionModelWithProjection.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"--clip '{folder}' holds no CLIP model of transformers: {error}") from error
        self.model, self.size = model.to(device).eval(), model.config.image_size

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, D) unit vectors of pictures (B, 3, H, W) in [0, 1]."""
        side = (self.size, self.size)
        x = F.interpolate(pictures, side, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        return F.normalize(self.model(pixel_values=(x - mean) / std).image_embeds, dim=-1)


def template_matrix(landmarks: np.ndarray) -> np.ndarray:
    """(2, 3) similarity from picture to `FACE_TEMPLATE`, least squares over the five landmarks (5, 2).

    Of points as complex numbers z: w = a (z - mean z) + mean w with a = sum conj(z_c) w_c / sum |z_c|^2.
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (landmarks, FACE_TEMPLATE))
    centred = z - z.mean()
    a = (centred.conj() * (w - w.mean())).sum() / (abs(centred) ** 2).sum()
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


class ArcFace:
    """Embeddings of faces by a recogniser in ONNX that takes RGB (1, 3, 112, 112) in [-1, 1].

    Args: path: the model file; run by OpenCV.
    Raises: UsageError for a file that OpenCV cannot read.
    """

    def __init__(self, path: str | Path):
        cv2 = require("cv2", extra="photo", package="opencv-python-headless")
        if not Path(path).is_file():
            raise UsageError(f"--arcface '{path}' does not exist; give a recogniser's .onnx file.")
        try:
            self.net = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise UsageError(f"--arcface '{path}' is no ONNX file that OpenCV reads: {error.msg}") from error

    def __call__(self, image: np.ndarray | Tensor) -> np.ndarray | None:
        """(D,) unit vector of the largest face of a picture (H, W, 3) in [0, 1] or uint8; None without a face."""
        picture, face = largest_face(image)
        return None if face is None else self.of(picture, face)

    def of(self, picture: np.ndarray, face: Face) -> np.ndarray:
        """(D,) unit vector of a face found by `identity.largest_face`, with the picture it returned."""
        cv2 = require("cv2", extra="photo", package="opencv-python-headless")
        shift = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])  # OpenCV puts the first pixel's centre at 0
        whole = np.vstack([template_matrix(face.landmarks), [0, 0, 1]])
        matrix = (shift @ whole @ np.linalg.inv(shift))[:2]
        aligned = cv2.warpAffine(picture, matrix, (FACE_SIZE, FACE_SIZE), flags=cv2.INTER_LINEAR)
        self.net.setInput(cv2.dnn.blobFromImage(aligned, 1 / 127.5, (FACE_SIZE, FACE_SIZE), (127.5,) * 3))
        embedding = self.net.forward().reshape(-1).astype(np.float64)
        return embedding / np.linalg.norm(embedding)


def find_lpips_heads() -> Path:
    """LPIPS's channel weights inside the installed package ``lpips``, which is not imported (it needs torchvision).

    Raises: EnvironmentProblem with the install command for a missing or altered file.
    """
    name, digest = LPIPS_HEADS
    path = file_in_package("lpips", name)
    if path is None:
        raise EnvironmentProblem(
            "LPIPS's channel weights come with a package that is not installed; "
            f"run: pip install --no-deps '{LPIPS_PACKAGE}'."
        )
    if sha256_file(path) != digest:
        raise EnvironmentProblem(f"{path} is not the file of {LPIPS_PACKAGE}; reinstall it.")
    return path


class Lpips(nn.Module):
    """LPIPS 0.1 on AlexNet between pictures in [0, 1].

    Args: alexnet: torchvision's checkpoint; heads: file of the channel weights, default: the installed package's;
        sha256: what the checkpoint's SHA-256 begins with.
    Raises: UsageError for another checkpoint; EnvironmentProblem without the package ``lpips``.
    """

    def __init__(self, alexnet: str | Path, heads: str | Path | None = None, sha256: str = ALEXNET_SHA256):
        super().__init__()
        if not Path(alexnet).is_file():
            raise UsageError(f"--lpips '{alexnet}' does not exist; give torchvision's alexnet-owt-7be5be79.pth.")
        if not sha256_file(alexnet).startswith(sha256):
            raise UsageError(f"--lpips '{alexnet}' is not torchvision's AlexNet (alexnet-owt-7be5be79.pth).")
        state = torch.load(alexnet, map_location="cpu", weights_only=True)
        told = torch.load(heads or find_lpips_heads(), map_location="cpu", weights_only=True)
        self.convolutions = nn.ModuleList()
        for index, (place, out, inputs, kernel, stride, padding) in enumerate(ALEXNET):
            convolution = nn.Conv2d(inputs, out, kernel, stride, padding)
            parts = {name: state[f"features.{place}.{name}"] for name in ("weight", "bias")}
            convolution.load_state_dict(parts)
            self.convolutions.append(convolution)
            self.register_buffer(f"head{index}", told[f"lin{index}.model.1.weight"])
        self.register_buffer("shift", torch.tensor(INPUT_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(INPUT_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def columns(self, pictures: Tensor) -> list[Tensor]:
        """Unit-length feature columns (B, C_l, H_l, W_l) at five depths of pictures (B, 3, H, W) in [0, 1]."""
        x, found = (2 * pictures - 1 - self.shift) / self.scale, []
        for index, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(F.max_pool2d(x, 3, 2) if index in (1, 2) else x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,) distances of pictures (B, 3, H, W), H and W at least 32. Raises: UsageError for other shapes."""
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < 32:
            raise UsageError(f"LPIPS needs two batches (B,3,H,W), H, W >= 32; got {tuple(a.shape)}, {tuple(b.shape)}.")
        pairs = zip(self.columns(a), self.columns(b))
        layers = [(getattr(self, f"head{k}") * (x - y).square()).sum(1) for k, (x, y) in enumerate(pairs)]
        return sum(layer.mean((1, 2)) for layer in layers)
