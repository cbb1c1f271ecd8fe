"""Forward projection of views into another view through their depth, with an occlusion test: the explicit prior.

Every source pixel is cut into k x k cells that lie on its own surface, each cell lands in one target pixel, and a
target pixel takes the mean of the cells it sees. Nothing is interpolated in the target view: a colour that arrives was
in a source, holes stay holes. (A backward warp with bilinear look-ups blurs, and shows a surface again where it is
hidden.)
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import get_rays, project_points

TOLERANCE = 0.01
"""Depth by which cells of one surface may differ besides its slope, scene units."""
GRAZING = 0.1
"""Cosine between normal and line of sight below which a surface counts as not seen."""


@dataclass
class SourceCells:
    """Source pixels cut into cells on their surfaces, before anything is known of a target; M cells of N views.

    Attributes:
        points, normal: (B, M, 3) world frame.
        facing: (B, M) cosine between normal and the source's line of sight, in [0, 1].
        seen: (B, M) bool, solid and not seen at a grazing angle by its own camera; others project nothing.
        source: (M,) flat source pixel (view, row, column).
    """

    points: Tensor
    normal: Tensor
    facing: Tensor
    seen: Tensor
    source: Tensor

    def kept(self, believed: Tensor) -> "SourceCells":
        """Only the cells that are seen and believed, (M,) bool; of one row (B = 1). One device synchronisation."""
        index = (self.seen[0] & believed).nonzero()[:, 0]
        rows = (x[:, index] for x in (self.points, self.normal, self.facing, self.seen))
        return SourceCells(*rows, self.source[index])


@dataclass
class Cells:
    """Source pixels cut into cells, as a target camera sees them; M = N H W k^2 cells of N source views.

    Attributes:
        pixel: (B, M) flat target pixel, -1 where the cell is not in the picture or faces away.
        distance: (B, M) to the target camera, scene units.
        slope: (B, M) change of distance over one target pixel.
        facing: (B, M) cosine between normal and the source's line of sight, in [0, 1].
        source: (M,) flat source pixel (view, row, column).
    """

    pixel: Tensor
    distance: Tensor
    slope: Tensor
    facing: Tensor
    source: Tensor


def limited_slopes(depth: Tensor, solid: Tensor) -> tuple[Tensor, Tensor]:
    """Depth change per column and per row that stays on a pixel's own surface.

    Of the differences to both neighbours the smaller one where they agree in sign, else 0 (the minmod limiter of Roe,
    "Characteristic-based schemes for the Euler equations", 1986, section 4); a neighbour that is not solid has no say.

    Args: depth (B, H, W), solid (B, H, W) bool. Returns: two (B, H, W).
    """

    def along(axis: int) -> Tensor:
        both = solid.narrow(axis, 1, solid.shape[axis] - 1) & solid.narrow(axis, 0, solid.shape[axis] - 1)
        step = depth.diff(dim=axis) * both
        pad = [1, 0] if axis == 2 else [0, 0, 1, 0]
        end = [0, 1] if axis == 2 else [0, 0, 0, 1]
        before, after = F.pad(step, pad), F.pad(step, end)
        a = torch.where(F.pad(both, pad), before, after)
        b = torch.where(F.pad(both, end), after, before)
        return torch.minimum(a, b).clamp(min=0) + torch.maximum(a, b).clamp(max=0)

    return along(2), along(1)


def fine(x: Tensor, k: int) -> Tensor:
    """Every pixel of (B, H, W) as k x k equal ones: (B, k H, k W)."""
    b, h, w = x.shape
    return x[:, :, None, :, None].expand(b, h, k, w, k).reshape(b, h * k, w * k)


def subdivided_depth(depth: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Depth of k x k cells a pixel on the pixel's own surface, and the surface's slopes.

    Args: depth (B, H, W), 0 or less for background. Returns: depth, and change a pixel along columns and rows, each
        (B, k H, k W).
    """
    dx, dy = (slope[:, :, None, :, None] for slope in limited_slopes(depth, depth > 0))
    offset = (torch.arange(k, device=depth.device, dtype=depth.dtype) + 0.5) / k - 0.5
    blocks = depth[:, :, None, :, None] + dx * offset + dy * offset[:, None, None]  # (B, H, k, W, k)
    return blocks.flatten(3).flatten(1, 2), fine(dx[:, :, 0, :, 0], k), fine(dy[:, :, 0, :, 0], k)


