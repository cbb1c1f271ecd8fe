"""A published prior as the pipeline sees it: planes and decoder for `portrait-diffusion-triplane`, frame, facts."""
import logging
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...ops.canonical import BOX_RADIUS, CANONICAL_LANDMARKS_HEAD
from ...ops.plane_layouts import PlaneFrame
from ...ops.triplane import DecoderWeights
from .checkpoint import Checkpoint, open_checkpoint
from .convert import generator_of
from .families import RADIUS, Family, facts_of
from .generator import PublishedGenerator
from .image import frontal_label
from .sizes import RenderOptions

log = logging.getLogger("portrait_diffusion")
FACE_DEPTH = {"eg3d": 0.2, "panohead": 0.15, "spherehead": 0.15, "pyramid": 0.1}
"""Depth z of eyes and mouth in the GAN's head frame, GAN units: EG3D's labels move the Basel face by 0.161 plus 0.04;
the others turn about a point inside the head (estimates; only the frame's shift along z depends on them)."""
_announced: set[str] = set()


def landmarks_in_gan_frame(family: str) -> Tensor:
    """(4,3) eyes and mouth corners of the mean aligned head, GAN head frame and units.

    The frontal camera at distance 2.7, looking at the family's target, projects them to its aligned crop's landmarks.
    """
    facts = facts_of(family)
    crop = torch.tensor(facts.landmarks, dtype=torch.float64)
    depth = RADIUS - FACE_DEPTH[family]
    axis = torch.tensor(facts.target, dtype=torch.float64)
    centre_y = axis[1] * depth / (RADIUS - axis[2])  # where the optical axis passes the face
    x, y = (crop[:, 0] - 0.5) * depth / facts.focal, (0.5 - crop[:, 1]) * depth / facts.focal + centre_y
    return torch.stack([x, y, torch.full_like(x, FACE_DEPTH[family])], dim=1)


def frame_of(family: str, options: RenderOptions, shift: Tensor | None = None) -> PlaneFrame:
    """Where a family's planes lie in this project's head frame.

    Least-squares scale s and shift, no rotation, that put the GAN's landmarks onto the canonical ones; so a head has
    its real size whatever the GAN's unit. Density per scene unit is density per GAN unit over s.

    Args: shift (3,): of the cameras that frame a head, GAN units (``t_mapping`` of the mean latent); None is none.
    """
    theirs = landmarks_in_gan_frame(family)
    if shift is not None:
        theirs = theirs + shift.detach().cpu().double()
    ours = torch.as_tensor(CANONICAL_LANDMARKS_HEAD, dtype=torch.float64)
    a, b = theirs - theirs.mean(0), ours - ours.mean(0)
    s = float((a * b).sum() / (a * a).sum())
    centre = [round(x, 6) + 0.0 for x in (ours.mean(0) - s * theirs.mean(0)).tolist()]
    crop = s * options.crop if options.crop is not None else 0.0
    return PlaneFrame(family, s * options.box_warp / 2, tuple(centre), crop, 1 / s)


def fold_decoder(weights: tuple, colour_map: tuple[Tensor, Tensor] | None) -> DecoderWeights:
    """Decoder of density and colour in [0, 1].

    EG3D: its first three features, which a sigmoid maps to [0, 1]. The others: the colour head ``M f + b`` in [-1, 1]
    is affine and the decoder's last layer linear, so both and ``(x + 1) / 2`` become one layer; what is rendered is
    then ``sum w (M f + b) + (1 - sum w) background``, with the bias weighted by opacity, as it must be.

    Args: weights: hidden weight and bias, output weight (1 + F,hidden) and bias; colour_map: M (3,F), b (3,), or None.
    """
    hidden_weight, hidden_bias, output_weight, output_bias = weights
    if colour_map is None:
        return DecoderWeights(hidden_weight, hidden_bias, output_weight[:4], output_bias[:4])
    matrix, bias = colour_map
    colour_weight = 0.5 * (matrix @ output_weight[1:])
    colour_bias = 0.5 * (matrix @ output_bias[1:] + bias) + 0.5
    return DecoderWeights(
        hidden_weight, hidden_bias, torch.cat([output_weight[:1], colour_weight]),
        torch.cat([output_bias[:1], colour_bias]),
    )  # fmt: skip


def check_usable(generator: PublishedGenerator, path: Path) -> None:
    """Raise UsageError for a generator that works but makes no head of this project."""
    if generator.options.white_back:
        raise UsageError(f"{path} renders over white, as no head model does; give a file listed in docs/priors.md.")
    sizes = generator.sizes
    if sizes.family == "panohead" and sizes.plane_channels == 3 * sizes.decoder[0]:
        raise UsageError(
            f"{path} is PanoHead's ablation with one layer of depth, which the geometry cannot hold; use the file with "
            "three layers (docs/priors.md)."
        )


def check_prior(path: str | Path, family: str) -> None:
    """Raise the UsageError that `PublishedPrior.open` would raise for a file's kind, names, shapes or arguments.

    Its numbers are not looked at, so that this takes a fraction of a second.
    """
    checkpoint = open_checkpoint(path, family, numbers=False)
    check_usable(generator_of(checkpoint), checkpoint.path)


