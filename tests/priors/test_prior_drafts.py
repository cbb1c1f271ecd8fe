"""What a prior makes of front views, as a data set."""
import json

import numpy as np
import pytest
import torch
from balls import add_normals, write_shards
from portrait_diffusion.errors import UsageError
from portrait_diffusion.multiview import load_shards
from portrait_diffusion.ops.cameras import get_rays
from portrait_diffusion.priors import drafts
from portrait_diffusion.priors.bundled import BundledPrior
from portrait_diffusion.priors.drafts import (
    check_same_cameras,
    draft_planes,
    drafts_of,
    photographed,
    render_drafts,
    wear_photo,
    worsened,
)

from .samples import save_tiny_prior

SIZE = 128
"""What encoders take."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return add_normals(write_shards(tmp_path_factory.mktemp("balls"), subjects=3, per_shard=2, size=SIZE))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two shards of one subject each."""
    return add_normals(write_shards(tmp_path_factory.mktemp("pair"), subjects=2, per_shard=1, size=SIZE))


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return BundledPrior(*save_tiny_prior(tmp_path_factory.mktemp("prior")))


def few(data, subjects, views):
    """A part of a data set."""
    kept = {k: v if v is None else v[:subjects, views] for k, v in vars(data).items()}
    return type(data)(**kept)


def test_the_shipped_priors_draft_is_a_head_with_unit_normals_that_face_the_camera(folder):
    data = few(load_shards(folder, "cpu"), 1, torch.tensor([0, 3]))
    made = drafts_of(BundledPrior(), data)
    check_same_cameras(data, made)
    solid = made.depth > 0
    assert 0.02 < solid.float().mean() < 0.9
    distance = made.distance(torch.zeros(2, dtype=torch.long), torch.arange(2))
    assert ((distance[solid[0]] - 2.7).abs() < 0.5).all()
    assert torch.equal(solid, made.rgba[..., 3] >= 128)
    length = made.normal.float().norm(dim=-1)
    assert (length[solid] - 127).abs().max() < 2 and (length[~solid] == 0).all()
    view = -made.c2w[..., :3, 2][:, :, None, None]  # from the camera into the scene
    facing = -(made.normal.float() / 127 * view).sum(-1)[solid]
    assert float((facing > 0).float().mean()) > 0.95


