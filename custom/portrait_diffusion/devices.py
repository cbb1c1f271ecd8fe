"""Where things run unless told otherwise, and whether their memory ran out."""
import torch


def default_device() -> torch.device:
    """The accelerator if torch sees one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out: Python's, numpy's, or torch's on any device."""
    # on the CPU torch raises a plain RuntimeError that names its allocator
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
