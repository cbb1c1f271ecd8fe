"""Plane and grid sampling as one weighted sum of table rows: the fast way on a CPU.

Twin of `ops.triplane.sample_planes` (same plane axes, `align_corners=False`, zeros outside). All texels of all levels
become rows of one table with the channels innermost; a point reads 4 rows a plane or 8 a grid in one call of
``embedding_bag``. On a CPU `grid_sample` walks through channels that lie far apart in memory and takes several times as
long. Value and gradients, also those of the coordinates, agree with it.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def _neighbours(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Lower neighbour among size + 2 texels, zeros around, and the weights (...,2) of it and the next; int32."""
    position = (((coordinate + 1) * size - 1) / 2).clamp(-1, size)
    lower = position.detach().floor().clamp(max=size - 1)
    upper_weight = position - lower
    return lower.int() + 1, torch.stack([1 - upper_weight, upper_weight], dim=-1)


class WeightedRows(torch.autograd.Function):
    """out_n = sum_k w_nk table[i_nk] on a CPU: ``embedding_bag``, whose gradient of the table is a sparse product here.

    With S the sparse (N,R) matrix of the weights it is S^T g, which scipy multiplies out in a quarter of the time that
    torch takes to sort the indices and add rows up. Not differentiable twice.
    """

    @staticmethod
    def forward(ctx: Any, index: Tensor, table: Tensor, weight: Tensor) -> Tensor:
        """(N,C) of index (N,K) int32, table (R,C), weight (N,K) of the table's dtype."""
        ctx.save_for_backward(index, table, weight)
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        index, table, weight = ctx.saved_tensors
        of_table = of_weight = None
        if ctx.needs_input_grad[1]:
            from scipy.sparse import csr_matrix  # importing the package loads none of its heavy dependencies

            starts = torch.arange(0, index.numel() + 1, index.shape[1], dtype=torch.int32)
            parts = (x.detach().contiguous().flatten().numpy() for x in (weight, index, starts))
            spread = csr_matrix(tuple(parts), shape=(len(index), len(table)), copy=False)
            of_table = torch.from_numpy(spread.T @ grad.contiguous().numpy())
        if ctx.needs_input_grad[2]:
            with torch.enable_grad():
                leaf = weight.detach().requires_grad_(True)
                out = F.embedding_bag(index, table.detach(), mode="sum", per_sample_weights=leaf)
            of_weight = torch.autograd.grad(out, leaf, grad)[0]
        return None, of_table, of_weight


def gather_planes(levels: list[Tensor], coords: Tensor, axes: tuple) -> Tensor:
    """Sum of the look-ups in all planes of all levels.

    Args:
        levels: (B,P,C,H,W) or (B,P,C,D,H,W) with P 3 or 1 and equal B and C.
        coords: (B,N,3) head frame over radius.
        axes: which coordinates each plane reads, see `ops.triplane`.

    Returns: (B,N,C). Once differentiable in levels and coords.
    """
    batch, channels = coords.shape[0], levels[0].shape[2]
    known: dict = {}  # neighbours by (axis, size): planes share them
    tables, indices, weights, start = [], [], [], 0
    for level in levels:
        if level.ndim == 6 and level.shape[3] == 1:
            level = level[:, :, :, 0]
        sizes = level.shape[3:]  # [D,] H, W
        padded = F.pad(level, (1, 1) * len(sizes)).movedim(2, -1)  # (B,P,[D+2,] H+2, W+2, C)
        tables.append(padded.reshape(-1, channels))
        cells = padded.shape[2:-1].numel()
        steps = [padded.shape[3 + k : -1].numel() for k in range(len(sizes))]
        offsets = torch.zeros(1, dtype=torch.int32, device=level.device)
        for step in steps:
            pair = torch.arange(0, 2 * step, step, dtype=torch.int32, device=level.device)
            offsets = (offsets[:, None] + pair).flatten()
        first = start + torch.arange(batch, dtype=torch.int32, device=level.device)[:, None] * (level.shape[1] * cells)
        for plane in range(level.shape[1]):
            lowest, weight = first + plane * cells, None
            for axis, size, step in zip(reversed(axes[plane][: len(sizes)]), sizes, steps):
                if (axis, size) not in known:
                    known[axis, size] = _neighbours(coords[..., axis], size)
                lower, pair = known[axis, size]
                lowest = lowest + lower * step
                weight = pair if weight is None else (weight[..., :, None] * pair[..., None, :]).flatten(-2)
            indices.append(lowest[..., None] + offsets)
            weights.append(weight)
        start += tables[-1].shape[0]
    index, weight = (torch.cat(parts, dim=-1).flatten(0, 1) for parts in (indices, weights))
    table = torch.cat(tables) if len(tables) > 1 else tables[0]
    weight = weight.to(table.dtype)
    single = table.dtype in (torch.float32, torch.float64)
    if table.device.type == "cpu" and single and table.requires_grad and torch.is_grad_enabled():
        out = WeightedRows.apply(index, table, weight)
    else:
        out = F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)
    return out.view(batch, -1, channels)
