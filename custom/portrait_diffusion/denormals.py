"""Numbers too small for a normal floating-point representation: a CPU computes with them many times more slowly."""
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """CPU arithmetic takes numbers below the normal range (1.2e-38 in float32) as 0 while the body runs.

    The gradients of a render die away behind surfaces down to such numbers, with which a convolution takes seven times
    as long. The mode belongs to a thread and to those that it starts: worker threads of torch that are there already
    keep theirs. Where the processor has no such mode nothing happens.
    """
    on_before = float(torch.tensor(1e-39) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(on_before)
