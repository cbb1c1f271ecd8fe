"""Where things run unless told otherwise."""
import torch


def default_device() -> torch.device:
    """The accelerator if torch sees one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
