"""Weights of a prior for a frontal grid of another number of layers, so that a finer one is trained on, not anew."""
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import UsageError
from .networks import PriorSpec


def layer_weights(old: int, new: int, like: Tensor) -> Tensor:
    """What each old layer of a grid along depth contributes at the centres of the new layers.

    Linear interpolation with zeros outside, as `ops.triplane.sample_planes` does it: layer i of D has its centre at
    c_i = -1 + (2 i + 1) / D and the weight max(0, 1 - D / 2 |z - c_i|).

    Returns: (new, old), in [0, 1].
    """

    def centres(count: int) -> Tensor:
        return (2 * torch.arange(count, device=like.device, dtype=like.dtype) + 1) / count - 1

    return (1 - 0.5 * old * (centres(new)[:, None] - centres(old)).abs()).clamp(min=0)


def regrid(state: dict, given: PriorSpec, wanted: PriorSpec) -> dict:
    """A generator's or encoder's state dict of sizes `given` for the frontal layers of `wanted`.

    Between the outermost centres of the new layers the features stay what they were if every old centre is a new one,
    as for 2 to 6 or 10, and the encoder feeds all layers that its features had reached; else this is the nearest start.

    Raises: UsageError when anything but the numbers of layers differs.
    """
    if replace(given, frontal_layers=wanted.frontal_layers, encoded_layers=wanted.encoded_layers) != wanted:
        raise UsageError("The weights to start from have other sizes than the training; only layers may differ.")
    state, c = dict(state), given.plane_channels
    for key, value in state.items():
        parts = key.split(".")
        weights = layer_weights(given.frontal_layers, wanted.frontal_layers, value)
        if "to_planes" in parts and parts[-1] in ("weight", "bias") and "affine" not in parts:
            layers = torch.einsum("no,oc...->nc...", weights, value[3 * c :].unflatten(0, (-1, c)))
            state[key] = torch.cat([value[: 3 * c], layers.flatten(0, 1)])
        elif "inject" in parts and int(parts[-2]) in given.frontal:
            weights = weights[-wanted.encoded_layers :, -given.encoded_layers :]
            layers = torch.einsum("no,oc...->nc...", weights, value.unflatten(0, (-1, c)))
            state[key] = layers.flatten(0, 1)
    return state
