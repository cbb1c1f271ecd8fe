"""Published priors in this project's geometry: the same field, in another frame."""
import dataclasses
import logging
import math
from pathlib import Path

import pytest
import torch
from portrait_diffusion import host
from portrait_diffusion.errors import UsageError
from portrait_diffusion.geometry.triplane import settings_for
from portrait_diffusion.inversion.camera import PhotoCamera
from portrait_diffusion.inversion.detail import field_of
from portrait_diffusion.ops.cameras import canonical_fovy, get_rays, head_to_world, orbit_c2w, world_to_head
from portrait_diffusion.ops.canonical import BOX_RADIUS, CANONICAL_LANDMARKS_HEAD
from portrait_diffusion.ops.plane_layouts import PlaneFrame, layout_features
from portrait_diffusion.ops.volrend import render_rays
from portrait_diffusion.priors.published import adapter, families
from portrait_diffusion.priors.published.adapter import (
    PublishedPrior,
    frame_of,
    gan_label,
    landmarks_in_gan_frame,
    world_to_gan,
)
from portrait_diffusion.priors.published.checkpoint import Checkpoint
from portrait_diffusion.priors.published.fields import decode_published
from portrait_diffusion.priors.published.image import frontal_label
from portrait_diffusion.priors.published.marching import rays_of_label, render_features
from portrait_diffusion.priors.published.sizes import DEFAULTS, FAMILIES

from priors import published_samples
from priors.published_pickles import write_published


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    made = {}
    for family in FAMILIES:
        write_published(folder / f"{family}.pkl", family)
        made[family] = PublishedPrior.open(folder / f"{family}.pkl", family)
    return made


def some_ws(prior: PublishedPrior, seed: int = 0) -> torch.Tensor:
    z = torch.randn(1, 6, generator=torch.Generator().manual_seed(seed))
    return prior.sample(z, 0.7)


def geometry_of(prior: PublishedPrior, ws: torch.Tensor):
    planes, weights = prior.planes(ws), prior.decoder(ws)
    geometry = host.find("portrait-diffusion-triplane")(settings_for(planes, weights, prior.radius, frame=prior.frame))
    geometry.set_planes(planes)
    geometry.set_decoder(weights)
    return geometry


