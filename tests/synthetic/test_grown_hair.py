"""Grown hair: how strands march, what they keep free, what a haircut promises, and what a data set does with it."""
from dataclasses import replace

import numpy as np
import pytest
from portrait_diffusion.errors import UsageError
from portrait_diffusion.synthetic.cards import COLUMNS, HEIGHT, WIDTH, ribbons, strand_texture
from portrait_diffusion.synthetic.dataset import DatasetSpec, ShardRenderer, render_dataset
from portrait_diffusion.synthetic.hair import NEUTRAL
from portrait_diffusion.synthetic.haircuts import NONE, STYLES, Haircut, sample_haircut
from portrait_diffusion.synthetic.sampling import grown_hair, sample_subject
from portrait_diffusion.synthetic.skin import to_linear
from portrait_diffusion.synthetic.strands import (
    Body,
    arc_lengths,
    comb,
    cut_off,
    frames,
    grow,
    leave_face_free,
    march,
    march_to,
    regions,
    wave,
)
from portrait_diffusion.synthetic.variety import SKULL

RADIUS = 0.17


def sphere(n=6000, seed=0):
    """Points of a skull-sized sphere and their normals."""
    u = np.random.default_rng(seed).standard_normal((n, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    return SKULL + RADIUS * u, u


def scalp(n=400, seed=1):
    p, u = sphere(4 * n, seed)
    upper = (u[:, 1] > 0.1) | ((u[:, 2] < -0.2) & (u[:, 1] > -0.4))
    return p[upper][:n], u[upper][:n]


BODY = Body(*sphere())


def test_without_a_fall_or_a_body_a_strand_is_straight_and_as_long_as_asked():
    roots, direction = scalp(50)
    far = Body(np.array([[9.0, 9.0, 9.0]]), np.array([[0.0, 1.0, 0.0]]))
    length = np.linspace(0.05, 0.3, 50)
    lines = march(roots, direction, length, np.zeros(50), 0.0, far, 12)
    np.testing.assert_allclose(lines[:, -1] - lines[:, 0], direction * length[:, None], atol=1e-12)
    hanging = march(roots, direction, length, np.zeros(50), 30.0, far, 12)
    np.testing.assert_allclose(arc_lengths(hanging)[:, -1], length, rtol=1e-9)
    assert (hanging[:, -1, 1] < lines[:, -1, 1] + 1e-12).all()
    ends = hanging[length > 0.2][:, -1] - hanging[length > 0.2][:, -2]
    assert (-ends[:, 1] / np.linalg.norm(ends, axis=1) > 0.95).all(), "long hair hangs"


def test_strands_stay_outside_of_the_body():
    """By their margin, give or take the flatness of a plane between points that are 5 mm apart."""
    roots, normals = scalp()
    margin = np.full(len(roots), 0.02)
    lines = march(roots, normals, np.full(len(roots), 0.4), margin, 30.0, BODY, 28)
    radius = np.linalg.norm(lines[:, 8:] - SKULL, axis=-1)
    assert radius.min() > RADIUS + 0.02 - 0.002
    p = SKULL + 0.5 * RADIUS * normals
    np.testing.assert_allclose(np.linalg.norm(BODY.push_out(p, margin) - SKULL, axis=1), RADIUS + 0.02, atol=2e-3)
    assert np.array_equal(BODY.push_out(roots + 1.0, margin), roots + 1.0), "what is far away stays"


def test_tied_hair_ends_at_its_tie_and_lies_on_the_head():
    roots, _ = scalp()
    tie = SKULL + (RADIUS + 0.02) * np.array([0.0, 0.5, -np.sqrt(0.75)])
    lines = march_to(roots, tie, np.full(len(roots), 0.01), BODY, 16)
    assert np.array_equal(lines[:, -1], np.broadcast_to(tie, roots.shape))
    radius = np.linalg.norm(lines[:, 1:-1] - SKULL, axis=-1)
    assert radius.min() > RADIUS - 0.001 and radius.max() < RADIUS + 0.025


def test_the_face_stays_free():
    cut = Haircut("test", (0.3,) * 4, opening=0.13)
    p = np.random.default_rng(0).uniform(-0.2, 0.2, (4000, 3))
    sign = np.where(np.random.default_rng(1).random(4000) < 0.5, 1.0, -1.0)
    moved = leave_face_free(p, sign, cut)
    before = (p[:, 2] > 0.08) & (p[:, 1] < 0.08) & (p[:, 1] > -0.2)
    assert (sign[before] * moved[before, 0] >= 0.13 - 1e-12).all()
    behind = (p[:, 2] < 0.02) | (p[:, 1] > 0.16)
    assert np.array_equal(moved[behind, 0], p[behind, 0])
    tucked = leave_face_free(p, sign, replace(cut, tucked=True))
    low = (p[:, 1] < 0.0) & (np.abs(tucked[:, 0]) > 0.07)
    assert (tucked[low, 2] <= -0.035 + 1e-12).all()


def test_a_cut_ends_where_strands_cross_it():
    line = np.stack([np.zeros(5), [0.2, 0.1, 0.0, -0.1, -0.2], np.zeros(5)], -1)[None].repeat(3, 0)
    done = cut_off(line, np.array([-0.05, -0.9, 0.15]))
    np.testing.assert_allclose(done[0, :, 1], [0.2, 0.1, 0.0, -0.05, -0.05], atol=1e-12)
    assert np.array_equal(done[1], line[1])
    np.testing.assert_allclose(done[2, :, 1], [0.2, 0.15, 0.15, 0.15, 0.15], atol=1e-12)


def test_waves_leave_roots_and_stay_within_their_amplitude():
    roots, normals = scalp(60)
    lines = march(roots, normals, np.full(60, 0.3), np.full(60, 0.01), 25.0, BODY, 24)
    assert wave(lines, 0.0, 0.1, np.random.default_rng(0)) is lines
    moved = np.linalg.norm(wave(lines, 0.01, 0.1, np.random.default_rng(0)) - lines, axis=-1)
    assert moved[:, 0].max() == 0 and 0.006 < moved[:, -1].min() + 1e-12 and moved.max() <= 0.01 + 1e-12
    tangent, side, outward = frames(lines)
    for a, b in ((tangent, side), (tangent, outward), (side, outward)):
        assert np.abs((a * b).sum(-1)).max() < 1e-9


def test_regions_share_every_root():
    roots, normals = scalp()
    weights = regions(roots)
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-12)
    assert weights.min() >= 0
    for direction, region in (((0, 0.75, 0.66), 0), ((0, 1, 0), 1), ((1, 0, 0), 2), ((0, 0, -1), 3)):
        here = regions(SKULL + RADIUS * np.array([direction]))
        assert here.argmax() == region and here.max() > 0.95


def test_hair_is_combed_away_from_its_parting():
    roots, normals = scalp(3000)
    cut = Haircut("test", (0.1,) * 4, part=0.04, sweep_deg=0.0, lift=0.1)
    flow = comb(roots, normals, cut, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(flow, axis=1), 1.0, atol=1e-9)
    top = (normals[:, 1] > 0.8) & (roots[:, 2] > 0.02) & (np.abs(roots[:, 0] - 0.04) > 0.02)
    assert (np.sign(flow[top, 0]) == np.sign(roots[top, 0] - 0.04)).mean() > 0.97
    sides = np.abs(normals[:, 0]) > 0.9
    assert (flow[sides, 1] < 0).mean() > 0.97, "hair at the sides hangs"


@pytest.mark.parametrize("style", STYLES)
def test_every_style_grows(style, monkeypatch):
    """Ten haircuts of each: finite, no longer than their longest hair (waves apart), the same again."""
    monkeypatch.setattr("portrait_diffusion.synthetic.haircuts.STYLES", {style: (1.0, 1.0)})
    roots, normals = scalp(200)
    for seed in range(10):
        cut = sample_haircut(np.random.default_rng(seed), 1.0, female=bool(seed % 2))
        assert cut == sample_haircut(np.random.default_rng(seed), 1.0, female=bool(seed % 2)) and cut.style == style
        bundles = grow(cut, roots, normals, BODY, np.random.default_rng(seed))
        again = grow(cut, roots, normals, BODY, np.random.default_rng(seed))
        assert all(np.array_equal(a, b) for a, b in zip(bundles, again, strict=True))
        knots = len(cut.ties) if cut.knot else 0
        expected = 1 + knots + (cut.fringe != NONE) + (bool(cut.ties) and cut.tied_above != NONE)
        assert expected - 1 <= len(bundles) <= expected, "a region may be empty, a knot may not"
        for lines in bundles:
            assert lines.ndim == 3 and np.isfinite(lines).all() and np.abs(lines).max() < 1.0
            length = arc_lengths(lines)[:, -1]
            crossing = 2.0 if cut.knot == "braid" else 1.5  # what crosses and waves is longer
            assert length.max() < crossing * max(*cut.lengths, cut.knot_length, 7 * cut.knot_radius, 0.3)
        if cut.line != NONE:
            assert bundles[0][..., 1].min() > cut.line - 0.06 - 2 * cut.wave


def test_how_often():
    """4,000 people: the share within 4.5 standard deviations, and each style as often as its odds say."""
    cuts = [sample_haircut(np.random.default_rng(k), 0.6, female=True) for k in range(4000)]
    found = [cut.style for cut in cuts if cut]
    assert abs(len(found) / 4000 - 0.6) < 4.5 * np.sqrt(0.24 / 4000)
    total = sum(odds[1] for odds in STYLES.values())
    for style, (_, odds) in STYLES.items():
        p = odds / total
        assert abs(found.count(style) / len(found) - p) < 4.5 * np.sqrt(p * (1 - p) / len(found)) + 1e-9, style
    assert not any(sample_haircut(np.random.default_rng(k), 0.0, female=False) for k in range(100))


def test_cards_are_strips_along_their_strands():
    roots, normals = scalp(40)
    lines = march(roots, normals, np.full(40, 0.2), np.full(40, 0.01), 25.0, BODY, 10)
    positions, uvs, faces = ribbons(lines, 0.03, np.random.default_rng(0))
    assert len(positions) == len(uvs) == 2 * 40 * 10 and len(faces) == 2 * 40 * 9 and faces.max() < len(positions)
    pairs = positions.reshape(40, 10, 2, 3)
    np.testing.assert_allclose(pairs.mean(2), lines, atol=1e-12)
    width = np.linalg.norm(pairs[:, :, 0] - pairs[:, :, 1], axis=-1)
    assert 0 < width.min() and width.max() < 0.03 * 1.3 * 1.3
    u = uvs.reshape(40, 10, 2, 2)
    assert uvs.min() >= 0 and uvs.max() <= 1 and (np.diff(u[..., 1], axis=1) <= 0).all(), "from the root downwards"
    assert (np.floor(u[..., 0] * COLUMNS) == np.floor(u[:, :1, :1, 0] * COLUMNS)).all(), "one card of the texture each"


def test_the_texture_is_neutral_and_ragged():
    texture = strand_texture()
    assert texture.shape == (HEIGHT, COLUMNS * WIDTH, 4) and np.array_equal(texture, strand_texture())
    opaque = texture[..., 3] > 127
    assert abs(to_linear(texture[..., 0] / 255.0)[opaque].mean() / NEUTRAL - 1) < 0.02
    rows = opaque.mean(1)
    assert rows[0] == 0 and rows[HEIGHT // 3] > 0.7 > 0.3 > rows[int(0.9 * HEIGHT)] and rows[-1] < 0.05


def test_buzz_cuts_bald_heads_and_held_out_heads_stay(basis, assets):
    for split in ("train", "test"):
        for index in range(40):
            subject = sample_subject(0, split, index, basis, assets)
            grown = grown_hair(subject, 1.0)
            assert grown_hair(subject, 0.0) is subject and "haircut" not in subject.to_dict()
            if subject.hair in ("bald", "buzz"):
                assert grown is subject
            else:
                assert grown.hair == "grown" and grown.to_dict()["haircut"]["style"] == grown.haircut.style
                assert replace(grown, hair=subject.hair, haircut=None) == subject


@pytest.mark.parametrize("share, expected", [(0.0, False), (1.0, True)])
def test_a_data_set_grows_its_share(share, expected, invented_basis_file, invented_root):
    spec = DatasetSpec("train", 1, 2, 16, 3, 1, 1, grown=share)
    renderer = ShardRenderer(spec, str(invented_root), str(invented_basis_file), "soft")
    found = [renderer.render_subject(index) for index in range(3)]
    for row, description in found:
        assert row["rgba"].shape == (2, 16, 16, 4)
        assert ("haircut" in description) == (expected and description["hair"] not in ("bald", "buzz"))
    assert any("haircut" in description for _, description in found) == expected


def test_data_sets_of_before_are_resumed_and_others_are_others(tmp_path):
    spec = DatasetSpec("train", 2, 3, 16, 0)
    assert spec.digest() == "12f2819b88c32e3f"
    assert len({replace(spec, grown=share).digest() for share in (0.0, 0.5, 1.0)}) == 3
    with pytest.raises(UsageError, match="grown is the share.*not -1"):
        render_dataset(tmp_path, "train", 1, 1, 16, basis="x", grown=-1)
