"""The detail stage: what the photo shows, kept in a frontal grid that only touches what the photo's camera can see.

The prior's planes stay as they are. A grid over (x, y) with a few layers in depth is added to what their decoder says,
before its output activations (raw density, raw colour), gated by visibility: a voxel behind the visible surface is
never touched, so frontal texture cannot reach the back of the head, and where the surface turns away from the camera
the gate fades out. Because prior, camera and samples are fixed, the decoder's outputs at all samples are computed once;
a step costs one look-up in a grid of four channels and the compositing.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from ..ops.cameras import head_to_world, project_points, world_to_head
from ..ops.plane_layouts import PlaneFrame
from ..ops.smoothstep import smoothstep
from ..ops.triplane import (
    PLANE_AXES,
    DecoderWeights,
    add_detail,
    decode_raw,
    sample_planes,
    voxel_centres,
)
from ..ops.triplane_gather import Rows, kept_tables, plane_rows, plane_table, weighted_rows
from ..ops.volrend import (
    composite,
    importance_samples,
    interval_edges,
    ray_cylinder,
    render_rays,
    smooth_weights,
    stratified_samples,
)
from .config import InversionConfig

FACING_FADE = (0.15, 0.4)
"""Cosines between surface normal and ray from which on the photo's detail counts a little, and fully."""


@dataclass
class FrontalSurface:
    """The prior as the photo's camera sees it.

    Attributes:
        depth: (S, S) distance along the ray, filled in from the nearest hit where the prior has nothing.
        opacity: (S, S).
        facing: (S, S) cosine between surface normal and ray, 1 where the prior has no surface, in [0, 1].
    """

    depth: Tensor
    opacity: Tensor
    facing: Tensor

    def resized(self, size: int) -> "FrontalSurface":
        """The same maps at another resolution (bilinear)."""
        if size == self.depth.shape[0]:
            return self
        maps = torch.stack([self.depth, self.opacity, self.facing])[None]
        return FrontalSurface(*F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)[0])


def field_of(planes: list, weights: DecoderWeights, frame: PlaneFrame):
    """Field function (world points -> density, colour) of a pyramid of planes, which lie in a frame."""

    def field(points: Tensor) -> tuple:
        return frame.field(planes, weights, world_to_head(points))

    return field


