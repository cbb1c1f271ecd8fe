"""Noise that lives in space and is seen on the surface from any view: an object-space field, white in every view.

After "Consistent Flow Distillation" (Yan et al., ICLR 2025), which keeps noise in textures around the object and gives
a latent pixel the sum of the texels it covers over the root of their number. Here the noise lies in small cells of the
box, so that no parametrisation of the surface is needed; a pixel takes the cells through which its patch of surface
runs, and a cell that two pixels touch belongs to one of them alone. So the noise of a view is N(0, I) exactly, whatever
the geometry, and two views share it as far as they see the same cells. There is a grid for each axis, of cells that are
long along it; a patch looks into that of the axis which it faces most, so that a small error of depth rarely leads into
another cell.
"""
import torch
from torch import Tensor

from ..ops.cameras import get_rays
from ..ops.canonical import BOX_RADIUS
from ..ops.projection import fine, subdivided_depth

THICKNESS = 16
"""Length of a cell along the axis of its grid, over its width."""


class NoiseField:
    """Three grids of standard normal numbers over the cube of `BOX_RADIUS`.

    Args:
        channels: C of the latents.
        resolution: V, cells along an edge, 1.5 times the latent pixels along an edge: the depths of two views are not
            so exact that they find the same finer cells, and coarser ones leave pixels without any.
        generator: source of the numbers, on the device where the field is to lie.
        radius: half edge of the cube, scene units.
    """

    def __init__(self, channels: int, resolution: int, generator: torch.Generator, radius: float = BOX_RADIUS):
        self.resolution, self.radius = resolution, radius
        self.layers = -(-resolution // THICKNESS)
        cells = 3 * resolution**2 * self.layers
        self.values = torch.randn((cells, channels), generator=generator, device=generator.device)

    def refresh(self, gamma: float, generator: torch.Generator) -> None:
        """n <- sqrt(1 - gamma) n + sqrt(gamma) eta with fresh eta: stays N(0, I), forgets slowly; gamma in [0, 1].

        The same noise over very many steps can imprint itself as texture.
        """
        fresh = torch.randn(self.values.shape, generator=generator, device=self.values.device)
        self.values = (1 - gamma) ** 0.5 * self.values + gamma**0.5 * fresh

    def state_dict(self) -> dict:
        """Everything needed to go on bit for bit."""
        return {"values": self.values, "resolution": self.resolution, "radius": self.radius}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`. Raises: ValueError when resolution or channels differ."""
        if state["resolution"] != self.resolution or state["values"].shape != self.values.shape:
            raise ValueError(
                f"the noise field has {self.resolution} cells along an edge and {self.values.shape[1]} channels, the "
                f"saved one {state['resolution']} and {state['values'].shape[1]}."
            )
        self.values, self.radius = state["values"].to(self.values), state["radius"]

    @torch.no_grad()
    def render(
        self, depth: Tensor, c2w: Tensor, fovy: Tensor, generator: torch.Generator, k: int = 6,
        fresh: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Noise as B views see it.

        Args:
            depth: (B, h, w) distance along the rays of the latent pixels (`transport.latent_depth`), 0 for background.
            c2w: (B, 4, 4); fovy: (B,) radians.
            generator: of fresh noise where no cell is seen.
            k: a pixel's patch of surface is probed at k x k places.
            fresh: (B, C, h, w) noise for those pixels; None draws it.
        Returns: noise (B, C, h, w), carried (B, 1, h, w): 1 where it comes from the field.
        """
        b, h, w = depth.shape
        channels = self.values.shape[1]
        cell, pixel = self._probe(depth, c2w, fovy, k)
        # cells of each view are numbered apart; a cell's owner is the touching pixel of the lowest number
        found, inverse = torch.unique(cell, return_inverse=True)
        owner = pixel.new_full((len(found),), b * h * w).scatter_reduce(0, inverse, pixel, "amin")
        value = self.values[found % len(self.values)]
        total = value.new_zeros(b * h * w, channels).index_add(0, owner, value)
        count = value.new_zeros(b * h * w).index_add(0, owner, torch.ones_like(owner, dtype=value.dtype))
        noise = (total / count.clamp(min=1).sqrt()[:, None]).view(b, h, w, channels).permute(0, 3, 1, 2)
        carried = (count > 0).view(b, 1, h, w)
        if fresh is None:
            fresh = torch.randn(noise.shape, generator=generator, device=noise.device)
        return torch.where(carried, noise, fresh), carried.to(noise)

    def _probe(self, depth: Tensor, c2w: Tensor, fovy: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cells (M,) and pixels (M,) of all probes on a surface, both numbered apart for each view."""
        b, h, w = depth.shape
        distance, _, _ = subdivided_depth(depth, k)
        rays_o, rays_d = get_rays(c2w, fovy, h * k, w * k)
        points = rays_o + distance[..., None] * rays_d
        axis = fine(faced_axis(points.view(b, h, k, w, k, 3)), k)[..., None]
        index = ((points / (2 * self.radius) + 0.5) * self.resolution).floor().long()
        inside = ((index >= 0) & (index < self.resolution)).all(dim=-1) & fine(depth > 0, k)
        index = index.clamp(0, self.resolution - 1)
        along, u, v = (index.gather(-1, (axis + step) % 3)[..., 0] for step in range(3))
        view = torch.arange(b, device=depth.device).view(b, 1, 1)
        cell = ((axis[..., 0] * self.resolution + u) * self.resolution + v) * self.layers + along // THICKNESS
        cell = cell + view * len(self.values)
        pixel = fine(torch.arange(b * h * w, device=depth.device).view(b, h, w), k)
        return cell[inside], pixel[inside]


def faced_axis(points: Tensor) -> Tensor:
    """The axis, 0 to 2, along which the normal of each pixel's patch is longest.

    Args: points (B, h, k, w, k, 3) of k x k probes a pixel. Returns: (B, h, w) long.
    """
    across = points[:, :, 0, :, -1] - points[:, :, 0, :, 0]
    down = points[:, :, -1, :, 0] - points[:, :, 0, :, 0]
    return torch.linalg.cross(across, down).abs().argmax(dim=-1)
