"""The decoder of a field as tiny-cuda-nn's FullyFusedMLP, on the features of the planes that other kernels look up.

Twin of `ops.triplane.decode_raw` in half precision. The weights stay the torch ones, so a checkpoint does not depend on
the implementation: every call packs them, differentiably, into the one flat tensor that the network reads.

Relies on (github.com/NVlabs/tiny-cuda-nn at 6ee3546: DOCUMENTATION.md, src/fully_fused_mlp.cu, bindings/torch, and
include/tiny-cuda-nn/encodings/identity.h): the network has no biases; 16, 32, 64 or 128 hidden units; inputs are padded
to a multiple of 16 with ones, outputs with rows that are dropped; parameters are the matrices [hidden, padded inputs]
and [padded outputs, hidden] one after the other, row by row; all of it, sums included, is in half precision; and
"Softplus" is s(x) = log(1 + exp(10 x)) / 10. As softplus(x) = 10 s(x / 10),

    W2 softplus(W1 f + b1) + b2 = 10 W2 s([W1 / 10, b1 / 10] [f, 1]) + b2,

with the factor 10 and b2 applied to the network's output in float32. There exp overflows: where W1 f + b1 exceeds 88,
as where anything exceeds 65504, results are infinite or not a number.
"""
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import missing
from .triplane import PlaneAxes, decode_raw, sample_planes

WIDTHS = (16, 32, 64, 128)
SOFTPLUS_SCALE = 10.0
"""What tiny-cuda-nn multiplies the argument of its softplus by, and divides the result by."""
CHUNK_POINTS = 1 << 18
"""Of one call of the network: it adds the weights' gradients up in half precision; those of calls add up in float32."""
GRADIENT_SUM = 1024.0
"""To which the absolute gradients of a call's outputs are scaled to add up: the sums over its points that make the
weights' gradients then stay far below 65504, and 2^18 points with 4 outputs have 1e-3 each, where half precision has
all its digits down to 6e-5."""


