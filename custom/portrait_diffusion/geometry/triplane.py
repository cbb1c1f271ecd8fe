"""A head as planes of features and a small decoder, registered as ``portrait-diffusion-triplane``."""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..host import BaseImplicitGeometry, register
from ..ops.backends import IMPLEMENTATIONS
from ..ops.cameras import BOX_RADIUS, head_to_world, world_to_head
from ..ops.differences import central_differences
from ..ops.plane_layouts import LAYOUTS, OWN_FRAME, PlaneFrame
from ..ops.triplane import (
    DETAIL_GAIN,
    PLANE_AXES,
    DecoderWeights,
    init_decoder,
    limit_density,
    sample_planes,
    voxel_centres,
)
from ..ops.triplane_gather import Rows, kept_tables, plane_rows, plane_table, weighted_rows
from ..ops.volrend import inside_cylinder
from .floaters import outside_the_body

MATTER = 0.05
"""Share of the light that a voxel must stop to count as matter to which `restoration_reach` is measured."""


def settings_for(
    planes: list[Tensor], weights: DecoderWeights, radius: float, detail: bool = False, frame: PlaneFrame = OWN_FRAME
) -> dict:
    """Keys of `TriplaneGeometry` for a prior's answer: planes, frontal features if any, and with `detail` its grid."""
    features = planes[1:-1] if detail else planes[1:]
    settings = {
        "radius": radius, "channels": planes[0].shape[2], "resolution": planes[0].shape[-1],
        "hidden": weights.hidden_weight.shape[0], "frontal_layers": sum(grid.shape[3] for grid in features),
        "density_scale": frame.density_scale,
    }  # fmt: skip
    if frame.layout != "own":
        levels = planes[:-1] if detail else planes
        settings |= {
            "frontal_layers": 0, "levels": 1 if frame.layout == "spherehead" else len(levels),
            "depth": planes[0].shape[3] if planes[0].ndim == 6 else 1, "plane_layout": frame.layout,
            "plane_radius": frame.radius, "plane_centre": list(frame.centre), "plane_crop": frame.crop,
            "detail_resolution": 0,
        }  # fmt: skip
    if detail:
        settings |= {"detail_resolution": planes[-1].shape[-1], "detail_depth": planes[-1].shape[3]}
    return settings