def test_worse_drafts_differ_by_the_seed_alone(folder, prior):
    data = few(load_shards(folder, "cpu"), 3, torch.tensor([0]))

    def planes(worsen, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return draft_planes(prior, data, slice(0, 3), worsen, generator)[0]

    assert torch.equal(planes(0.0, 1), planes(0.0, 2)) and torch.equal(planes(0.5, 1), planes(0.5, 1))
    assert not torch.equal(planes(0.5, 1), planes(0.5, 2)) and not torch.equal(planes(0.5), planes(0.0))
    rows = torch.tensor([[0.0], [1.0], [2.0]])
    mixed = worsened(rows, torch.tensor([0.0, 1.0, 0.5]))
    assert mixed.flatten().tolist() == [0.0, 2.0, 1.0], "amount 0, 1, 1/2 of the next row"


def exact(data, view):
    """Arguments of `photographed` with a draft that has the true geometry and no colour, and the true colours."""
    rows = torch.arange(len(data))
    rgba = data.rgba[:, view].float() / 255
    blank = torch.cat([torch.zeros_like(rgba[..., :3]), rgba[..., 3:]], dim=-1)
    front = {"depth": data.distance(rows, torch.zeros_like(rows)), "normal": data.normal[:, 0].float() / 127}
    photo = data.rgba[:, 0].float() / 255, front, data.c2w[:, 0], data.fovy[:, 0], torch.full((len(data),), 0.05)
    depth = data.distance(rows, torch.full_like(rows, view))
    return (blank, depth, data.c2w[:, view], data.fovy[:, view], *photo), rgba


def test_a_draft_wears_the_photo_where_the_photo_sees_it_and_nowhere_else(folder):
    data = load_shards(folder, "cpu")
    for view in range(4):
        arguments, truth = exact(data, view)
        blank, depth, c2w, fovy = arguments[:4]
        worn = photographed(*arguments)
        rays_o, rays_d = get_rays(c2w, fovy, SIZE, SIZE)
        points = rays_o + depth[..., None] * rays_d
        normal = data.normal[:, view].float() / 127
        sight = torch.nn.functional.normalize(points - data.c2w[:, :1, None, :3, 3], dim=-1)
        cosine = -(normal * sight).sum(-1)
        solid = (depth > 0) & (truth[..., 3] == 1)
        seen, unseen = solid & (cosine > 0.6), (depth > 0) & (cosine < -0.25)
        assert int(unseen.sum()) > 10 or view < 2
        assert float(worn[unseen].abs().max() if unseen.any() else 0) == 0
        if seen.any():
            assert float((worn - truth[..., :3])[seen].abs().mean()) < 0.03, view
        thick = photographed(*arguments[:-1], torch.full((len(data),), 2.0))
        assert torch.equal(thick[seen], worn[seen]), "how far the photo reaches matters only behind the surface"


def test_photos_are_worn_by_a_share_of_subjects_and_alpha_stays(folder):
    data = load_shards(folder, "cpu")

    def worn(fitted, seed=0):
        views = [{"rgba": data.rgba[:, v] // 2, "depth": data.depth[:, v], "normal": data.normal[:, v]}
                 for v in range(2)]  # fmt: skip
        before = [view["rgba"] for view in views]
        wear_photo(views, data, slice(0, len(data)), fitted, torch.Generator().manual_seed(seed))
        assert all(torch.equal(a[..., 3], view["rgba"][..., 3]) for a, view in zip(before, views))
        return [bool((a != view["rgba"]).any()) for a, view in zip(before[0], [{"rgba": x} for x in views[0]["rgba"]])]

    assert not any(worn(0.0)) and all(worn(1.0))
    counts = [sum(worn(0.5, seed)) for seed in range(20)]
    assert 15 <= sum(counts) <= 45, "60 draws of one half: outside once in 10 000 runs"


def test_fitted_drafts_have_the_geometry_of_others(folder, prior):
    data = few(load_shards(folder, "cpu"), 2, torch.tensor([0, 3]))
    plain, fitted = (drafts_of(prior, data, fitted=share) for share in (0.0, 1.0))
    assert torch.equal(plain.depth, fitted.depth) and torch.equal(plain.normal, fitted.normal)
    assert torch.equal(plain.rgba[..., 3], fitted.rgba[..., 3])


def test_a_second_call_makes_only_what_is_missing(pair, prior, tmp_path, monkeypatch):
    out = tmp_path / "drafts"
    assert render_drafts(pair, out, 0.3, 1, prior, "cpu") == 2
    once = [load_shards(path, "cpu") for path in sorted(out.glob("*.npz"))]
    check_same_cameras(load_shards(pair, "cpu"), load_shards(out, "cpu"))
    assert len(load_shards(out, "cpu")) == 2 and not list(out.glob(".partial*"))
    assert json.loads((out / "manifest_drafts.json").read_text())["worsen"] == 0.3
    (out / "train_00000.npz").unlink()
    assert render_drafts(pair, out, 0.3, 1, prior, "cpu") == 1
    assert torch.equal(load_shards(out / "train_00000.npz", "cpu").rgba, once[0].rgba), "and makes it as it was"
    monkeypatch.setattr(drafts, "drafts_of", lambda *args: pytest.fail("nothing was missing"))
    assert render_drafts(pair, out, 0.3, 1, prior, "cpu") == 0
    with pytest.raises(UsageError, match="other data, weights or settings"):
        render_drafts(pair, out, 0.2, 1, prior, "cpu")


def test_drafts_of_other_data_are_refused(folder, prior, tmp_path):
    data = load_shards(folder, "cpu")
    few_views = few(data, 3, torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="were not made from the data"):
        check_same_cameras(data, few_views)
    moved = type(data)(**{**vars(data), "c2w": data.c2w + 0.1})
    with pytest.raises(UsageError, match="were not made from the data"):
        check_same_cameras(data, moved)
    with pytest.raises(UsageError, match="no depth or no normals"):
        check_same_cameras(data, type(data)(**{**vars(data), "normal": None}))
    with pytest.raises(UsageError, match="No shards"):
        render_drafts(tmp_path, tmp_path / "out", prior=prior, device="cpu")
    for option in ("worsen", "fitted"):
        with pytest.raises(UsageError, match=f"--{option} must be between 0 and 1"):
            drafts.main(["--data", str(folder), "--out", str(tmp_path / "o"), f"--{option}", "1.5"])


def test_the_command_writes_shards(pair, tmp_path):
    prior, out = [str(p) for p in save_tiny_prior(tmp_path)], tmp_path / "drafts"
    assert drafts.main(["--data", str(pair), "--out", str(out), "--prior", *prior, "--device", "cpu"]) == 0
    with np.load(out / "train_00001.npz") as shard:
        assert shard["rgba"].shape == (1, 4, SIZE, SIZE, 4) and shard["depth"].dtype == np.int16
