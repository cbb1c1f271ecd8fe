"""Registry, update protocol, configured modules, weights, devices, meshes."""
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from portrait_diffusion import host
from portrait_diffusion._standalone import misc, registry
from portrait_diffusion._standalone.mesh import remove_outliers
from portrait_diffusion.errors import UsageError
from torch import nn


@pytest.fixture
def names():
    """The registry as it was, whatever a test enters."""
    before = dict(registry.modules())
    yield registry.modules()
    registry.modules().clear()
    registry.modules().update(before)


def _make_class(qualname: str, **attributes: Any) -> type:
    return type(qualname, (), {"__module__": __name__, "__qualname__": qualname, **attributes})


def test_register_and_find(names):
    cls = _make_class("A")
    assert host.register("portrait-diffusion-a")(cls) is cls
    assert host.find("portrait-diffusion-a") is cls and "portrait-diffusion-a" in host.registered_names()
    for unknown in ("portrait-diffusion-none", ""):
        with pytest.raises(KeyError) as caught:
            host.find(unknown)
        assert caught.value.args == (unknown,)


def test_the_same_class_may_come_again_and_replaces_itself(names):
    first, again = _make_class("A"), _make_class("A")
    host.register("portrait-diffusion-a")(first)
    host.register("portrait-diffusion-a")(again)
    assert host.find("portrait-diffusion-a") is again


def test_another_class_under_a_taken_name(names):
    host.register("portrait-diffusion-a")(_make_class("A"))
    elsewhere = type("A", (), {"__module__": "os", "__qualname__": "A"})
    for other in (_make_class("B"), elsewhere, type("A", (host.find("portrait-diffusion-a"),), {"__qualname__": "C"})):
        with pytest.raises(ValueError, match="portrait-diffusion-a already exists! Names of extensions conflict!"):
            host.register("portrait-diffusion-a")(other)
    assert host.find("portrait-diffusion-a").__qualname__ == "A"


@pytest.mark.parametrize("name", ["a", "portrait-a", "portrait-diffusion-a:b", ""])
def test_registered_names_carry_the_prefix(names, name):
    with pytest.raises(ValueError, match="portrait-diffusion-"):
        host.register(name)


def test_the_own_registry_refuses_duplicates_and_colons(names):
    registry.register("x")(_make_class("A"))
    with pytest.raises(ValueError, match="Module x already exists!"):
        registry.register("x")(_make_class("A"))
    with pytest.raises(ValueError, match=":"):
        registry.register("x:y")


def test_mixins_come_first(names):
    for name, value in (("main", 1), ("a", 2), ("b", 3)):
        host.register(f"portrait-diffusion-{name}")(_make_class(name, value=value, **{name: True}))
    cls = host.find("portrait-diffusion-main:portrait-diffusion-a,portrait-diffusion-b")
    assert [c.__name__ for c in cls.__mro__[1:4]] == ["a", "b", "main"]
    assert cls.value == 2 and cls.a and cls.b and cls.main
    assert cls.__name__ == "portrait-diffusion-main.portrait-diffusion-a,portrait-diffusion-b"
    assert host.find("portrait-diffusion-main:portrait-diffusion-b").value == 3
    with pytest.raises(ValueError):
        host.find("portrait-diffusion-main:portrait-diffusion-a:portrait-diffusion-b")
    with pytest.raises(KeyError):
        host.find("portrait-diffusion-main:nobody")


class _Recorder(host.BaseModule):
    @dataclass
    class Config(host.BaseModule.Config):
        width: int = 2
        schedule: Any = 1.0

    cfg: Config

    def configure(self, log=None, label="child"):
        self.layer = nn.Linear(self.cfg.width, 1)
        self._log, self.label, self.now = log, label, None

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.now = host.C(self.cfg.schedule, epoch, global_step)
        if self._log is not None:
            self._log.append((self.label, epoch, global_step, on_load_weights))

    def update_step_end(self, epoch, global_step):
        if self._log is not None:
            self._log.append((f"{self.label}-end", epoch, global_step))


def test_children_are_updated_before_their_parent():
    log: list = []
    root = _Recorder({}, log, "root")
    root.b, root.a = _Recorder({}, log, "b"), _Recorder({}, log, "a")
    root.a.leaf = _Recorder({}, log, "leaf")
    root._hidden = _Recorder({}, log, "hidden")
    root.in_list = nn.ModuleList([_Recorder({}, log, "in list")])
    host.update_if_possible(root, 1, 5)
    assert sorted(log[:3]) == [("a", 1, 5, False), ("b", 1, 5, False), ("leaf", 1, 5, False)]
    assert log.index(("leaf", 1, 5, False)) < log.index(("a", 1, 5, False)) < log.index(("root", 1, 5, False))
    assert len(log) == 4  # neither private names nor lists are visited
    log.clear()
    host.update_end_if_possible(root, 1, 6)
    assert log[-1] == ("root-end", 1, 6) and len(log) == 4
    assert log.index(("leaf-end", 1, 6)) < log.index(("a-end", 1, 6))
    host.update_if_possible(object(), 0, 0)
    host.update_end_if_possible(nn.Linear(1, 1), 0, 0)


