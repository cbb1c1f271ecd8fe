"""The exporter that the host's --export uses: on any scene with a density, and what it refuses."""
import dataclasses

import numpy as np
import pytest
import torch
import trimesh
import yaml
from geometry.ball import BALL_RADIUS, ball
from portrait_diffusion import host
from portrait_diffusion.errors import UsageError
from portrait_diffusion.export.bundle import ExportConfig
from portrait_diffusion.export.exporter import PortraitExporter
from portrait_diffusion.renderer.plain import PlainColour

SMALL = {
    "render_size": 16, "view_azimuths_deg": [0, 90], "view_elevations_deg": [0],
    "mesh": {"resolution": 32, "target_faces": 500}, "bake": {"texture_size": 64},
    "turntable": {"frames": 3, "height": 32}, "renderer": {"num_samples_per_ray": 16, "num_importance_samples": 8},
}  # fmt: skip


class Saver(host.SaverMixin):
    """What the host's systems save with."""


class Tinted(PlainColour):
    """A material whose albedo differs from the features."""

    def export(self, features, **kwargs):
        return {"albedo": features * features.new_tensor([1.0, 0.5, 0.0])}


def written(outputs, folder):
    """Write outputs as the host's systems do; returns the names below the folder."""
    saver = Saver()
    saver.set_save_dir(str(folder))
    for output in outputs:
        getattr(saver, f"save_{output.save_type}")(f"it7-export/{output.save_name}", **output.params)
    return {p.relative_to(folder / "it7-export").as_posix() for p in (folder / "it7-export").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("save")
    exporter = host.find("portrait-diffusion-exporter")(
        SMALL, geometry=ball(), material=Tinted({}), background=None
    )
    return folder / "it7-export", written(exporter(), folder)


def test_every_file_is_written_by_the_hosts_own_saver(exported):
    folder, names = exported
    wanted = {"portrait.glb", "portrait.ply", "portrait.obj", "turntable.mp4", "share.yaml", "provenance.json"}
    assert wanted | {"report.html"} <= names and len([n for n in names if n.startswith("views/")]) == 2
    assert yaml.safe_load((folder / "share.yaml").read_text())["system"]["exporter"]["render_size"] == 16


def test_the_meshes_are_the_ball_in_metres_with_the_materials_colours(exported):
    folder, _ = exported
    for name in ("portrait.ply", "portrait.obj"):
        mesh = trimesh.load(folder / name, process=False)
        radius = np.linalg.norm(mesh.vertices, axis=1)
        assert np.allclose(radius, BALL_RADIUS * 0.56, atol=0.003), name
        colour = np.median(mesh.visual.vertex_colors[:, :3], axis=0)
        assert np.allclose(colour, [127.5, 63.75, 0], atol=2), name


def test_what_a_system_knows_is_used(tmp_path):
    geometry, seen = ball(), []
    exporter = PortraitExporter(SMALL, geometry=geometry, material=PlainColour({}), background=None)
    own = exporter.own_renderer()

    def render(*camera):
        seen.append(camera)
        return own.render(*camera)

    exporter.describe(render=render, settings={"system": {"geometry_type": "x"}}, seeds={"seed": 5})
    names = written(exporter(), tmp_path)
    assert len(seen) >= 5 and "report.html" in names
    assert '"seed": 5' in (tmp_path / "it7-export" / "provenance.json").read_text()


def test_its_keys_are_those_of_the_bundle():
    """Its Config is flat and light, so that importing the package does not import the mesh libraries."""
    ours = {f.name for f in dataclasses.fields(PortraitExporter.Config)} - {"save_video", "save_obj", "renderer"}
    assert ours == {f.name for f in dataclasses.fields(ExportConfig)}
    exporter = PortraitExporter({}, geometry=ball(), material=None, background=None)
    assert exporter.export_config() == ExportConfig()


def test_bad_scenes_and_keys_are_named():
    class NoDensity(torch.nn.Module):
        cfg = ball().cfg

    with pytest.raises(UsageError, match="needs a geometry with a density, NoDensity has none"):
        PortraitExporter({}, geometry=NoDensity(), material=None, background=None)
    with pytest.raises(UsageError, match="radius 1 and would be cut: set system.geometry.radius=0.36"):
        PortraitExporter({}, geometry=ball(radius=1.0), material=None, background=None)
    with pytest.raises(UsageError, match=r"system.exporter.mesh: .*unexpected keyword argument 'resolutio'"):
        PortraitExporter({"mesh": {"resolutio": 3}}, geometry=ball(), material=None, background=None)
    with pytest.raises(UsageError, match="render_size must be between"):
        PortraitExporter({"render_size": 1}, geometry=ball(), material=None, background=None)