def source_cells(
    depth: Tensor, c2w: Tensor, fovy: Tensor, subdivide: int = 3, crop: Tensor | None = None
) -> SourceCells:
    """Cut source pixels into k x k cells on their surfaces. Not differentiable. Args: as of `cells_of`."""
    b, n, h, w = depth.shape
    k = subdivide
    flat = depth.detach().reshape(b * n, h, w)
    distance, dx, dy = subdivided_depth(flat, k)
    camera = c2w.reshape(b * n, 4, 4), fovy.reshape(b * n), h * k, w * k
    rays_o, rays_d = get_rays(*camera, None if crop is None else crop.reshape(b * n, 3))
    points = rays_o + distance[..., None] * rays_d
    # the normal of a cell's plane: of the points one pixel to the right and one down on that plane
    reached = (k * distance)[..., None]
    right = torch.addcmul(dx[..., None] * rays_d, reached, _ray_step(rays_d, 2))
    down = torch.addcmul(dy[..., None] * rays_d, reached, _ray_step(rays_d, 1))
    normal = F.normalize(torch.linalg.cross(down, right), dim=-1)
    facing = -(normal * rays_d).sum(-1)

    def cells(x: Tensor) -> Tensor:  # (B N, kH, kW, ...) to (B, M, ...)
        return x.reshape(b, n * h * k * w * k, *x.shape[3:])

    facing = cells(facing)
    seen = cells(fine(flat > 0, k)) & (facing > GRAZING)
    index = torch.arange(n * h * w, device=depth.device).view(n, h, w)
    return SourceCells(cells(points), cells(normal), facing.clamp(0, 1), seen, fine(index, k).flatten())


def look_at(
    source: SourceCells, target_c2w: Tensor, target_fovy: Tensor, height: int, width: int,
    target_crop: Tensor | None = None,
) -> Cells:
    """The cells as target cameras see them; of one row of cells and B cameras, each sees all of them.

    Args: as of `cells_of`.
    """
    points = source.points.expand(len(target_c2w), -1, -1)
    view = points - target_c2w[:, None, :3, 3]
    reach = view.norm(dim=-1)
    cosine = -(source.normal * view).sum(-1) / reach.clamp(min=1e-6)
    pixels, ahead = project_points(points, target_c2w, target_fovy, height, width, target_crop)
    column, row = pixels.floor().long().unbind(-1)
    seen = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (ahead > 0) & (cosine > GRAZING)
    footprint = (2 / height * torch.tan(0.5 * target_fovy))[:, None] * ahead
    if target_crop is not None:
        footprint = footprint / target_crop[:, :1]
    slope = footprint * torch.tan(torch.acos(cosine.clamp(GRAZING, 1)))
    return Cells(torch.where(seen & source.seen, row * width + column, -1), reach, slope, source.facing, source.source)


def cells_of(
    depth: Tensor, c2w: Tensor, fovy: Tensor, target_c2w: Tensor, target_fovy: Tensor, height: int, width: int,
    subdivide: int = 3, crop: Tensor | None = None, target_crop: Tensor | None = None,
) -> Cells:
    """Cut source pixels into cells on their surfaces and find them in a target view. Not differentiable.

    Args:
        depth: (B, N, H, W) distance along the ray, scene units; 0 or less is background.
        c2w, fovy: (B, N, 4, 4) and (B, N) radians, of the sources.
        target_c2w, target_fovy: (B, 4, 4) and (B,).
        height, width: of the target in pixels.
        subdivide: k, cells along a pixel's side.
        crop, target_crop: (B, N, 3) and (B, 3), see `ops.cameras`; None is none.
    """
    source = source_cells(depth, c2w, fovy, subdivide, crop)
    return look_at(source, target_c2w, target_fovy, height, width, target_crop)


def _ray_step(rays_d: Tensor, axis: int) -> Tensor:
    """Change of ray direction from one ray to the next along an axis; the last one repeats."""
    step = rays_d.diff(dim=axis)
    return torch.cat([step, step.narrow(axis, step.shape[axis] - 1, 1)], dim=axis)


def places(pixel: Tensor, pixels: int) -> Tensor:
    """Where cells are added up, in [0, 2 pixels): their target pixel; those in none are spread over the second half.

    A GPU adds to one place one value after the other: all that is not in the picture in one place cost 400 ms a step.

    Args: pixel (B, M) of `Cells`. Returns: (B, M).
    """
    spread = pixels + torch.arange(pixel.shape[1], device=pixel.device) % pixels
    return torch.where(pixel >= 0, pixel, spread)


