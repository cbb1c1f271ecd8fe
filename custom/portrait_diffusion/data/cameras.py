"""Training cameras as a function of seed and step: they run evenly over their ranges, and runs resume exactly."""
import math

import torch
from torch import Tensor

from ..seeds import step_seed

GOLDEN = ((math.sqrt(5) - 1) / 2, math.sqrt(2) - 1, math.sqrt(3) - 1)
"""Irrational steps of sequences that fill [0, 1) evenly (Weyl: n a mod 1); one for each quantity."""


def along_ranges(share: float, ranges: list) -> float:
    """The point that lies so far, in [0, 1), along ranges [low, high] put one behind the other."""
    lengths = [high - low for low, high in ranges]
    total = sum(lengths)
    if total == 0:
        return float(ranges[min(int(share * len(ranges)), len(ranges) - 1)][0])
    way = share * total
    for (low, _), length in zip(ranges, lengths):
        if way < length:
            return low + way
        way -= length
    return float(ranges[-1][1])


def draw_angles(
    step: int, seed: int, views: int, azimuths: list, elevations: list, pairs: str, pair_deg: list
) -> tuple[Tensor, Tensor]:
    """Azimuths and elevations (views,) in degrees of one step.

    The first view runs evenly over `azimuths`, by turns in its first and second half, so that two steps in a row look
    at both sides of the head. The others are its neighbours, by turns left and right, or lie a half turn away, or run
    over the ranges on their own.

    Args: see `systems.stages.StageConfig`; step counts from 0.
    """
    generator = torch.Generator().manual_seed(step_seed(seed, step))
    offset = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()

    def even(which: int, n: int) -> float:
        return (offset[which] + n * GOLDEN[which]) % 1.0

    half = (0.5 * even(0, step // 2) + 0.5 * (step % 2)) % 1.0
    first, height = along_ranges(half, azimuths), along_ranges(even(1, step), [elevations])
    out, heights = [first], [height]
    for k in range(1, views):
        angle = along_ranges(float(torch.rand((), generator=generator)), [pair_deg])
        if pairs == "neighbours":
            side = 1 if (k + step // 2) % 2 else -1
            out.append(first + side * angle * ((k + 1) // 2))
            heights.append(height)
        elif pairs == "antipodal":
            out.append(first + 180.0 * k)
            heights.append(height)
        else:
            out.append(along_ranges(even(0, step * views + k), azimuths))
            heights.append(along_ranges(even(2, step * views + k), [elevations]))
    wrapped = [(a + 180.0) % 360.0 - 180.0 for a in out]
    return torch.tensor(wrapped), torch.tensor(heights)
