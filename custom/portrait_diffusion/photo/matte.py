"""Soft alpha of the person in a canonical crop: own alpha, MatteNet or GrabCut."""
import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UsageError
from .grabcut import GRABCUT_SIZE, portrait_mask, settle
from .guided_filter import guided_filter
from .matte_net import MATTE_SIZE, WEIGHTS_FILE, MatteNet, load_matte_net

MATTE_METHODS = ("auto", "network", "grabcut", "none")
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
    """MatteNet on the crop and on its mirror image at 256 pixels, averaged; wide doubts settled, then refined."""
    small, inside = _small(rgb, valid, MATTE_SIZE)
    pair = torch.cat([small * inside, (small * inside).flip(-1)])
    alpha = net(pair, torch.cat([inside, inside.flip(-1)])).sigmoid()
    alpha = (alpha[0] + alpha[1].flip(-1)) / 2
    return refine_alpha(rgb, valid, settle(small[0], inside[0], alpha))


def grabcut_alpha(rgb: Tensor, valid: Tensor) -> Tensor:
    """GrabCut from the portrait prior at 256 pixels, refined to a soft alpha along the crop's colours."""
    small, inside = _small(rgb, valid, GRABCUT_SIZE)
    return refine_alpha(rgb, valid, portrait_mask(small[0], inside[0]))


def _small(rgb: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Crop (1, 3, size, size) and where the photograph is (1, 1, size, size), 0 or 1."""
    layers = torch.cat([rgb, valid], -1).permute(2, 0, 1)[None]
    small = F.interpolate(layers, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return small[:, :3], (small[:, 3:] > 0.5).to(small.dtype)


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