@torch.no_grad()
def frontal_surface(
    planes: list[Tensor], weights: DecoderWeights, radius: float, rays_o: Tensor, rays_d: Tensor,
    frame: PlaneFrame | None = None,
) -> FrontalSurface:
    """Render depth, opacity and facing of the prior for the photo's camera.

    Args: radius: half edge of the rendered box; rays (1,S,S,3); frame: of the planes, None for our own over that box.
    """
    size = rays_o.shape[1]
    field = field_of(planes, weights, frame or PlaneFrame(radius=radius))
    out = render_rays(field, rays_o.flatten(1, 2), rays_d.flatten(1, 2), radius, 24, 24)
    opacity = out["opacity"].view(size, size)
    depth = out["depth"].view(size, size)
    solid = (opacity > 0.5).numpy() if opacity.device.type == "cpu" else (opacity > 0.5).cpu().numpy()
    if not solid.any():
        return FrontalSurface(torch.full_like(depth, 2.7), opacity, torch.zeros_like(depth))
    nearest = distance_transform_edt(~solid, return_distances=False, return_indices=True)
    filled = depth.cpu().numpy()[tuple(nearest)]
    near, far, hit = (x[0].view(size, size) for x in ray_cylinder(rays_o.flatten(1, 2), rays_d.flatten(1, 2), radius))
    near, far = near.cpu().numpy(), far.cpu().numpy()  # a filled-in depth must lie where the ray can hold matter
    filled = np.where(hit.cpu().numpy(), np.clip(filled, near + 0.2 * (far - near), far - 0.3 * (far - near)), filled)
    filled = np.where(solid, depth.cpu().numpy(), filled)
    smooth = torch.from_numpy(gaussian_filter(filled, 0.006 * size).astype(np.float32)).to(depth)
    points = rays_o[0] + smooth[..., None] * rays_d[0]
    dx = points[:, 2:] - points[:, :-2]
    dy = points[2:] - points[:-2]
    normal = F.normalize(torch.linalg.cross(dx[1:-1], dy[:, 1:-1]), dim=-1)
    facing = (normal * rays_d[0, 1:-1, 1:-1]).sum(-1).abs()
    facing = F.pad(facing[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    facing = torch.where(torch.from_numpy(solid).to(facing.device), facing, torch.ones_like(facing))
    return FrontalSurface(torch.from_numpy(filled).to(depth), opacity, facing)


def visibility_gate(
    surface: FrontalSurface, pose: tuple, shape: tuple, radius: float, thickness: float, device,
    facing_fade: tuple[float, float] = FACING_FADE, before: float = InversionConfig.detail_before,
) -> Tensor:
    """Gates of the detail grid: 1 where the photo's camera sees the voxel, 0 behind the surface.

    g = smoothstep of (surface depth + thickness - voxel depth) / (thickness / 2), times a fade with the facing cosine,
    0 below `facing_fade[0]` and 1 from `facing_fade[1]` on, times 1 inside the frame. Colours take g; density takes g
    times smoothstep of (voxel depth + before - surface depth) / (thickness / 2): little around the surface and 0 in the
    air before it, where one photo cannot tell a shoulder from a spike towards the camera.

    Args:
        surface: of the prior in the photo's camera.
        pose: c2w (1,4,4), fovy (1,), crop (1,3).
        shape: (D, H, W) of the grid.
        radius, thickness: scene units.
        before: how far before the surface density may change, scene units.
        facing_fade: cosines between surface normal and ray.
    Returns: (1, 1, 4, D, H, W), in [0, 1]; channel 0 for density, the others for colour.
    """
    d, h, w = shape
    size = surface.depth.shape[0]
    points = head_to_world(voxel_centres(shape, radius, device)[None])
    c2w, fovy, crop = (p.detach() for p in pose)
    pixels, _ = project_points(points, c2w, fovy, size, size, crop)
    distance = (points - c2w[:, None, :3, 3]).norm(dim=-1)  # (1, N)
    grid = (pixels / size * 2 - 1)[:, :, None]  # (1, N, 1, 2)
    maps = torch.stack([surface.depth, surface.facing])[None]
    depth, facing = F.grid_sample(maps, grid, align_corners=False, padding_mode="border")[0, :, :, 0]
    inside = (grid[0, :, 0].abs() <= 1).all(dim=-1)
    layer = 2 * radius / d if d > 1 else 0.0  # a voxel reaches half a layer towards the camera
    behind, reach = distance[0] - depth, thickness + 0.5 * layer
    gate = smoothstep(reach - behind, 0, 0.5 * thickness) * smoothstep(facing, *facing_fade) * inside
    slab = smoothstep(before + behind, 0, 0.5 * thickness)
    return torch.stack([gate * slab, gate, gate, gate]).view(1, 1, 4, d, h, w)


@dataclass
class RayCache:
    """Everything about the photo's rays that does not change during the detail stage; P pixels, K samples.

    Attributes: index (P,) flat pixel numbers; coords (P, K, 3) head frame over radius; raw (P, K, 4) decoder outputs;
        t, deltas (P, K); opacity, depth (P, 1) of the prior through these very samples; near, far implied by deltas;
        frame: of the planes; reads: what the samples read in detail grids of `shape`, (P, K, rows); None on a GPU,
        which looks them up as fast.
    """

    index: Tensor
    coords: Tensor
    raw: Tensor
    t: Tensor
    deltas: Tensor
    opacity: Tensor
    depth: Tensor
    frame: PlaneFrame
    reads: Rows | None
    shape: tuple | None


@torch.no_grad()
@kept_tables()
def build_cache(
    planes: list[Tensor], weights: DecoderWeights, radius: float, rays_o: Tensor, rays_d: Tensor,
    surface: FrontalSurface, keep: Tensor, samples: int, thickness: float, chunk: int = 8192,
    shape: tuple | None = None, frame: PlaneFrame | None = None,
) -> RayCache:
    """Fixed samples for the pixels in `keep` (S, S) bool: two thirds where the prior has matter, one at its surface.

    Args:
        shape: (1, 1, 4, D, H, W) of the detail grids that will be shown, if known.
        frame: of the planes, whose layout is our own; None is the box of half edge `radius`, density as it is.
    """
    frame = frame or PlaneFrame(radius=radius)
    index = keep.flatten().nonzero()[:, 0]
    near_surface = max(2, samples // 3)
    parts = []
    for ids in index.split(chunk):
        o, d = rays_o.reshape(-1, 3)[ids], rays_d.reshape(-1, 3)[ids]
        near, far, hit = ray_cylinder(o, d, radius)
        near, far = torch.where(hit, near, 2.3), torch.where(hit, far, 2.3)
        t, edges = stratified_samples(near, far, 32)
        points = o[:, None] + t[..., None] * d[:, None]
        density, colour = field_of(planes, weights, frame)(points.reshape(1, -1, 3))
        density, colour = density.view(*t.shape, 1), colour.view(*t.shape, 3)
        w = composite(density, colour, t, edges[..., 1:] - edges[..., :-1])[3]
        t_mass = importance_samples(edges, smooth_weights(w, floor=0.002), samples - near_surface)
        z = surface.depth.flatten()[ids][:, None]
        offset = torch.linspace(-0.6, 0.8, near_surface, device=z.device) * thickness
        t_near = torch.maximum(torch.minimum(z + offset, far), near)
        t = torch.cat([t_mass, t_near], dim=-1).sort(dim=-1).values
        edges = interval_edges(t, near, far)
        deltas = edges[..., 1:] - edges[..., :-1]
        head = world_to_head(o[:, None] + t[..., None] * d[:, None])
        coords = head / radius
        features = sample_planes(planes, coords.reshape(1, -1, 3))[0].view(*t.shape, -1)
        raw = decode_raw(features, weights)
        density, colour = frame.activated(raw, head)
        _, opacity, depth, _ = composite(density, colour, t, deltas)
        parts.append((coords, raw, t, deltas, opacity, depth))
    whole = [torch.cat(p) for p in zip(*parts)]
    reads = None
    if shape is not None and whole[0].device.type == "cpu":
        rows = plane_rows([shape], whole[0].reshape(1, -1, 3), PLANE_AXES)
        reads = Rows(*(x.view(*whole[0].shape[:2], x.shape[-1]) for x in rows))
    return RayCache(index, *whole, frame, reads, shape)


def render_cached(cache: RayCache, rows: Tensor, grid: Tensor) -> tuple:
    """Render cached rays with the detail grid added.

    Args:
        rows: (M,) rows of the cache; grid: (1, 1, 4, D, H, W), already gated.
    Returns: rgb (M, 3) premultiplied, opacity (M, 1), depth (M, 1).
    """
    base = cache.raw[rows]
    if cache.reads is None or tuple(grid.shape) != cache.shape:
        extra = sample_planes(grid, cache.coords[rows].reshape(1, -1, 3), reduce="sum")[0]
    else:
        reads = Rows(*(x[rows].flatten(0, 1) for x in cache.reads))
        extra = weighted_rows(reads, plane_table([grid]))
    raw = add_detail(base, extra.view(base.shape))
    density, colour = cache.frame.activated(raw, cache.coords[rows] * cache.frame.radius)
    rgb, opacity, depth, _ = composite(density, colour, cache.t[rows], cache.deltas[rows])
    return rgb, opacity, depth


def total_variation(grid: Tensor) -> Tensor:
    """Mean absolute slope of a grid (..., H, W) along columns and along rows, summed; change per side of the box.

    Neighbours are 1/W and 1/H of a side apart, so a picture that is sampled more finely keeps its total variation.
    """
    height, width = grid.shape[-2:]
    return width * grid.diff(dim=-1).abs().mean() + height * grid.diff(dim=-2).abs().mean()
