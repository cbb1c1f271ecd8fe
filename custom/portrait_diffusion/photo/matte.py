"""Soft alpha of the person in a canonical crop: own alpha, MatteNet or GrabCut."""
import logging

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UsageError
from ..optional import require
from .guided_filter import guided_filter
from .matte_net import MATTE_SIZE, WEIGHTS_FILE, MatteNet, load_matte_net

MATTE_METHODS = ("auto", "network", "grabcut", "none")
GRABCUT_SIZE = 256
_log = logging.getLogger("portrait_diffusion")


def choose_matte(method: str, has_own_alpha: bool = False, announce: bool = False) -> str:
    """Resolve ``auto`` and check the name.

    Args:
        method: one of ``MATTE_METHODS``.
        has_own_alpha: the file has an alpha channel, which ``auto`` prefers to any guess.
        announce: log what ``auto`` chose.

    Returns: ``own``, ``network``, ``grabcut`` or ``none``.
    Raises: UsageError for an unknown name.
    """
    if method not in MATTE_METHODS:
        raise UsageError(f"matte is '{method}'; expected one of: {', '.join(MATTE_METHODS)}.")
    if method != "auto":
        return method
    if has_own_alpha:
        chosen, reason = "own", "the file has an alpha channel"
    elif WEIGHTS_FILE.is_file():
        chosen, reason = "network", "its weights are present"
    else:
        chosen, reason = "grabcut", f"'{WEIGHTS_FILE.name}' is not present"
    if announce:
        _log.info("matte: auto chose '%s' because %s.", chosen, reason)
    return chosen


def estimate_alpha(rgb: Tensor, valid: Tensor, method: str, net: MatteNet | None = None) -> Tensor:
    """Alpha of a canonical crop.

    Args:
        rgb: (S, S, 3) in [0, 1].
        valid: (S, S, 1), 1 inside the photograph.
        method: ``network``, ``grabcut`` or ``none`` (1 everywhere inside the photograph).
        net: network to use instead of the shipped one.

    Returns: (S, S, 1) in [0, 1], 0 outside the photograph.
    Raises: EnvironmentProblem when the network is asked for and its weights are missing.
    """
    if method == "none":
        return valid.clone()
    if method == "network":
        return network_alpha(rgb, valid, net or load_matte_net())
    if method == "grabcut":
        return grabcut_alpha(rgb, valid)
    raise UsageError(f"matte is '{method}'; expected network, grabcut or none.")


@torch.no_grad()
def network_alpha(rgb: Tensor, valid: Tensor, net: MatteNet) -> Tensor:
    """MatteNet on the crop and on its mirror image at 256 pixels, averaged, then refined along the crop's colours."""
    layers = torch.cat([rgb, valid], -1).permute(2, 0, 1)[None]
    small = F.interpolate(layers, size=(MATTE_SIZE, MATTE_SIZE), mode="bilinear", align_corners=False, antialias=True)
    inside = (small[:, 3:] > 0.5).to(small.dtype)
    pair = torch.cat([small[:, :3] * inside, (small[:, :3] * inside).flip(-1)])
    alpha = net(pair, torch.cat([inside, inside.flip(-1)])).sigmoid()
    alpha = (alpha[:1] + alpha[1:].flip(-1)) / 2
    return refine_alpha(rgb, valid, alpha[0])


def refine_alpha(rgb: Tensor, valid: Tensor, alpha: Tensor, radius: int = 6, eps: float = 1e-4) -> Tensor:
    """Bring a small alpha to the crop's size: enlarge, then let its soft border follow the colours (guided filter).

    Args:
        rgb: (S, S, 3) in [0, 1].
        valid: (S, S, 1).
        alpha: (1, h, w) in [0, 1].
        radius: guided-filter half width at S = 512.
        eps: guided-filter regularisation.

    Returns: (S, S, 1) in [0, 1], 0 outside the photograph. Pixels whose surroundings are surely inside or outside
        keep 1 or 0.
    """
    size = rgb.shape[0]
    large = F.interpolate(alpha[None], size=(size, size), mode="bilinear", align_corners=False)[0]
    radius = max(1, round(radius * size / 512))
    soft = guided_filter(rgb.permute(2, 0, 1), large, radius, eps).clamp(0, 1)
    # contrast against the filter's haze: 5 % and 95 % become 0 and 1
    soft = ((soft - 0.05) / 0.9).clamp(0, 1)
    reach = 2 * radius + 1
    lowest = -F.max_pool2d(-large[None], reach, 1, radius)[0]
    highest = F.max_pool2d(large[None], reach, 1, radius)[0]
    soft = torch.where(lowest > 0.95, torch.ones_like(soft), torch.where(highest < 0.05, torch.zeros_like(soft), soft))
    return soft.permute(1, 2, 0) * valid


def portrait_prior(size: int) -> np.ndarray:
    """(S, S) uint8 GrabCut labels of a canonical crop before its colours are seen.

    Sure foreground: face and lower forehead with the hairline, neck, and the middle of the chest. Probable
    foreground: the head with its hair, and shoulders that widen downwards. Sure background: what lies outside a large
        ellipse about the head, above
    the shoulders. The rest is probable background. All follow from the canonical landmark positions
    (docs/architecture.md).
    """
    cv2 = require("cv2", extra="photo", package="opencv-python-headless")
    centre = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(centre - 0.5, centre)
    labels = np.full((size, size), cv2.GC_PR_BGD, np.uint8)
    labels[((u / 0.43) ** 2 + ((v - 0.52) / 0.5) ** 2 > 1) & (v < 0.62)] = cv2.GC_BGD
    labels[(u / 0.32) ** 2 + ((v - 0.5) / 0.44) ** 2 < 1] = cv2.GC_PR_FGD
    labels[(v > 0.8) & (np.abs(u) < 0.2 + 2.0 * (v - 0.8))] = cv2.GC_PR_FGD
    labels[(u / 0.17) ** 2 + ((v - 0.485) / 0.305) ** 2 < 1] = cv2.GC_FGD
    labels[(v > 0.7) & (np.abs(u) < 0.08 + 1.2 * np.clip(v - 0.88, 0, None))] = cv2.GC_FGD
    return labels


def grabcut_alpha(rgb: Tensor, valid: Tensor, iterations: int = 6) -> Tensor:
    """GrabCut (Rother, Kolmogorov and Blake 2004) from the portrait prior, largest part, holes filled, refined to a
    soft alpha.

    OpenCV draws its initial colour clusters from its own random state, which is set here, so results repeat.
    """
    cv2 = require("cv2", extra="photo", package="opencv-python-headless")
    layers = torch.cat([rgb, valid], -1).permute(2, 0, 1)[None]
    small = F.interpolate(layers, size=(GRABCUT_SIZE,) * 2, mode="bilinear", align_corners=False, antialias=True)[0]
    picture = (small[:3].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()[..., ::-1]
    labels = portrait_prior(GRABCUT_SIZE)
    picture = _fill_unknown(picture, labels == cv2.GC_BGD, small[3].cpu().numpy() > 0.5)
    labels[small[3].cpu().numpy() < 0.5] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    labels, *_ = cv2.grabCut(np.ascontiguousarray(picture), labels, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    mask = _main_part(np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8), cv2)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0)
    return refine_alpha(rgb, valid, torch.from_numpy(soft)[None].to(rgb))


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
