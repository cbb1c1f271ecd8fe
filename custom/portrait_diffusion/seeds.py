"""Seeds of steps: what a step draws follows from seed and step alone, so that a resumed run equals an unbroken one."""
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of a generator for one step. Args: seed and step, not negative; rank of the process, below 1024."""
    return ((seed * 1_000_003 + step) * 1024 + rank) % 2**63


@contextmanager
def seeded(seed: int, device: torch.device | str) -> Iterator[None]:
    """Torch's global generators of the CPU and of `device` start from `seed` inside and are as before outside.

    For code that draws from them: it then depends on the seed alone, and runs resume exactly.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
