"""Camera tokens: where a view is taken from, as cross-attention tokens in the place of text."""
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn


class CameraTokens(ModelMixin, ConfigMixin):
    """Azimuth and elevation as tokens: a small network on (sin a, cos a, sin e, cos e, sin 2a, cos 2a).

    Args: dim of a token; count of tokens.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, dim: int = 64, count: int = 2):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 128), nn.SiLU(), nn.Linear(128, dim * count))

    def forward(self, c2w: Tensor) -> Tensor:
        """Args: c2w (..., 4, 4), cameras that look at the head. Returns: (..., count, dim)."""
        sight = c2w[..., :3, 2]  # from the head to the camera, world frame
        azimuth, sine = torch.atan2(sight[..., 1], sight[..., 0]), sight[..., 2].clamp(-1, 1)
        cosine = (1 - sine.square()).clamp(min=0).sqrt()
        angles = [azimuth.sin(), azimuth.cos(), sine, cosine, (2 * azimuth).sin(), (2 * azimuth).cos()]
        tokens = self.net(torch.stack(angles, dim=-1).to(self.net[0].weight.dtype))
        return tokens.unflatten(-1, (self.config.count, self.config.dim))
