"""The model's networks by torch.compile: fewer and larger kernels, for a minute or more before the first step."""
import torch

from .model import HPDM

MOST_SHAPES = 32
"""Variants that are kept of each network: by shape, and by what its attention does with references."""


def compile_networks(model: HPDM, backend: str = "inductor") -> None:
    """Compile every network that a step of distillation runs, each at its first call; weights and names stay.

    Args: model: without gradients of its weights; backend: of torch.compile.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_SHAPES)
    for network in model.networks():
        network.compile(backend=backend, dynamic=False)