class PublishedPrior(nn.Module):
    """A published generator with the calls that inversion and pipeline need.

    Args: checkpoint: an opened file; its licence is logged once a process.
    """

    radius = BOX_RADIUS

    def __init__(self, checkpoint: Checkpoint):
        super().__init__()
        self.generator = generator_of(checkpoint)
        check_usable(self.generator, checkpoint.path)
        self.family, self.facts = checkpoint.family, facts_of(checkpoint.family)
        with torch.no_grad():  # PanoHead's projector takes the shift of the mean latent too
            mean = self.generator.backbone.mapping.w_avg.new_zeros(1, self.generator.sizes.z_dim)
            shift = self.generator.camera_shift(mean, self.condition())[0]
        self.frame = frame_of(self.family, self.generator.options, shift)
        self.files = (checkpoint.path,)
        self.sha256 = checkpoint.sha256
        announce(checkpoint, self.facts)

    @classmethod
    def open(cls, path: str | Path, family: str) -> "PublishedPrior":
        """Prior of a file. Raises: UsageError for a file that is missing, damaged or of another family."""
        return cls(open_checkpoint(path, family))

    @property
    def num_ws(self) -> int:
        return self.generator.num_ws

    def condition(self) -> Tensor:
        """(1,c_dim) the frontal camera, and a neutral body pose in the pyramid; fixed for a head (EG3D, issue 28)."""
        like = self.generator.backbone.mapping.w_avg
        label = frontal_label(self.family, like)
        missing = self.generator.sizes.c_dim - label.shape[1]
        return torch.cat([label, label.new_zeros(1, max(missing, 0))], dim=1)

    @torch.no_grad()
    def latent_statistics(self, generator: torch.Generator, n: int = 10_000) -> tuple[Tensor, float]:
        """Mean latent row (1,w_dim) under the frontal condition, and the root mean squared distance from it."""
        z = torch.randn(n, self.generator.sizes.z_dim, generator=generator, device=generator.device)
        z = z.to(self.generator.backbone.mapping.w_avg)
        c = self.condition()
        rows = torch.cat([self.generator.map(part, c.expand(len(part), -1))[:, 0] for part in z.split(1000)])
        mean = rows.mean(dim=0, keepdim=True)
        return mean, float(((rows - mean).square().sum() / n).sqrt())

    @torch.no_grad()
    def sample(self, z: Tensor, truncation: float = 0.7) -> Tensor:
        """Latent rows (N,num_ws,w_dim) of random heads. Args: z (N,z_dim) standard normal."""
        return self.generator.map(z, self.condition().expand(len(z), -1), truncation)

    def planes(self, ws: Tensor) -> list[Tensor]:
        """Levels for the geometry, finest first (SphereHead: front, back); differentiable.

        Args: ws (1,num_ws,w_dim).
        """
        planes = self.generator.planes(ws)
        return planes[::-1] if self.family == "pyramid" else planes

    def decoder(self, ws: Tensor) -> DecoderWeights:
        """Decoder of density and colour for these latent rows; differentiable. Args: ws (1,num_ws,w_dim)."""
        colour_map = self.generator.torgb.affine_map(ws[:, -1]) if self.generator.sizes.features else None
        return fold_decoder(self.generator.decoder.weights(), colour_map)

    def field_parameters(self) -> list[nn.Parameter]:
        """What pivotal tuning may change: plane generator, decoder, colour head.

        Super-resolution and background stay, so that identity goes into the field.
        """
        g = self.generator
        heads = [getattr(g, name) for name in ("torgb", "ConvA", "ConvB") if hasattr(g, name)]
        parts = [g.backbone.synthesis, g.decoder, *heads]
        return [p for part in parts for name, p in part.named_parameters() if not name.endswith("noise_strength")]


def announce(checkpoint: Checkpoint, facts: Family) -> None:
    """Log licence, citation, checksum and notes; once a process for each file."""
    if checkpoint.sha256 in _announced:
        return
    _announced.add(checkpoint.sha256)
    name = f"the published file {checkpoint.name}" if checkpoint.name else "no published file that is known here"
    says = ", by its header made from SHA-256" if checkpoint.path.suffix == ".safetensors" else ": SHA-256"
    log.warning(
        "prior %s from %s%s %s (%s). Licence: %s. Please cite: %s.", facts.title, checkpoint.path.name, says,
        checkpoint.sha256, name, facts.licence, facts.citation,
    )  # fmt: skip
    for note in checkpoint.notes:
        log.warning("prior %s: %s", checkpoint.path.name, note)


def world_to_gan(c2w: Tensor, frame: PlaneFrame) -> Tensor:
    """Camera-to-world (N,4,4) of this project (OpenGL, z up, scene units) to the GAN's (OpenCV, y up, GAN units).

    ``c2w_gan = [P|0] c2w diag(1,-1,-1,1)`` with (x,y,z)_gan = (y,z,x), then the frame's shift and scale.
    """
    cycle = c2w.new_tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    out = torch.eye(4, dtype=c2w.dtype, device=c2w.device).repeat(len(c2w), 1, 1)
    out[:, :3, :3] = cycle @ c2w[:, :3, :3] @ torch.diag(c2w.new_tensor([1.0, -1.0, -1.0]))
    position = (cycle @ c2w[:, :3, 3:])[..., 0]
    out[:, :3, 3] = (position - c2w.new_tensor(frame.centre)) * frame.density_scale  # the scale is 1 / s
    return out


def gan_label(c2w: Tensor, fovy: float, frame: PlaneFrame) -> Tensor:
    """(N,25) published camera label of a camera of this project. Args: c2w (N,4,4); fovy radians."""
    focal = 0.5 / math.tan(0.5 * fovy)
    k = c2w.new_tensor([focal, 0, 0.5, 0, focal, 0.5, 0, 0, 1]).expand(len(c2w), -1)
    return torch.cat([world_to_gan(c2w, frame).flatten(1), k], dim=1)
