"""Cameras and rays in threestudio's convention, and the change of frame to the head frame.

Axes: ``B`` batch, ``H, W`` image rows and columns, ``N`` points. World frame: right-handed, z up, the face looks along
+x. Camera: OpenGL (x right, y up, looks along -z); ``c2w = [right | up | -lookat | position]``. Pixels: continuous
coordinates (x right, y down), the centre of the first pixel at (0.5, 0.5), row 0 on top. Angles named ``_deg`` are
degrees, ``fovy`` is the vertical field of view in radians. All is differentiable in poses, fovy, crops and points.

Crop: a camera may carry ``crop = (scale, shift_u, shift_v)``, a similarity of its image plane about the image centre
``c`` that stands for re-framing a photograph. With offsets from the centre measured in image **heights**,
``q = (pixel - c) / H``, what the plain camera shows at ``q`` the cropped camera shows at
``scale * q + (shift_u, shift_v)``. So ``scale`` > 1 magnifies, positive shifts move the picture right and down, and
(1, 0, 0) changes nothing. It equals the intrinsics ``focal * scale``, ``c + H * shift``. (Roll belongs into ``c2w``.)
"""
import math

import torch
from torch import Tensor

from .canonical import (
    BOX_RADIUS,
    CANONICAL_DISTANCE,
    CANONICAL_FOVY_DEG,
    CANONICAL_LANDMARKS_HEAD,
    METRES_PER_UNIT,
)

__all__ = [
    "BOX_RADIUS", "CANONICAL_DISTANCE", "CANONICAL_FOVY_DEG", "METRES_PER_UNIT", "canonical_fovy", "get_mvp_matrix",
    "get_projection_matrix", "get_ray_directions", "get_rays", "head_to_world", "intrinsics", "orbit_c2w",
    "project_points", "projected_landmarks", "subgrid_indices", "subgrid_rays", "test_azimuths_deg",
    "validation_azimuths_deg",
    "world_to_head",
]  # fmt: skip


def _floating(value, like: Tensor | None = None) -> Tensor:
    """A floating tensor: keeps tensors, gives numbers the dtype and device of ``like`` (or the default)."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.to(torch.get_default_dtype())
    if like is None:
        return torch.as_tensor(value, dtype=torch.get_default_dtype())
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product (..., N, K) x (..., K, M) in full precision: `@` is rounded by autocast and by TF32, by pixels."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def canonical_fovy(like: Tensor) -> Tensor:
    """(1,) the canonical vertical field of view in radians, with dtype and device of ``like``."""
    return like.new_full((1,), math.radians(CANONICAL_FOVY_DEG))


def world_to_head(vectors: Tensor) -> Tensor:
    """Points or directions (...,3) from world to head frame: ``head = (world_y, world_z, world_x)``."""
    return torch.stack([vectors[..., 1], vectors[..., 2], vectors[..., 0]], dim=-1)


def head_to_world(vectors: Tensor) -> Tensor:
    """Points or directions (...,3) from head to world frame: ``world = (head_z, head_x, head_y)``."""
    return torch.stack([vectors[..., 2], vectors[..., 0], vectors[..., 1]], dim=-1)


def orbit_c2w(azimuth_deg, elevation_deg, distance=CANONICAL_DISTANCE, target: Tensor | None = None) -> Tensor:
    """Camera on a sphere around the origin, in threestudio's convention.

    ``position = d (cos e cos a, cos e sin a, sin e)``; azimuth 0 is +x (the face looks at this camera), 90 is +y.
    The horizontal is kept level: ``right = (-sin a, cos a, 0)`` when the camera looks at the origin, also at the poles.

    Args:
        azimuth_deg, elevation_deg: numbers or tensors (*B), degrees; broadcast against each other and ``distance``.
        distance: number or tensor (*B), scene units, > 0.
        target: (*B,3) or (3,) point to look at; None is the origin. The position keeps orbiting the origin
            (threestudio's ``center_perturb``, EG3D's pivot). Undefined for a target straight above or below the camera.

    Returns: (*B,4,4) camera-to-world matrices.
    """
    given = (azimuth_deg, elevation_deg, distance)
    like = next((v for v in given if isinstance(v, Tensor) and v.is_floating_point()), None)
    azimuth, elevation, distance = torch.broadcast_tensors(*(_floating(v, like) for v in given))
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    outward = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], dim=-1)
    position = distance[..., None] * outward
    if target is None:
        backward = outward
        right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], dim=-1)
    else:
        target = target.to(position)
        backward = torch.nn.functional.normalize(position - target, dim=-1)
        up = position.new_tensor([0.0, 0.0, 1.0]).expand_as(backward)
        right = torch.nn.functional.normalize(torch.linalg.cross(up, backward), dim=-1)
    up = torch.linalg.cross(backward, right)
    top = torch.stack([right, up, backward, position], dim=-1)  # (*B,3,4)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)


def intrinsics(fovy, height: int, width: int, crop: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Focal length and principal point in pixels: ``focal = 0.5 H / tan(fovy / 2)``, then the crop (see module text).

    Args:
        fovy: (B,) radians, or a number.
        height, width: image size in pixels.
        crop: (B,3) or (3,) scale, shift_u, shift_v; None is (1, 0, 0).

    Returns: focal (B,) and principal (B,2) as (x, y); B is 1 for numbers.
    """
    fovy = torch.atleast_1d(_floating(fovy, crop))
    focal = 0.5 * height / torch.tan(0.5 * fovy)
    centre = torch.stack([torch.full_like(focal, 0.5 * width), torch.full_like(focal, 0.5 * height)], dim=-1)
    if crop is None:
        return focal, centre
    crop = crop.to(focal)
    focal, shift = torch.broadcast_tensors((focal * crop[..., 0])[..., None], crop[..., 1:])
    return focal[..., 0], centre + height * shift


