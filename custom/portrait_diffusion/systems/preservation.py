"""Detail preservation: where later stages must not touch the head, because the photo shows it."""
import torch
from torch import Tensor

from ..inversion.detail import FACING_FADE, frontal_surface, visibility_gate
from ..inversion.engine import SURFACE_SIZE


@torch.no_grad()
def restoration_gate(geometry, camera, thickness: float, facing_fade: tuple[float, float] = FACING_FADE) -> Tensor:
    """1 less the visibility of each voxel of the geometry's restoration grid from the photo's camera.

    Closed (0) where the photo's camera sees the voxel, from the camera up to `thickness` behind the head's surface,
    open (1) behind it; in between, and where the surface turns away from the camera, as
    `inversion.detail.visibility_gate` fades: what the photo shows well stays as it is, what it does not show is free.

    Args: geometry with planes, decoder and restoration grid; camera (`inversion.camera.PhotoCamera`); thickness in
        scene units; facing_fade: cosines of that fade. Returns: (1, 1, 1, R, R, R) in [0, 1].
    """
    planes = [level.detach() for level in geometry.planes]
    if geometry.cfg.detail_resolution:
        planes = planes[:-1]
    device = planes[0].device
    rays_o, rays_d = (r.to(device) for r in camera.rays(SURFACE_SIZE))
    weights, radius = geometry.decoder_weights(), geometry.cfg.radius
    surface = frontal_surface(planes, weights, radius, rays_o, rays_d, geometry.frame)
    shape = tuple(geometry.restoration.shape[-3:])
    pose = tuple(x.to(device) for x in camera.pose())
    return 1 - visibility_gate(surface, pose, shape, radius, thickness, device, facing_fade)[:, :, 1:2]
