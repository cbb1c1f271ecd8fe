"""A part of a training step as a CUDA graph: hundreds of small kernels are launched at once instead of one by one."""
from collections.abc import Callable

import torch
from torch import nn


class GraphedBackward:
    """Calls a function that ends in `backward()`; on CUDA, after a few plain calls, replays it as one graph.

    The function takes no arguments and must do the same work on every call: shapes, branches and the tensors it reads
    stay the same, nothing is copied from or to the host. What it returns is overwritten by the next call.

    Args:
        function: computes gradients of `parameters` and returns tensors.
        parameters: their gradients are set before the call returns, never accumulated over calls.
        generator: source of the function's randomness; advances on every replay as it would on a plain call.
        enabled: False calls the function plainly every time.
    """

    WARM_UP = 3

    def __init__(
        self, function: Callable, parameters: list[nn.Parameter], generator: torch.Generator, enabled: bool
    ):
        self.function, self.parameters, self.generator, self.enabled = function, parameters, generator, enabled
        self.calls, self.graph, self.result, self.gradients = 0, None, None, []
        self.stream = torch.cuda.Stream() if enabled else None

    def __call__(self):
        if self.graph is None:
            for parameter in self.parameters:
                parameter.grad = None
        if not self.enabled:
            return self.function()
        if self.graph is None:
            self.calls += 1
            if self.calls <= self.WARM_UP:
                return self._beside(self.function)
            self._capture()
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient
        return self.result

    def _beside(self, function: Callable):
        """Run on the stream of the capture, so that autograd's nodes belong to it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=self.stream):
            self.result = self.function()
        self.graph = graph
        self.gradients = [parameter.grad for parameter in self.parameters]
