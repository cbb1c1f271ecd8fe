"""Several processes train one model: gradients are averaged after the step's backward, so that it can be replayed.

Torch's DDP reduces gradients inside the backward pass, which a captured CUDA graph cannot do. Here every rank replays
its own graph and one all-reduce averages the gradients afterwards.
"""

import atexit

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import nn


def several() -> bool:
    """Is this one of several processes of a training?"""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks, in one transfer. Without effect in a single process.

    Every rank must have gradients of the same parameters; those that are None stay None.
    """
    if not several():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients)])


def leave() -> None:
    """Close the connections to the other ranks, where there are any.

    The threads of gloo's connections must not outlive the interpreter: a process that ends with them open is aborted
    now and then ("terminate called without an active exception"), after its work and with an exit status of failure.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class RanksStrategy(DDPStrategy):
    """Lightning's processes and devices of DDP without its wrapper; all ranks begin with the weights of rank 0."""

    def configure_ddp(self) -> None:
        """Nothing is wrapped; `average_gradients` is the step's own business."""
        atexit.register(leave)  # Lightning does so for nccl alone
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, src=0)
