"""A head to carry noise around, and where one of its views shows another's places; for the benchmarks of noise."""
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).absolute().parents[1]
sys.path.append(str(ROOT / "custom"))

from portrait_diffusion.geometry.triplane import TriplaneGeometry, settings_for  # noqa: E402
from portrait_diffusion.noise.transport import latent_depth  # noqa: E402
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, orbit_c2w, project_points  # noqa: E402
from portrait_diffusion.priors.bundled import BundledPrior  # noqa: E402
from portrait_diffusion.renderer.volume import PortraitVolumeRenderer  # noqa: E402

PATCH = 8
"""Latent pixels along the side of the patches over which noise is added up, in a second comparison of views."""
SAME_PLACE = 0.02
"""Difference of distances below which a place of one view is the one another view shows there, scene units."""


@dataclass
class Views:
    """A head from V yaws.

    Attributes: c2w (V, 4, 4), fovy (V,); depth (V, h, w) of the latent pixels; fine (V, H, W) and rgb (V, H, W, 3), the
        pictures, `factor` pixels to a latent pixel's side.
    """

    c2w: Tensor
    fovy: Tensor
    depth: Tensor
    fine: Tensor
    rgb: Tensor

    def camera(self, index: int) -> tuple[Tensor, Tensor]:
        """c2w (1, 4, 4) and fovy (1,) of one view."""
        return self.c2w[index : index + 1], self.fovy[index : index + 1]


@torch.no_grad()
def mean_head(device: torch.device | None = None) -> PortraitVolumeRenderer:
    """Renderer of the bundled prior's mean head."""
    prior = BundledPrior().to(device or "cpu")
    z = torch.zeros(1, prior.generator.spec.latent_rank, device=device)
    planes = prior.synthesize(prior.sample(z, truncation=0.0))
    geometry = TriplaneGeometry(settings_for(planes, prior.decoder, prior.radius)).to(z.device)
    geometry.set_planes(planes)
    geometry.set_decoder(prior.decoder)
    return PortraitVolumeRenderer({}, geometry=geometry, material=None, background=None).eval()


def pictures(renderer: PortraitVolumeRenderer, c2w: Tensor, fovy: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Depth (B, size, size), 0 for background, and rgb (B, size, size, 3) of views."""
    made = [renderer.render(c2w[i : i + 1], fovy[i : i + 1], size, size) for i in range(len(c2w))]
    depth = torch.cat([(out["depth"] * (out["opacity"] > 0.5))[..., 0] for out in made])
    return depth, torch.cat([out["comp_rgb"] for out in made])


def head_views(yaws: tuple, latents: int = 64, factor: int = 4, device: torch.device | None = None) -> Views:
    """The mean head from the given yaws, degrees."""
    azimuth = torch.tensor([float(yaw) for yaw in yaws], device=device)
    c2w, fovy = orbit_c2w(azimuth, torch.zeros_like(azimuth)), canonical_fovy(azimuth).expand(len(azimuth))
    fine, rgb = pictures(mean_head(device), c2w, fovy, latents * factor)
    return Views(c2w, fovy, latent_depth(fine, factor), fine, rgb)


@dataclass
class Compared:
    """Areas of a target view, N pixels or patches of PATCH x PATCH pixels, all of whose places both views see.

    Attributes:
        members: (N, P) the target's flat latent pixels.
        weights: (N, hw) the share of the area's places that lie in each latent pixel of the source.
        area: (N,) of the area in the source, latent pixels.
    """

    members: Tensor
    weights: Tensor
    area: Tensor

    def exact(self) -> float:
        """Correlation of white noise integrated over each area with the sum of source pixels that `weights` name.

        sqrt(area sum(w^2)), the mean over the areas, where the map between the views is linear; below 1, as pixels of
        two views do not match each other.
        """
        return float((self.area * self.weights.square().sum(dim=1)).sqrt().mean())

    def sums(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(C, N) of source pixels as weighted, and (C, N) of the target's, from noises (1, C, h, w) of the views.

        Both have variance 1 if the noises are white.
        """
        told = source[0].flatten(1) @ (self.weights / self.weights.norm(dim=1, keepdim=True)).t()
        return told, target[0].flatten(1)[:, self.members].sum(dim=-1) / self.members.shape[1] ** 0.5


class Lookup:
    """Where a source view shows the places of a target view's latent pixels, by both views' pictures of depth.

    Attributes:
        seen: (h, w) bool, both views see all of the pixel's places.
        place: (h, w, 2) column and row in the source, latent pixels, of a target pixel's middle.
        pixels, patches: where noise is compared, by pixels and by patches.
    """

    def __init__(self, views: Views, source: int, target: int):
        h, w = views.depth.shape[1:]
        big_h, big_w = views.fine.shape[1:]
        factor = big_h // h
        solid = views.fine[target] > 0
        rays_o, rays_d = get_rays(*views.camera(target), big_h, big_w)
        points = (rays_o + views.fine[target, ..., None] * rays_d).flatten(1, 2)
        place, ahead = project_points(points, *views.camera(source), big_h, big_w)
        column, row = place[0].floor().long().unbind(-1)
        inside = solid.flatten() & (ahead[0] > 0) & (column >= 0) & (column < big_w) & (row >= 0) & (row < big_h)
        column, row = column.clamp(0, big_w - 1), row.clamp(0, big_h - 1)
        distance = (points[0] - views.c2w[source, :3, 3]).norm(dim=-1)
        there = views.fine[source][row, column]
        inside &= (there > 0) & ((distance - there).abs() < SAME_PLACE)

        def blocks(x: Tensor, size: int) -> Tensor:  # rows of a picture (H W, ...) to (blocks, size, size, ...)
            side = round(len(x) ** 0.5)
            x = x.view(side // size, size, side // size, size, *x.shape[1:])
            return x.transpose(1, 2).flatten(0, 1)

        seen = blocks(inside, factor).all(dim=2).all(dim=1)
        self.seen = seen.view(h, w)
        index = blocks(row // factor * w + column // factor, factor).flatten(1)
        share = torch.full(index.shape, 1 / factor**2, device=index.device)
        weights = share.new_zeros(h * w, h * w).scatter_add(1, index, share)
        place = blocks(place[0], factor) / factor
        right = (place[:, :, -1] - place[:, :, 0]).mean(dim=1) * factor / (factor - 1)
        down = (place[:, -1] - place[:, 0]).mean(dim=1) * factor / (factor - 1)
        area = (right[:, 0] * down[:, 1] - right[:, 1] * down[:, 0]).clamp(min=0)
        self.place = place.mean(dim=(1, 2)).view(h, w, 2)
        number = torch.arange(h * w, device=index.device)
        self.pixels = Compared(number[seen, None], weights[seen], area[seen])
        members = blocks(number, min(PATCH, h)).flatten(1)
        members = members[seen[members].all(dim=1)]
        self.patches = Compared(members, weights[members].mean(dim=1), area[members].sum(dim=1))

    def warp(self, noise: Tensor, mode: str, fresh: Tensor) -> Tensor:
        """What is commonly done: the source's noise (1, C, h, w) looked up with `grid_sample`; fresh where not seen."""
        size = torch.tensor([noise.shape[-1], noise.shape[-2]], device=noise.device)
        grid = (2 * self.place / size - 1).nan_to_num()[None]
        found = F.grid_sample(noise, grid, mode=mode, padding_mode="border", align_corners=False)
        return torch.where(self.seen, found, fresh)
