"""A geometry whose surface is known: planes of squares make raw density fall with the squared distance."""
import torch
from portrait_diffusion.geometry.triplane import TriplaneGeometry
from portrait_diffusion.ops.triplane import DecoderWeights

BALL_RADIUS = 0.2


def ball(**config) -> TriplaneGeometry:
    """A tri-plane geometry with density 10 at distance BALL_RADIUS from the centre, and grey 0.5 all over.

    Plane k holds the sum of squares of its two coordinates, so their mean is 2/3 r^2; raw = 11 + 2500 (R^2 - r^2).
    """
    geometry = TriplaneGeometry({"channels": 1, "resolution": 128, "hidden": 1, **config}).cpu()
    square = ((2 * torch.arange(128) + 1) / 128 - 1) ** 2 * geometry.cfg.radius**2
    planes = (square[:, None] + square)[None, None, None].expand(1, 3, 1, 128, 128)
    geometry.set_planes([planes, *(torch.zeros_like(grid) for grid in list(geometry.planes)[1:])])
    # hidden = softplus(20 + f) = 20 + f up to 2e-9
    output = torch.tensor([[-3750.0], [0], [0], [0]])
    bias = torch.tensor([11 + 2500 * BALL_RADIUS**2 + 3750 * 20, 0, 0, 0])
    geometry.set_decoder(DecoderWeights(torch.ones(1, 1), torch.full((1,), 20.0), output, bias))
    return geometry