def published_field(prior: PublishedPrior, ws: torch.Tensor, gan_points: torch.Tensor) -> tuple:
    """Density per GAN unit and colour in [0, 1], straight from the published formulas."""
    g = prior.generator
    features = layout_features(prior.family, g.planes(ws), gan_points[None] * (2 / g.options.box_warp))
    sigma, rest = decode_published(features, g.decoder.weights(), g.options.sigmoid)
    if g.sizes.features:
        image = g.torgb(rest.transpose(1, 2)[..., None], ws[:, -1])[0, :, :, 0].T
        return torch.nn.functional.softplus(sigma - 1)[0], (image + 1) / 2
    return torch.nn.functional.softplus(sigma - 1)[0], rest[0, :, :3]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_geometry_holds_the_published_field(family, priors):
    prior = priors[family]
    ws, frame = some_ws(prior), prior.frame
    geometry = geometry_of(prior, ws)
    scale = 1 / frame.density_scale
    gan = (torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)) - 0.5) * prior.generator.options.box_warp
    head = gan * scale + torch.tensor(frame.centre)
    world = head_to_world(head)
    seen = (world[:, :2].norm(dim=1) < BOX_RADIUS) & (world[:, 2].abs() < BOX_RADIUS)
    limit = prior.generator.options.crop
    kept = torch.ones_like(seen) if limit is None else (gan[:, [0, 2]].abs() <= limit).all(dim=1)
    density, colour = published_field(prior, ws, gan)
    out = geometry(world)
    torch.testing.assert_close(out["density"][seen & kept], density[seen & kept] / scale, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out["features"][seen & kept], colour[seen & kept], rtol=1e-4, atol=1e-4)
    assert not out["density"][seen & ~kept].any() and not out["density"][~seen].any()
    assert (seen & kept).sum() > 50 and (limit is None or (seen & ~kept).any() or family == "pyramid")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_view_is_the_published_view(family, priors):
    """Many samples: the two ways of compositing agree where the published one does not look outside our cylinder."""
    prior = priors[family]
    ws = some_ws(prior)
    g, size = prior.generator, 10
    c2w = orbit_c2w(torch.tensor([25.0]), torch.tensor([10.0]))
    fovy = 0.5 * canonical_fovy(c2w)
    rays_o, rays_d = (r.flatten(1, 2) for r in get_rays(c2w, fovy, size, size))
    planes, weights = prior.planes(ws), prior.decoder(ws)
    # matter of moderate density everywhere: both rules of compositing converge with these samples
    probe = torch.rand(500, 3, generator=torch.Generator().manual_seed(7)) * 0.3 - 0.15
    thin = 2 / float(prior.frame.field(planes, weights, probe[None])[0].mean())

    def field(points):
        density, colour = prior.frame.field(planes, weights, world_to_head(points))
        return density * thin, colour

    ours = render_rays(field, rays_o, rays_d, BOX_RADIUS, 256)
    label = gan_label(c2w, float(fovy), prior.frame)
    gan_o, gan_d = rays_of_label(label, size)
    scale = 1 / prior.frame.density_scale
    near, far = 2.7 - 0.6, 2.7 + 0.6
    depth = torch.linspace(near / scale, far / scale, 512).expand(1, size * size, -1)
    points = gan_o[:, :, None] + depth[..., None] * gan_d[:, :, None]
    density, colour = published_field(prior, ws, points.reshape(-1, 3))
    head = points.reshape(-1, 3) * scale + torch.tensor(prior.frame.centre)
    world = head_to_world(head)
    exists = (world[:, :2].norm(dim=1, keepdim=True) <= BOX_RADIUS) & (world[:, 2:].abs() <= BOX_RADIUS)
    box = g.options.box_warp / 2
    limit = g.options.crop or box
    flat = points.reshape(-1, 3)
    exists &= (flat[:, [0, 2]].abs() <= limit).all(1, keepdim=True) & (flat[:, 1:2].abs() <= box)
    density = (density * exists * thin).view(size * size, -1)
    step = (far - near) / scale / 511
    through = torch.exp(-torch.cumsum(density * step, dim=1))
    weight = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], dim=1) * (1 - torch.exp(-density * step))
    rgb = (weight[..., None] * colour.view(size * size, -1, 3)).sum(1)
    assert ours["opacity"].max() > 0.3
    torch.testing.assert_close(ours["opacity"][0, :, 0], weight.sum(1), rtol=0, atol=0.02)
    torch.testing.assert_close(ours["rgb"][0], rgb, rtol=0, atol=0.05 * float(rgb.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_landmarks_meet_the_canonical_ones(family):
    """The GAN's eyes and mouth land near ours, and its own frontal camera sees them where its crops have them."""
    frame = frame_of(family, DEFAULTS[family])
    theirs = landmarks_in_gan_frame(family)
    mapped = theirs / frame.density_scale + torch.tensor(frame.centre)
    ours = torch.as_tensor(CANONICAL_LANDMARKS_HEAD)
    assert (mapped - ours).norm(dim=1).max() < 0.012  # under 7 mm: faces differ in proportion
    assert (mapped.mean(0) - ours.mean(0)).abs().max() < 1e-5
    if family == "pyramid":
        return  # its camera is tilted, see the target
    label = frontal_label(family, theirs)
    c2w, k = label[0, :16].view(4, 4), label[0, 16:].view(3, 3)
    camera = (theirs - c2w[:3, 3]) @ c2w[:3, :3]
    pixels = (camera / camera[:, 2:]) @ k.T
    torch.testing.assert_close(pixels[:, :2], torch.tensor(families.FACTS[family].landmarks, dtype=torch.float64))


def test_a_shift_of_the_cameras_moves_the_frame():
    options = DEFAULTS["panohead"]
    plain = frame_of("panohead", options)
    moved = frame_of("panohead", options, torch.tensor([0.0, 0.05, 0.0]))
    scale = 1 / plain.density_scale
    assert moved.radius == pytest.approx(plain.radius)
    assert moved.centre[1] == pytest.approx(plain.centre[1] - 0.05 * scale, abs=2e-6)


def test_cameras_change_convention_and_nothing_else():
    frame = PlaneFrame("panohead", 0.5)
    c2w = orbit_c2w(torch.tensor([0.0, 40.0]), torch.tensor([0.0, -15.0]))
    gan = world_to_gan(c2w, frame)
    torch.testing.assert_close(gan[0], frontal_label("panohead", c2w)[0, :16].view(4, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(gan[:, :3, :3]), torch.ones(2))
    rays_o, rays_d = (r.flatten(1, 2) for r in get_rays(c2w, canonical_fovy(c2w), 5, 5))
    gan_o, gan_d = rays_of_label(gan_label(c2w, float(canonical_fovy(c2w)), frame), 5)
    torch.testing.assert_close(world_to_head(rays_d), gan_d, atol=2e-6, rtol=0)
    torch.testing.assert_close(world_to_head(rays_o), gan_o, atol=2e-6, rtol=0)


def test_focal_lengths_are_the_published_fields_of_view():
    assert families.FACTS["eg3d"].fovy_deg == pytest.approx(13.3738, abs=1e-4)
    assert families.FACTS["pyramid"].fovy_deg == pytest.approx(8.7834, abs=1e-4)
    assert math.isclose(float(canonical_fovy(torch.zeros(1))), math.radians(13.3738), rel_tol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_latent_through_planes_and_decoder(family, priors):
    prior = priors[family]
    ws = some_ws(prior).requires_grad_()
    density, colour = prior.frame.field(prior.planes(ws), prior.decoder(ws), torch.zeros(1, 5, 3) + 0.01)
    (density.sum() + colour.sum()).backward()
    assert torch.isfinite(ws.grad).all() and ws.grad[:, -1].abs().sum() > 0


def test_statistics_of_the_latent(priors):
    prior = priors["eg3d"]
    mean, spread = prior.latent_statistics(torch.Generator().manual_seed(0), 2000)
    rows = prior.sample(torch.randn(2000, 6, generator=torch.Generator().manual_seed(5)), 1.0)[:, 0]
    assert mean.shape == (1, 8) and spread > 0
    assert float((rows.mean(0) - mean).norm()) < 0.2 * spread


def test_the_licence_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(adapter, "_announced", set())
    write_published(tmp_path / "net.pkl", "spherehead", seed=3)
    with caplog.at_level(logging.WARNING, logger="portrait_diffusion"):
        for _ in range(2):
            PublishedPrior.open(tmp_path / "net.pkl", "spherehead")
    said = [r.getMessage() for r in caplog.records if "Licence" in r.getMessage()]
    assert len(said) == 1 and families.FACTS["spherehead"].licence in said[0] and "SHA-256" in said[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_geometry_comes_back_from_its_state(family, priors):
    geometry = geometry_of(priors[family], some_ws(priors[family]))
    again = host.find("portrait-diffusion-triplane")(dict(geometry.cfg))
    again.load_state_dict(geometry.state_dict())
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(2)) * 0.4 - 0.2
    torch.testing.assert_close(again(points)["density"], geometry(points)["density"])


@pytest.mark.parametrize(
    "settings", [{"plane_layout": "eg4d"}, {"plane_centre": [0.0]}, {"plane_radius": -1.0}, {"density_scale": 0.0}]
)
def test_bad_frames_are_refused(settings):
    with pytest.raises(UsageError, match=r"geometry\.plane_"):
        host.find("portrait-diffusion-triplane")({"resolution": 16, **settings})


def test_the_ablation_with_one_layer_is_refused(tmp_path):
    sizes = published_samples.tiny_sizes("panohead")
    sizes.plane_channels = 24
    write_published(tmp_path / "net.pkl", "panohead", state=published_samples.random_state(sizes))
    with pytest.raises(UsageError, match="one layer of depth"):
        PublishedPrior.open(tmp_path / "net.pkl", "panohead")


def test_white_backed_models_are_refused(tmp_path, monkeypatch):
    from priors import published_pickles

    arguments = published_pickles.tiny_arguments
    monkeypatch.setattr(published_pickles, "tiny_arguments", lambda family: arguments(family) | {"white_back": True})
    write_published(tmp_path / "net.pkl", "eg3d")
    with pytest.raises(UsageError, match="over white"):
        PublishedPrior.open(tmp_path / "net.pkl", "eg3d")


@torch.no_grad()
def test_the_published_marcher_sees_the_same_surface(priors):
    """The fold of the colour head commutes with compositing: raw image = foreground + (1 - opacity) background."""
    prior = priors["panohead"]
    g, ws = prior.generator, some_ws(prior)
    rays_o, rays_d = rays_of_label(frontal_label("panohead", ws), 6)
    out = render_features("panohead", g.planes(ws), g.decoder.weights(), rays_o, rays_d, g.options)
    matrix, bias = g.torgb.affine_map(ws[:, -1])
    background = torch.randn(1, 36, 8, generator=torch.Generator().manual_seed(4))
    through = out["feature"] + (1 - out["opacity"])[..., None] * background
    whole = g.torgb(through.transpose(1, 2)[..., None], ws[:, -1])[..., 0].transpose(1, 2)
    foreground = out["feature"] @ matrix.T + out["opacity"][..., None] * bias
    behind = (1 - out["opacity"])[..., None] * (background @ matrix.T + bias)
    torch.testing.assert_close(whole, foreground + behind, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [2, 4])
def test_random_pyramids_have_a_head(levels):
    """Neither empty, which no tuning leaves, nor opaque, and however many levels are added up."""
    backbone = {2**k: 36 for k in range(2, 2 + levels)}
    sizes = dataclasses.replace(published_samples.tiny_sizes("pyramid"), backbone=backbone)
    rays_o, rays_d = (r.flatten(1, 2) for r in PhotoCamera().rays(12))
    for seed in (0, 1):
        state = published_samples.random_state(sizes, seed)
        prior = PublishedPrior(Checkpoint("pyramid", state, {}, None, f"random pyramid {seed}", Path("random weights")))
        ws = prior.latent_statistics(torch.Generator().manual_seed(0), 100)[0][:, None].repeat(1, prior.num_ws, 1)
        with torch.no_grad():
            field = field_of(prior.planes(ws), prior.decoder(ws), prior.frame)
            opacity = render_rays(field, rays_o, rays_d, prior.radius, 12, 12)["opacity"]
        assert float(opacity.max()) > 0.3 and float(opacity.mean()) < 0.9, seed