def test_a_property_that_raises_is_passed_over_and_a_cycle_is_not():
    class Raising(host.Updateable):
        @property
        def unready(self):
            raise RuntimeError("not yet")

    Raising().do_update_step(0, 0)
    parent, child = Raising(), Raising()
    parent.child, child.parent = child, parent
    with pytest.raises(RecursionError):
        parent.do_update_step(0, 0)


def test_updating_twice_equals_once():
    module = _Recorder(OmegaConf.create({"schedule": [0, 1.0, 0.0, 10]}))
    module.do_update_step(0, 5)
    once = module.now
    module.do_update_step(0, 5)
    assert module.now == once == 0.5


def test_configured_module():
    module = _Recorder({"width": 3})
    assert module.layer.in_features == 3 and module.device == host.get_device()
    assert module._dummy.numel() == 0 and "_dummy" not in module.state_dict()
    module.device = "elsewhere"  # settable
    with pytest.raises(TypeError, match="widht"):
        _Recorder({"widht": 3})
    with pytest.raises(TypeError):
        _Recorder(None)


def test_configured_object_has_no_parameters():
    class Thing(host.BaseObject):
        @dataclass
        class Config(host.BaseObject.Config):
            size: int = 1

        def configure(self, factor=1):
            self.area = self.cfg.size * factor

    thing = Thing({"size": 4}, factor=3)
    assert thing.area == 12 and isinstance(thing, host.Updateable) and not isinstance(thing, nn.Module)
    assert thing.device == host.get_device()


def _checkpoint(path, **parts):
    content = {"epoch": 2, "global_step": 30, "state_dict": parts}
    torch.save(content, path)
    return path


def test_module_weights_are_loaded_strictly_and_the_step_is_told(tmp_path):
    source = _Recorder({})
    state = {f"geometry.{k}": v for k, v in source.state_dict().items()}
    path = _checkpoint(tmp_path / "c.ckpt", **state, **{"geometry_other.x": torch.zeros(1)})
    log: list = []
    loaded = _Recorder({"weights": f"{path}:geometry"}, log)
    assert torch.equal(loaded.layer.weight, source.layer.weight) and torch.equal(loaded.layer.bias, source.layer.bias)
    assert log == [("child", 2, 30, True)]
    with pytest.raises(RuntimeError, match="size mismatch"):
        _Recorder({"weights": f"{path}:geometry", "width": 3})
    with pytest.raises(UsageError, match="no module 'material'; it holds geometry, geometry_other"):
        _Recorder({"weights": f"{path}:material"})
    with pytest.raises(UsageError, match="path.ckpt:module_name"):
        _Recorder({"weights": str(path)})


def test_checkpoint_filters(tmp_path):
    path = _checkpoint(tmp_path / "c.ckpt", **{"a.x": torch.ones(1), "ab.x": torch.zeros(1), "b.y": torch.ones(2)})
    state, epoch, step = host.load_module_weights(str(path), ignore_modules=["a"], map_location="cpu")
    assert sorted(state) == ["ab.x", "b.y"] and (epoch, step) == (2, 30)
    assert sorted(host.load_module_weights(str(path), module_name="ab")[0]) == ["x"]
    with pytest.raises(ValueError):
        host.load_module_weights(str(path), module_name="a", ignore_modules=["b"])


