"""The denoiser's answer as one CUDA graph: a few thousand kernels are launched at once instead of one by one."""
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .conditions import Conditions, References
from .model import HPDM, Prediction

WARM_UP = 2
"""Plain calls before the capture: libraries choose algorithms, caches fill."""


def static_copy(x: Tensor) -> Tensor:
    """A copy at an address of its own; what is expanded over the first axis stays so."""
    return x[:1].clone().expand_as(x) if x.stride(0) == 0 else x.clone()


def refill(target: Tensor, x: Tensor) -> None:
    """Put new values into a `static_copy`."""
    if target.stride(0) == 0:
        target[:1].copy_(x[:1])
    else:
        target.copy_(x)


class Recorded:
    """A function of tensors that is captured on its first call and replayed on others; shapes must stay the same.

    Args: function; inputs of the first call; pool: of the graphs' memory, None runs the function itself on the copied
        inputs, as a CPU must.
    Attributes: calls: of the function in order to capture it; a replay does not call it.
    """

    def __init__(self, function: Callable, inputs: list[Tensor], pool):
        self.function, self.inputs = function, [static_copy(x) for x in inputs]
        self.graph = self.result = None
        self.calls = 0 if pool is None else WARM_UP + 1
        if pool is None:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.result = function(*self.inputs)

    def __call__(self, inputs: list[Tensor]):
        for target, x in zip(self.inputs, inputs, strict=True):
            refill(target, x)
        if self.graph is None:
            return self.function(*self.inputs)
        self.graph.replay()
        return self.result


class GraphedPredict:
    """`HPDM.predict` without gradients, as one CUDA graph for each combination of shapes and scales.

    Scales that follow a schedule make a graph for each of their values: after `MOST` the oldest is forgotten.
    """

    MOST = 4

    def __init__(self, model: HPDM, enabled: bool = True):
        self.model, self.recorded = model, {}
        self.pool = torch.cuda.graph_pool_handle() if enabled else None

    @torch.no_grad()
    def __call__(
        self, noisy: Tensor, timesteps: Tensor, conditions: Conditions, explicit_scale: float = 1.0,
        implicit_scale: float = 1.0, bank: dict[str, Tensor] | None = None,
    ) -> Prediction:  # fmt: skip
        """Args and returns: of `HPDM.predict`; with references the bank must be given."""
        gate = None if conditions.references is None else conditions.references.gate
        given = [noisy, timesteps, conditions.tokens, conditions.explicit, conditions.plain_tokens, gate]
        names = sorted(bank or {})
        tensors = [x for x in given if x is not None] + [bank[name] for name in names]
        there = tuple(x is not None for x in given)
        key = (there, tuple(names), explicit_scale, implicit_scale,
               tuple((tuple(x.shape), x.dtype, x.stride(0) == 0) for x in tensors))  # fmt: skip
        if key not in self.recorded:
            if len(self.recorded) >= self.MOST:
                del self.recorded[next(iter(self.recorded))]

            def predict(*inputs: Tensor) -> Prediction:
                rest = iter(inputs)
                x, t, tokens, explicit, plain, opened = (next(rest) if is_there else None for is_there in there)
                told = None if opened is None else References(None, None, None, opened)
                known = dict(zip(names, rest, strict=True)) or None
                return self.model.predict(
                    x, t, Conditions(tokens, explicit, told, plain), explicit_scale, implicit_scale, known
                )

            seen = self.model.rows_seen
            made = Recorded(predict, tensors, self.pool)
            rows = (self.model.rows_seen - seen) // max(1, made.calls)  # of one replay, which the model does not notice
            self.model.rows_seen, self.recorded[key] = seen, (made, rows)
        recorded, rows = self.recorded[key]
        found = recorded(tensors)
        self.model.rows_seen += rows
        return replace(found, **{name: x if x is None else x.clone() for name, x in vars(found).items()})
