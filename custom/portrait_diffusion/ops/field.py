"""The field as one operation: from planes, decoder and points to raw density and colour, by several implementations."""
from torch import Tensor

from . import field_tcnn
from .backends import choose, missing
from .triplane import PLANE_AXES, PlaneAxes, check_levels, decode_raw, look_up_divisor, sample_planes


def query_field(
    planes: Tensor | list[Tensor],
    coords: Tensor,
    weights: tuple,
    reduce: str = "mean",
    level_reduce: str = "sum",
    axes: PlaneAxes = PLANE_AXES,
    implementation: str = "auto",
) -> Tensor:
    """Raw decoder outputs at points: ``W2 softplus(W1 f + b1) + b2``, f the planes' reduced features.

    The same as `decode_raw` of `sample_planes`, which say more of the arguments; the Triton implementation sums the
    look-ups at once and never holds the features of the single planes. All use the same weights.

    Args:
        planes: (B,P,C,H,W) or (B,P,C,D,H,W), or levels of such.
        coords: (B,N,3) head frame divided by the box radius.
        weights: the four tensors of `DecoderWeights`, with any number K of outputs.
        reduce, level_reduce, axes: see `sample_planes`.
        implementation: "torch" (the reference; gathers on a CPU where that pays), "triton" (a GPU; planes in float32,
            bfloat16 or float16), "tcnn" (the same; the decoder is tiny-cuda-nn's, see `ops.field_tcnn`) or "auto",
            which never takes tcnn. With float32 planes the Triton products follow
            `torch.set_float32_matmul_precision`: "highest" agrees to about 1e-5 of the largest output, "high" to 2e-3;
            half-precision planes and tcnn to 1e-2.

    Returns: (B,N,K) float32 (float64 for float64 input). Differentiable in planes and weights; in coords with torch
        only.
    Raises: ValueError for wrong shapes; EnvironmentProblem for an implementation that cannot run, with reason and fix.
    """
    levels = check_levels(planes, coords, reduce, level_reduce)
    unfit = None
    if implementation == "tcnn":
        unfit = field_tcnn.unfit(levels, coords, weights)
    elif implementation == "triton" and missing("triton", coords.device) is None:
        from .field_triton import unfit as why

        unfit = why(levels, coords, weights)
    # auto is torch until whole runs with the kernels have been compared
    chosen = choose("field", implementation, coords.device, ("torch", "triton", "tcnn"), unfit)
    if chosen == "tcnn":
        return field_tcnn.field(levels, coords, weights, reduce, level_reduce, axes)
    if chosen == "torch":
        sampling = "torch" if implementation == "torch" and coords.device.type != "cpu" else "auto"
        return decode_raw(sample_planes(levels, coords, reduce, level_reduce, axes, sampling), weights)
    from .field_triton import FusedField

    return FusedField.apply(coords, *weights, axes, 1 / look_up_divisor(len(levels), reduce, level_reduce), *levels)
