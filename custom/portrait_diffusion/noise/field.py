"""Noise that lives in space and is seen on the surface from any view: an object-space field, white in every view.

After "Consistent Flow Distillation" (Yan et al., ICLR 2025), which keeps noise in textures around the object and gives
a latent pixel the sum of the texels it covers over the root of their number. Here the noise lies in a grid of small
cells of the box, so that no parametrisation of the surface is needed; a pixel takes the cells through which its patch
of surface runs, and a cell that two pixels touch belongs to one of them alone. So the noise of a view is N(0, I)
exactly, whatever the geometry, and two views share it as far as they see the same cells.
"""
import torch
from torch import Tensor

from ..ops.cameras import get_rays
from ..ops.canonical import BOX_RADIUS
from ..ops.projection import fine, subdivided_depth


class NoiseField:
    """A grid of standard normal numbers over the cube of `BOX_RADIUS`.

    Args:
        channels: C of the latents.
        resolution: V, cells along an edge, 1.5 times the latent pixels along an edge: the depths of two views are not
            so exact that they find the same finer cells, and coarser ones leave pixels without any. V^3 C numbers.
        generator: source of the numbers, on the device where the field is to lie.
        radius: half edge of the cube, scene units.
    """

    def __init__(self, channels: int, resolution: int, generator: torch.Generator, radius: float = BOX_RADIUS):
        self.resolution, self.radius = resolution, radius
        self.values = torch.randn((resolution**3, channels), generator=generator, device=generator.device)

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
        value = self.values[found % self.resolution**3]
        total = value.new_zeros(b * h * w, channels).index_add(0, owner, value)
        count = value.new_zeros(b * h * w).index_add(0, owner, torch.ones_like(owner, dtype=value.dtype))
        noise = (total / count.clamp(min=1).sqrt()[:, None]).view(b, h, w, channels).permute(0, 3, 1, 2)
        carried = (count > 0).view(b, 1, h, w)
        if fresh is None:
            fresh = torch.randn(noise.shape, generator=generator, device=noise.device)
        return torch.where(carried, noise, fresh), carried.to(noise)

    def _probe(self, depth: Tensor, c2w: Tensor, fovy: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cells (M,), offset by V^3 a view, and pixels (M,), offset by h w a view, of all probes on a surface."""
        b, h, w = depth.shape
        distance, _, _ = subdivided_depth(depth, k)
        rays_o, rays_d = get_rays(c2w, fovy, h * k, w * k)
        place = (rays_o + distance[..., None] * rays_d) / (2 * self.radius) + 0.5
        index = (place * self.resolution).floor().long()
        inside = ((index >= 0) & (index < self.resolution)).all(dim=-1) & fine(depth > 0, k)
        x, y, z = index.clamp(0, self.resolution - 1).unbind(-1)
        view = torch.arange(b, device=depth.device).view(b, 1, 1)
        cell = (x * self.resolution + y) * self.resolution + z + view * self.resolution**3
        pixel = fine(torch.arange(b * h * w, device=depth.device).view(b, h, w), k)
        return cell[inside], pixel[inside]
