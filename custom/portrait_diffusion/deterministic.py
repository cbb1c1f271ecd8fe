"""The same numbers from every run on the same kind of GPU."""
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

HARMLESS = ("cumsum_cuda_kernel", "max_pool2d_with_indices_backward_cuda", "median CUDA with indices output")
"""Torch warns of every use of these, and here they come out the same: sums along the rows of a table, for one block of
threads makes each; the gradient of a pooling of contiguous pictures, which is gathered; medians, of which only the
positions among equal numbers may differ."""


@contextmanager
def deterministic_algorithms(on: bool = True) -> Iterator[None]:
    """PyTorch's deterministic algorithms while the body runs, ours among them (`ops.triplane_triton`).

    Sums that a GPU forms in whatever order its threads arrive differ in their last digits from run to run, and an
    optimisation makes more of them. An operation without a deterministic twin warns. To be entered before the first
    matrix product on a GPU, whose workspace is fixed then. Without a GPU nothing changes: a CPU's sums have an order.
    """
    if not on or not torch.cuda.is_available():
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help against reading it, at a cost
    try:
        with warnings.catch_warnings():
            for operation in HARMLESS:
                warnings.filterwarnings("ignore", message=f".*{operation}.*")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled
