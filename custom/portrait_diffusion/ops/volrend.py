"""Volume rendering of an emission-absorption field inside an upright cylinder.

Axes: ``R`` rays, ``S`` samples on a ray, any leading axes before them. Names: ``t`` distance along the unit ray,
``edges`` (...,S+1) borders of the intervals that stand for the samples, ``deltas`` their lengths, ``density`` per unit.
Formula (Max, "Optical models for direct volume rendering", 1995): ``w_i = T_i (1 - exp(-sigma_i delta_i))`` with
``T_i = exp(-sum_{j<i} sigma_j delta_j)``; so the weights sum to ``1 - T`` of the whole ray.
"""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .backends import choose

FieldFn = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps world points (*B,N,3) to density (*B,N,1) >= 0 and colour (*B,N,3)."""

SampleFn = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps rays_o, rays_d (*B,R,3), near and far (*B,R,1) to distances (*B,R,S), ascending, and the borders (*B,R,S+1) of
their intervals, without gradients; see `ops.occupancy`."""

RandomSource = torch.Generator | Iterator[Tensor]
"""Where functions here draw from: a generator, or an iterator that gives uniform numbers, a tensor for every draw."""

OPACITY_EPS = 1e-6
"""Depth is not defined (and reported as 0) where opacity is at most this."""


def inside_cylinder(points: Tensor, radius: float) -> Tensor:
    """(...,1) bool: whether world points (...,3) lie in the volume, ``|z| <= r`` and ``x^2 + y^2 <= r^2``."""
    horizontal = (points[..., :2] ** 2).sum(-1, keepdim=True) <= radius**2
    return horizontal & (points[..., 2:].abs() <= radius)


