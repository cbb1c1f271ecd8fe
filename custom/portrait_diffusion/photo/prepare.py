"""From a photo file to everything the inversion needs: crop, alpha, masks, landmarks, pose and warnings."""
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..ops.similarity import CANONICAL_LANDMARKS_CROP, apply, compose, crop_from_landmarks, inverse, scale
from .align import AlignedCrop, cut_crop
from .camera_estimate import CameraEstimate, check_camera_method, estimate_camera, landmark_camera
from .camera_net import WEIGHTS_FILE as CAMERA_WEIGHTS
from .camera_net import load_camera_net
from .detect import FaceDetector, find_face
from .foreground import estimate_foreground, sure_part
from .head_pose import HeadPose, estimate_head_pose
from .load import LoadedPhoto, load_photo
from .matte import choose_matte, estimate_alpha
from .matte_net import WEIGHTS_FILE as MATTE_WEIGHTS

WORKING_SIDE = 2048
_log = logging.getLogger("portrait_diffusion")


@dataclass(frozen=True)
class PreparedPhoto:
    """A photo in the canonical crop.

    Attributes:
        rgb: (S, S, 3) float32 in [0, 1], foreground colours: background fringes removed, extended outwards where
            alpha is 0.
        alpha: (S, S, 1) float32 in [0, 1], 0 outside the photograph.
        valid: (S, S, 1) float32, 1 inside the photograph, 0 outside: unknown, not white.
        landmarks: (5, 2) float64 crop pixels: left eye, right eye, nose tip, left and right mouth corner; left =
            smaller u.
        photo_to_crop: (2, 3) float64, upright source pixels to crop pixels (centres at +0.5).
        camera: the canonical camera that took the crop, in crop pixels.
        pose: head pose of the landmarks in degrees; None when an aligned picture shows no face that can be found.
        score: detector confidence in [0, 1]; 0 when no face was found in an aligned picture.
        matte: ``own``, ``network``, ``grabcut`` or ``none``: where alpha comes from.
        warnings: sentences for the user.
        source_size: (width, height) of the upright file.
        picture: (S, S, 3) float32, the crop with its background, before foreground estimation.
    """

    rgb: Tensor
    alpha: Tensor
    valid: Tensor
    landmarks: np.ndarray
    photo_to_crop: np.ndarray
    camera: CameraEstimate
    pose: HeadPose | None
    score: float
    matte: str
    warnings: list[str]
    source_size: tuple[int, int]
    picture: Tensor


def prepare_photo(
    path, size: int = 512, aligned: bool = False, matte: str = "auto", camera: str = "network"
) -> PreparedPhoto:
    """Load, detect, align, matte and clean one photo.

    Args:
        path: image file.
        size: side S of the canonical crop, at least 64.
        aligned: the file already is a canonical crop (square); it is only resized.
        matte: ``auto``, ``network``, ``grabcut`` or ``none``. The file's own alpha always limits the result; ``auto``
            uses nothing else when it cuts out a person.
        camera: ``network`` or ``landmarks``: what says from where the photo was taken and how large the head is.

    Returns: PreparedPhoto on the CPU.
    Raises: UsageError when the photo is unfit, with the reason; EnvironmentProblem for a missing package or weights.
    """
    if size < 64:
        raise UsageError(f"The crop size must be at least 64 pixels, got {size}.")
    choose_matte(matte)  # a wrong name should not wait for the detector
    check_camera_method(camera)
    photo = load_photo(path, max_side=max(WORKING_SIDE, size))
    locate = _locate_aligned if aligned else _locate
    landmarks, source_to_crop, view, pose, score, warnings = locate(photo, size, camera)
    crop = _cut(path, photo, source_to_crop, size)
    method = choose_matte(matte, has_own_alpha=_cuts_out(crop), announce=True)
    own = crop.valid if crop.alpha is None else crop.alpha
    alpha = own if method == "own" else own * estimate_alpha(_over_grey(crop), crop.valid, method)
    if method == "own":
        rgb = _extend(crop.rgb, alpha)
    else:
        rgb = estimate_foreground(crop.rgb, sure_part(alpha, crop.valid), crop.valid)
    warnings = warnings + _quality_warnings(source_to_crop, crop, alpha, method)
    for warning in warnings:
        _log.warning("%s", warning)
    return PreparedPhoto(
        rgb, alpha, crop.valid, landmarks, source_to_crop, view, pose, score, method, warnings, photo.source_size,
        crop.rgb,
    )


def photo_weights(matte: str, camera: str) -> dict[str, Path]:
    """Weights files of the networks that look at the photo, by what they find.

    Args: matte: as `choose_matte` resolves it; camera: of `prepare_photo`.
    """
    files = {"camera": CAMERA_WEIGHTS} if camera == "network" else {}
    return files | ({"matte": MATTE_WEIGHTS} if matte == "network" else {})


def _locate(photo: LoadedPhoto, size: int, method: str):
    """Landmarks in the crop, source-to-crop matrix, camera, pose, score and warnings, of an ordinary photo.

    The crop puts the head's canonical landmarks onto their places, as the camera says where they are.
    """
    pixel_size = float(np.sqrt(photo.to_source[0, 0] * photo.to_source[1, 1]))
    picture = _opaque(photo)
    found = find_face(picture, FaceDetector(), pixel_size)
    view = _camera(picture, found.face.landmarks, found.pose, method).moved(photo.to_source)
    source_to_crop = crop_from_landmarks(view.anchors, size)
    landmarks = apply(compose(source_to_crop, photo.to_source), found.face.landmarks)
    return landmarks, source_to_crop, view.moved(source_to_crop), found.pose, found.face.score, list(found.warnings)


