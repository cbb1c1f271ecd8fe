"""The cubic step: 0 below, 1 above, with zero slope at both ends."""
from torch import Tensor


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """``t^2 (3 - 2 t)`` with ``t = (x - low) / (high - low)`` limited to [0, 1]; low < high."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
