"""Metrics that the literature names and whose weights no package brings: CLIP-I and ArcFace ID, from the user's files.

CLIP-I: cosine of CLIP image embeddings (Radford et al., ICML 2021). ID: cosine of ArcFace embeddings (Deng et al., CVPR
2019) of faces aligned to its template of 112 x 112 pixels. Both are comparable only with the same weights.
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ..optional import require
from .identity import largest_face

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FACE_SIZE = 112
FACE_TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Eyes, nose tip and mouth corners in the aligned face, pixels, as ArcFace's published models are trained."""


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
        cv2 = require("cv2", extra="photo", package="opencv-python-headless")
        picture, face = largest_face(image)
        if face is None:
            return None
        shift = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])  # OpenCV puts the first pixel's centre at 0
        whole = np.vstack([template_matrix(face.landmarks), [0, 0, 1]])
        matrix = (shift @ whole @ np.linalg.inv(shift))[:2]
        aligned = cv2.warpAffine(picture, matrix, (FACE_SIZE, FACE_SIZE), flags=cv2.INTER_LINEAR)
        self.net.setInput(cv2.dnn.blobFromImage(aligned, 1 / 127.5, (FACE_SIZE, FACE_SIZE), (127.5,) * 3))
        embedding = self.net.forward().reshape(-1).astype(np.float64)
        return embedding / np.linalg.norm(embedding)
