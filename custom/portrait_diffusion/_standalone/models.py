"""Base classes of the scene: geometry, material, background, renderer, exporter."""
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import BaseModule, BaseObject
from .mesh import Mesh, extract_isosurface


def contract_to_unisphere(x: Tensor, bbox: Tensor, unbounded: bool = False) -> Tensor:
    """Map the box `bbox` (2,3) to [0,1]^3; `unbounded` squeezes all space in, the box into the middle half.

    Unbounded form: y = 2 (x - lo) / (hi - lo) - 1, outside the unit ball y -> (2 - 1/|y|) y/|y| (mip-NeRF 360,
    eq. 10), then y / 4 + 1/2.

    Args: x (*N,3) world; bbox (2,3). Returns: (*N,3).
    """
    unit = (x - bbox[0]) / (bbox[1] - bbox[0])
    if not unbounded:
        return unit
    y = unit * 2.0 - 1.0
    length = y.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
    y = torch.where(length > 1.0, (2.0 - 1.0 / length) * (y / length), y)
    return y / 4.0 + 0.5


class BaseGeometry(BaseModule):
    """Shape and features in space."""

    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    @staticmethod
    def create_from(other: "BaseGeometry", cfg: Any = None, **kwargs: Any) -> "BaseGeometry":
        """Make this geometry from another one. Raises: TypeError unless a subclass knows how."""
        raise TypeError(f"A {type(other).__name__} cannot be converted: the target class has no create_from.")

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What an exporter stores per point; nothing unless overridden."""
        return {}


@dataclass
class _BoxedConfig(BaseGeometry.Config):
    radius: float = 1.0  # half the side of the box, scene units


class BaseImplicitGeometry(BaseGeometry):
    """Geometry that can be asked anywhere in the box ±radius: a density or a signed distance."""

    @dataclass
    class Config(_BoxedConfig):
        isosurface: bool = True  # whether isosurface() is allowed
        isosurface_method: str = "mt"  # "mt" or "mc-cpu"; here both mean marching cubes on the CPU
        isosurface_resolution: int = 128  # samples per axis
        isosurface_threshold: Any = 0.0  # level of the field, or "auto": mean of its positive values
        isosurface_chunk: int = 0  # points per evaluation, 0 = all at once
        isosurface_coarse_to_fine: bool = True  # find the occupied box first, then sample only that
        isosurface_deformable_grid: bool = False  # not available here: forward_field gives no grid deformation
        isosurface_remove_outliers: bool = True  # drop small connected pieces
        isosurface_outlier_n_faces_threshold: Any = 0.01  # int: faces; float: share of the largest piece's faces

    cfg: Config

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Register the box as the persistent buffer `bbox` (2,3)."""
        _register_bbox(self, self.cfg.radius)
        self.unbounded = False

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """points (*N,3) world -> density or sdf (*N,1), features (*N,F), with `output_normal` normal (*N,3)."""
        raise NotImplementedError

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """points (*N,3) -> (field (*N,1), deformation (*N,3) or None)."""
        raise NotImplementedError

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        """Zero on the surface, negative inside: for a density -(density - threshold)."""
        raise NotImplementedError

    def isosurface(self) -> Mesh:
        """Surface of the field as a mesh, see `mesh.extract_isosurface`. Not differentiable."""
        return extract_isosurface(self)


class BaseExplicitGeometry(BaseGeometry):
    """Geometry given by a mesh."""

    @dataclass
    class Config(_BoxedConfig):
        pass

    cfg: Config

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Register the box as the persistent buffer `bbox` (2,3)."""
        _register_bbox(self, self.cfg.radius)


def _register_bbox(module: BaseModule, radius: float) -> None:
    bbox = torch.tensor([[-radius] * 3, [radius] * 3], dtype=torch.float32)
    module.register_buffer("bbox", bbox)


class BaseMaterial(BaseModule):
    """Colour of a point from its features."""

    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config
    requires_normal = False
    requires_tangent = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """features, viewdirs=, positions=, ... -> (*B,3). Must accept unknown keywords."""
        raise NotImplementedError

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Textures for an exporter; nothing unless overridden."""
        return {}


class BaseBackground(BaseModule):
    """Colour of the rays that hit nothing."""

    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    def forward(self, dirs: Tensor) -> Tensor:
        """dirs (B,H,W,3) unit, world -> (B,H,W,Nc)."""
        raise NotImplementedError


@dataclass
class _Scene:
    geometry: BaseGeometry
    material: BaseMaterial
    background: BaseBackground


class _HoldsScene:
    """Keeps geometry, material and background in a holder, so that they are not registered as sub-modules twice."""

    sub_modules: _Scene

    def _hold(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        self.sub_modules = _Scene(geometry, material, background)

    @property
    def geometry(self) -> BaseGeometry:
        return self.sub_modules.geometry

    @property
    def material(self) -> BaseMaterial:
        return self.sub_modules.material

    @property
    def background(self) -> BaseBackground:
        return self.sub_modules.background

    def set_geometry(self, geometry: BaseGeometry) -> None:
        """Replace the geometry."""
        self.sub_modules.geometry = geometry

    def set_material(self, material: BaseMaterial) -> None:
        """Replace the material."""
        self.sub_modules.material = material

    def set_background(self, background: BaseBackground) -> None:
        """Replace the background."""
        self.sub_modules.background = background


class Renderer(_HoldsScene, BaseModule):
    """Images of a scene."""

    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0  # half the side of the rendered box, scene units

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        """Hold the scene and register the box as the persistent buffer `bbox` (2,3)."""
        self._hold(geometry, material, background)
        _register_bbox(self, self.cfg.radius)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A batch by keyword -> comp_rgb, opacity, depth, ... Must accept unknown keywords."""
        raise NotImplementedError


class VolumeRenderer(Renderer):
    """Renderer that integrates along rays."""


class Rasterizer(Renderer):
    """Renderer that projects triangles."""


@dataclass
class ExporterOutput:
    """One file to write: the system calls ``save_{save_type}(save_name, **params)``."""

    save_name: str
    save_type: str
    params: dict[str, Any]


class Exporter(_HoldsScene, BaseObject):
    """Files from a finished scene."""

    @dataclass
    class Config(BaseObject.Config):
        save_video: bool = False  # also render the test views

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        """Hold the scene."""
        self._hold(geometry, material, background)

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        """The files to write."""
        raise NotImplementedError
