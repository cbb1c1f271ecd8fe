"""Result files: names, formats, values read back."""
import json
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import trimesh
from portrait_diffusion import host
from portrait_diffusion.errors import UsageError


@pytest.fixture
def saver(tmp_path):
    mixin = host.SaverMixin()
    mixin.set_save_dir(str(tmp_path / "save"))
    return mixin


def _files(saver):
    return sorted(p.name for p in Path(saver.get_save_dir()).rglob("*") if p.is_file())


def test_the_folder_must_be_set():
    with pytest.raises(ValueError, match="set_save_dir"):
        host.SaverMixin().save_json("a.json", {})


def test_file_names_are_relative_to_the_save_folder(saver, tmp_path):
    path = saver.save_rgb_image("it5-test/0.png", torch.rand(4, 6, 3))
    assert path == str(tmp_path / "save" / "it5-test" / "0.png") and saver.get_save_dir() == str(tmp_path / "save")
    assert imageio.imread(path).shape == (4, 6, 3) and _files(saver) == ["0.png"]


def test_rgb_values(saver):
    img = torch.tensor([[[0.0, 0.5, 1.0], [-1.0, 2.0, float("nan")]]], requires_grad=True)
    expected = [[[0, 128, 255], [0, 255, 0]]]
    assert imageio.imread(saver.save_rgb_image("a.png", img)).tolist() == expected
    assert imageio.imread(saver.save_rgb_image("b.png", img.permute(2, 0, 1), data_format="CHW")).tolist() == expected
    ranged = saver.save_rgb_image("c.png", torch.tensor([[[-1.0, 0.0, 1.0]]]).half(), data_range=(-1, 1))
    assert imageio.imread(ranged).tolist() == [[[0, 128, 255]]]
    for wrong in (torch.rand(4, 6), torch.rand(4, 6, 2), torch.rand(1, 4, 6, 3)):
        with pytest.raises(ValueError, match="shape"):
            saver.save_rgb_image("d.png", wrong)
    with pytest.raises(ValueError, match="data_format"):
        saver.save_rgb_image("d.png", torch.rand(4, 6, 3), data_format="WHC")
    assert _files(saver) == ["a.png", "b.png", "c.png"]


def test_grayscale_values(saver):
    ramp = torch.linspace(2.0, 4.0, 5)[None]
    grey = imageio.imread(saver.save_grayscale_image("a.png", ramp, cmap=None))
    assert grey[0, :, 0].tolist() == [0, 64, 128, 191, 255]
    clipped = imageio.imread(saver.save_grayscale_image("b.png", ramp[..., None], data_range=(2.5, 3.5), cmap=None))
    assert clipped[0, :, 1].tolist() == [0, 0, 128, 255, 255]
    jet = imageio.imread(saver.save_grayscale_image("c.png", torch.linspace(0, 1, 101)[None]))[0].astype(int)
    assert jet[[0, 100]].tolist() == [[0, 0, 128], [128, 0, 0]]  # dark blue to dark red
    assert jet[25, 2] == jet[50, 1] == jet[75, 0] == 255
    assert imageio.imread(saver.save_grayscale_image("d.png", torch.ones(2, 2), cmap=None)).max() == 0
    with pytest.raises(ValueError, match="viridis"):
        saver.save_grayscale_image("e.png", ramp, cmap="viridis")


@pytest.mark.parametrize("cmap", ["magma", "spectral"])
def test_named_colour_maps(saver, cmap):
    image = imageio.imread(saver.save_grayscale_image("a.png", torch.linspace(0, 1, 7)[None], cmap=cmap))
    assert len({tuple(pixel) for pixel in image[0].tolist()}) == 7


def test_image_grid(saver):
    row = [
        {"type": "rgb", "img": torch.zeros(4, 4, 3), "kwargs": {"data_format": "HWC"}},
        {"type": "grayscale", "img": torch.ones(8, 6), "kwargs": {"cmap": None, "data_range": (0, 1)}},
    ]
    image = imageio.imread(saver.save_image_grid("it0-0.png", row, name="validation_step", step=0))
    assert image.shape == (8, 12, 3) and image[:, :6].max() == 0 and image[:, 6:].min() == 255
    assert imageio.imread(saver.save_image_grid("b.png", [row, row], align="min")).shape == (8, 8, 3)
    assert imageio.imread(saver.save_image_grid("c.png", [row], align=(5, 3))).shape == (5, 6, 3)
    assert imageio.imread(saver.save_image_grid("d.png", row, align=16)).shape == (16, 32, 3)
    plain = imageio.imread(saver.save_image_grid("e.png", row, align=64))
    written = imageio.imread(saver.save_image_grid("f.png", row, align=64, texts=["front"]))
    assert (plain != written)[:24].any() and not (plain != written)[32:].any()
    with pytest.raises(ValueError, match="'hdr'"):
        saver.save_image_grid("g.png", [{"type": "hdr", "img": torch.zeros(2, 2)}])
    with pytest.raises(ValueError, match="align"):
        saver.save_image_grid("g.png", row, align="big")
    with pytest.raises(ValueError, match="equal length"):
        saver.save_image_grid("g.png", [row, row[:1]])