@register("portrait-diffusion-triplane")
class TriplaneGeometry(BaseImplicitGeometry):
    """Density and colour from tri-planes (depth 1), tri-grids (depth > 1) or a pyramid of them, inside the cylinder.

    Parameters: ``planes``, a list of (1,3,C,R,R) or (1,3,C,D,R,R), and ``decoder``, see `ops.triplane.DecoderWeights`.
    After them may come two grids over (x, y) alone: features with a few layers along depth (1,1,C,L,R,R), which tell
    front from back, and the detail that a photograph adds to the decoder's raw density and colour (1,1,4,D,R,R).
    Planes of published priors have their own axes, frame and colours, see `ops.plane_layouts`.
    With `restoration_resolution` there is a grid over the whole box, ``restoration`` (1,1,4,R,R,R), that adds to raw
    density and colour as far as ``restoration_gate`` (1,1,1,R,R,R), a buffer in [0, 1], lets it: the part that later
    stages may change. Fresh it is zero, and its gate open. With `restoration_replaces` the colour of planes and detail
    fades out as that gate opens, and ``restoration_base`` (1,1,3,R,R,R), raw colours, fades in (`set_restoration`).
    With `restoration_reach` it adds no density farther than that from matter of planes and detail:
    ``restoration_room`` (1,1,1,R,R,R), a buffer in [0, 1].
    """

    @dataclass
    class Config(BaseImplicitGeometry.Config):
        radius: float = BOX_RADIUS  # of the cylinder and the box, scene units
        isosurface_threshold: Any = 10.0  # density per unit of the surface, or "auto"
        isosurface_chunk: int = 262144  # points per evaluation; about 150 MB of activations
        channels: int = 32  # features per plane
        resolution: int = 128  # edge of the finest level in texels; 128 is 3 mm of a real head
        depth: int = 1  # layers of a tri-grid; 1 is a tri-plane
        levels: int = 1  # of the pyramid; each is half as large as the one before, and their features are summed
        frontal_layers: int = 0  # of a frontal grid of features, from the back to the front; 0 is no such grid
        detail_resolution: int = 0  # edge of the frontal grid of detail in texels; 0 is no such grid
        detail_depth: int = 8  # layers of the detail grid, at least 2
        restoration_resolution: int = 0  # edge of the grid that later stages may change, in voxels; 0 is no such grid
        restoration_replaces: bool = False  # that grid's colours are in the place of the planes', else added to them
        restoration_reach: float = 0.0  # how far from matter that grid may change density, scene units; 0: anywhere
        plane_layout: str = "own"  # own, or that of a published prior: eg3d, panohead, spherehead or pyramid
        plane_radius: float = 0.0  # half edge of the cube that the planes span, scene units; 0 is radius
        plane_centre: list = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of that cube, head frame, scene units
        plane_crop: float = 0.0  # nothing where |x| or |z| from that centre exceeds this, scene units; 0 is no limit
        density_scale: float = 1.0  # factor on density: surfaces grow harder; 1 / s for planes of s times our units
        hidden: int = 64  # width of the decoder
        init_std: float = 0.1  # standard deviation of fresh planes
        init_density: float = -3.0  # bias of the raw density of fresh decoders: nearly empty space
        seed: int = 0  # of fresh planes and decoder weights
        normal_type: str = "analytic"  # "analytic" (exact, carries no gradient) or "finite_difference"
        implementation: str = "auto"  # of planes, decoder: auto, torch, triton, tcnn (points with gradients: torch)
        finite_difference_eps: float = 0.003  # step of finite-difference normals, scene units (about half a texel)

        def __post_init__(self) -> None:
            for key in ("channels", "resolution", "depth", "levels", "detail_depth", "hidden"):
                if getattr(self, key) < 1:
                    raise UsageError(f"geometry.{key} must be at least 1, got {getattr(self, key)}.")
            for key in ("frontal_layers", "detail_resolution", "restoration_resolution"):
                if getattr(self, key) < 0:
                    raise UsageError(f"geometry.{key} must be at least 0, got {getattr(self, key)}.")
            if self.restoration_reach < 0:
                raise UsageError(f"geometry.restoration_reach must be at least 0, got {self.restoration_reach}.")
            if self.plane_layout not in LAYOUTS:
                raise UsageError(
                    f"geometry.plane_layout must be one of {', '.join(LAYOUTS)}, got '{self.plane_layout}'."
                )
            if len(self.plane_centre) != 3 or min(self.plane_radius, self.plane_crop) < 0 or self.density_scale <= 0:
                raise UsageError(
                    "geometry.plane_centre must be three numbers, plane_radius and plane_crop at least 0, "
                    f"density_scale above 0, got {list(self.plane_centre)}, {self.plane_radius}, {self.plane_crop}, "
                    f"{self.density_scale}."
                )
            if self.resolution % 2 ** (self.levels - 1):
                raise UsageError(
                    f"geometry.resolution {self.resolution} cannot be halved {self.levels - 1} times for "
                    f"geometry.levels {self.levels}; use a multiple of {2 ** (self.levels - 1)}."
                )
            if self.implementation not in IMPLEMENTATIONS:
                raise UsageError(
                    f"geometry.implementation must be one of {', '.join(IMPLEMENTATIONS)}, got '{self.implementation}'."
                )
            if self.normal_type not in ("analytic", "finite_difference"):
                raise UsageError(
                    f"geometry.normal_type must be 'analytic' or 'finite_difference', got '{self.normal_type}'."
                )

    cfg: Config

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Make fresh planes and decoder weights from the seed."""
        super().configure()
        self.frame = PlaneFrame(
            self.cfg.plane_layout, self.cfg.plane_radius or self.cfg.radius, tuple(self.cfg.plane_centre),
            self.cfg.plane_crop, self.cfg.density_scale,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(self.cfg.seed)
        shapes = self.plane_shapes()
        planes = [torch.randn(shape, generator=generator) * self.cfg.init_std for shape in shapes]
        if self.cfg.detail_resolution:
            planes[-1].zero_()  # no detail yet
        self.planes = nn.ParameterList(planes)
        edge = self.cfg.restoration_resolution
        self.restoration = nn.Parameter(torch.zeros(1, 1, 4, edge, edge, edge)) if edge else None
        self.register_buffer("restoration_gate", torch.ones(1, 1, 1, edge, edge, edge) if edge else None)
        base = torch.zeros(1, 1, 3, edge, edge, edge) if edge and self.cfg.restoration_replaces else None
        self.register_buffer("restoration_base", base)
        bounded = edge and self.cfg.restoration_reach
        self.register_buffer("restoration_room", torch.ones(1, 1, 1, edge, edge, edge) if bounded else None)
        self._grid_known: tuple = (None, None)
        weights = init_decoder(self.cfg.channels, self.cfg.hidden, generator)
        weights.output_bias[0] = self.cfg.init_density
        self.decoder = nn.ParameterDict({name: nn.Parameter(value) for name, value in weights._asdict().items()})

    def plane_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the levels, finest first, then of the frontal grids if there are any: features, detail."""

        def shape(planes: int, depth: int, size: int) -> tuple[int, ...]:
            return (1, planes, self.cfg.channels, *([depth] if depth > 1 else []), size, size)

        shapes = [shape(3, self.cfg.depth, self.cfg.resolution // 2**level) for level in range(self.cfg.levels)]
        if self.cfg.plane_layout == "spherehead":
            shapes = shapes[:1] * 2  # the front and the back sphere
        detail, layers = self.cfg.detail_resolution, self.cfg.frontal_layers
        if layers:
            shapes.append((1, 1, self.cfg.channels, layers, self.cfg.resolution, self.cfg.resolution))
        return shapes + ([(1, 1, 4, self.cfg.detail_depth, detail, detail)] if detail else [])

    @torch.no_grad()
    def set_planes(self, planes: Tensor | list[Tensor]) -> None:
        """Copy planes, for example a GAN's output, into the parameters.

        Args:
            planes: one tensor, or one for each of `plane_shapes`, whose shapes they have; the batch axis is optional.

        Raises: UsageError for wrong numbers of levels or shapes.
        """
        levels = list(planes) if isinstance(planes, (list, tuple)) else [planes]
        shapes = self.plane_shapes()
        got = [tuple(level.shape) for level in levels]
        if got != shapes and got != [shape[1:] for shape in shapes]:
            raise UsageError(
                f"planes of shape {got} do not fit this geometry, which holds {shapes}; set geometry.channels, "
                "resolution, depth, levels, frontal_layers, detail_resolution and detail_depth to those of the planes."
            )
        for parameter, level in zip(self.planes, levels):
            parameter.copy_(level.reshape(parameter.shape))

    @torch.no_grad()
    def set_decoder(self, weights: DecoderWeights | tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """Copy decoder weights into the parameters. Raises: UsageError for wrong shapes."""
        for name, value in DecoderWeights(*weights)._asdict().items():
            if value.shape != self.decoder[name].shape:
                raise UsageError(
                    f"decoder weight {name} has shape {tuple(value.shape)}, this geometry needs "
                    f"{tuple(self.decoder[name].shape)}; set geometry.channels and geometry.hidden accordingly."
                )
            self.decoder[name].copy_(value)

    def decoder_weights(self) -> DecoderWeights:
        """The decoder's parameters."""
        return DecoderWeights(**{name: self.decoder[name] for name in DecoderWeights._fields})

    def _raw(self, points: Tensor, limited: bool = True) -> Tensor:
        """Raw density and colour (N,4) at world points (N,3); `limited`: density in the range of `add_detail`."""
        raw = self.raw_without_restoration(points, limited)
        return raw if self.restoration is None else self.restored(raw, points)

    def raw_without_restoration(self, points: Tensor, limited: bool = True) -> Tensor:
        """Raw density and colour (N,4) of planes, decoder and detail at world points (N,3); see `restored`."""
        head = world_to_head(points)[None]
        planes = list(self.planes)
        detail = planes.pop() if self.cfg.detail_resolution else None
        implementation = self.cfg.implementation
        if implementation in ("triton", "tcnn") and head.requires_grad:
            implementation = "torch"  # as the setting says: they have no gradient with respect to points
        raw = self.frame.raw(planes, self.decoder_weights(), head, implementation)
        if limited and (detail is not None or self.restoration is not None):
            raw = limit_density(raw)
        if detail is not None:
            raw = raw + sample_planes(detail, head / self.cfg.radius, reduce="sum")
        return raw[0]

    def restoration_rows(self, points: Tensor) -> Rows:
        """What `restored` reads at world points (N,3), for points that are asked again and again."""
        return plane_rows([self._restoration_grid().shape], world_to_head(points)[None] / self.cfg.radius, PLANE_AXES)

    def restored(self, raw: Tensor, points: Tensor, rows: Rows | None = None) -> Tensor:
        """Raw density and colour (N,4) with the restoration grid, looked up at world points (N,3).

        Args: raw (N,4) of `raw_without_restoration` at the points; rows: `restoration_rows` of them, if at hand.
        Raises: UsageError without such a grid.
        """
        if self.restoration is None:
            raise UsageError("This geometry has no restoration grid; set geometry.restoration_resolution.")
        grid = self._restoration_grid()
        if rows is None:
            found = sample_planes(grid, world_to_head(points)[None] / self.cfg.radius, reduce="sum")[0]
        else:
            found = weighted_rows(rows, plane_table([grid]))
        if self.restoration_base is None:
            return raw + found
        density, colour = raw[:, :1] + found[:, :1], raw[:, 1:4] * (1 - found[:, 4:]) + found[:, 1:4]
        return torch.cat([density, colour], dim=-1)

    def _restoration_grid(self) -> Tensor:
        """(1,1,C,R,R,R) what is looked up: gated density and colour, and with a base the gate as the fifth channel.

        Made anew where it needs gradients, else when one of its parts has changed: a render asks many times.
        """

        def made() -> Tensor:
            gate = self.restoration_gate
            room = gate if self.restoration_room is None else gate * self.restoration_room
            gains = [(gate if channel else room) * gain for channel, gain in enumerate(DETAIL_GAIN)]
            grid = self.restoration * torch.cat(gains, dim=2)
            if self.restoration_base is None:
                return grid
            return torch.cat([grid[:, :, :1], grid[:, :, 1:] + self.restoration_base * gate, gate], dim=2)

        parts = (self.restoration, self.restoration_gate, self.restoration_base, self.restoration_room)
        parts = [x for x in parts if x is not None]
        changing = torch.is_grad_enabled() and self.restoration.requires_grad
        if changing or any(x.is_inference() for x in parts):  # inference tensors do not tell when they change
            return made()
        version = [(id(x), x._version, x.device, x.dtype) for x in parts]
        if self._grid_known[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                self._grid_known = version, made()
        return self._grid_known[1]

    @torch.no_grad()
    def set_restoration(self, gate: Tensor, blur: float = 0.0) -> None:
        """Empty the restoration grid and set its gate; where the grid replaces colours, blurred ones are its base.

        base = G(a c) / G(a), raw colours c of planes and detail at the voxels' centres, a the share of light that a
        voxel stops, G a Gaussian: what is seen there without its detail.

        With `restoration_reach` the room for density is 1 within that distance of voxels that stop at least `MATTER`
        of the light, and 0 from one voxel farther on.

        Args: gate (1,1,1,R,R,R) in [0, 1]; blur: standard deviation of G, voxels.
        """
        self.restoration.zero_()
        self.restoration_gate.zero_()  # planes and detail alone
        if self.restoration_base is not None or self.restoration_room is not None:
            from scipy.ndimage import distance_transform_edt, gaussian_filter  # not needed to name the settings

            edge = self.cfg.restoration_resolution
            raw, stopped, voxel = self._voxels()
        if self.restoration_base is not None:
            share = stopped + 1e-4
            seen = torch.cat([raw[:, 1:4].clamp(-6, 6) * share, share], dim=1).t().view(1, 4, edge, edge, edge)
            blurred = gaussian_filter(seen.cpu().numpy(), (0, 0, blur, blur, blur), mode="nearest")
            seen = torch.from_numpy(blurred).to(seen)
            self.restoration_base.copy_((seen[:, :3] / seen[:, 3:])[None])
        if self.restoration_room is not None:
            matter = (stopped > MATTER).view(edge, edge, edge).cpu().numpy()
            away = torch.from_numpy(distance_transform_edt(~matter)) * voxel if matter.any() else torch.zeros(())
            room = (1 - (away - self.cfg.restoration_reach) / voxel).clamp(0, 1)
            self.restoration_room.copy_(room.to(gate).expand_as(gate))
        self.restoration_gate.copy_(gate)

    def _voxels(self) -> tuple[Tensor, Tensor, float]:
        """Raw values (R^3,4) at the restoration grid's voxels, shares of light they stop (R^3,1), and their edge."""
        edge, radius = self.cfg.restoration_resolution, self.cfg.radius
        points = head_to_world(voxel_centres((edge, edge, edge), radius, self.restoration.device))
        voxel = 2 * radius / edge
        with torch.no_grad(), kept_tables():
            raw = torch.cat([self._raw(part) for part in points.split(self.cfg.isosurface_chunk)])
            return raw, -torch.expm1(-self._density(raw[:, :1], points) * voxel), voxel

    @torch.no_grad()
    def remove_floaters(self) -> int:
        """Take away what hangs in the air: the restoration grid's raw density is at most -1, times its gain, there.

        Where is said by `floaters.outside_the_body`, at the grid's voxels. Where the gate is not quite open nothing
        changes, nor does it without matter or without such a grid.

        Returns: voxels that had more.
        """
        if self.restoration is None:
            return 0
        edge = self.cfg.restoration_resolution
        outside = outside_the_body(self._voxels()[1].view(edge, edge, edge).cpu().numpy())
        density = self.restoration[:, :, 0]
        more = torch.from_numpy(outside).to(density.device) & (self.restoration_gate[:, :, 0] > 0.99) & (density > -1)
        density.masked_fill_(more, -1.0)
        return int(more.sum())

    @contextmanager
    def without_restoration(self) -> Iterator[None]:
        """The head of planes and detail alone, for looks at it; without gradients to the restoration grid."""
        gate = None if self.restoration_gate is None else self.restoration_gate.clone()
        try:
            if gate is not None:
                self.restoration_gate.zero_()
            yield
        finally:
            if gate is not None:
                self.restoration_gate.copy_(gate)

    def _density(self, raw: Tensor, points: Tensor) -> Tensor:
        density = self.frame.density(raw[..., :1], world_to_head(points))
        return torch.where(inside_cylinder(points, self.cfg.radius), density, torch.zeros_like(density))

    def activated(self, raw: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,1), 0 outside the cylinder, and colour (N,3) from raw ones (N,4) at world points (N,3)."""
        return self._density(raw, points), self.frame.colour(raw[..., 1:4])

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """Density, colour and optionally normals at world points.

        Args:
            points: (*N,3) world space.
            output_normal: also return normals, the direction in which density falls fastest; zero where it is constant.

        Returns: density (*N,1) per unit, exactly 0 outside the cylinder; features (*N,3) colour;
            normal and shading_normal (*N,3) unit vectors if asked for.
        """
        flat = points.reshape(-1, 3)
        out = dict(zip(("density", "features"), self.activated(self._raw(flat), flat)))
        if output_normal:
            normal = self.normal(flat)
            out |= {"normal": normal, "shading_normal": normal}
        return {key: value.reshape(*points.shape[:-1], value.shape[-1]) for key, value in out.items()}

    def normal(self, points: Tensor) -> Tensor:
        """Unit normals (*N,3) at world points (*N,3), see `forward`; without density and colour."""
        gradient = self._analytic_gradient if self.cfg.normal_type == "analytic" else self._difference_gradient
        return -nn.functional.normalize(gradient(points.reshape(-1, 3)), dim=-1).view(points.shape)

    def _analytic_gradient(self, points: Tensor) -> Tensor:
        """Gradient of raw density without limits; detached.

        It is parallel to that of density, but vanishes neither in empty space nor where density is at its limit.
        """
        with torch.inference_mode(False), torch.enable_grad():
            points = points.detach().clone().requires_grad_()
            return torch.autograd.grad(self._raw(points, False)[..., 0].sum(), points)[0]

    def _difference_gradient(self, points: Tensor) -> Tensor:
        """Central differences of raw density; differentiable in planes and decoder."""

        def density(probes: Tensor) -> Tensor:
            return self._raw(probes.reshape(-1, 3), False)[..., 0].view(probes.shape[:-1])

        return central_differences(density, points, self.cfg.finite_difference_eps)

    def forward_density(self, points: Tensor) -> Tensor:
        """Density (*N,1) at world points (*N,3)."""
        flat = points.reshape(-1, 3)
        return self._density(self._raw(flat), flat).reshape(*points.shape[:-1], 1)

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """The field of the surface extraction: density (*N,1) and no deformation."""
        return self.forward_density(points), None

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        """Zero on the surface, negative inside: ``threshold - density``."""
        return threshold - field

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Colour at world points (*N,3) as ``features`` (*N,3) in [0,1]."""
        return {"features": self.forward(points)["features"].clamp(0, 1)}

    @staticmethod
    def create_from(other: Any, cfg: Any = None, **kwargs: Any) -> "TriplaneGeometry":
        """A copy of another tri-plane geometry. Raises: TypeError for other types, UsageError for other shapes."""
        if not isinstance(other, TriplaneGeometry):
            raise TypeError(f"portrait-diffusion-triplane cannot be made from {type(other).__name__}.")
        instance = TriplaneGeometry(cfg if cfg is not None else {**other.cfg, "weights": None})
        instance.set_planes(list(other.planes))
        instance.set_decoder(other.decoder_weights())
        if other.restoration is not None and instance.cfg.restoration_resolution == other.cfg.restoration_resolution:
            instance.restoration.data.copy_(other.restoration.data)
            instance.restoration_gate.copy_(other.restoration_gate)
            for name in ("restoration_base", "restoration_room"):
                if None not in (getattr(instance, name), getattr(other, name)):
                    getattr(instance, name).copy_(getattr(other, name))
        return instance.to(other.planes[0].device)
