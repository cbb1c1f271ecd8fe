"""Settings of the fit of a published prior; every field is documented where it stands."""
from dataclasses import dataclass

TUNINGS = ("planes", "generator", "none")


@dataclass
class PublishedFitConfig:
    """How a published prior is fitted: latent rows (W+), then tuning of its planes or of its generator."""

    latent_steps: int = 150
    """Steps that move the latent rows and the photo's camera, from the mean latent."""
    tuning: str = "planes"
    """planes: the planes themselves (cheap, for CPUs); generator: pivotal tuning of its weights; none."""
    tuning_steps: int = 300
    """Steps of the tuning."""
    size: int = 64
    """Side of the photo in the fit, pixels."""
    rays: int = 1024
    """Rays a step: a strided grid of the photo's pixels. Steps with the perceptual loss take all of them."""
    ray_chunk: int = 2048
    """Rays whose samples are held at a time; more are computed again for the gradient."""
    samples: int = 24
    """Samples a ray in each of the two passes."""
    latent_lr: float = 0.05
    """Adam learning rate of the latent rows."""
    camera_lr: float = 0.02
    """Adam learning rate of the camera, in units of `inversion.camera.SCALES`."""
    plane_lr: float = 0.02
    """Adam learning rate of planes, as a share of their standard deviation; fine pyramid levels take a fifth."""
    generator_lr: float = 3e-4
    """Adam learning rate of the generator's weights."""
    latent_noise: float = 0.05
    """Noise on the latent rows at the first step, share of their spread; it is gone after three quarters."""
    lambda_rgb: float = 1.0
    """Weight of the Huber loss on premultiplied colour."""
    lambda_alpha: float = 2.0
    """Weight of the Huber loss on alpha (silhouette)."""
    lambda_perceptual: float = 0.5
    """Weight of ST-LPIPS; taken every perceptual_every steps. 0 does without its weights."""
    perceptual_every: int = 4
    """Steps from one perceptual loss to the next."""
    lambda_latent: float = 0.02
    """Pull of the latent rows to the mean latent, per squared spread."""
    lambda_camera: float = 0.002
    """Pull of the camera to the estimated head pose."""
    lambda_pivot: float = 0.02
    """Pull of tuned planes to the pivot's, per variance."""
    attempts: int = 2
    """Starts that are tried: the mean latent, then random heads."""
    min_overlap: float = 0.6
    """A fit is given up when its silhouette's intersection over union with the photo's is below this."""
    checkpoint_every: int = 25
    """Steps between checkpoints."""

    def __post_init__(self):
        if self.tuning not in TUNINGS:
            raise ValueError(f"published_fit.tuning must be one of {', '.join(TUNINGS)}, got '{self.tuning}'.")
        least_of = {"latent_steps": 0, "tuning_steps": 0, "size": 32, "rays": 64, "ray_chunk": 64, "samples": 4}
        least_of |= dict.fromkeys(("perceptual_every", "attempts", "checkpoint_every"), 1)
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"published_fit.{name} must be at least {least}, got {getattr(self, name)}.")