def visible(cells: Cells, pixels: int, target_depth: Tensor | None = None) -> Tensor:
    """Which cells the target sees: the nearest surface in each pixel, with a tolerance that follows its slope.

    Args:
        cells: of `cells_of`.
        pixels: of the target, H W.
        target_depth: (B, H, W) distance along the target's rays, 0 or less for background, if the geometry is known:
            cells must then lie on it, else on the nearest cell of their pixel.
    Returns: (B, M) bool.
    """
    inside = cells.pixel >= 0
    tolerance = TOLERANCE + cells.slope
    if target_depth is not None:
        known = target_depth.flatten(1).gather(1, cells.pixel.clamp(min=0))
        return inside & (known > 0) & ((cells.distance - known).abs() <= tolerance)
    far = torch.where(inside, cells.distance, torch.inf)
    index = places(cells.pixel, pixels)
    nearest = far.new_full((len(far), 2 * pixels), torch.inf).scatter_reduce(1, index, far, "amin")
    return inside & (cells.distance <= nearest.gather(1, index) + tolerance)


def forward_project(
    values: Tensor, depth: Tensor, c2w: Tensor, fovy: Tensor, target_c2w: Tensor, target_fovy: Tensor,
    height: int, width: int, target_depth: Tensor | None = None, weights: Tensor | None = None, subdivide: int = 3,
    min_coverage: float = 0.25, crop: Tensor | None = None, target_crop: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What N views show, projected into another view.

    A target pixel takes the mean of the cells that it sees (`visible`), weighted by ``weights`` times the squared
    cosine under which their source saw them, so that of several views the one that looks straight at a place decides.
    Differentiable in `values`; depth and cameras are constants.

    Args:
        values: (B, N, C, H, W) any channels.
        depth: (B, N, H, W) distance along the ray, scene units; 0 or less is background and projects nothing.
        c2w, fovy: (B, N, 4, 4) and (B, N) radians. target_c2w, target_fovy: (B, 4, 4) and (B,).
        height, width: of the target in pixels.
        target_depth: (B, height, width) if the target's geometry is known, see `visible`.
        weights: (B, N, H, W) >= 0, how far a source pixel is to be believed; 0 leaves it out.
        subdivide: k; a pixel is cut into k x k cells. Cost: B N H W k^2 cells.
        min_coverage: share of k^2 cells that a target pixel must have received to be valid.
        crop, target_crop: (B, N, 3) and (B, 3), see `ops.cameras`.
    Returns: projected (B, C, height, width), 0 where not valid; valid (B, 1, height, width), 0 or 1.
    """
    b, n, c, h, w = values.shape
    if depth.shape != (b, n, h, w):
        raise ValueError(f"depth must be {(b, n, h, w)}, as values {tuple(values.shape)} say; got {tuple(depth.shape)}")
    source = source_cells(depth, c2w, fovy, subdivide, crop)
    flat = values.transpose(1, 2).reshape(b, c, n * h * w)
    believed = None if weights is None else weights.detach().reshape(b, -1)[:, source.source]
    return project_cells(
        source, flat[:, :, source.source], target_c2w, target_fovy, height, width, target_depth, believed,
        min_coverage * subdivide**2, target_crop,
    )  # fmt: skip


def project_cells(
    source: SourceCells, values: Tensor, target_c2w: Tensor, target_fovy: Tensor, height: int, width: int,
    target_depth: Tensor | None, believed: Tensor | None, min_cells: float, target_crop: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`forward_project` of cells that are cut already, for sources that stay as they are.

    Args:
        source: of B rows, or of one for all targets. values: (B or 1, C, M) of each cell.
        believed: (B or 1, M) >= 0, or None for 1; the others as there, with `min_cells` for the coverage.
    """
    b, c, pixels = len(target_c2w), values.shape[1], height * width
    cells = look_at(source, target_c2w, target_fovy, height, width, target_crop)
    seen = visible(cells, pixels, target_depth)
    index = places(cells.pixel, pixels)
    share = cells.facing.square() * seen
    if believed is not None:
        share, seen = share * believed, seen & (believed > 0)
    total = share.new_zeros(b, 2 * pixels).scatter_add(1, index, share)[:, :pixels]
    count = share.new_zeros(b, 2 * pixels).scatter_add(1, index, seen.to(share))[:, :pixels]
    contributions = values * share.to(values)[:, None]
    summed = values.new_zeros(b, c, 2 * pixels).scatter_add(2, index[:, None].expand(-1, c, -1), contributions)
    summed = summed[:, :, :pixels]
    valid = (count >= min_cells) & (total > 0)
    projected = torch.where(valid[:, None], summed / total.clamp(min=1e-12).to(values)[:, None], 0)
    return projected.view(b, c, height, width), valid.to(values).view(b, 1, height, width)
