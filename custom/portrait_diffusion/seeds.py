"""Seeds of steps: what a step draws follows from seed and step alone, so that a resumed run equals an unbroken one."""


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of a generator for one step. Args: seed and step, not negative; rank of the process, below 1024."""
    return ((seed * 1_000_003 + step) * 1024 + rank) % 2**63
