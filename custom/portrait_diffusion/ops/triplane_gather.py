"""Plane and grid sampling as one weighted sum of table rows: the fast way on a CPU.

Twin of `ops.triplane.sample_planes` (same plane axes, `align_corners=False`, zeros outside). All texels of all levels
become rows of one table with the channels innermost; a point reads 4 rows a plane or 8 a grid in one call of
``embedding_bag``. On a CPU `grid_sample` walks through channels that lie far apart in memory and takes several times as
long. Value and gradients, also those of the coordinates, agree with it.

Rows and weights depend on the points alone, the table on the levels alone. Whoever asks at the same points again and
again keeps the one (`plane_rows`), whoever asks the same levels in many parts the other (`kept_tables`).
"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST = 8
"""Tables kept at the same time; a body that makes new levels all the time must not fill the memory."""
_tables: ContextVar["Kept | None"] = ContextVar("tables", default=None)


class Kept(NamedTuple):
    """Tables built so far by the ids of their levels, and whether levels that need gradients are kept, too."""

    built: dict
    gradients: bool


class Rows(NamedTuple):
    """Which rows of a table points read: index (B*N,K) int32, and with which weights (B*N,K)."""

    index: Tensor
    weight: Tensor


def _neighbours(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """First of two neighbouring texels, int32, and the weights of both; 0 for texels that do not exist."""
    position = ((coordinate + 1) * (size / 2) - 0.5).clamp(-1, size)
    lower = position.detach().floor().clamp(max=size - 1)
    upper_weight = position - lower
    lower_weight = 1 - upper_weight
    first = lower.clamp(0, max(size - 2, 0))
    off = lower - first  # -1 before the first texel, 1 after the last but one
    between, before, after = (off == 0).to(off), off.clamp(max=0).neg(), off.clamp(min=0)
    one = lower_weight * between + upper_weight * before
    other = upper_weight * between + lower_weight * after
    return first.int(), one, other if size > 1 else torch.zeros_like(other)


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


def weighted_rows(rows: Rows, table: Tensor) -> Tensor:
    """Weighted sums (B*N,C) of rows of a table (R,C); once differentiable in weights and table."""
    weight = rows.weight.to(table.dtype)
    single = table.dtype in (torch.float32, torch.float64)
    if table.device.type == "cpu" and single and table.requires_grad and torch.is_grad_enabled():
        return WeightedRows.apply(rows.index, table, weight)
    return F.embedding_bag(rows.index, table, mode="sum", per_sample_weights=weight)


def plane_rows(shapes: Sequence[Sequence[int]], coords: Tensor, axes: tuple) -> Rows:
    """Rows of the table of levels (`plane_table`) that points read.

    Args:
        shapes: of the levels, (B,P,C,H,W) or (B,P,C,D,H,W).
        coords: (B,N,3) head frame over radius; the weights are differentiable in them.
        axes: which coordinates each plane reads, see `ops.triplane`.
    """
    batch, points = coords.shape[:2]
    apart = coords.movedim(-1, 0).flatten(1).contiguous()  # (3, B*N): long rows are what a CPU is fast with
    known: dict = {}  # neighbours by (axis, size): planes share them
    item = 0 if batch == 1 else torch.arange(batch, dtype=torch.int32, device=coords.device).repeat_interleave(points)
    indices, weights, start = [], [], 0
    for shape in shapes:
        sizes = shape[3:] if len(shape) == 5 or shape[3] > 1 else shape[4:]  # [D,] H, W
        cells = torch.Size(sizes).numel()
        for plane in range(shape[1]):
            lowest, step = item * (shape[1] * cells), cells
            offsets, shares = [start + plane * cells], [None]
            for axis, size in zip(reversed(axes[plane][: len(sizes)]), sizes):
                step //= size
                if (axis, size) not in known:
                    known[axis, size] = _neighbours(apart[axis], size)
                first, *pair = known[axis, size]
                lowest = lowest + first * step
                offsets = [offset + further for offset in offsets for further in (0, step if size > 1 else 0)]
                shares = [part if share is None else share * part for share in shares for part in pair]
            indices += [lowest + offset for offset in offsets]
            weights += shares
        start += batch * shape[1] * cells
    return Rows(*(torch.stack(parts).t().contiguous() for parts in (indices, weights)))


def plane_table(levels: Sequence[Tensor]) -> Tensor:
    """All texels of levels as rows (R,C): batch, plane, layer, row, column of the first level, then of the next."""
    kept, changing = _tables.get(), _changing(levels)
    if kept is None or (changing and not kept.gradients):
        return _built(levels)
    key = (changing, *(id(level) for level in levels))
    if key not in kept.built:
        if len(kept.built) >= MOST:
            kept.built.clear()
        kept.built[key] = _built(levels), tuple(levels)  # held, so that no other tensor gets their ids
    return kept.built[key][0]


def table_is_kept(levels: Sequence[Tensor]) -> bool:
    """Whether levels that need no gradients are made a table at most once, see `kept_tables`."""
    return _tables.get() is not None and not _changing(levels)


def _changing(levels: Sequence[Tensor]) -> bool:
    """Whether what is made of the levels now is a part of a graph, which ends with its backward pass."""
    return torch.is_grad_enabled() and any(level.requires_grad for level in levels)


def _built(levels: Sequence[Tensor]) -> Tensor:
    return torch.cat([plane.flatten(1).t() for level in levels for plane in level.flatten(0, 1)])


@contextmanager
def kept_tables(gradients: bool = False) -> Iterator[None]:
    """Levels that need no gradients are made a table once while the body runs, which must not change them.

    Args: gradients: also levels that need them: their table's gradient is summed before it goes back to the levels. The
        body is then one pass forward at most, for after a backward pass the table's graph is gone.
    """
    outer = _tables.get()
    if outer is not None and (outer.gradients or not gradients):
        yield
        return
    token = _tables.set(Kept({}, gradients))
    try:
        yield
    finally:
        _tables.reset(token)


def gather_planes(levels: Sequence[Tensor], coords: Tensor, axes: tuple) -> Tensor:
    """Sum of the look-ups in all planes of all levels.

    Args:
        levels: (B,P,C,H,W) or (B,P,C,D,H,W) with P 3 or 1 and equal B and C.
        coords: (B,N,3) head frame over radius.
        axes: which coordinates each plane reads, see `ops.triplane`.

    Returns: (B,N,C). Once differentiable in levels and coords.
    """
    rows = plane_rows([level.shape for level in levels], coords, axes)
    return weighted_rows(rows, plane_table(levels)).view(*coords.shape[:2], -1)
