"""A function with gradients as two CUDA graphs, forward and backward: hundreds of kernels are launched by two calls.

`torch.cuda.make_graphed_callables` does much the same, but hands out its own memory: a second backward pass into the
same ``.grad`` then adds to a gradient that it has overwritten, and a second forward pass before the gradients of the
first spoils these. Here results and gradients are copies, and in the second case the function is called plainly.
"""
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Tensors = dict[str, Tensor]
Function = Callable[[Tensors, Tensors], Tensors]
"""Of parameters and inputs by name; returns results by name."""


class Turn:
    """One forward pass, alive as long as its gradients may be asked for."""

    taken = False


class Recorded:
    """A function at one set of shapes: captured once, then replayed. On a CPU it is run in place of every replay.

    Args: function: see `GraphedFunction`; parameters and inputs of the first call.
    """

    WARM_UP = 3

    def __init__(self, function: Function, parameters: Tensors, inputs: Tensors):
        self.function, self.turn = function, None
        # aliases: they see what optimizers do in place, and bring no autograd nodes of other streams along
        self.leaves = {name: x.detach().requires_grad_(x.requires_grad) for name, x in parameters.items()}
        self.inputs = {name: x.detach().clone() for name, x in inputs.items()}
        self.forward, self.backward = self._forward, self._backward
        self.results: Tensors = {}
        self.pulls: list[Tensor] = []
        self.gradients: tuple = ()
        self.place = next(iter(self.inputs.values()))
        if self.place.is_cuda:
            with torch.cuda.device_of(self.place):
                self._capture()

    def _forward(self) -> None:
        device = self.place.device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        with torch.enable_grad(), torch.autocast(device, dtype, enabled, cache_enabled=False):
            self.results = self.function(self.leaves, self.inputs)
        if not self.pulls:
            self.pulls = [torch.zeros_like(x) for x in self.results.values() if x.requires_grad]

    def _backward(self) -> None:
        results = [x for x in self.results.values() if x.requires_grad]
        leaves = [x for x in self.leaves.values() if x.requires_grad]
        self.gradients = torch.autograd.grad(results, leaves, self.pulls, allow_unused=True)

    def _capture(self) -> None:
        """Run a few times (kernels are compiled, libraries choose algorithms), then record both passes."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP):
                self._forward()
                self._backward()
        torch.cuda.current_stream().wait_stream(stream)
        self.results, self.gradients = {}, ()  # their memory is free for the capture
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, stream=stream):
            self._forward()
        with torch.cuda.graph(backward, pool=forward.pool(), stream=stream):
            self._backward()
        self.forward, self.backward = forward.replay, backward.replay

    def waiting(self) -> bool:
        """Whether gradients of the last call may still be asked for: another call would overwrite what they need."""
        turn = None if self.turn is None else self.turn()
        return turn is not None and not turn.taken

    def __call__(self, parameters: Tensors, inputs: Tensors) -> Tensors:
        for name, x in inputs.items():
            self.inputs[name].copy_(x)
        turn = Turn()
        self.turn = weakref.ref(turn)
        results = _Replay.apply(self, turn, *parameters.values())
        return dict(zip(self.results, results, strict=True))


class _Replay(torch.autograd.Function):
    """Replays a `Recorded`: copies of its results, and in the backward pass of its gradients."""

    @staticmethod
    def forward(ctx, recorded: Recorded, turn: Turn, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded, ctx.turn = recorded, turn
        ctx.set_materialize_grads(False)
        with torch.cuda.device_of(recorded.place):
            recorded.forward()
        copies = [(x.detach().clone(), x.requires_grad) for x in recorded.results.values()]
        ctx.mark_non_differentiable(*(copy for copy, moves in copies if not moves))
        ctx.moves = [moves for _, moves in copies]
        return tuple(copy for copy, _ in copies)

    @staticmethod
    @once_differentiable
    def backward(ctx, *pulls: Tensor | None):
        recorded = ctx.recorded
        if ctx.turn.taken:
            raise RuntimeError("gradients of a render with renderer.cuda_graphs can be taken once; set it to false.")
        ctx.turn.taken = True
        asked = [pull for pull, moves in zip(pulls, ctx.moves) if moves]
        for target, pull in zip(recorded.pulls, asked, strict=True):
            target.zero_() if pull is None else target.copy_(pull)
        recorded.backward()
        found = iter(recorded.gradients)
        gradients = (next(found) if leaf.requires_grad else None for leaf in recorded.leaves.values())
        return None, None, *(None if x is None else x.clone() for x in gradients)


class GraphedFunction:
    """Calls a function as CUDA graphs, one pair for each combination of shapes.

    The function must do the same work for the same shapes: no branches on values, nothing copied from or to the host,
    no randomness but from its inputs. Parameters are read where they are, so changes in place are seen; one that has
    moved, or that begins or ceases to need gradients, makes new graphs. Of more than `MOST` pairs the one unused for
    longest is forgotten.

    Args: function: of parameters and inputs by name, returns results by name; differentiable in the parameters, once.
    """

    MOST = 4

    def __init__(self, function: Function):
        self.function, self.recorded = function, {}

    def __call__(self, parameters: Tensors, inputs: Tensors, read: Tensors) -> Tensors:
        """Results of the function, as copies.

        Args:
            parameters: tensors that may need gradients, at least one of them does.
            inputs: tensors without gradients; copied at every call.
            read: other tensors that the function reads where they are, such as buffers.
        """
        device = next(iter(inputs.values())).device.type
        there = (*parameters.values(), *read.values())
        key = (
            tuple((name, tuple(x.shape), x.dtype, x.device) for name, x in inputs.items()),
            tuple((x.data_ptr(), tuple(x.shape), x.dtype, x.requires_grad) for x in there),
            torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), torch.get_float32_matmul_precision(),
        )  # fmt: skip
        found = self.recorded.pop(key, None)
        if found is None:
            if len(self.recorded) >= self.MOST:
                if device == "cuda":
                    torch.cuda.synchronize()  # it may still be running
                del self.recorded[next(iter(self.recorded))]
            found = Recorded(self.function, parameters, inputs)
        self.recorded[key] = found  # the last in line
        return self.function(parameters, inputs) if found.waiting() else found(parameters, inputs)
