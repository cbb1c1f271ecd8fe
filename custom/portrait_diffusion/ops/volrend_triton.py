"""Compositing along rays as Triton kernels, forward and backward: a program has some rays, its threads their samples.

Twin of the torch part of `ops.volrend.composite_rays`, in float32. With ``o_i = sigma_i delta_i``, transmittance
``T_i = exp(-sum_{j<i} o_j)``, weights ``w_i = T_i (1 - exp(-o_i))`` (Max, 1995, see there) and ``g_i`` the loss's
derivative by w_i through all outputs, the backward pass sums from the last sample to the first:

    dL/do_i = g_i T_{i+1} - sum_{j>i} g_j w_j      dL/dsigma_i = delta_i dL/do_i      dL/ddelta_i = sigma_i dL/do_i

Sums in front of and behind a sample are added up apart from its own part, so nothing is lost beside an opaque one.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE, WARPS = 1024, 4
"""Samples of a program, of one ray or of several, and its warps."""


@triton.jit
def absorbed(optical):
    """``1 - exp(-x)`` of x >= 0: a series where the difference would lose digits (relative error 2e-9 at 1/4)."""
    series = 1.0 - optical * (1 / 5) * (1.0 - optical * (1 / 6) * (1.0 - optical * (1 / 7)))
    series = optical * (1.0 - optical * (1 / 2) * (1.0 - optical * (1 / 3) * (1.0 - optical * (1 / 4) * series)))
    return tl.where(optical < 0.25, series, 1.0 - tl.exp(-optical))


@triton.jit
def _then(total, before, more, more_before):
    """Of two neighbouring stretches: the sum over both, and what lies before the last element, without itself."""
    return total + more, total + more_before


@triton.jit
def _before(x, BEHIND: tl.constexpr):
    """Sums along samples of what lies in front of each, or BEHIND it; not by a difference, which would lose digits."""
    return tl.associative_scan((x, tl.zeros_like(x)), 1, _then, reverse=BEHIND)[1]


@triton.jit(do_not_specialize=["n_rays", "n_samples"])
def composite(
    density, colour, t, deltas, rgb, opacity, depth, variance, weights, passed, n_rays, n_samples,
    EPS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """Outputs of `Composite`, and ``passed`` (R,S), the transmittance behind each sample."""
    ray, s = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64), tl.arange(0, SAMPLES)
    real = ray < n_rays
    inside = real[:, None] & (s < n_samples)[None, :]
    at = ray[:, None] * n_samples + s[None, :]
    optical = tl.load(density + at, mask=inside, other=0.0) * tl.load(deltas + at, mask=inside, other=0.0)
    before = _before(optical, False)
    weight = tl.exp(-before) * absorbed(optical)
    tl.store(weights + at, weight, mask=inside)
    tl.store(passed + at, tl.exp(-(before + optical)), mask=inside)
    place = tl.load(t + at, mask=inside, other=0.0)
    total = tl.sum(weight, axis=1)
    seen = total > EPS
    expected = tl.where(seen, tl.sum(weight * place, axis=1) / tl.where(seen, total, 1.0), 0.0)
    off = place - expected[:, None]
    tl.store(opacity + ray, total, mask=real)
    tl.store(depth + ray, expected, mask=real)
    tl.store(variance + ray, tl.sum(weight * off * off, axis=1), mask=real)
    for k in range(K):
        shade = tl.load(colour + at * K + k, mask=inside, other=0.0)
        tl.store(rgb + ray * K + k, tl.sum(weight * shade, axis=1), mask=real)


@triton.jit(do_not_specialize=["n_rays", "n_samples"])
def composite_gradients(
    density, colour, t, deltas, opacity, depth, weights, passed, of_rgb, of_opacity, of_depth, of_variance, of_weights,
    grad_density, grad_colour, grad_t, grad_deltas, n_rays, n_samples,
    EPS: tl.constexpr, PLACES: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """Gradients of density and colour, with PLACES also of t and deltas; ``of_``: gradients of the outputs."""
    ray, s = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64), tl.arange(0, SAMPLES)
    real = ray < n_rays
    inside = real[:, None] & (s < n_samples)[None, :]
    at = ray[:, None] * n_samples + s[None, :]
    total = tl.load(opacity + ray, mask=real, other=0.0)
    seen = total > EPS
    pull_depth = tl.load(of_depth + ray, mask=real, other=0.0)
    pull_depth = tl.where(seen, pull_depth / tl.where(seen, total, 1.0), 0.0)[:, None]
    pull_variance = tl.load(of_variance + ray, mask=real, other=0.0)[:, None]
    weight = tl.load(weights + at, mask=inside, other=0.0)
    off = tl.load(t + at, mask=inside, other=0.0) - tl.load(depth + ray, mask=real, other=0.0)[:, None]
    # depth moves with a weight, too, but its part in the variance's derivative is sum w (t - depth) = 0
    pull_weight = tl.load(of_weights + at, mask=inside, other=0.0) + off * (pull_depth + pull_variance * off)
    pull_weight += tl.load(of_opacity + ray, mask=real, other=0.0)[:, None]
    for k in range(K):
        pull = tl.load(of_rgb + ray * K + k, mask=real, other=0.0)[:, None]
        pull_weight += pull * tl.load(colour + at * K + k, mask=inside, other=0.0)
        tl.store(grad_colour + at * K + k, weight * pull, mask=inside)
    behind = _before(pull_weight * weight, True)
    pull_optical = pull_weight * tl.load(passed + at, mask=inside, other=0.0) - behind
    tl.store(grad_density + at, pull_optical * tl.load(deltas + at, mask=inside, other=0.0), mask=inside)
    if PLACES:
        tl.store(grad_deltas + at, pull_optical * tl.load(density + at, mask=inside, other=0.0), mask=inside)
        tl.store(grad_t + at, weight * (pull_depth + 2.0 * pull_variance * off), mask=inside)


def tile(samples: int) -> tuple[int, int]:
    """Rays of a program, and samples of a ray filled up to a power of two."""
    padded = triton.next_power_of_2(samples)
    return max(1, TILE // padded), padded


class Composite(torch.autograd.Function):
    """Emission-absorption along rays, with gradients for all four inputs, once.

    Args (of ``apply``): density (R,S); colour (R,S,K); t and deltas (R,S); all float32, contiguous; the opacity up to
        which a ray has no depth.
    Returns: rgb (R,K), opacity (R,), depth (R,), variance (R,), weights (R,S), see `ops.volrend.composite_rays`.
    """

    @staticmethod
    def forward(ctx, density: Tensor, colour: Tensor, t: Tensor, deltas: Tensor, eps: float):
        rays, samples, colours = colour.shape
        rgb, weights, passed = density.new_empty(rays, colours), torch.empty_like(t), torch.empty_like(t)
        opacity, depth, variance = (density.new_empty(rays) for _ in range(3))
        ctx.sizes = colours, *tile(samples)
        ctx.eps = eps
        if rays:
            with torch.cuda.device_of(density):  # Triton launches on the current device
                composite[(triton.cdiv(rays, ctx.sizes[1]),)](
                    density, colour, t, deltas, rgb, opacity, depth, variance, weights, passed, rays, samples,
                    eps, *ctx.sizes, num_warps=WARPS,
                )  # fmt: skip
        ctx.save_for_backward(density, colour, t, deltas, opacity, depth, weights, passed)
        return rgb, opacity, depth, variance, weights

    @staticmethod
    @once_differentiable
    def backward(ctx, *pulls: Tensor):
        density, colour, t, deltas, *known = ctx.saved_tensors
        rays, samples = t.shape
        pulls = tuple(pull.contiguous() for pull in pulls)
        places = any(ctx.needs_input_grad[2:4])
        grads = [torch.empty_like(x) for x in (density, colour)]
        grads += [torch.empty_like(x) if places else grads[0] for x in (t, deltas)]
        if rays:
            with torch.cuda.device_of(density):
                composite_gradients[(triton.cdiv(rays, ctx.sizes[1]),)](
                    density, colour, t, deltas, *known, *pulls, *grads, rays, samples, ctx.eps, places, *ctx.sizes,
                    num_warps=WARPS,
                )  # fmt: skip
        return (*(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad)), None)
