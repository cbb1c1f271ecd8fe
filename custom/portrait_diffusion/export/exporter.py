"""Everything that people open, as the host's ``--export`` writes it; registered as ``portrait-diffusion-exporter``."""
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import UsageError
from ..host import Exporter, ExporterOutput, Mesh, config_to_primitive, find, register
from ..ops.cameras import BOX_RADIUS

if TYPE_CHECKING:
    from .bundle import ExportConfig, PhotoInfo

ANGLES = [0, 45, 90, 135, 180, -135, -90, -45]


@register("portrait-diffusion-exporter")
class PortraitExporter(Exporter):
    """GLB, PLY, OBJ, turntable, views, report, share.yaml and provenance of the host's scene, from any system.

    The geometry needs ``forward_density`` and must lie in the portraits' box; colours come from the material's
    ``export``. A system that knows more about the head says so with `describe`.
    """

    @dataclass
    class Config(Exporter.Config):
        render_size: int = 128  # width and height of every render, pixels; the turntable is enlarged from it
        view_azimuths_deg: list = field(default_factory=lambda: list(ANGLES))  # of the still views
        view_elevations_deg: list = field(default_factory=lambda: [0, 20])  # of the still views, with every azimuth
        points_per_call: int = 131072  # points in one call of the field, bounds the memory
        mesh: dict = field(default_factory=dict)  # keys of the mesh, see system.exporter.mesh
        bake: dict = field(default_factory=dict)  # keys of the texture, see system.exporter.bake
        turntable: dict = field(default_factory=dict)  # keys of the film, see system.exporter.turntable
        save_obj: bool = True  # also an OBJ with vertex colours, which threestudio's own app shows
        renderer: dict = field(default_factory=dict)  # keys of portrait-diffusion-volume-renderer, for views and film

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        kind = type(geometry).__name__
        if not hasattr(geometry, "forward_density"):
            raise UsageError(
                f"portrait-diffusion-exporter needs a geometry with a density, {kind} has none; choose another "
                "system.exporter_type for it."
            )
        radius = float(getattr(geometry.cfg, "radius", BOX_RADIUS))
        if radius > BOX_RADIUS + 1e-6:
            raise UsageError(
                f"portrait-diffusion-exporter sees the box of portraits, radius {BOX_RADIUS}; {kind} has radius "
                f"{radius:g} and would be cut: set system.geometry.radius={BOX_RADIUS}, or another exporter_type."
            )
        self.export_config()  # wrong keys are named now, not after the last step
        self._known: dict[str, Any] = {}
        self._folder: tempfile.TemporaryDirectory | None = None

    def describe(
        self, render: Callable | None = None, photo: "PhotoInfo | None" = None, settings: Mapping | None = None,
        **more: Any,
    ) -> None:  # fmt: skip
        """What a system knows beside the scene.

        Args: render: `export.renders.RenderFn` of the head in place of this exporter's own.  photo: what it was made
            from.  settings: configuration of the run.  more: curves, seeds, weights of `export.bundle.export_all`.
        """
        self._known = {"render": render, "photo": photo, "settings": settings, **more}

    def export_config(self) -> "ExportConfig":
        """This configuration as that of `export.bundle`. Raises: UsageError for keys and values it does not take."""
        from .bundle import BakeConfig, ExportConfig, MeshConfig, TurntableConfig

        def part(kind: type, name: str):
            try:
                return kind(**config_to_primitive(getattr(self.cfg, name)))
            except TypeError as error:
                raise UsageError(f"system.exporter.{name}: {str(error).split('() ')[-1]}.") from error

        return ExportConfig(
            self.cfg.render_size, list(self.cfg.view_azimuths_deg), list(self.cfg.view_elevations_deg),
            self.cfg.points_per_call, part(MeshConfig, "mesh"), part(BakeConfig, "bake"),
            part(TurntableConfig, "turntable"),
        )  # fmt: skip

    def field_fns(self):
        """Density and colour of the scene at world points, see `export.fields.FieldFns`."""
        from .fields import FieldFns

        def colour(points: Tensor) -> Tensor:
            found = self.geometry.export(points=points)
            if self.material is not None and hasattr(self.material, "export"):
                shown = self.material.export(points=points, **found)
                if "albedo" not in shown:
                    raise UsageError(f"{type(self.material).__name__} exports no albedo; use another material.")
                return shown["albedo"][..., :3].clamp(0, 1)
            return found["features"][..., :3].clamp(0, 1)

        return FieldFns(self.geometry.forward_density, colour)

    def own_renderer(self):
        """A renderer of the scene for views and film."""
        section = {"radius": BOX_RADIUS, **config_to_primitive(self.cfg.renderer)}
        renderer = find("portrait-diffusion-volume-renderer")(
            section, geometry=self.geometry, material=self.material, background=None
        )
        return renderer.eval()

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        """All files, each to be copied by the host's ``save_file``, and the OBJ for its ``save_obj``."""
        from .bundle import export_all

        known = dict(self._known)
        render, photo, settings = (known.pop(key, None) for key in ("render", "photo", "settings"))
        device = next((p.device for p in self.geometry.parameters()), self.device)
        self._folder = tempfile.TemporaryDirectory(prefix="portrait-export-")  # lives until the host has copied
        out = Path(self._folder.name)
        result = export_all(
            out, render or self.own_renderer().render, self.field_fns(), photo, known.pop("curves", {}),
            settings or {"system": {"exporter": config_to_primitive(self.cfg)}}, config=self.export_config(),
            device=device, base_dir=out, **known,
        )  # fmt: skip
        paths = [path for files in result.files.values() for path in files]
        outputs = [ExporterOutput(p.relative_to(out).as_posix(), "file", {"src_path": str(p)}) for p in paths]
        if self.cfg.save_obj:
            outputs.append(self._obj(result.files["ply"][0]))
        return outputs

    @staticmethod
    def _obj(ply: Path) -> ExporterOutput:
        """The finished mesh with its vertex colours."""
        import torch
        import trimesh

        loaded = trimesh.load(ply, process=False)
        mesh = Mesh(torch.tensor(loaded.vertices).float(), torch.tensor(loaded.faces).long())
        mesh.set_vertex_color(torch.tensor(loaded.visual.vertex_colors[:, :3]).float() / 255)
        return ExporterOutput("portrait.obj", "obj", {"mesh": mesh, "save_vertex_color": True})