def ray_cylinder(rays_o: Tensor, rays_d: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays enter and leave the upright cylinder ``x^2 + y^2 <= r^2, |z| <= r`` (world frame, axis z).

    Args:
        rays_o, rays_d: (...,3) origins and unit directions; origins may lie inside, rays may run parallel to any face.
        radius: r > 0, scene units; also the half height, so the cylinder lies in the cube of half edge r.

    Returns: near, far (...,1) with 0 <= near <= far, both 0 where the ray misses; hit (...,1) bool.
        near and far are differentiable, with zero gradient for missed rays.
    """
    ox, dx = rays_o[..., :2], rays_d[..., :2]
    a = (dx * dx).sum(-1, keepdim=True)
    b = (ox * dx).sum(-1, keepdim=True)
    c = (ox * ox).sum(-1, keepdim=True) - radius**2
    parallel_xy = a < 1e-12
    safe_a = torch.where(parallel_xy, torch.ones_like(a), a)
    discriminant = b * b - a * c
    crosses = (discriminant > 0) & ~parallel_xy
    root = torch.where(crosses, discriminant, torch.ones_like(a)).sqrt()
    infinity = torch.full_like(a, torch.inf)
    near_xy = torch.where(crosses, (-b - root) / safe_a, -infinity)
    far_xy = torch.where(crosses, (-b + root) / safe_a, infinity)
    in_xy = crosses | (parallel_xy & (c <= 0))

    oz, dz = rays_o[..., 2:], rays_d[..., 2:]
    parallel_z = dz.abs() < 1e-12
    safe_dz = torch.where(parallel_z, torch.ones_like(dz), dz)
    t0, t1 = (-radius - oz) / safe_dz, (radius - oz) / safe_dz
    near_z = torch.where(parallel_z, -infinity, torch.minimum(t0, t1))
    far_z = torch.where(parallel_z, infinity, torch.maximum(t0, t1))
    in_z = ~parallel_z | (oz.abs() <= radius)

    near = torch.maximum(near_xy, near_z).clamp_min(0)
    far = torch.minimum(far_xy, far_z)
    hit = in_xy & in_z & (far > near) & torch.isfinite(far)
    zero = torch.zeros_like(a)
    return torch.where(hit, near, zero), torch.where(hit, far, zero), hit


def uniform(shape: tuple[int, ...], generator: RandomSource, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) drawn on the generator's own device, then moved."""
    if not isinstance(generator, torch.Generator):
        return next(generator).view(shape)
    return torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def sample_within(edges: Tensor, generator: RandomSource | None = None) -> Tensor:
    """One place (...,S) in each interval between edges (...,S+1), uniform; without a generator the middles."""
    u = 0.5 if generator is None else uniform((*edges.shape[:-1], edges.shape[-1] - 1), generator, edges)
    return edges[..., :-1] + (edges[..., 1:] - edges[..., :-1]) * u


def stratified_samples(
    near: Tensor, far: Tensor, n: int, generator: RandomSource | None = None
) -> tuple[Tensor, Tensor]:
    """One sample in each of n equal strata between near and far.

    Args:
        near, far: (...,1).
        n: number of samples, >= 1.
        generator: uniform position within the stratum; None takes the middles (deterministic).

    Returns: t (...,n) ascending, edges (...,n+1) of the strata.
    """
    steps = torch.linspace(0, 1, n + 1, device=near.device, dtype=near.dtype)
    edges = near + (far - near) * steps
    return sample_within(edges, generator), edges


def smooth_weights(weights: Tensor, floor: float = 0.01) -> Tensor:
    """Widen a histogram before resampling: two-tap maximum, two-tap mean, a floor (Barron et al., "Mip-NeRF", 2021).

    Args:
        weights: (...,S) >= 0.
        floor: added to every bin, so no interval is out of reach.

    Returns: (...,S).
    """
    padded = torch.cat([weights[..., :1], weights, weights[..., -1:]], dim=-1)
    highest = torch.maximum(padded[..., :-1], padded[..., 1:])  # (...,S+1)
    return 0.5 * (highest[..., :-1] + highest[..., 1:]) + floor


def importance_samples(
    edges: Tensor, weights: Tensor, n: int, generator: RandomSource | None = None
) -> Tensor:
    """Samples from the piecewise constant density given by a histogram, by inverting its cumulative distribution.

    Args:
        edges: (...,S+1) ascending.
        weights: (...,S) >= 0, not normalised; a histogram of zeros counts as uniform over its bins.
        n: number of samples, >= 1.
        generator: stratified random quantiles; None takes the quantiles (i + 0.5) / n (deterministic).

    Returns: (...,n) ascending. Detached: no gradient flows to edges or weights.
    """
    shape = (*edges.shape[:-1], n)
    offset = 0.5 if generator is None else uniform(shape, generator, edges)
    u = (torch.arange(n, device=edges.device, dtype=edges.dtype) + offset) / n
    return _quantiles(edges, weights, u.expand(shape))


def quantile_strata(
    edges: Tensor, weights: Tensor, n: int, generator: RandomSource | None = None
) -> tuple[Tensor, Tensor]:
    """One sample in each of n strata that hold equal shares of a histogram: narrow where its weights are.

    The strata, not the samples' neighbours, say for which interval a sample stands, so that in each of them it is as
    likely anywhere.

    Args: as of `importance_samples`; without a generator the middles.
    Returns: t (...,n) ascending, borders (...,n+1) of the strata from the first edge to the last. Detached.
    """
    u = torch.arange(1, n, device=edges.device, dtype=edges.dtype) / n
    inner = _quantiles(edges, weights, u.expand(*edges.shape[:-1], n - 1))
    strata = torch.cat([edges[..., :1], inner, edges[..., -1:]], dim=-1).detach()
    return sample_within(strata, generator), strata


def _quantiles(edges: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Inverse of the cumulative distribution of a histogram at u (...,n) in [0, 1], ascending."""
    edges, weights = edges.detach(), weights.detach()
    total = weights.sum(-1, keepdim=True)
    pdf = torch.where(total > 0, weights, torch.ones_like(weights))
    cdf = torch.cumsum(pdf, dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf / cdf[..., -1:]], dim=-1)  # (...,S+1)
    u = u.contiguous()
    upper = torch.searchsorted(cdf.contiguous(), u, right=True).clamp(1, weights.shape[-1])
    low, high = cdf.gather(-1, upper - 1), cdf.gather(-1, upper)
    width = high - low
    fraction = torch.where(width > 0, (u - low) / torch.where(width > 0, width, torch.ones_like(width)), 0.5)
    left, right = edges.gather(-1, upper - 1), edges.gather(-1, upper)
    return left + (right - left) * fraction.clamp(0, 1)


def interval_edges(t: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Interval borders half-way between neighbouring samples, closed by near and far; lengths sum to ``far - near``.

    Args:
        t: (...,S) ascending, within [near, far].
        near, far: (...,1).

    Returns: (...,S+1).
    """
    return torch.cat([near, 0.5 * (t[..., 1:] + t[..., :-1]), far], dim=-1)


def merge_samples(t_a: Tensor, t_b: Tensor, *values: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Merge two sets of samples along rays into one in ascending order.

    Args:
        t_a, t_b: (...,Sa), (...,Sb).
        values: pairs (...,Sa,K), (...,Sb,K) that belong to them.

    Returns: t (...,Sa+Sb), then one (...,Sa+Sb,K) for each pair.
    """
    t, order = torch.sort(torch.cat([t_a, t_b], dim=-1), dim=-1, stable=True)
    merged = []
    for a, b in values:
        both = torch.cat([a, b], dim=-2)
        merged.append(both.gather(-2, order[..., None].expand(*order.shape, both.shape[-1])))
    return t, *merged


def composite(
    density: Tensor, colour: Tensor, t: Tensor, deltas: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Emission-absorption along rays (formula in the module text), in float32 or float64, also under autocast.

    Args:
        density: (...,S,1) >= 0 per scene unit.
        colour: (...,S,K).
        t: (...,S) sample distances.
        deltas: (...,S) interval lengths >= 0.

    Returns:
        rgb (...,K) foreground premultiplied by opacity;
        opacity (...,1) = sum of weights = 1 - transmittance;
        depth (...,1) expected distance ``sum(w t) / sum(w)``, 0 where opacity <= OPACITY_EPS;
        weights (...,S).
    """
    dtype = torch.float64 if density.dtype == torch.float64 else torch.float32
    with torch.autocast(device_type=density.device.type, enabled=False):
        density, colour, t, deltas = (x.to(dtype) for x in (density, colour, t, deltas))
        optical = density[..., 0] * deltas  # (...,S)
        before = torch.cat([torch.zeros_like(optical[..., :1]), torch.cumsum(optical[..., :-1], dim=-1)], dim=-1)
        weights = torch.exp(-before) * -torch.expm1(-optical)
        opacity = weights.sum(-1, keepdim=True)
        rgb = (weights[..., None] * colour).sum(-2)
        seen = opacity > OPACITY_EPS
        expected = (weights * t).sum(-1, keepdim=True) / torch.where(seen, opacity, torch.ones_like(opacity))
        depth = torch.where(seen, expected, torch.zeros_like(expected))
    return rgb, opacity, depth, weights


def composite_rays(
    density: Tensor, colour: Tensor, t: Tensor, deltas: Tensor, implementation: str = "auto"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`composite` and the variance along each ray, by one of several implementations.

    Args:
        density, colour, t, deltas: of `composite`.
        implementation: "torch" (the reference), "triton" (`ops.volrend_triton`: a GPU, not float64, K <= 64, S <= 4096)
            or "auto". In float32 they agree to 1e-5 of the largest value and 1e-4 of the largest gradient.

    Returns: rgb, opacity, depth, weights of `composite`; variance (...,1) = ``sum w (t - depth)^2``. Differentiable in
        all inputs; by Triton once.
    Raises: ValueError for an unknown implementation; EnvironmentProblem for one that cannot run, with reason and fix.
    """
    unfit = None
    if torch.float64 in (density.dtype, colour.dtype):
        unfit = "it computes in float32, got float64"
    elif colour.shape[-1] > 64:
        unfit = f"it has at most 64 colours, got {colour.shape[-1]}"
    elif deltas.shape[-1] > 4096:
        unfit = f"it has at most 4096 samples a ray, got {deltas.shape[-1]}"
    # auto is torch until whole runs with the kernels have been compared
    if choose("compositing", implementation, density.device, ("torch", "triton"), unfit) == "torch":
        rgb, opacity, depth, weights = composite(density, colour, t, deltas)
        return rgb, opacity, depth, weights, (weights * (t - depth) ** 2).sum(-1, keepdim=True)
    from .volrend_triton import Composite

    shape, colours = deltas.shape, colour.shape[-1]
    flat = [x.reshape(-1, shape[-1]).float().contiguous() for x in (density[..., 0], t, deltas)]
    shades = colour.reshape(-1, shape[-1], colours).float().contiguous()
    rgb, *others, weights = Composite.apply(flat[0], shades, *flat[1:], OPACITY_EPS)
    opacity, depth, variance = (x.view(*shape[:-1], 1) for x in others)
    return rgb.view(*shape[:-1], colours), opacity, depth, weights.view(shape), variance


def _sample_field(field_fn: FieldFn, rays_o: Tensor, rays_d: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate the field at ``rays_o + t rays_d``: density (*B,R,S,1), colour (*B,R,S,K)."""
    points = rays_o[..., None, :] + t[..., None] * rays_d[..., None, :]  # (*B,R,S,3)
    density, colour = field_fn(points.flatten(-3, -2))
    return density.unflatten(-2, t.shape[-2:]), colour.unflatten(-2, t.shape[-2:])


def _two_passes(field_fn, rays_o, rays_d, near, far, n_coarse, n_fine, generator) -> tuple:
    """Samples with the field itself as coarse pass: t, edges, density, colour."""
    t, edges = stratified_samples(near, far, n_coarse, generator)
    density, colour = _sample_field(field_fn, rays_o, rays_d, t)
    if n_fine == 0:
        return t, edges, density, colour
    with torch.no_grad():
        deltas = edges[..., 1:] - edges[..., :-1]
        coarse_weights = composite(density, colour, t, deltas)[3]
        t_fine = importance_samples(edges, smooth_weights(coarse_weights), n_fine, generator).to(t)
    fine = _sample_field(field_fn, rays_o, rays_d, t_fine)
    t, density, colour = merge_samples(t, t_fine, (density, fine[0]), (colour, fine[1]))
    return t, interval_edges(t, near, far), density, colour


def _render_hits(samples: tuple, implementation: str) -> dict[str, Tensor]:
    t, edges, density, colour = samples
    deltas = edges[..., 1:] - edges[..., :-1]
    rgb, opacity, depth, weights, z_variance = composite_rays(density, colour, t, deltas, implementation)
    return {
        "rgb": rgb, "opacity": opacity, "depth": depth, "z_variance": z_variance,
        "weights": weights, "t": t, "deltas": deltas,
    }  # fmt: skip


def render_rays(
    field_fn: FieldFn,
    rays_o: Tensor,
    rays_d: Tensor,
    radius: float,
    n_coarse: int,
    n_fine: int = 0,
    generator: RandomSource | None = None,
    compact: bool = True,
    sample_fn: SampleFn | None = None,
    skip: Tensor | None = None,
    implementation: str = "auto",
) -> dict[str, Tensor]:
    """Render rays through a field bounded by the upright cylinder: a uniform pass, then one where matter is.

    The second pass evaluates only the new samples and merges both sets (EG3D); fine sample positions carry no gradient.
    Without a second pass an interval is the stratum of its sample, with it the borders lie half-way between samples.

    Args:
        field_fn: see :data:`FieldFn`; called with (*B,N,3) world points, at most twice.
        rays_o, rays_d: (*B,R,3) world space, unit directions.
        radius: of the cylinder, scene units.
        n_coarse, n_fine: samples per ray of the two passes; n_coarse >= 1, n_fine >= 0.
        generator: random samples; None is deterministic.
        compact: evaluate only rays that hit the cylinder (in any batch item); costs one device synchronisation.
        sample_fn: where the field is asked in the place of the two passes; n_coarse and n_fine then say nothing.
        skip: (*B,R,1) bool, rays that count as misses.
        implementation: of the compositing, see `composite_rays`.

    Returns: dict with, for rays that miss, all zeros:
        rgb (*B,R,3) premultiplied foreground, opacity (*B,R,1), depth (*B,R,1) expected distance (0 where nothing is),
        z_variance (*B,R,1) = ``sum w (t - depth)^2``, weights, t and deltas (*B,R,S) with S = n_coarse + n_fine.
    """
    if n_coarse < 1 or n_fine < 0:
        raise ValueError(f"n_coarse must be >= 1 and n_fine >= 0, got {n_coarse} and {n_fine}.")
    near, far, hit = ray_cylinder(rays_o, rays_d, radius)
    if skip is not None:
        near, far, hit = (torch.where(skip, torch.zeros_like(x), x) for x in (near, far, hit))

    def render(*rays: Tensor) -> dict[str, Tensor]:
        if sample_fn is None:
            return _render_hits(_two_passes(field_fn, *rays, n_coarse, n_fine, generator), implementation)
        t, edges = sample_fn(*rays)
        return _render_hits((t, edges, *_sample_field(field_fn, *rays[:2], t)), implementation)

    rays, n_rays = (rays_o, rays_d, near, far), rays_o.shape[-2]
    if not compact:
        return render(*rays)  # near = far = 0 for missed rays, so their intervals have length 0 and their weights are 0
    keep = hit.reshape(-1, n_rays).any(dim=0).nonzero()[:, 0]
    if len(keep) == 0 < n_rays:  # one empty interval, so that a field never sees zero points
        keep = torch.zeros(1, dtype=torch.int64, device=rays_o.device)
    if len(keep) == n_rays:
        return render(*rays)
    out = render(*(x.index_select(-2, keep) for x in rays))
    return {key: _scatter_rays(value, keep, n_rays) for key, value in out.items()}


def _scatter_rays(values: Tensor, keep: Tensor, n_rays: int) -> Tensor:
    """(*B,K,S) values of the kept rays placed among n_rays zeros: (*B,n_rays,S)."""
    full = values.new_zeros(*values.shape[:-2], n_rays, values.shape[-1])
    return full.index_copy(-2, keep, values)
