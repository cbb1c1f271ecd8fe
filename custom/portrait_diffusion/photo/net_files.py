"""Weight files of the small networks that look at photographs: float16 safetensors with a model card beside them."""
import json
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ..errors import EnvironmentProblem, UsageError
from ..files import write_bytes, write_text
from ..optional import require

Net = TypeVar("Net", bound=nn.Module)


def save_net(net: nn.Module, path, card: dict) -> None:
    """Write weights as float16 safetensors, and the model card beside them as JSON, both atomically.

    Args:
        net: the network.
        path: ``.safetensors`` file to write; the card gets the same name with ``.json``.
        card: plain data describing the training.
    """
    safetensors = require("safetensors.torch", extra="photo", package="safetensors")
    path = Path(path)
    tensors = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in net.state_dict().items()}
    write_bytes(path, safetensors.save(tensors))
    write_text(path.with_suffix(".json"), json.dumps(card, indent=2, sort_keys=True) + "\n")


def load_net(net: Net, path: Path, missing: str) -> Net:
    """Read a network's weights onto the CPU.

    Args:
        net: a new network, which is filled.
        path: its safetensors file.
        missing: how to do without the file, a clause for the message.

    Returns: the network in float32, in evaluation mode, without gradients.
    Raises: EnvironmentProblem when the file is missing; UsageError when it holds something else.
    """
    if not path.is_file():
        raise EnvironmentProblem(f"The weights '{path}' are missing; {missing}.")
    safetensors = require("safetensors.torch", extra="photo", package="safetensors")
    try:
        tensors = safetensors.load_file(str(path))
        net.load_state_dict({name: value.float() for name, value in tensors.items()})
    except Exception as error:  # safetensors and torch raise many types on foreign files
        raise UsageError(
            f"'{path}' does not hold the weights of this {type(net).__name__}; train it again or restore the file."
        ) from error
    return net.eval().requires_grad_(False)
