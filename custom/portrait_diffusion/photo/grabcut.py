"""GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004): a mask from colours alone, or where a network is in doubt.

OpenCV draws its initial colour clusters from its own random state, which is set here, so results repeat.
"""
import numpy as np
import torch
from torch import Tensor

from ..optional import require

GRABCUT_SIZE = 256
DOUBT = (0.05, 0.95)
"""Alpha between these is a doubt; beyond them the network is believed."""
WIDE = 3
"""Radius in pixels at 256 of a disc that fits into a wide doubt: hair and matte edges are narrower."""


def portrait_prior(size: int) -> np.ndarray:
    """(S, S) uint8 GrabCut labels of a canonical crop before its colours are seen.

    Sure foreground: face and lower forehead with the hairline, neck, and the middle of the chest. Probable
    foreground: the head with its hair, and shoulders that widen downwards. Sure background: what lies outside a large
    ellipse about the head, above the shoulders. The rest is probable background. All follow from the canonical landmark
    positions (docs/architecture.md).
    """
    cv2 = _cv2()
    centre = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(centre - 0.5, centre)
    labels = np.full((size, size), cv2.GC_PR_BGD, np.uint8)
    labels[((u / 0.43) ** 2 + ((v - 0.52) / 0.5) ** 2 > 1) & (v < 0.62)] = cv2.GC_BGD
    labels[(u / 0.32) ** 2 + ((v - 0.5) / 0.44) ** 2 < 1] = cv2.GC_PR_FGD
    labels[(v > 0.8) & (np.abs(u) < 0.2 + 2.0 * (v - 0.8))] = cv2.GC_PR_FGD
    labels[(u / 0.17) ** 2 + ((v - 0.485) / 0.305) ** 2 < 1] = cv2.GC_FGD
    labels[(v > 0.7) & (np.abs(u) < 0.08 + 1.2 * np.clip(v - 0.88, 0, None))] = cv2.GC_FGD
    return labels


def portrait_mask(rgb: Tensor, inside: Tensor) -> Tensor:
    """Mask of a canonical crop from the portrait prior: largest part, holes filled, its edge softened by one pixel.

    Args: rgb (3, S, S) in [0, 1]; inside (1, S, S), 1 inside the photograph. Returns: (1, S, S) in [0, 1].
    """
    return _softened(_cut(rgb, inside, portrait_prior(rgb.shape[-1]), iterations=6)).to(rgb)


def settle(rgb: Tensor, inside: Tensor, alpha: Tensor) -> Tensor:
    """Decide wide doubts of a network's alpha by colour: person or background.

    GrabCut starts from the alpha: what is surely in or out by `DOUBT` stays so and teaches the colours. Its answer
    replaces the alpha where a disc of radius `WIDE` fits into a doubt, faded over a pixel; soft hair stays soft.

    Args: rgb (3, S, S) in [0, 1]; inside (1, S, S), 1 inside the photograph; alpha (1, S, S). Returns: (1, S, S);
        the alpha itself when it has no wide doubt or nothing that is sure.
    """
    cv2 = _cv2()
    a = alpha[0].cpu().numpy().astype(np.float32)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * WIDE + 1, 2 * WIDE + 1))
    doubt = ((a > DOUBT[0]) & (a < DOUBT[1])).astype(np.uint8)
    wide = cv2.morphologyEx(doubt, cv2.MORPH_OPEN, disc)
    if not wide.any() or not (a >= DOUBT[1]).any() or not (a <= DOUBT[0]).any():
        return alpha
    probable = np.where(a > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    labels = np.where(a >= DOUBT[1], cv2.GC_FGD, np.where(a <= DOUBT[0], cv2.GC_BGD, probable)).astype(np.uint8)
    settled = _softened(_cut(rgb, inside, labels, iterations=5))
    share = _softened(cv2.dilate(wide, disc))
    return torch.lerp(alpha, settled.to(alpha), share.to(alpha))


def _cv2():
    return require("cv2", extra="photo", package="opencv-python-headless")


def _softened(mask: np.ndarray) -> Tensor:
    """(1, S, S) float: a mask of 0 and 1 blurred by a Gaussian of one pixel."""
    return torch.from_numpy(_cv2().GaussianBlur(mask.astype(np.float32), (0, 0), 1.0))[None]


def _cut(rgb: Tensor, inside: Tensor, labels: np.ndarray, iterations: int) -> np.ndarray:
    """Main part (S, S) of the foreground that GrabCut finds from labels; uint8."""
    cv2 = _cv2()
    picture = (rgb.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()[..., ::-1]
    known = inside[0].cpu().numpy() > 0.5
    picture = _fill_unknown(picture, labels == cv2.GC_BGD, known)
    labels = np.where(known, labels, np.uint8(cv2.GC_BGD))
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    labels, *_ = cv2.grabCut(np.ascontiguousarray(picture), labels, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    return _main_part(np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8), cv2)


def _fill_unknown(picture: np.ndarray, background: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Give pixels outside the photograph colours drawn from its sure background: they teach GrabCut nothing."""
    samples = picture[background & valid]
    if len(samples) == 0:
        return picture
    picture = picture.copy()
    picture[~valid] = samples[np.random.default_rng(0).integers(0, len(samples), int((~valid).sum()))]
    return picture


def _main_part(mask: np.ndarray, cv2) -> np.ndarray:
    """The connected part under the face, opened by a small disc, with holes that do not touch the border filled."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc)
    _, parts = cv2.connectedComponents(mask)
    size = len(mask)
    at_face = parts[int(0.54 * size), size // 2]
    mask = (parts == at_face).astype(np.uint8) if at_face else mask
    outside = np.pad(1 - mask, 1, constant_values=1)
    _, holes = cv2.connectedComponents(outside)
    return (holes[1:-1, 1:-1] != holes[0, 0]).astype(np.uint8)
