"""What a step of a published prior's fit costs and keeps: memory of its rays, and its generator in half precision."""
import json

import pytest
import torch
from portrait_diffusion.inversion import published
from portrait_diffusion.inversion.camera import PhotoCamera
from portrait_diffusion.inversion.published import PublishedFit
from portrait_diffusion.inversion.published_config import PublishedFitConfig
from portrait_diffusion.inversion.target import Target
from portrait_diffusion.priors.published.adapter import PublishedPrior
from portrait_diffusion.priors.published.sizes import FAMILIES
from portrait_diffusion.priors.render import half_precision
from priors.published_pickles import write_published

IMAGE_TOLERANCE = 0.03
"""Largest difference of a colour or an opacity in [0, 1] that bfloat16 may make; the mean is a tenth of it at most."""
LEAST_COSINE = 0.99
"""Between the gradients of a photo's loss in bfloat16 and in float32."""


def prior_of(family: str, folder) -> PublishedPrior:
    write_published(folder / "net.pkl", family, seed=2)  # whose head is not empty in any family
    return PublishedPrior.open(folder / "net.pkl", family)


def fit_of(prior: PublishedPrior, size: int, chunk: int) -> PublishedFit:
    target = Target(torch.full((1, 3, size, size), 0.5), torch.ones(1, 1, size, size), torch.ones(1, 1, size, size))
    cfg = PublishedFitConfig(size=size, ray_chunk=chunk, samples=16, lambda_perceptual=0.0)
    return PublishedFit(prior, target, PhotoCamera(), cfg)


# ---- memory --------------------------------------------------------------------------------------------------------
def peak_bytes(work, folder) -> int:
    """Most memory that tensors on the CPU take at a time while `work` runs, beyond what they took before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    assert len(changes) > 100 and peak > 0
    return peak


def growth(prior: PublishedPrior, chunk: int, folder) -> float:
    """How many times the memory of a step, forward and backward, four times as many rays take."""

    def step(size: int) -> int:
        fit = fit_of(prior, size, chunk)
        planes = [level.detach().requires_grad_(True) for level in fit._generated()]

        def work() -> None:
            rays = [r.detach() for r in fit.camera.rays(size)]
            rgb, alpha = fit._render(planes, fit.weights, *rays, fit.rng)
            (rgb.square().sum() + alpha.sum()).backward()

        work()  # the planes' gradients stay: they are no part of what rays take
        return peak_bytes(work, folder)

    return step(64) / step(32)


def test_chunks_of_rays_bound_memory(tmp_path, monkeypatch):
    """Four times the rays take little more memory in chunks, and four times as much at once or without recomputing."""
    prior = prior_of("panohead", tmp_path)
    assert growth(prior, 256, tmp_path) < 1.5
    assert growth(prior, 4096, tmp_path) > 3
    monkeypatch.setattr(published, "recomputed", lambda chunk, *rays, use_reentrant: chunk(*rays))
    assert growth(prior, 256, tmp_path) > 3


# ---- half precision --------------------------------------------------------------------------------------------------
def bfloat16(device: torch.device) -> torch.autocast:
    """`half_precision` as it is on a GPU, on any device."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def float32(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)


def image_and_gradients(prior: PublishedPrior, monkeypatch, precision) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Picture (1,4,32,32) of a random head with its opacity, and a loss's gradients of latent rows and of weights."""
    monkeypatch.setattr(published, "half_precision", precision)
    fit = fit_of(prior, 32, 4096)
    with torch.no_grad():
        fit.ws.copy_(prior.sample(torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).to(fit.ws), 0.7))
    weights = [p.requires_grad_(True) for p in prior.field_parameters()]
    planes = fit._generated()
    assert all(level.dtype == torch.float32 for level in planes)
    image = torch.cat(fit._render(planes, prior.decoder(fit.ws), *fit.camera.rays(32)), dim=1)
    wanted = torch.rand(image.shape, generator=torch.Generator().manual_seed(2)).to(image)
    rows, *others = torch.autograd.grad((image - wanted).square().mean(), [fit.ws, *weights], allow_unused=True)
    return image.detach(), [rows.flatten(), torch.cat([g.flatten() for g in others if g is not None])]


def check_agreement(prior: PublishedPrior, monkeypatch, half) -> None:
    """Raise AssertionError unless two precisions agree on a picture with a head in it, without being the same."""
    image, gradients = image_and_gradients(prior, monkeypatch, float32)
    coarse, directions = image_and_gradients(prior, monkeypatch, half)
    difference = (coarse - image).abs()
    assert float(image[:, 3].max()) > 0.5 and float(image.std()) > 0.05
    assert 1e-5 < float(difference.max()) < IMAGE_TOLERANCE and float(difference.mean()) < IMAGE_TOLERANCE / 10
    cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(directions, gradients, strict=True)]
    assert min(cosines) > LEAST_COSINE, cosines


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_agrees_with_float32(family, tmp_path, monkeypatch):
    """On a CPU, where fits stay in float32: the same code under autocast."""
    check_agreement(prior_of(family, tmp_path), monkeypatch, bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (none is visible)")
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_agrees_with_float32_on_a_gpu(family, tmp_path, monkeypatch):
    """With what fits use there."""
    check_agreement(prior_of(family, tmp_path).to("cuda"), monkeypatch, half_precision)