def _camera(picture: np.ndarray, landmarks: np.ndarray, pose: HeadPose, method: str) -> CameraEstimate:
    """Camera of an upright (H, W, 3) uint8 picture with such landmarks."""
    if method == "landmarks":
        return landmark_camera(landmarks, pose)
    return estimate_camera(torch.from_numpy(picture).float() / 255, landmarks, load_camera_net())


def _locate_aligned(photo: LoadedPhoto, size: int, method: str):
    """The same for a picture that is a canonical crop already: its frame is kept, a face is only looked for."""
    width, height = photo.source_size
    if width != height:
        raise UsageError(f"An aligned photo must be square, this one has {width} x {height} pixels; use aligned=false.")
    factor = size / width
    source_to_crop = np.array([[factor, 0.0, 0.0], [0.0, factor, 0.0]])
    detector, picture = FaceDetector(), _opaque(photo)
    faces, turns = detector.detect(picture)
    canonical = CANONICAL_LANDMARKS_CROP * size
    nose = canonical.mean(0, keepdims=True) + [[0.0, 0.004 * size]]
    assumed = np.concatenate([canonical[:2], nose, canonical[2:]])
    if not faces or turns:
        warning = "No face was found in the aligned photo; canonical landmarks are assumed."
        return assumed, source_to_crop, landmark_camera(assumed, None), None, 0.0, [warning]
    to_crop = compose(source_to_crop, photo.to_source)
    middle = assumed.mean(0)
    face = min(faces, key=lambda item: np.linalg.norm(apply(to_crop, item.landmarks).mean(0) - middle))
    refined = detector.refine(picture, face)
    landmarks, pose = apply(to_crop, refined), estimate_head_pose(refined)
    view = _camera(picture, refined, pose, method).moved(to_crop)
    off = float(np.abs(view.anchors - canonical).max()) / size
    warnings = []
    if off > 0.04:
        warnings.append(
            f"The landmarks of the aligned photo lie up to {100 * off:.0f} % of its side from their canonical places; "
            "use aligned=false unless that is meant."
        )
    return landmarks, source_to_crop, view, pose, face.score, warnings


def _cut(path, photo: LoadedPhoto, source_to_crop: np.ndarray, size: int) -> AlignedCrop:
    """Cut the crop; decode that part of the file again at full size when the working copy is too coarse."""
    to_crop = compose(source_to_crop, photo.to_source)
    if scale(to_crop) > 1.05 and photo.to_source[0, 0] > 1.05:
        corners = np.array([[0.0, 0], [size, 0], [0, size], [size, size]])
        box = apply(inverse(source_to_crop), corners)
        margin = 8 / scale(source_to_crop)
        photo = load_photo(path, WORKING_SIDE, box=(*(box.min(0) - margin), *(box.max(0) + margin)))
        to_crop = compose(source_to_crop, photo.to_source)
    rgb = torch.from_numpy(photo.rgb).float() / 255
    alpha = None if photo.alpha is None else torch.from_numpy(photo.alpha).float() / 255
    return cut_crop(rgb, to_crop, size, alpha)


def _opaque(photo: LoadedPhoto) -> np.ndarray:
    """(H, W, 3) uint8 with transparent parts over mid grey: their stored colours are meaningless."""
    if photo.alpha is None:
        return photo.rgb
    cover = photo.alpha[..., None].astype(np.float32) / 255
    return (photo.rgb * cover + 128 * (1 - cover) + 0.5).astype(np.uint8)


def _over_grey(crop: AlignedCrop) -> Tensor:
    return crop.rgb if crop.alpha is None else crop.rgb * crop.alpha + 0.5 * (1 - crop.alpha)


def _cuts_out(crop: AlignedCrop) -> bool:
    """Whether the own alpha is a cut-out: it hides 5 % of the crop or more; rounded corners hide less."""
    if crop.alpha is None:
        return False
    return bool(((crop.alpha < 0.5) * crop.valid).sum() > 0.05 * crop.valid.sum())


def _extend(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Own alpha comes with its own foreground colours: keep them, and continue them outwards where alpha is 0."""
    outwards = estimate_foreground(rgb, (alpha > 0.5).to(alpha), alpha)
    return torch.where(alpha > 0.02, rgb, outwards)


def _quality_warnings(source_to_crop, crop: AlignedCrop, alpha: Tensor, method: str) -> list[str]:
    warnings = []
    if scale(source_to_crop) > 2.5:
        warnings.append(
            f"The face is small: the crop enlarges the photo {scale(source_to_crop):.1f} times and will be soft."
        )
    size = crop.valid.shape[0]
    head = crop.valid[int(0.12 * size) : int(0.8 * size), int(0.25 * size) : int(0.75 * size)]
    if float(head.mean()) < 0.98:
        warnings.append("Part of the head lies outside the photo; the missing part will be invented.")
    if method == "none":
        return warnings
    inside = crop.valid.sum().clamp_min(1)
    covered = float(alpha.sum() / inside)
    centre = float(alpha[int(0.45 * size) : int(0.7 * size), int(0.42 * size) : int(0.58 * size)].mean())
    if not 0.12 < covered < 0.95 or centre < 0.9:
        warnings.append(
            f"The matte looks wrong (it covers {100 * covered:.0f} % of the crop); try another 'matte', or give a "
            "file with its own alpha."
        )
    return warnings
