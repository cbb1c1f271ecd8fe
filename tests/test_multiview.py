"""Reading of multi-view shards."""
import math

import numpy as np
import pytest
import torch
from balls import AZIMUTHS, write_shards
from portrait_diffusion.errors import UsageError
from portrait_diffusion.multiview import DEPTH_SCALE, encode_depth, load_shards, read_manifest
from portrait_diffusion.ops.canonical import CANONICAL_FOVY_DEG


def test_shards_become_one_data_set_in_order(tmp_path):
    data = load_shards(write_shards(tmp_path, subjects=3, per_shard=2, size=16), "cpu")
    assert len(data) == 3 and data.size == 16 and data.device.type == "cpu"
    assert data.rgba.shape == (3, 4, 16, 16, 4) and data.rgba.dtype == torch.uint8
    assert data.depth.shape == (3, 4, 16, 16) and data.c2w.shape == (3, 4, 4, 4)
    assert torch.equal(data.azimuth, torch.tensor(AZIMUTHS).expand(3, -1)) and (data.elevation == 0).all()
    torch.testing.assert_close(data.fovy, torch.full((3, 4), math.radians(CANONICAL_FOVY_DEG)))
    with np.load(tmp_path / "train_00001.npz") as second:
        assert np.array_equal(data.rgba[2].numpy(), second["rgba"][0])
    assert torch.equal(data.depth > 0, data.rgba[..., 3] > 0), "depth is where the ball is"


def test_depth_and_normals_keep_their_precision(tmp_path):
    folder = write_shards(tmp_path, subjects=2, size=16)
    with np.load(folder / "train_00000.npz") as shard:
        arrays = dict(shard)
    exact = np.where(arrays["depth"] > 0, 2.7 + np.random.default_rng(0).uniform(-0.4, 0.4, arrays["depth"].shape), 0)
    arrays["depth"] = encode_depth(exact)
    arrays["normal"] = np.full((*exact.shape, 3), 127, np.int8)
    arrays["label"] = np.full(exact.shape, 2, np.uint8)
    np.savez(folder / "train_00000.npz", **arrays)
    data = load_shards(folder, "cpu")
    subject, view = torch.tensor([0, 1]), torch.tensor([3, 1])
    error = data.distance(subject, view).numpy() - exact[[0, 1], [3, 1]]
    assert np.abs(error).max() <= 0.5 / DEPTH_SCALE + 1e-6
    assert data.normal.dtype == torch.int8 and data.normal.shape == (2, 4, 16, 16, 3)
    assert data.label.dtype == torch.uint8 and (data.label == 2).all() and data.label.shape == (2, 4, 16, 16)
    arrays["depth"] = exact.astype(np.float16)  # of older data sets
    np.savez(folder / "train_00000.npz", **arrays)
    assert np.abs(load_shards(folder, "cpu").distance(subject, view).numpy() - exact[[0, 1], [3, 1]]).max() < 2e-3


def test_the_limit_and_missing_depth(tmp_path):
    data = load_shards(write_shards(tmp_path, subjects=4, per_shard=2, depth=False, size=16), "cpu", limit=3)
    assert len(data) == 3 and len(data.c2w) == 3 and data.depth is None


def test_a_folder_without_shards(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="No shards"):
            load_shards(folder, "cpu")


def test_damaged_foreign_and_unequal_shards_are_named(tmp_path):
    write_shards(tmp_path / "a", size=16)
    second = tmp_path / "a" / "train_00001.npz"
    whole = second.read_bytes()
    second.write_bytes(whole[:-300])
    with pytest.raises(UsageError, match="train_00001.npz is not a readable shard"):
        load_shards(tmp_path / "a", "cpu")
    np.savez(second, rgba=np.zeros((1, 4, 16, 16, 4), np.uint8))
    with pytest.raises(UsageError, match="train_00001.npz lacks c2w, camera"):
        load_shards(tmp_path / "a", "cpu")
    np.savez(second, rgba=np.array([{}]), c2w=0, camera=0)  # a pickle: never loaded
    with pytest.raises(UsageError, match="not a readable shard"):
        load_shards(tmp_path / "a", "cpu")
    write_shards(tmp_path / "b", subjects=1, size=24)
    (tmp_path / "b" / "train_00000.npz").replace(second)
    with pytest.raises(UsageError, match="'rgba' of .*train_00001.npz has shape"):
        load_shards(tmp_path / "a", "cpu")


def test_training_and_validation_are_not_mixed(tmp_path):
    write_shards(tmp_path, size=16)
    (tmp_path / "train_00001.npz").rename(tmp_path / "val_00000.npz")
    with pytest.raises(UsageError, match="several splits .train, val."):
        load_shards(tmp_path, "cpu")


def test_manifests(tmp_path):
    assert read_manifest(tmp_path) == {}
    (tmp_path / "manifest_train.json").write_text('{"digest": "abc"}')
    assert read_manifest(tmp_path) == {"manifest_train": {"digest": "abc"}}
