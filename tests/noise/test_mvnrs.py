"""MV-NRS as a sampler: what it needs, whiteness, what it keeps, its cadence, state, and the guidance with it."""
import math

import pytest
import torch
from portrait_diffusion import host
from portrait_diffusion.errors import UsageError
from portrait_diffusion.noise.samplers import NoiseRequest
from portrait_diffusion.ops.cameras import get_rays, orbit_c2w

from .test_agreement import generator
from .test_anchors import SIZE, Ellipsoid

FOVY = math.radians(13.374)


def request(*azimuths, channels=4, seed=0):
    angles = torch.tensor([float(a) for a in azimuths])
    c2w, fovy = orbit_c2w(angles, torch.zeros_like(angles)), torch.full_like(angles, FOVY)
    return NoiseRequest((len(angles), channels, SIZE, SIZE), c2w, fovy, Ellipsoid()(c2w, fovy), generator(seed))


def make(**changes):
    sampler = host.find("portrait-diffusion-mvnrs-noise")({"azimuths": [0, 30, 60, 90], "elevations": [0], **changes})
    sampler.set_geometry(Ellipsoid(), orbit_c2w(torch.tensor([10.0]), torch.zeros(1)), torch.tensor([FOVY]))
    return sampler


def surface_field(r):
    """Smooth vectors that are the same from every view."""
    rays_o, rays_d = get_rays(r.c2w, r.fovy, SIZE, SIZE)
    points = rays_o + r.depth[..., None] * rays_d
    waves = torch.tensor([[9.0, 2, -4], [3, -8, 5], [-6, 7, 8], [5, 5, -9]])
    return torch.sin(points @ waves.t() + torch.arange(4.0)).permute(0, 3, 1, 2) * (r.depth > 0)[:, None]


def test_geometry_is_needed_and_bad_settings_are_named():
    sampler = host.find("portrait-diffusion-mvnrs-noise")({})
    with pytest.raises(UsageError, match="set_geometry"):
        sampler(request(0, 20))
    unknown = request(0, 20)
    unknown.depth = None
    with pytest.raises(UsageError, match="renders' depth"):
        make()(unknown)
    with pytest.raises(UsageError, match="at least 2"):
        make(candidates=1)


def test_candidates_are_white_and_shared_by_neighbours():
    r = request(20, 35, channels=200)
    noise = make(candidates=3).candidates(r)
    assert noise.shape == (3, 2, 200, SIZE, SIZE)
    near = request(35, 37, channels=200)
    for k in range(3):
        n = noise[k].numel()
        assert abs(float(noise[k].mean())) < 4 / math.sqrt(n)
        assert abs(float(noise[k].square().mean()) - 1) < 4 * math.sqrt(2 / n)
    shared = make(candidates=2).candidates(near)
    inside = (near.depth > 0).all(dim=0)
    for k in range(2):  # two degrees apart: most of a latent's cells stay in their pixel
        assert float((shared[k, 0] * shared[k, 1])[:, inside].mean()) > 0.3
    assert abs(float((shared[0] * shared[1]).mean())) < 0.02, "a redraw has nothing to do with the anchors"


def test_the_candidate_whose_gradients_agree_is_kept():
    r = request(20, 35)
    sampler = make()
    noise = sampler.candidates(r)
    before = sampler.anchors.noise.clone()
    random = torch.randn(r.shape, generator=generator(3))
    best = sampler.choose(torch.stack([surface_field(r), random]), noise, r.generator)
    assert best.tolist() == [0, 0] and torch.equal(sampler.anchors.noise, before)
    assert sampler.statistics["accepted"] == 0 and sampler.statistics["score"] > 0.8
    # now the first view's fresh noise agrees with what its neighbour's anchor wants, the anchors' noise does not
    noise = sampler.candidates(r)
    field = surface_field(r)
    gradients = torch.stack([torch.stack([random[0], field[1]]), torch.stack([field[0], random[1]])])
    best = sampler.choose(gradients, noise, r.generator)
    assert best.tolist()[0] == 1
    kept = sampler.statistics
    assert kept["score_kept"] > kept["score"] and abs(kept["control"]) < 0.3 and kept["rows"] == 2
    changed = [i for i in range(len(before)) if not torch.equal(sampler.anchors.noise[i], before[i])]
    nearest = sampler.anchors.nearest(r.c2w).tolist()
    assert set(changed) <= {i for i, b in zip(nearest, best.tolist(), strict=True) if b} - {0}


def test_far_views_have_nothing_to_compare():
    r = request(0, 170)
    sampler = make()
    noise = sampler.candidates(r)
    assert len(noise) == 1, "opposite views do not pay for candidates"
    best = sampler.choose(torch.randn(noise.shape, generator=generator(4)), noise, r.generator)
    assert best.tolist() == [0, 0] and sampler.statistics["compared"] == sampler.statistics["rows"] == 0
    assert len(make(max_pair_deg=175.0).candidates(request(0, 170))) == 2


def test_cadence_and_state():
    sampler = make(resample_every=3)
    compared = []
    for _ in range(7):
        compared.append(sampler.compares_now())
        sampler(request(20, 35))
    assert compared == [True, False, False, True, False, False, True]
    again = make(resample_every=3)
    again.load_state_dict(sampler.state_dict())
    assert again.state_dict()["steps"] == 7 and again.state_dict()["anchors"] is not None
    a, b = sampler(request(40, 50, seed=5)), again(request(40, 50, seed=5))
    assert torch.equal(a, b) and again.state_dict()["steps"] == 8


def test_the_guidance_compares_in_one_call_and_logs_it(tmp_path):
    pytest.importorskip("diffusers")
    from portrait_diffusion.guidance.hpdm.model import build_mini
    from portrait_diffusion.guidance.hpdm.storage import save_hpdm

    torch.manual_seed(0)
    size = 4 * SIZE
    model = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=size)
    guidance = host.find("portrait-diffusion-hpdm-guidance")({
        "pretrained_model_name_or_path": str(save_hpdm(model, tmp_path / "m", half=False)),
        "noise_sampler_type": "portrait-diffusion-mvnrs-noise",
        "noise_sampler": {"azimuths": [0, 30, 60], "elevations": [0], "resample_every": 2},
    })  # fmt: skip
    r = request(20, 35)
    guidance.noise_sampler.set_geometry(Ellipsoid(), r.c2w[:1], r.fovy[:1])
    depth = r.depth.repeat_interleave(4, 1).repeat_interleave(4, 2)[..., None]
    rgb = torch.rand(2, size, size, 3, generator=generator(6)).requires_grad_(True)
    rows = []
    guidance.model.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    first = guidance(rgb, c2w=r.c2w, fovy=r.fovy, depth=depth, opacity=(depth > 0).float())
    second = guidance(rgb, c2w=r.c2w, fovy=r.fovy, depth=depth, opacity=(depth > 0).float())
    assert rows == [4, 2] and first["noise_rows"] == 2 and 0 <= first["noise_accepted"] <= 1
    assert "noise_rows" not in second
    far = request(20, 200)
    depth = far.depth.repeat_interleave(4, 1).repeat_interleave(4, 2)[..., None]
    third = guidance(rgb, c2w=far.c2w, fovy=far.fovy, depth=depth, opacity=(depth > 0).float())
    assert rows == [4, 2, 2] and third["noise_rows"] == 0 and "noise_accepted" not in third
    second["loss_sds"].backward()
    assert float(rgb.grad.abs().sum()) > 0