def get_ray_directions(height: int, width: int, focal, principal=None, use_pixel_centers: bool = True) -> Tensor:
    """Ray directions of one camera in its own frame, not normalised: ``((x - cx) / f, -(y - cy) / f, -1)``.

    Args:
        height, width: image size in pixels.
        focal: number or (fx, fy) in pixels.
        principal: (cx, cy) in pixels; None is the image centre.
        use_pixel_centers: rays through pixel centres (+0.5), else through their upper left corners.

    Returns: (H,W,3).
    """
    fx, fy = (focal, focal) if not isinstance(focal, (tuple, list)) else focal
    cx, cy = (0.5 * width, 0.5 * height) if principal is None else principal
    offset = 0.5 if use_pixel_centers else 0.0
    y, x = torch.meshgrid(torch.arange(height) + offset, torch.arange(width) + offset, indexing="ij")
    return torch.stack([(x - cx) / fx, -(y - cy) / fy, -torch.ones_like(x)], dim=-1)


def subgrid_indices(length: int, stride: int = 1, offset: int = 0, count: int | None = None) -> Tensor:
    """Row (or column) indices ``offset + k stride`` for :func:`subgrid_rays`.

    Args:
        length: rows (columns) of the full image.
        stride: step, >= 1.
        offset: first index, 0 .. length - 1.
        count: how many; None is all that fit.

    Returns: (K,) int64.
    Raises: ValueError if the indices leave the image.
    """
    fits = (length - offset + stride - 1) // stride if stride >= 1 else 0
    if stride < 1 or not 0 <= offset < length or (count is not None and not 1 <= count <= fits):
        raise ValueError(f"stride {stride}, offset {offset}, count {count} do not fit an image edge of {length} px.")
    return offset + stride * torch.arange(fits if count is None else count)


def subgrid_rays(
    c2w: Tensor, fovy, height: int, width: int, ys: Tensor, xs: Tensor, crop: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """World-space rays through the centres of the pixels in rows ``ys`` and columns ``xs`` of a full image.

    Equals ``get_rays(...)[:, ys][:, :, xs]`` without making the other rays.

    Args:
        c2w: (B,4,4).
        fovy: (B,) radians, or a number.
        height, width: size of the *full* image in pixels.
        ys, xs: (h,), (w,) integer indices, any order; fractional values give rays between pixel centres.
        crop: optional (B,3), see the module text.

    Returns: rays_o, rays_d (B,h,w,3); rays_d has unit length.
    """
    focal, principal = intrinsics(_floating(fovy, c2w), height, width, crop)
    focal, principal = focal.to(c2w), principal.to(c2w)
    x = (xs.to(c2w) + 0.5 - principal[:, :1]) / focal[:, None]  # (B,w)
    y = (ys.to(c2w) + 0.5 - principal[:, 1:]) / focal[:, None]  # (B,h)
    x, y = torch.broadcast_tensors(x[:, None, :], -y[:, :, None])
    directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1)  # (B,h,w,3)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    rays_d = (directions[..., None, :] * c2w[:, None, None, :3, :3]).sum(-1)
    return c2w[:, None, None, :3, 3].expand_as(rays_d), rays_d


