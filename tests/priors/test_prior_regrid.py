"""Weights for a frontal grid of other layers: where every old centre is a new one, the features stay what they were."""
from dataclasses import replace

import pytest
import torch
from portrait_diffusion.errors import UsageError
from portrait_diffusion.ops.triplane import sample_planes
from portrait_diffusion.priors.networks import Encoder, Generator
from portrait_diffusion.priors.regrid import layer_weights, regrid

from .samples import tiny_spec


def networks(spec):
    torch.manual_seed(1)
    generator, encoder = Generator(spec).double(), Encoder(spec).double()
    for layer in encoder.inject.values():
        torch.nn.init.normal_(layer.weight, std=0.3)
    return generator, encoder


def taken(given, wanted) -> tuple:
    """Networks of the sizes `wanted` with the weights of `given`."""
    made = Generator(wanted).double(), Encoder(wanted).double()
    for network, state in zip(made, (network.state_dict() for network in networks(given))):
        network.load_state_dict(regrid(state, given, wanted))
    return made


def features(generator, encoder, coords):
    photo = torch.rand(1, 7, 256, 256, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ws, _, maps = encoder(photo)
    return sample_planes(generator.synthesis(ws, maps), coords)


@pytest.mark.parametrize("old, new", [((2, 1), (6, 4)), ((2, 1), (10, 7)), ((2, 1), (2, 1))])
def test_features_stay_between_the_outermost_centres(old, new):
    given = tiny_spec(frontal_layers=old[0], encoded_layers=old[1])
    wanted = replace(given, frontal_layers=new[0], encoded_layers=new[1])
    coords = torch.rand(1, 400, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
    coords[..., 2] *= 1 - 1 / new[0]
    before, after = features(*networks(given), coords), features(*taken(given, wanted), coords)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


def test_fewer_fed_layers_change_only_what_lies_behind_them():
    given = tiny_spec()
    wanted = replace(given, frontal_layers=6, encoded_layers=3)  # the fourth, at -1/6, had a third of the features
    coords = torch.rand(1, 600, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2 - 1
    coords[..., 2] *= 5 / 6
    error = (features(*taken(given, wanted), coords) - features(*networks(given), coords)).abs().amax(dim=-1)[0]
    touched = (coords[0, :, 2] > -1 / 2) & (coords[0, :, 2] < 1 / 6)
    assert error[~touched].max() < 1e-10 and error[touched].max() > 1e-3


def test_layer_weights_are_linear_interpolation():
    weights = layer_weights(2, 6, torch.zeros((), dtype=torch.float64))
    front = torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(weights, torch.stack([front.flip(0), front], dim=1))
    assert torch.equal(layer_weights(4, 4, torch.zeros(())), torch.eye(4))


def test_other_sizes_are_refused():
    given = tiny_spec()
    with pytest.raises(UsageError, match="only layers may differ"):
        regrid(Generator(given).state_dict(), given, replace(given, w_dim=16, frontal_layers=6))
