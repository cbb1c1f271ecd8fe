"""Hundreds of rounds of keeping the better noise: the drift is that of the largest of as many draws, the rest is white.

The largest of R standard normal numbers has mean 1.54 and standard deviation 0.59 for R = 10, 1.97 and 0.51 for R = 25
(its density R p(x) P(x)^(R - 1), integrated numerically).
"""
import math

import pytest
import torch
from benchmark.scripts import load_script
from portrait_diffusion import host
from portrait_diffusion.noise.anchors import AnchorRing
from portrait_diffusion.noise.samplers import NoiseRequest
from portrait_diffusion.ops.cameras import orbit_c2w

from .test_anchors import SIZE, Ellipsoid

AZIMUTHS = list(range(30, 211, 30))
FOVY = math.radians(13.374)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients_that_reward(noise, wanted):
    """Gradients (K, B, 4, h, w) that agree with any neighbour's the better, the further the noise lies along `wanted`.

    g = e_0 + exp(-s) e_(1, 2 or 3), with e_3 for every third view, so that neighbours' wrong parts are orthogonal: the
    cosine is 1 / sqrt((1 + exp(-2 s)) (1 + exp(-2 s'))), which rises with s whatever the neighbour's s' is.
    """
    s = (noise * wanted).sum(dim=(2, 3, 4))
    g = torch.zeros_like(noise)
    g[:, :, 0] = 1
    for row in range(noise.shape[1]):
        g[:, row, 1 + row % 3] = (-s[:, row]).exp()[:, None, None]
    return g


def resample(rounds, max_rounds):
    """Drift (rounds, views) of MV-NRS's own noise in as many comparisons; every view stands at an anchor of its own."""
    angles = torch.tensor([float(a) for a in AZIMUTHS])
    c2w, fovy, head = orbit_c2w(angles, torch.zeros_like(angles)), torch.full_like(angles, FOVY), Ellipsoid()
    r = NoiseRequest((len(angles), 4, SIZE, SIZE), c2w, fovy, head(c2w, fovy), generator())
    sampler = host.find("portrait-diffusion-mvnrs-noise")({
        "azimuths": AZIMUTHS, "elevations": [0], "resample_every": 1, "max_rounds": max_rounds,
    })  # fmt: skip
    sampler.set_geometry(head, orbit_c2w(torch.zeros(1), torch.zeros(1)), torch.tensor([FOVY]))
    wanted = torch.randn(r.shape, generator=generator(1)) * (r.depth > 0)[:, None]
    wanted = wanted / wanted.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    drift, accepted = [], 0.0
    for _ in range(rounds):
        noise = sampler.candidates(r)
        sampler.choose(gradients_that_reward(noise, wanted), noise, r.generator)
        accepted += sampler.statistics["accepted"] * len(angles)
        kept = sampler.anchors.noise[1:]
        drift.append((kept * wanted).sum(dim=(1, 2, 3)))
    return torch.stack(drift), accepted, sampler.anchors.noise[1:]


def test_the_drift_is_that_of_the_largest_draw_and_ageing_ends_it():
    """7 views, so that their mean has sigma over sqrt(7); 4 sigma each.

    A fresh draw wins round r with probability 1 / (r + 1): 2.9 times in 25 rounds.
    """
    forever, accepted, kept = resample(25, max_rounds=10**9)
    assert float(forever[-1].mean()) == pytest.approx(1.97, abs=4 * 0.51 / 7**0.5)
    assert float(forever[9].mean()) == pytest.approx(1.54, abs=4 * 0.59 / 7**0.5)
    assert 7 * 1.2 < accepted < 7 * 5, "perturbed copies would win every third time or so"
    n = kept.numel()
    assert abs(float(kept.square().mean()) - 1) < 4 * math.sqrt(2 / n) + 7 * 2.7**2 / n
    aged = resample(20, max_rounds=10)[0]
    assert float(aged[10:].mean()) < float(forever[10:20].mean()) - 0.4
    # an anchor is given up at the end of its tenth round, for noise of the reference view, which nothing has selected
    assert float((aged[8::10] - aged[9::10]).mean()) > 0.7


@pytest.mark.parametrize(
    "rounds, spacing, size", [(30, 60, 32), pytest.param(500, 10, 64, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_kept_noise_passes_the_spectrum_test_and_perturbed_copies_do_not(rounds, spacing, size):
    """Looked at just before anchors are given up, 36 of them at rounds 100, 200, ... 500 in the long run.

    The lowest of 8 bins has m = 96 frequencies at 64 pixels, 20 at 32: of n noises of 4 channels its power has sigma
    sqrt(2 / (4 n m)), 0.5 % in the long run. A drift of d there adds (d^2 - 1) / (4 m), 1.4 % for 2.5.
    """
    drift = load_script("noise_drift")
    ring, head = AnchorRing(tuple(range(0, 360, spacing)), (0,)), Ellipsoid(size)
    result = drift.keep_the_better(head, (4, size, size), rounds, 100, generator(2), ring)
    sigma = math.sqrt(2 / (4 * result["noises"] * (96 if size == 64 else 20)))
    assert result["spectrum off by"] < 0.03 + 4 * sigma
    assert 1.2 < result["largest drift"] < 3
    if rounds == 500:
        assert result["spectrum off by"] < 0.03, "without the allowance for chance"
        assert abs(result["std"] - 1) < 0.002
        solid = head(orbit_c2w(torch.zeros(36), torch.zeros(36)), torch.full((36,), FOVY)) > 0
        climbed = drift.climb(solid, (4, size, size), rounds, generator(3))
        assert climbed["largest drift"] > 7 and climbed["spectrum off by"] > 0.1 and abs(climbed["std"] - 1) < 0.01
