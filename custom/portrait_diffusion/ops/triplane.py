"""Tri-planes, tri-grids and pyramids of them: sampling, and the decoder that turns features into density and colour.

Axes: ``B`` batch, ``N`` points, ``C`` channels, ``D, H, W`` depth, rows and columns of a plane. Coordinates are in the
head frame (x right, y up, z to the viewer), divided by the box radius, so the box is [-1, 1]^3.

Plane axes. Plane k reads coordinate ``axes[k][0]`` along its columns, ``axes[k][1]`` along its rows and ``axes[k][2]``
along its depth (tri-grids only); -1 is the first column, row or layer, so y grows with the row: planes of a standing
head are stored upside down. Ours, the corrected form of EG3D's:

    plane 0: (x, y), depth z      plane 1: (x, z), depth y      plane 2: (z, y), depth x

Planes 0 and 2 share their rows, so a feature at some height sits in the same row of the frontal and the profile plane.
Trained weights need the axes they were trained with: ``EG3D_AXES`` repeats a slip (plane 2 reads (z, x), so there is no
y-z plane; github.com/NVlabs/eg3d/issues/67), ``PANOHEAD_AXES`` has plane 2 as (y, z), the transpose of ours.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import choose
from .triplane_gather import gather_planes, table_is_kept

PLANE_AXES = ((0, 1, 2), (0, 2, 1), (2, 1, 0))
EG3D_AXES = ((0, 1, 2), (0, 2, 1), (2, 0, 1))
PANOHEAD_AXES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))

PlaneAxes = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]


class DecoderWeights(NamedTuple):
    """Weights of the two-layer decoder; row 0 of the output is density, rows 1 to 3 are colour."""

    hidden_weight: Tensor  # (64,C)
    hidden_bias: Tensor  # (64,)
    output_weight: Tensor  # (4,64)
    output_bias: Tensor  # (4,)


SAMPLERS = ("auto", "torch", "gather", "triton")
TRITON_PAYS = 1 << 22
"""Points times channels from which the kernels are faster on an H200 than `grid_sample`; below it, starting them takes
longer than the sampling itself."""


def _check_level(planes: Tensor, coords: Tensor) -> None:
    if planes.ndim not in (5, 6) or planes.shape[1] not in (1, 3):
        raise ValueError(
            "planes must have shape (B,3,C,H,W) or (B,3,C,D,H,W), with 1 in place of 3 for the frontal plane alone, "
            f"got {tuple(planes.shape)}."
        )
    if coords.ndim != 3 or coords.shape[-1] != 3 or coords.shape[0] != planes.shape[0]:
        raise ValueError(
            f"coords must have shape (B,N,3) with the planes' batch size {planes.shape[0]}, got {tuple(coords.shape)}."
        )


def _sample_level(planes: Tensor, coords: Tensor, axes: PlaneAxes) -> Tensor:
    """Features of one level before the reduction over planes: (B,3,C,N)."""
    if planes.ndim == 6 and planes.shape[3] == 1:
        planes = planes[:, :, :, 0]
    dims = planes.ndim - 3  # 2 for planes, 3 for grids
    n_planes = planes.shape[1]
    order = [axis for plane in axes[:n_planes] for axis in plane[:dims]]
    chosen = torch.stack([coords[..., axis] for axis in order], dim=-1)  # a list as index would be copied to the GPU
    grid = chosen.unflatten(-1, (n_planes, dims)).transpose(1, 2).flatten(0, 1)  # (3B,N,dims)
    grid = grid.reshape(grid.shape[0], *[1] * (dims - 1), -1, dims)
    features = F.grid_sample(
        planes.flatten(0, 1), grid.to(planes.dtype), mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return features.reshape(*planes.shape[:3], -1)


def check_levels(
    planes: Tensor | list[Tensor] | tuple[Tensor, ...], coords: Tensor, reduce: str, level_reduce: str
) -> list[Tensor]:
    """The levels of a pyramid as a list, when they and the reductions are good. Raises: ValueError."""
    levels = list(planes) if isinstance(planes, (list, tuple)) else [planes]
    if not levels:
        raise ValueError("planes is an empty list; give at least one level.")
    for name, how in (("reduce", reduce), ("level_reduce", level_reduce)):
        if how not in ("mean", "sum"):
            raise ValueError(f"{name} must be 'mean' or 'sum', got '{how}'.")
    for level in levels:
        _check_level(level, coords)
    return levels


def look_up_divisor(levels: int, reduce: str, level_reduce: str) -> int:
    """By what the sum of all look-ups is divided."""
    return (3 if reduce == "mean" else 1) * (levels if level_reduce == "mean" else 1)


def sample_planes(
    planes: Tensor | list[Tensor] | tuple[Tensor, ...],
    coords: Tensor,
    reduce: str = "mean",
    level_reduce: str = "sum",
    axes: PlaneAxes = PLANE_AXES,
    implementation: str = "auto",
) -> Tensor:
    """Features of a tri-plane (Chan et al., "Efficient Geometry-aware 3D GANs", 2022), tri-grid (An et al., "PanoHead",
    2023) or pyramid of them at given points.

    Interpolation is (tri)linear between texel centres (``align_corners=False``: the first centre is -1 + 1/W), with
    zeros outside. A grid with D layers has their centres at ``-1 + (2d + 1) / D`` and fades to 0 outside them;
    with D = 1 it is taken as a plane and does not fade (PanoHead's ablation with D = 1 does).

    Args:
        planes: (B,3,C,H,W) or (B,3,C,D,H,W), or a list of such with equal B and C (a pyramid, any order of sizes).
            A level with one plane instead of three is the frontal plane 0 alone; the others count as zero in the mean.
        coords: (B,N,3) head frame divided by the box radius.
        reduce: "mean" or "sum" over the three planes (EG3D and PanoHead: mean).
        level_reduce: "sum" or "mean" over the levels of a pyramid (Portrait3D: mean).
        axes: which coordinates each plane reads, see the module text.
        implementation: "torch" (`grid_sample`, the reference), "gather" (`ops.triplane_gather`, several times faster on
            a CPU), "triton" (`ops.triplane_triton`, on a GPU; no gradient for coords) or "auto": gather on a CPU and
            triton on a GPU where they pay, else torch; on a GPU that is asked for deterministic algorithms triton, or
            gather for what triton cannot. They agree to rounding, in value and gradients.

    Returns: (B,N,C). Once differentiable in planes and coords; PyTorch's grid_sample has no second derivative.
    Raises: ValueError for wrong shapes or reductions; EnvironmentProblem where Triton is asked for and cannot run.
    """
    levels = check_levels(planes, coords, reduce, level_reduce)
    if implementation not in SAMPLERS:
        raise ValueError(f"implementation must be one of {', '.join(SAMPLERS)}, got '{implementation}'.")
    divisor = look_up_divisor(len(levels), reduce, level_reduce)
    if implementation == "gather" or (implementation == "auto" and _gather_pays(levels, coords)):
        total = gather_planes(levels, coords, axes)
    elif implementation == "triton" or (implementation == "auto" and coords.device.type == "cuda"):
        total = _sample_fast(levels, coords, axes, implementation)
    else:
        total = _sample_torch(levels, coords, axes)
    return total / divisor if divisor != 1 else total


def _sample_torch(levels: list[Tensor], coords: Tensor, axes: PlaneAxes) -> Tensor:
    """Sum of the look-ups (B,N,C) by `grid_sample`."""
    return sum(_sample_level(level, coords, axes).sum(dim=1) for level in levels).transpose(1, 2)


def _sample_fast(levels: list[Tensor], coords: Tensor, axes: PlaneAxes, implementation: str) -> Tensor:
    """The same by Triton, or as `auto` chooses."""
    unfit = None
    if coords.requires_grad:
        unfit = "it has no gradient with respect to coordinates"
    elif levels[0].dtype == torch.float64:
        unfit = "it reads planes of at most 32 bits"
    deterministic = torch.are_deterministic_algorithms_enabled()
    pays = deterministic or coords.shape[:2].numel() * levels[0].shape[2] >= TRITON_PAYS
    order = ("triton", "torch") if pays else ("torch", "triton")
    if choose("plane sampling", implementation, coords.device, order, unfit) == "torch":
        return gather_planes(levels, coords, axes) if deterministic else _sample_torch(levels, coords, axes)
    from .triplane_triton import SampleTriplanes

    return 3 * sum(SampleTriplanes.apply(level, coords, axes, level.dtype) for level in levels)  # it takes the mean


def _gather_pays(levels: list[Tensor], coords: Tensor) -> bool:
    """On a CPU, for many points (a call builds the table, of grids with all layers) and at least 16 channels.

    Two threads, 32 channels, forward and backward: grids of 3 x 256² x 3 layers and of 128² x 6 are even at 1 % of
    their texels in points, planes of 256² at 4 %.

    Where the table is kept, see `triplane_gather.kept_tables`, it pays much sooner.
    """
    first = levels[0]
    if first.device.type == "cpu" and coords.dtype == first.dtype == torch.float32 and table_is_kept(levels):
        return coords.shape[1] >= 1024
    if first.ndim == 6 and 64 * coords.shape[1] < first[:, :, 0].numel():
        return False
    wide = first.dtype in (torch.float32, torch.float64) and coords.dtype == first.dtype
    return first.device.type == "cpu" and wide and first.shape[2] >= 16 and coords.shape[1] >= 4096


def init_decoder(channels: int, hidden: int = 64, generator: torch.Generator | None = None) -> DecoderWeights:
    """Fresh decoder weights: normal with standard deviation ``1/sqrt(fan_in)``, zero biases.

    Args:
        channels: C of the planes.
        hidden: width of the hidden layer.
        generator: source of randomness; None is torch's global one.
    """
    return DecoderWeights(
        torch.randn(hidden, channels, generator=generator) / channels**0.5,
        torch.zeros(hidden),
        torch.randn(4, hidden, generator=generator) / hidden**0.5,
        torch.zeros(4),
    )


def decode_raw(features: Tensor, weights: DecoderWeights) -> Tensor:
    """Decoder without output activations: linear, softplus, linear.

    Args:
        features: (...,C).
        weights: a :class:`DecoderWeights` or the same four tensors as a tuple; equalised gains are already folded in.

    Returns: (...,4) raw density and raw colour, float32 (float64 for float64 input) also under autocast.
    """
    hidden_weight, hidden_bias, output_weight, output_bias = weights
    hidden = F.softplus(F.linear(features, hidden_weight, hidden_bias))
    raw = F.linear(hidden, output_weight, output_bias)
    return raw if raw.dtype == torch.float64 else raw.float()


DETAIL_DENSITY_RANGE = (-6.0, 300.0)
"""Limits of the raw density under a detail grid: beyond them softplus has no gradient left, and nothing could be added
where the planes say -500, or carved where they say 800. -6 is an opacity below 0.1 % across the box, 300 is opaque in
1.5 cm; with 150 surfaces are softer than the prior makes them, and unseen views 4 % farther from the truth."""


DETAIL_GAIN = (24.0, 1.0, 1.0, 1.0)
"""Natural size of a detail grid's channels, for one learning rate: raw density counts in tens, raw colours in ones."""


def voxel_centres(shape: tuple[int, int, int], radius: float, device) -> Tensor:
    """Head-frame centres (D*H*W, 3) of the voxels of a grid (D, H, W) over the box of half edge `radius`."""
    z, y, x = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in shape)
    z, y, x = torch.meshgrid(z * radius, y * radius, x * radius, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def add_detail(raw: Tensor, detail: Tensor) -> Tensor:
    """Decoder output plus a detail grid's raw density and colour, the density limited first (`DETAIL_DENSITY_RANGE`).

    Args:
        raw: (...,4) from `decode_raw`; detail: (...,4).
    """
    return limit_density(raw) + detail


def limit_density(raw: Tensor) -> Tensor:
    """Decoder output (...,4) with the raw density in `DETAIL_DENSITY_RANGE`, where something added still shows."""
    return torch.cat([raw[..., :1].clamp(*DETAIL_DENSITY_RANGE), raw[..., 1:]], dim=-1)


def density_activation(raw: Tensor) -> Tensor:
    """``softplus(raw - 1)``, density per scene unit (EG3D)."""
    return F.softplus(raw - 1)


def colour_activation(raw: Tensor) -> Tensor:
    """``sigmoid(raw) * 1.002 - 0.001``, colour in [-0.001, 1.001] (EG3D; the margin is mip-NeRF's)."""
    return torch.sigmoid(raw) * (1 + 2 * 0.001) - 0.001


def decode(features: Tensor, weights: DecoderWeights) -> tuple[Tensor, Tensor]:
    """Density and colour from plane features, as EG3D decodes them.

    Args:
        features: (...,C).
        weights: see :class:`DecoderWeights`.

    Returns: density (...,1) >= 0 per scene unit, colour (...,3) in [-0.001, 1.001].
    """
    raw = decode_raw(features, weights)
    return density_activation(raw[..., :1]), colour_activation(raw[..., 1:4])