class _Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_checkpoint_runs_no_code(tmp_path, capsys):
    torch.save({"epoch": 0, "global_step": 0, "state_dict": {}, "x": _Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        host.load_module_weights(str(tmp_path / "evil.ckpt"))
    assert "executed" not in capsys.readouterr().out
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(UsageError, match="lacks epoch, global_step"):
        host.load_module_weights(str(tmp_path / "bare.ckpt"))


def test_newest_trial_folder(tmp_path):
    for name in ("a_man@20240101-000000", "a_man@20250101-000000", "a_man_smiling@20260101-000000"):
        (tmp_path / name).mkdir()
    (tmp_path / "a_man@20990101-000000.txt").touch()  # a file, not a folder
    assert host.find_last_path(f"{tmp_path}/a_man@LAST/c.ckpt") == f"{tmp_path}/a_man@20250101-000000/c.ckpt"
    assert host.find_last_path(f"{tmp_path}/a man@LAST/c.ckpt") == f"{tmp_path}/a_man@20250101-000000/c.ckpt"
    assert host.find_last_path(f"{tmp_path}/a_manLAST") == f"{tmp_path}/a_man_smiling@20260101-000000"
    assert host.find_last_path("no such thing") == "no such thing"
    with pytest.raises(IndexError, match="b_man@"):
        host.find_last_path(f"{tmp_path}/b_man@LAST/c.ckpt")


def test_device_and_rank(monkeypatch):
    for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(key, raising=False)
    assert host.get_rank() == 0
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert host.get_rank() == 3
    monkeypatch.setenv("RANK", "1")
    assert host.get_rank() == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert str(host.get_device()) == "cuda:1"
    try:
        host.set_device("cpu")
        assert host.get_device() == torch.device("cpu")
        with pytest.raises(UsageError, match="gpu0"):
            host.set_device("gpu0")
    finally:
        host.set_device(None)
    assert misc.get_device() == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert misc.get_device() == torch.device("cpu")


def test_contraction():
    bbox = torch.tensor([[-2.0, -2, -2], [2, 2, 2]], dtype=torch.float64)
    corners = torch.tensor([[-2.0, 0, 2]], dtype=torch.float64)
    assert host.contract_to_unisphere(corners, bbox).tolist() == [[0.0, 0.5, 1.0]]
    points = torch.tensor([[0.0, 0, 0], [2, 0, 0], [4, 0, 0], [1e9, 0, 0], [0, -1e9, 0]], dtype=torch.float64)
    expected = [[0.5, 0.5, 0.5], [0.75, 0.5, 0.5], [0.875, 0.5, 0.5], [1, 0.5, 0.5], [0.5, 0, 0.5]]
    assert torch.allclose(host.contract_to_unisphere(points, bbox, True), torch.tensor(expected).double(), atol=1e-8)


class _Ball(host.BaseImplicitGeometry):
    """Density 1 - |x|/0.5 of a ball around `centre`, plus a speck in a corner."""

    def configure(self):
        super().configure()
        self.centre = 0.1

    def forward_field(self, points):
        ball = 1.0 - (points - self.centre).norm(dim=-1, keepdim=True) / 0.5
        speck = 1.0 - (points + 0.8).norm(dim=-1, keepdim=True) / 0.05
        return torch.maximum(ball, speck), None

    def forward_level(self, field, threshold):
        return -(field - threshold)


@pytest.mark.parametrize("coarse", [True, False])
def test_isosurface_of_a_ball(coarse):
    ball = _Ball({"isosurface_resolution": 64, "isosurface_coarse_to_fine": coarse, "isosurface_chunk": 50_000})
    assert ball.bbox.tolist() == [[-1.0] * 3, [1.0] * 3] and "bbox" in ball.state_dict()
    mesh = ball.isosurface()
    radius = (mesh.v_pos - 0.1).norm(dim=-1)
    assert abs(radius - 0.5).max() < 2e-3  # the speck, 0.85 away, is removed
    outward = torch.nn.functional.normalize(mesh.v_pos - 0.1, dim=-1)
    assert ((mesh.v_nrm * outward).sum(-1) > 0.95).all()
    corners = mesh.v_pos[mesh.t_pos_idx]
    volume = torch.linalg.det(corners.double()).sum() / 6
    assert volume.item() == pytest.approx(4 / 3 * math.pi * 0.125, rel=0.01)


def test_isosurface_refusals():
    with pytest.raises(UsageError, match="threshold"):
        _Ball({"isosurface_threshold": 5.0, "isosurface_resolution": 16}).isosurface()
    with pytest.raises(UsageError, match="isosurface: false"):
        _Ball({"isosurface": False}).isosurface()
    with pytest.raises(UsageError, match="deformable"):
        _Ball({"isosurface_deformable_grid": True}).isosurface()


def test_mesh():
    v = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]])
    mesh = host.Mesh(v, torch.tensor([[0, 2, 1]]), source="test")
    assert mesh.extras == {"source": "test"} and mesh.v_rgb is None and not mesh.requires_grad
    assert mesh.v_nrm.tolist() == [[0, 0, -1]] * 3 + [[0, 0, 1]]  # the lone vertex gets the default
    mesh.set_vertex_color(torch.ones(4, 3))
    assert mesh.v_rgb.shape == (4, 3)
    with pytest.raises(ValueError, match="3 for 4"):
        mesh.set_vertex_color(torch.ones(3, 3))
    with pytest.raises(UsageError, match="set_uv"):
        _ = mesh.v_tex


def test_outliers_by_number_and_share_of_faces():
    v = torch.arange(8).float()[:, None].repeat(1, 3)
    faces = torch.tensor([[0, 1, 2], [1, 2, 3], [0, 2, 3], [4, 5, 6]])
    for least in (2, 0.5):
        kept = remove_outliers(host.Mesh(v, faces), least)
        assert kept.t_pos_idx.tolist() == faces[:3].tolist() and kept.v_pos.tolist() == v[:4].tolist()
    assert len(remove_outliers(host.Mesh(v, faces), 0.3).t_pos_idx) == 4


def test_renderer_holds_the_scene_without_owning_it():
    geometry, material, background = _Ball({}), host.BaseMaterial({}), host.BaseBackground({})
    renderer = host.VolumeRenderer({"radius": 2.0}, geometry=geometry, material=material, background=background)
    assert renderer.geometry is geometry and renderer.material is material and renderer.background is background
    assert list(renderer.state_dict()) == ["bbox"] and renderer.bbox.abs().unique().item() == 2.0
    other = _Ball({})
    renderer.set_geometry(other)
    assert renderer.geometry is other
    assert material.requires_normal is False and material.requires_tangent is False
    with pytest.raises(TypeError, match="create_from"):
        _Ball.create_from(geometry)
