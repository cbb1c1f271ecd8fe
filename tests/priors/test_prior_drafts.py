"""What a prior makes of front views, as a data set."""
import json

import numpy as np
import pytest
import torch
from balls import add_normals, write_shards
from portrait_diffusion.errors import UsageError
from portrait_diffusion.multiview import load_shards
from portrait_diffusion.priors import drafts
from portrait_diffusion.priors.bundled import BundledPrior
from portrait_diffusion.priors.drafts import check_same_cameras, draft_planes, drafts_of, render_drafts, worsened

from .samples import save_tiny_prior

SIZE = 128
"""What encoders take."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return add_normals(write_shards(tmp_path_factory.mktemp("balls"), subjects=3, per_shard=2, size=SIZE))


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return BundledPrior(*save_tiny_prior(tmp_path_factory.mktemp("prior")))


def few(data, subjects, views):
    """A part of a data set."""
    return type(data)(**{k: v[:subjects, views] for k, v in vars(data).items()})


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


def test_a_second_call_makes_only_what_is_missing(folder, prior, tmp_path, monkeypatch):
    out = tmp_path / "drafts"
    assert render_drafts(folder, out, 0.3, 1, prior, "cpu") == 2
    once = [load_shards(path, "cpu") for path in sorted(out.glob("*.npz"))]
    check_same_cameras(load_shards(folder, "cpu"), load_shards(out, "cpu"))
    assert len(load_shards(out, "cpu")) == 3 and not list(out.glob(".partial*"))
    assert json.loads((out / "manifest_drafts.json").read_text())["worsen"] == 0.3
    (out / "train_00000.npz").unlink()
    assert render_drafts(folder, out, 0.3, 1, prior, "cpu") == 1
    assert torch.equal(load_shards(out / "train_00000.npz", "cpu").rgba, once[0].rgba), "and makes it as it was"
    monkeypatch.setattr(drafts, "drafts_of", lambda *args: pytest.fail("nothing was missing"))
    assert render_drafts(folder, out, 0.3, 1, prior, "cpu") == 0
    with pytest.raises(UsageError, match="other data, weights or settings"):
        render_drafts(folder, out, 0.2, 1, prior, "cpu")


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
    with pytest.raises(UsageError, match="--worsen must be between 0 and 1"):
        drafts.main(["--data", str(folder), "--out", str(tmp_path / "o"), "--worsen", "1.5"])


def test_the_command_writes_shards(folder, tmp_path):
    pair = [str(p) for p in save_tiny_prior(tmp_path)]
    out = tmp_path / "drafts"
    assert drafts.main(["--data", str(folder), "--out", str(out), "--prior", *pair, "--device", "cpu"]) == 0
    with np.load(out / "train_00001.npz") as shard:
        assert shard["rgba"].shape == (1, 4, SIZE, SIZE, 4) and shard["depth"].dtype == np.int16