def test_raw_images(saver):
    deep = np.array([[0, 65535], [1, 256]], dtype=np.uint16)
    assert np.array_equal(imageio.imread(saver.save_image("a.png", deep)), deep)
    with pytest.raises(ValueError, match="uint8"):
        saver.save_image("b.png", torch.rand(2, 2, 3))


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_film_in_numerical_order(saver, suffix):
    for i in (10, 0, 2, 1):  # as text, 10 would come before 2
        saver.save_rgb_image(f"it3-test/{i}.png", torch.full((32, 48, 3), i / 10))
    path = saver.save_img_sequence("it3-test", "it3-test", r"(\d+)\.png", save_format=suffix, fps=30)
    assert path.endswith(f"save/it3-test.{suffix}")
    frames = [frame.astype(float).mean() for frame in imageio.get_reader(path)]
    assert len(frames) == 4 and frames == sorted(frames) and frames[2] == pytest.approx(51, abs=6)
    with pytest.raises(UsageError, match="nothing to join"):
        saver.save_img_sequence("x", "it3-test", r"(\d+)\.jpg", save_format=suffix)
    with pytest.raises(ValueError, match="avi"):
        saver.save_img_sequence("x", "it3-test", r"(\d+)\.png", save_format="avi")
    assert not [name for name in _files(saver) if name.startswith(".")]


def _quad():
    mesh = host.Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    mesh.set_vertex_color(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]))
    mesh.set_uv(torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    return mesh


def test_obj_with_colours(saver):
    (path,) = saver.save_obj("it1-export/model", _quad(), save_vertex_color=True, save_normal=True)
    assert path.endswith("it1-export/model.obj")
    text = open(path).read()
    assert "v 1 0 0 0 1 0\n" in text and "vn 0 0 1\n" in text and "f 1//1 2//2 3//3\n" in text
    read = trimesh.load(path, process=False)
    assert read.area == pytest.approx(1.0) and read.visual.vertex_colors[1].tolist() == [0, 255, 0, 255]


def test_obj_with_texture(saver):
    texture = torch.zeros(8, 8, 3)
    texture[..., 0] = 1.0
    paths = saver.save_obj("model.obj", _quad(), save_mat=True, save_uv=True, map_Kd=texture, map_format="png")
    assert [p.rsplit("/", 1)[1] for p in paths] == ["texture_kd.png", "model.mtl", "model.obj"]
    text = open(paths[-1]).read()
    assert "mtllib model.mtl" in text and "vt 0 1\n" in text and "f 1/1 2/2 3/3\n" in text
    read = trimesh.load(paths[-1], process=False, force="mesh")
    assert read.visual.uv.min(0).tolist() == [0, 0] and read.visual.uv.max(0).tolist() == [1, 1]
    assert np.asarray(read.visual.material.image)[0, 0, 0] == 255


def test_obj_refuses_what_the_mesh_lacks(saver):
    bare = host.Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(UsageError, match="set_vertex_color"):
        saver.save_obj("a", bare, save_vertex_color=True)
    with pytest.raises(UsageError, match="set_uv"):
        saver.save_obj("a", bare, save_uv=True)
    assert _files(saver) == []


def test_mesh_and_data(saver):
    mesh = _quad()
    assert trimesh.load(saver.save_mesh("m.ply", mesh.v_pos, mesh.t_pos_idx)).area == pytest.approx(1.0)
    assert np.load(saver.save_data("a", torch.arange(3))).tolist() == [0, 1, 2]
    path = saver.save_data("b", {"x": torch.ones(2), "y": 3})
    assert path.endswith("b.npz") and np.load(path)["x"].tolist() == [1, 1]
    assert json.load(open(saver.save_json("c.json", {"t": torch.ones(2), "n": [1, np.float32(0.5)]}))) == {
        "t": [1.0, 1.0],
        "n": [1, 0.5],
    }
    copy = saver.save_file("deep/copy.npz", path)
    assert open(copy, "rb").read() == open(path, "rb").read()
    assert saver.convert_data([torch.ones(1), {"a": 2}])[0].tolist() == [1.0]
