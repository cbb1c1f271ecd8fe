"""Settings of the inversion; every field is documented where it stands, the configuration page is made from this."""
from dataclasses import dataclass


@dataclass
class InversionConfig:
    """How a photo becomes planes: encoder, then latent optimisation, then a detail grid."""

    latent_steps: int = 60
    """Steps that move W+, spatial features and the photo's camera. 0 keeps the encoder's answer."""
    latent_size: int = 64
    """Side of the renders in the latent stage, pixels."""
    latent_lr: float = 0.04
    """Adam learning rate of W+."""
    feature_lr: float = 0.02
    """Adam learning rate of the spatial features."""
    rear_lr: float = 0.3
    """Adam learning rate of the features behind the face."""
    camera_lr: float = 0.02
    """Adam learning rate of the camera, in units of `inversion.camera.SCALES`."""
    latent_samples: int = 16
    """Samples a ray in each of the two passes of the latent stage."""
    novel_views: int = 8
    """Side and back views of the encoder's answer that the latent stage must keep: the photo says nothing there."""
    novel_size: int = 48
    """Side of those views, pixels."""
    rear_size: int = 64
    """Side of the features that are fitted behind the face, where kept views are the only guide."""
    density_scale: float = 1.0
    """Factor on the bundled prior's density before the fit: with 2 depth is better, what photographs show is worse."""
    detail_steps: int = 200
    """Steps that fill the detail grid from the photo; cheap, the prior's features are cached. 0 leaves it empty."""
    detail_size: int = 128
    """Side of the photo in the detail stage, pixels."""
    detail_resolution: int = 160
    """Columns and rows of the detail grid over the box."""
    detail_depth: int = 16
    """Layers of the detail grid from the back of the box to its front."""
    detail_samples: int = 40
    """Samples a ray in the detail stage."""
    detail_lr: float = 0.1
    """Adam learning rate of the detail grid."""
    detail_rays: int = 0
    """Rays a detail step, for want of memory: those of a square of pixels, which costs decibels. 0: the whole photo."""
    detail_thickness: float = 0.07
    """How far behind the visible surface the photo may change features, scene units (1 unit = 0.56 m)."""
    detail_before: float = 0.0225
    """How far before the visible surface the photo may change density, scene units; more leaves dust in the air."""
    lambda_rgb: float = 1.0
    """Weight of the Huber loss on premultiplied colour."""
    lambda_alpha: float = 2.0
    """Weight of the Huber loss on alpha (silhouette)."""
    lambda_perceptual: float = 0.5
    """Weight of ST-LPIPS (AlexNet); 0 does without its weights."""
    lambda_latent: float = 0.02
    """Pull of W+ and features to the encoder's answer."""
    lambda_novel: float = 1.0
    """Weight of L1 to the encoder's own side and back views, the guard against a face on the back of the head."""
    lambda_camera: float = 0.002
    """Pull of the camera to the estimated head pose."""
    lambda_geometry: float = 0.5
    """Detail stage: keeps opacity and depth of the prior where matte and prior agree."""
    lambda_detail: float = 1e-3
    """Pull of the detail grid to zero."""
    lambda_smooth: float = 3e-4
    """Total variation of the detail grid across columns and rows, whatever their number; too little leaves dust."""
    checkpoint_every: int = 25
    """Steps between checkpoints; a run resumes at the last one."""

    def __post_init__(self):
        for name in ("latent_size", "detail_size"):
            if getattr(self, name) < 32:
                raise ValueError(f"inversion.{name} must be at least 32 pixels, got {getattr(self, name)}.")
        for name in ("density_scale", "detail_thickness"):
            if not getattr(self, name) > 0:
                raise ValueError(f"inversion.{name} must be above 0, got {getattr(self, name)}.")
        for name in ("latent_steps", "detail_steps", "detail_rays", "detail_before", "lambda_smooth"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"inversion.{name} must not be negative, got {getattr(self, name)}.")

    @property
    def detail_side(self) -> int:
        """Side of the square of pixels of a detail step."""
        return min(int(self.detail_rays**0.5) or self.detail_size, self.detail_size)
