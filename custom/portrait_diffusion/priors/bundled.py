"""The prior that ships with the package: encoder and generator in one object with the calls that inversion needs."""
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..ops.canonical import BOX_RADIUS
from ..ops.triplane import DecoderWeights
from .alignment import encoder_input
from .networks import Encoder, Generator
from .storage import load_spec, load_weights

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def prior_files(generator: str | Path | None = None, encoder: str | Path | None = None) -> tuple[Path, Path]:
    """Weight files of generator and encoder; the shipped ones where none is named."""
    return Path(generator or WEIGHTS / "prior.safetensors"), Path(encoder or WEIGHTS / "encoder.safetensors")


@dataclass
class Latent:
    """What inversion optimises: style vectors (1, num_ws, w_dim) and spatial features {resolution: (1, C, r, r)}.

    `rear` (1, C, r, r), if there, is added to the layers of the frontal grid behind the foremost, enlarged to size.
    """

    ws: Tensor
    features: dict
    rear: Tensor | None = None


class BundledPrior(nn.Module):
    """Frontal portrait to tri-planes with the bundled generator and encoder.

    Args:
        generator_path, encoder_path: safetensors written by the training; None is the shipped pair.
    Raises: EnvironmentProblem when a file is missing, UsageError when it does not fit.
    """

    radius = BOX_RADIUS

    def __init__(self, generator_path: str | Path | None = None, encoder_path: str | Path | None = None):
        super().__init__()
        generator_path, encoder_path = prior_files(generator_path, encoder_path)
        self.generator = load_weights(Generator(load_spec(generator_path, "generator")), generator_path, "generator")
        self.encoder = load_weights(Encoder(load_spec(encoder_path, "encoder")), encoder_path, "encoder")
        if self.encoder.spec != self.generator.spec:
            raise UsageError(f"{encoder_path} was not trained with {generator_path}: their sizes differ; use a pair.")
        self.files = (generator_path, encoder_path)
        self.requires_grad_(False).eval()

    @property
    def decoder(self) -> DecoderWeights:
        """Effective weights of the density and colour decoder."""
        return DecoderWeights(*(w.detach() for w in self.generator.decoder.weights()))

    @torch.no_grad()
    def encode(self, premultiplied: Tensor, alpha: Tensor, valid: Tensor, yaw_deg: float, pitch_deg: float) -> Latent:
        """Latent of an aligned portrait.

        Args:
            premultiplied: (1, 3, S, S) in [0, 1]; alpha, valid: (1, 1, S, S).
            yaw_deg, pitch_deg: azimuth and elevation of the photo's camera, degrees.
        """
        angle = premultiplied.new_tensor
        x = encoder_input(
            premultiplied, alpha, valid, angle([yaw_deg]), angle([pitch_deg]), self.encoder.spec.encoder_input
        )
        ws, _, features = self.encoder(x)
        return Latent(ws, features)

    def sample(self, z: Tensor, truncation: float = 0.7) -> Latent:
        """Random heads. Args: z (B, latent_rank) standard normal; truncation in [0, 1], 0 is the mean head."""
        return Latent(self.generator.random_heads(z, truncation), {})

    def synthesize(self, latent: Latent) -> list[Tensor]:
        """Planes (B, 3, C, R, R) and frontal grid (B, 1, C, L, R, R) of a latent; differentiable in the latent."""
        planes, grid = self.generator.synthesis(latent.ws, latent.features)
        if latent.rear is not None:
            rear = F.interpolate(latent.rear, size=grid.shape[-2:], mode="bilinear", align_corners=False)
            behind = grid[:, :, :, :-1] + rear[:, None, :, None]
            grid = torch.cat([behind, grid[:, :, :, -1:]], dim=3)
        return [planes, grid]