def get_rays(c2w: Tensor, fovy, height: int, width: int, crop: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """World-space rays through all pixel centres.

    Args:
        c2w: (B,4,4).
        fovy: (B,) radians, or a number.
        height, width: image size in pixels.
        crop: optional (B,3), see the module text.

    Returns: rays_o, rays_d (B,H,W,3); rays_d has unit length.
    """
    ys, xs = torch.arange(height, device=c2w.device), torch.arange(width, device=c2w.device)
    return subgrid_rays(c2w, fovy, height, width, ys, xs, crop)


def project_points(
    points: Tensor, c2w: Tensor, fovy, height: int, width: int, crop: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Project world points to pixels; a point on the ray of a pixel centre lands on that centre.

    Args:
        points: (B,N,3) world space; B may be 1.
        c2w: (B,4,4).
        fovy: (B,) radians, or a number.
        height, width: image size in pixels.
        crop: optional (B,3), see the module text.

    Returns: pixels (B,N,2) as (x, y), and depth (B,N) along the optical axis in scene units. Pixels are meaningless
        where depth <= 0 (at or behind the camera): mask them.
    """
    focal, principal = intrinsics(_floating(fovy, c2w), height, width, crop)
    focal, principal = focal.to(c2w), principal.to(c2w)
    camera = _product(points - c2w[:, None, :3, 3], c2w[:, :3, :3])  # R^T (p - o), (B,N,3)
    depth = -camera[..., 2]
    image = torch.stack([camera[..., 0], -camera[..., 1]], dim=-1) / depth[..., None]
    return principal[:, None] + focal[:, None, None] * image, depth


def projected_landmarks(azimuth_deg: Tensor, elevation_deg: Tensor) -> Tensor:
    """Where level canonical cameras show ``CANONICAL_LANDMARKS_HEAD``.

    Args: azimuth_deg, elevation_deg: (B,). Returns: (B,4,2) in [0, 1] of the picture, (u right, v down).
    """
    head = azimuth_deg.new_tensor(CANONICAL_LANDMARKS_HEAD)
    c2w = orbit_c2w(azimuth_deg, elevation_deg)
    return project_points(head_to_world(head)[None], c2w, canonical_fovy(c2w), 1, 1)[0]


def get_projection_matrix(fovy, aspect_wh: float, near: float = 0.01, far: float = 100.0) -> Tensor:
    """OpenGL projection with the y row negated, as threestudio makes it for nvdiffrast.

    Args:
        fovy: (B,) radians.
        aspect_wh: width / height.
        near, far: clipping distances, scene units.

    Returns: (B,4,4); a point above the image centre gets clip y < 0.
    """
    fovy = torch.atleast_1d(_floating(fovy))
    tangent = torch.tan(0.5 * fovy)
    matrix = fovy.new_zeros(*fovy.shape, 4, 4)
    matrix[..., 0, 0] = 1 / (tangent * aspect_wh)
    matrix[..., 1, 1] = -1 / tangent
    matrix[..., 2, 2] = -(far + near) / (far - near)
    matrix[..., 2, 3] = -2 * far * near / (far - near)
    matrix[..., 3, 2] = -1
    return matrix


def get_mvp_matrix(c2w: Tensor, proj_mtx: Tensor) -> Tensor:
    """World to clip space: ``proj @ inverse(c2w)``. Args: (B,4,4) rigid poses, (B,4,4). Returns: (B,4,4)."""
    rotation = c2w[..., :3, :3].transpose(-1, -2)
    translation = -_product(rotation, c2w[..., :3, 3:])
    bottom = c2w.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*c2w.shape[:-2], 1, 4)
    return _product(proj_mtx, torch.cat([torch.cat([rotation, translation], dim=-1), bottom], dim=-2))


def validation_azimuths_deg(n_views: int) -> Tensor:
    """(n,) ``linspace(0, 360, n + 1)`` without its end: evenly spaced, no view twice (threestudio's validation)."""
    return torch.linspace(0.0, 360.0, n_views + 1)[:n_views]


def test_azimuths_deg(n_views: int) -> Tensor:
    """(n,) ``linspace(0, 360, n)``: a turntable whose last view is its first (threestudio's test)."""
    return torch.linspace(0.0, 360.0, n_views)


test_azimuths_deg.__test__ = False  # not a pytest test