def padded(number: int) -> int:
    """The next multiple of 16."""
    return -(-number // 16) * 16


def pack_decoder(hidden_weight: Tensor, hidden_bias: Tensor, output_weight: Tensor) -> Tensor:
    """Parameters of the network of C + 1 inputs, the last of which is 1, that is a tenth of the decoder without b2.

    Args:
        hidden_weight: (H,C); hidden_bias: (H,); output_weight: (K,H).

    Returns: (H (padded(C + 1) + padded(K)),) float32 or float64, zeros where the network pads. Differentiable.
    """
    first = torch.cat([hidden_weight, hidden_bias[:, None]], dim=1) / SOFTPLUS_SCALE
    columns, rows = padded(first.shape[1]) - first.shape[1], padded(output_weight.shape[0]) - output_weight.shape[0]
    return torch.cat([F.pad(first, (0, columns)).flatten(), F.pad(output_weight, (0, 0, 0, rows)).flatten()])


def unpack_decoder(params: Tensor, channels: int, hidden: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `pack_decoder`, up to the rounding of a division by ten and back.

    Args:
        params: flat parameters of the network; channels, hidden, outputs: C, H, K.

    Returns: hidden_weight (H,C), hidden_bias (H,), output_weight (K,H). Differentiable.
    Raises: ValueError when the number of parameters is another.
    """
    columns, rows = padded(channels + 1), padded(outputs)
    if params.shape != (hidden * (columns + rows),):
        raise ValueError(
            f"params must have shape ({hidden * (columns + rows)},) for {channels} channels, {hidden} hidden units and "
            f"{outputs} outputs, got {tuple(params.shape)}."
        )
    first, second = params.split([hidden * columns, hidden * rows])
    first = first.view(hidden, columns) * SOFTPLUS_SCALE
    return first[:, :channels], first[:, channels], second.view(rows, hidden)[:outputs]


def unfit(levels: list[Tensor], coords: Tensor, weights: tuple) -> str | None:
    """Why the network cannot take these inputs, or None when it can."""
    if coords.requires_grad:
        return "it has no gradient with respect to coordinates"
    if any(level.dtype not in (torch.float32, torch.bfloat16, torch.float16) for level in levels):
        return f"it computes in half precision, got {levels[0].dtype} planes"
    if weights[0].shape[0] not in WIDTHS:
        return f"it needs 16, 32, 64 or 128 hidden units, got {weights[0].shape[0]}"
    return None


def field(
    levels: list[Tensor], coords: Tensor, weights: tuple, reduce: str, level_reduce: str, axes: PlaneAxes
) -> Tensor:
    """`ops.field.query_field` with this decoder; look-ups by Triton where it runs, else by torch."""
    channels = levels[0].shape[2]
    fast = missing("triton", coords.device) is None and not channels & (channels - 1)
    levels = levels if fast else [level.float() for level in levels]
    features = sample_planes(levels, coords, reduce, level_reduce, axes, "triton" if fast else "torch")
    return decode_raw_tcnn(features, weights)


def decode_raw_tcnn(features: Tensor, weights: tuple) -> Tensor:
    """`ops.triplane.decode_raw` by the fused network.

    Args:
        features: (...,C) on a CUDA device, absolute values below 65504.
        weights: the four tensors of `DecoderWeights`, with H of `WIDTHS` and any number K of outputs.

    Returns: (...,K) float32. Once differentiable in features and weights; gradients pass through half precision.
    """
    if not features.numel():
        return decode_raw(features.float(), weights)
    hidden_weight, hidden_bias, output_weight, output_bias = weights
    params = pack_decoder(hidden_weight.float(), hidden_bias.float(), output_weight.float())
    with torch.cuda.device_of(features):  # tiny-cuda-nn makes its parameters on the current device
        network = fused_network(features.shape[-1], *hidden_bias.shape, *output_bias.shape, features.device)
        rows = features.flatten(0, -2)
        raw = torch.cat([_evaluate(network, part, params) for part in rows.split(CHUNK_POINTS)])
    return (SOFTPLUS_SCALE * raw + output_bias.float()).view(*features.shape[:-1], -1)


@functools.lru_cache(maxsize=16)
def fused_network(channels: int, hidden: int, outputs: int, device: torch.device) -> torch.nn.Module:
    """The network for `pack_decoder`'s parameters on the current CUDA device; its own parameters are never used."""
    import tinycudann

    config = {
        "otype": "FullyFusedMLP", "activation": "Softplus", "output_activation": "None", "n_neurons": hidden,
        "n_hidden_layers": 1,
    }  # fmt: skip
    network = tinycudann.Network(channels + 1, outputs, config).requires_grad_(False)
    network.loss_scale = 1.0  # gradients are scaled here, before they become half: see `_LeaveHalf`
    return network


def _evaluate(network: torch.nn.Module, features: Tensor, params: Tensor) -> Tensor:
    """Network outputs (N,K), float32, of features (N,C), with gradients that survive half precision."""
    scale: list[Tensor] = []
    features, params = _EnterHalf.apply(features.float(), scale), _EnterHalf.apply(params, scale)
    inputs = F.pad(features, (0, 1), value=1.0)
    return _LeaveHalf.apply(torch.func.functional_call(network, {"params": params}, (inputs,)).float(), scale)


class _ScaledGradients(torch.autograd.Function):
    """Identity; what its kinds do to gradients goes by one list, which the first backward pass fills."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: list) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)


class _LeaveHalf(_ScaledGradients):
    """Gradients are multiplied by the power of two that makes them add up to `GRADIENT_SUM` or a bit less."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        total = grad.abs().sum().clamp(min=torch.finfo(grad.dtype).tiny)
        ctx.scale[:] = [torch.exp2(torch.log2(GRADIENT_SUM / total).floor().clamp(-100, 100))]
        return grad * ctx.scale[0], None


class _EnterHalf(_ScaledGradients):
    """Gradients are divided by what `_LeaveHalf` multiplied by."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        return grad / ctx.scale[0], None
