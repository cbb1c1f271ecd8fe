"""Networks by torch.compile: fewer and larger kernels, for a minute or more before the first step."""
from collections.abc import Iterable

import torch
from torch import nn

MOST_SHAPES = 32
"""Variants that are kept of each network: by shape, and by what its attention does with references."""


def compile_networks(networks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile networks in place, each at its first call; weights and names stay. Args: backend: of torch.compile."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_SHAPES)
    for network in networks:
        network.compile(backend=backend, dynamic=False)
