"""Colour of the unseen back of the head: what the photo shows at the outline of the upper head goes on behind it.

The encoder guesses the colour of hair that no photo shows, and photographs differ from its training data. Hair (or a
hat, or a bald head) that reaches the outline is the same on the other side of it, so the guess is moved to that colour.
"""
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..ops.canonical import CANONICAL_LANDMARKS_CROP
from ..ops.smoothstep import smoothstep
from .target import Target

EYE_LEVEL = float(CANONICAL_LANDMARKS_CROP[0, 1])
"""Height of the eyes in the canonical crop, share of its side from the top."""
BAND = (0.015, 0.08)
"""Distance from the outline, shares of the image side: matte errors end before, forehead and cheeks begin behind it."""
TOP = 0.55
"""Share of the height between the highest pixel and the eyes where the outline is hair, hat or scalp."""
SIMILAR = 0.15
"""Colours this far (Euclidean, rgb in [0, 1]) from the guessed hair still count as hair; half-width of a Gaussian."""
BEHIND = 0.72
"""Colour of the back over the colour at the outline of the front, which the light of a portrait brightens: mean of the
eight `dev` subjects of the benchmark, 0.62 to 0.83."""
DIFFERENT = (0.08, 0.25)
"""Distance of the wanted colour from the guess below which nothing changes, and above which it is taken in full."""
CONTRAST = (0.5, 1.5)
"""Limits of the change of contrast that goes with the change of brightness."""
TINT = 0.015
"""Deviations this large (Euclidean) from one hue of hair still count as its own; half-width of a Gaussian."""
SKULL = (-0.1, 0.0)
"""Head-frame y below which strong tints stay (necks and collars may look like hair) and above which they go."""
REAR = (-0.04, 0.08)
"""Head-frame z below which a point counts as unseen and above which as seen by the photo, scene units."""
LOW = (-0.2, -0.12)
"""Head-frame y below which a point is no hair (shoulders) and above which it may be, scene units."""


def outline_colour(photo: Target) -> Tensor | None:
    """(3,) median colour of a band inside the outline of the skull's top, None where the photo does not show it.

    The top is the part above `TOP` of the way from the highest pixel down to the eyes: lower down, short hair leaves
    the outline to temples and ears. At least 16 pixels are asked for.

    Args: photo in the canonical crop, any size.
    """
    size = photo.size
    alpha, known = photo.alpha[0, 0], photo.valid[0, 0] > 0.5
    outside = (alpha < 0.1) & known
    if not bool(outside.any()):
        return None
    distance = torch.from_numpy(distance_transform_edt(~outside.cpu().numpy())).to(alpha) / size
    rows = (torch.arange(size, device=alpha.device) + 0.5) / size
    solid = (alpha > 0.95) & known
    if not bool(solid.any()):
        return None
    first = int(solid.any(dim=1).nonzero()[0])
    if first < 2 or not bool(known[first - 2][solid[first]].all()):
        return None  # the photo ends there
    highest = float(rows[first])
    above = rows[:, None] < highest + TOP * (EYE_LEVEL - highest)
    band = solid & (distance > BAND[0]) & (distance < BAND[1]) & above
    if int(band.sum()) < 16:
        return None
    return (photo.rgb[0, :, band] / alpha[band]).median(dim=1).values


def upper_colour(rgb: Tensor, opacity: Tensor) -> Tensor | None:
    """(3,) median colour of a back view above the eyes; None if there is no matter.

    Args: rgb (S, S, 3) premultiplied, opacity (S, S, 1), of a level camera behind the head.
    """
    rows = (torch.arange(rgb.shape[0], device=rgb.device) + 0.5) / rgb.shape[0] < EYE_LEVEL
    solid = (opacity[..., 0] > 0.95) & rows[:, None]
    return (rgb[solid] / opacity[solid]).median(dim=0).values if bool(solid.any()) else None


def recoloured(rgb: Tensor, opacity: Tensor, points: Tensor, guessed: Tensor, wanted: Tensor) -> Tensor:
    """A view whose guessed hair, behind the face and over the shoulders, is moved to the wanted colour, texture kept.

    Where the share h of hair is 1 the straight colour c becomes w + k (c - guessed), w = guessed + m (wanted -
    guessed): m rises with |wanted - guessed| over `DIFFERENT`, because colours nearer than that differ by the light
    alone and the guess is the better one; the contrast k is the ratio of both brightnesses, limited to `CONTRAST`, and
    1 where m is 0. On the skull (`SKULL`) what then differs from one hue, w times a brightness, by d keeps exp(-|d|^2 /
    (2 TINT^2)) of its own tint: strong tints are arcs that the encoder draws behind photos. h is exp(-|c - guessed|^2 /
    (2 SIMILAR^2)) times smooth falls over `REAR` and `LOW`.

    Args: rgb (S, S, 3) premultiplied, opacity (S, S, 1), points (S, S, 3) of the surface in the head frame; guessed and
        wanted (3,).
    Returns: (S, S, 3) premultiplied, within [0, opacity].
    """
    colour = rgb / opacity.clamp(min=1e-3)
    hair = torch.exp(-(colour - guessed).square().sum(-1, keepdim=True) / (2 * SIMILAR**2))
    hair = hair * (1 - smoothstep(points[..., 2:], *REAR)) * smoothstep(points[..., 1:2], *LOW)
    share = smoothstep((wanted - guessed).norm(), *DIFFERENT)
    centre = torch.lerp(guessed, wanted, share)
    contrast = (wanted.mean() / guessed.mean().clamp(min=0.02)).clamp(*CONTRAST)
    contrast = 1 + share * (contrast - 1)
    brighter = contrast * (colour.mean(-1, keepdim=True) - guessed.mean())
    tinted = centre + contrast * (colour - guessed)
    plain = centre * (1 + brighter / centre.mean().clamp(min=0.02))
    odd = 1 - torch.exp(-(tinted - plain).square().sum(-1, keepdim=True) / (2 * TINT**2))
    moved = torch.lerp(tinted, plain, odd * smoothstep(points[..., 1:2], *SKULL)).clamp(0, 1)
    return torch.lerp(rgb, moved * opacity, hair)
