"""Volume renderer for portraits, registered as ``portrait-diffusion-volume-renderer``."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import UsageError
from ..host import VolumeRenderer, register
from ..ops.backends import IMPLEMENTATIONS
from ..ops.cameras import BOX_RADIUS, get_rays
from ..ops.occupancy import SEEN, density_grid, guided_samples, sees_matter, widened
from ..ops.occupancy_nerfacc import marched_samples
from ..ops.triplane_gather import kept_tables
from ..ops.volrend import OPACITY_EPS, RandomSource, ray_cylinder, render_rays, uniform
from .graphs import GraphedFunction, Tensors


def unit_normals(comp_normal: Tensor, opacity: Tensor) -> Tensor:
    """(B, H, W, 3) unit normals, 0 where the render is not opaque, from (n + 1) / 2 * opacity and (B, H, W, 1)."""
    n = torch.nn.functional.normalize(2 * comp_normal / opacity.clamp(min=1e-6) - 1, dim=-1)
    return n * (opacity > 0.5)


def graphs_refused(rays_o: Tensor, rays_d: Tensor, geometry: nn.Module, material: nn.Module | None) -> str | None:
    """Why training renders cannot be CUDA graphs, to be read after "renderer.cuda_graphs", or None when they can."""
    if rays_o.requires_grad or rays_d.requires_grad:
        return "gives no gradients to rays, which cameras that are fitted need"
    if geometry._forward_hooks or geometry._forward_pre_hooks or geometry._backward_hooks:
        return "would not call the hooks of the geometry"
    if material is not None and (getattr(material, "requires_normal", False) or list(material.parameters())):
        return "needs a material without normals and parameters"
    return None if rays_o.device.type == "cuda" else "needs a GPU"


@register("portrait-diffusion-volume-renderer")
class PortraitVolumeRenderer(VolumeRenderer):
    """Two-pass volume rendering inside the upright cylinder, with threestudio's output keys; runs on CPU and GPU.

    ``material`` None takes the geometry's features as colour; ``background`` None is white.
    With `occupancy_resolution` a grid of the geometry's densities is the first pass: the field is evaluated for the
    samples of the second pass alone, and outside training not for rays that see nothing. In training the grid is made
    anew every `occupancy_every` steps and part of the checkpoint; outside it is that of the geometry as it is.
    `estimator` nerfacc goes by the same grid in even steps (`ops.occupancy_nerfacc`).
    With `cuda_graphs` renders of which gradients are taken are replayed, see `renderer.graphs`: all rays, also those
    that miss the cylinder, and without the normals, which follow. One of the same shape before the last one's gradients
    are taken is made without graphs.
    """

    @dataclass
    class Config(VolumeRenderer.Config):
        radius: float = BOX_RADIUS  # of the cylinder that is rendered, scene units; equal to geometry.radius
        num_samples_per_ray: int = 32  # first pass, evenly spaced
        num_importance_samples: int = 32  # second pass, where the first found matter; 0 turns it off
        occupancy_resolution: int = 0  # edge of a grid that is the first pass in the field's place (64 to 96); 0: none
        occupancy_every: int = 16  # training steps after which that grid is made anew
        estimator: str = "occupancy"  # how that grid gives samples: occupancy, or nerfacc (on a GPU, with that package)
        num_marching_steps: int = 128  # of nerfacc, along the cylinder's diagonal; only those where matter is are taken
        eval_chunk_size: int = 0  # rays at a time outside training; 0: 2048 on a CPU (fits its caches), else 65536
        randomized: bool = True  # random sample positions while training; evaluation is deterministic
        return_normals: bool = False  # comp_normal, at the expected depth of each ray
        implementation: str = "auto"  # of compositing and of the grid's samples: auto, torch or triton
        cuda_graphs: bool = False  # training renders and their gradients as CUDA graphs: a GPU, rays without gradients

        def __post_init__(self) -> None:
            if self.num_samples_per_ray < 1 or self.num_importance_samples < 0 or self.eval_chunk_size < 0:
                raise UsageError(
                    "renderer.num_samples_per_ray must be at least 1, num_importance_samples and eval_chunk_size at "
                    f"least 0, got {self.num_samples_per_ray}, {self.num_importance_samples}, {self.eval_chunk_size}."
                )
            if self.implementation not in IMPLEMENTATIONS:
                raise UsageError(
                    f"renderer.implementation must be one of {', '.join(IMPLEMENTATIONS)}, got '{self.implementation}'."
                )
            if self.occupancy_resolution < 0 or self.occupancy_every < 1:
                raise UsageError(
                    "renderer.occupancy_resolution must be at least 0 and occupancy_every at least 1, got "
                    f"{self.occupancy_resolution} and {self.occupancy_every}."
                )
            if self.estimator not in ("occupancy", "nerfacc"):
                raise UsageError(f"renderer.estimator must be occupancy or nerfacc, got '{self.estimator}'.")
            if self.estimator == "nerfacc" and (not self.occupancy_resolution or self.num_marching_steps < 1):
                raise UsageError(
                    "renderer.estimator nerfacc needs renderer.occupancy_resolution (64 to 96) and num_marching_steps "
                    f"of at least 1, got {self.occupancy_resolution} and {self.num_marching_steps}."
                )
            if self.estimator == "nerfacc" and self.cuda_graphs:
                raise UsageError("renderer.estimator nerfacc asks the host in every render; set cuda_graphs: false.")
            if self.occupancy_resolution and not self.num_importance_samples:
                raise UsageError(
                    "renderer.num_importance_samples is 0, but with renderer.occupancy_resolution only these samples "
                    "are evaluated; use 16 or more, or occupancy_resolution 0."
                )

    cfg: Config

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Room for the grid that training goes by."""
        super().configure(*args, **kwargs)
        edge = self.cfg.occupancy_resolution
        self.register_buffer("occupancy", torch.zeros(edge, edge, edge) if edge else None)
        self._stale, self._known = True, (None, None, None)  # version, grid, the same widened
        self._graphed = GraphedFunction(self._render_with)
        self.register_load_state_dict_post_hook(lambda module, keys: setattr(module, "_stale", False))

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Let the grid be made anew at the steps at which an uninterrupted run would."""
        if global_step % self.cfg.occupancy_every == 0:
            self._stale = True

    def _densities(self) -> Tensor:
        """The grid of this moment, see the class text."""
        like = next(self.geometry.parameters())

        def now() -> Tensor:
            return density_grid(self.geometry.forward_density, self.cfg.radius, self.cfg.occupancy_resolution, like)

        if self.training:
            if self._stale:
                self.occupancy = now().to(self.occupancy.dtype)
                self._stale = False
            return self.occupancy
        tensors = (*self.geometry.parameters(), *self.geometry.buffers())
        version = [(id(x), 0 if x.is_inference() else x._version) for x in tensors]
        if self._known[0] != version:
            grid = now()
            self._known = version, grid, widened(grid)
        return self._known[1]

    def forward(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        light_positions: Tensor | None = None,
        bg_color: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Render a batch of views.

        Args:
            rays_o, rays_d: (B,H,W,3) world space, unit directions; the rays of one view start at one point.
            light_positions: (B,3), for materials that shade.
            bg_color: (B,C) or (B,H,W,C), replaces the background.
            generator: source of the random sample positions in training; None seeds one from torch's global state.
            kwargs: other batch keys, ignored.

        Returns: comp_rgb, comp_rgb_fg (premultiplied), comp_rgb_bg (B,H,W,C); opacity, z_variance (B,H,W,1);
            depth (B,H,W,1) expected distance along the ray, 0 where nothing is; comp_normal (B,H,W,3) if configured.
            In training also the samples, flat over B, H, W and samples: weights, t_points, t_intervals (Np,1),
            points, t_dirs (Np,3), ray_indices (Np,).
        """
        if self.training and self.cfg.randomized and generator is None:
            seed = int(torch.randint(2**31, (1,)))
            generator = torch.Generator(rays_o.device).manual_seed(seed)
        if not (self.training and self.cfg.randomized):
            generator = None
        chunk = None if self.training else self._chunk(rays_o)
        return self._images(rays_o, rays_d, light_positions, bg_color, generator, chunk, self.cfg.return_normals)

    @torch.no_grad()
    def render(
        self, c2w: Tensor, fovy: Tensor, height: int, width: int, bg_color: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Deterministic images with normals, whatever mode the module is in; without gradients.

        Args:
            c2w: (B,4,4).
            fovy: (B,) vertical field of view in radians.
            height, width: pixels.
            bg_color: as in :meth:`forward`.

        Returns: as :meth:`forward` in evaluation, always with comp_normal.
        """
        return self.look(*get_rays(c2w, fovy, height, width), bg_color)

    @torch.no_grad()
    def look(
        self, rays_o: Tensor, rays_d: Tensor, bg_color: Tensor | None = None, normals: bool = True
    ) -> dict[str, Tensor]:
        """As `render`, of given rays (B,H,W,3); without ``comp_normal``, for a fraction of the cost, if not normals."""
        training, self.training = self.training, False  # this module's own alone
        try:
            return self._images(rays_o, rays_d, None, bg_color, None, self._chunk(rays_o), normals=normals)
        finally:
            self.training = training

    @torch.no_grad()
    def sample_places(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where a deterministic render of the geometry as it is now would ask it, whatever mode the module is in.

        Args: rays_o, rays_d (R,3) world space.
        Returns: t, deltas (R,S), 0 for rays that miss; seen (R,1) bool, rays that meet matter.
        """
        c, size = self.cfg, self._chunk(rays_o)
        rays = zip(rays_o.split(size), rays_d.split(size))
        if c.occupancy_resolution:
            like = next(self.geometry.parameters())
            grid = density_grid(self.geometry.forward_density, c.radius, c.occupancy_resolution, like)
            sample, wide = guided_samples(grid, c.radius, c.num_importance_samples), widened(grid)

            def places(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                near, far, _ = ray_cylinder(o, d, c.radius)
                t, edges = sample(o, d, near, far)
                return t, edges[..., 1:] - edges[..., :-1], sees_matter(wide, o, d, c.radius)
        else:

            def places(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                out = render_rays(self._plain, o, d, c.radius, c.num_samples_per_ray, c.num_importance_samples)
                return out["t"], out["deltas"], out["opacity"] > SEEN

        return tuple(torch.cat(parts) for parts in zip(*(places(o, d) for o, d in rays)))

    def _plain(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density and colour of the geometry itself, without a material."""
        found = self.geometry(points)
        return found["density"], found["features"]

    def _chunk(self, rays: Tensor) -> int:
        return self.cfg.eval_chunk_size or (2048 if rays.device.type == "cpu" else 65536)

    def _field(self, ask: Callable, points: Tensor, origins: Tensor, light_positions) -> tuple[Tensor, Tensor]:
        """Density and colour at points (B,N,3) seen from origins (B,1,3); `ask` is the geometry."""
        if self.material is None:
            found = ask(points)
            return found["density"], found["features"]
        geometry = ask(points, output_normal=self.material.requires_normal)
        lights = origins if light_positions is None else light_positions[:, None]
        colour = self.material(
            viewdirs=torch.nn.functional.normalize(points - origins, dim=-1),
            positions=points,
            light_positions=lights.expand_as(points),
            **geometry,
        )
        return geometry["density"], colour

    def _march(self, rays_o, rays_d, light_positions, generator, chunk, normals) -> dict[str, Tensor]:
        """Rays (B,R,3) -> dict of (B,R,·), in chunks of about ``chunk`` rays."""
        learned = any(parameter.requires_grad for parameter in self.geometry.parameters())
        if self.cfg.cuda_graphs and chunk is None and learned and torch.is_grad_enabled():
            part = self._replayed(rays_o, rays_d, light_positions, generator)
            return part | ({"normal": self._surface_normals(rays_o, rays_d, part)} if normals else {})
        origins = rays_o[:, :1]
        samples, skip = self._guide(rays_o, rays_d, generator)
        size = rays_o.shape[1] if chunk is None else max(1, chunk // rays_o.shape[0])
        parts = []
        skips = [None] * rays_o.shape[1] if skip is None else skip.split(size, dim=1)
        for o, d, unseen in zip(rays_o.split(size, dim=1), rays_d.split(size, dim=1), skips):
            part = render_rays(
                lambda points: self._field(self.geometry, points, origins, light_positions),
                o, d, self.cfg.radius, self.cfg.num_samples_per_ray, self.cfg.num_importance_samples, generator,
                sample_fn=samples, skip=unseen, implementation=self.cfg.implementation,
            )  # fmt: skip
            if normals:
                part["normal"] = self._surface_normals(o, d, part)
            if not (self.training and chunk is None):
                part = {key: part[key] for key in part if key not in ("weights", "t", "deltas")}
            parts.append(part)
        return {key: torch.cat([part[key] for part in parts], dim=1) for key in parts[0]}

    def _replayed(self, rays_o, rays_d, light_positions, generator) -> dict[str, Tensor]:
        """Training renders of rays (B,R,3) by CUDA graphs, all that is random drawn before."""
        reason = graphs_refused(rays_o, rays_d, self.geometry, self.material)
        if reason:
            raise UsageError(f"renderer.cuda_graphs {reason}; set it to false.")
        c = self.cfg
        inputs = {"rays_o": rays_o, "rays_d": rays_d}
        if c.occupancy_resolution:
            inputs["grid"] = self._densities()
        if light_positions is not None and self.material is not None:
            inputs["lights"] = light_positions
        if generator is not None:
            draws = [c.num_samples_per_ray, c.num_importance_samples][bool(c.occupancy_resolution) :]
            for i, count in enumerate(filter(None, draws)):
                inputs[f"draw {i}"] = uniform((*rays_o.shape[:-1], count), generator, rays_o)
        return self._graphed(dict(self.geometry.named_parameters()), inputs, dict(self.geometry.named_buffers()))

    def _render_with(self, parameters: Tensors, inputs: Tensors) -> dict[str, Tensor]:
        """What is captured: all rays through the geometry with these parameters, without normals."""
        c = self.cfg
        origins, lights, grid = inputs["rays_o"][:, :1], inputs.get("lights"), inputs.get("grid")
        drawn = [value for name, value in inputs.items() if name.startswith("draw")]
        source: RandomSource | None = iter(drawn) if drawn else None

        def ask(points: Tensor, **options: Any) -> dict[str, Tensor]:
            return functional_call(self.geometry, parameters, (points,), options)

        return render_rays(
            lambda points: self._field(ask, points, origins, lights),
            inputs["rays_o"], inputs["rays_d"], c.radius, c.num_samples_per_ray, c.num_importance_samples, source,
            compact=False, implementation=c.implementation,
            sample_fn=None if grid is None else guided_samples(
                grid, c.radius, c.num_importance_samples, source, c.implementation
            ),
        )  # fmt: skip

    def _guide(self, rays_o: Tensor, rays_d: Tensor, generator) -> tuple[Callable | None, Tensor | None]:
        """Where the field is asked, if the grid decides that, and outside training which rays (B,R,1) see nothing."""
        c = self.cfg
        if not c.occupancy_resolution:
            return None, None
        grid = self._densities()
        if c.estimator == "nerfacc":
            samples = marched_samples(grid, c.radius, c.num_marching_steps, self.training, generator)
        else:
            samples = guided_samples(grid, c.radius, c.num_importance_samples, generator, c.implementation)
        return samples, None if self.training else ~sees_matter(self._known[2], rays_o, rays_d, c.radius)

    def _surface_normals(self, rays_o: Tensor, rays_d: Tensor, out: dict[str, Tensor]) -> Tensor:
        """(n + 1) / 2 * opacity at the expected depth; 0 for rays that see nothing."""
        seen = out["opacity"][..., 0] > OPACITY_EPS  # (B,R)
        points = (rays_o + out["depth"] * rays_d)[seen]
        image = torch.zeros_like(rays_o)
        if len(points):
            alone = getattr(self.geometry, "normal", None)  # ours; others' come with density and features
            normal = self.geometry(points, output_normal=True)["normal"] if alone is None else alone(points)
            image = image.masked_scatter(seen[..., None], (normal.to(image) + 1) / 2)
        return image * out["opacity"]

    @kept_tables()
    def _images(self, rays_o, rays_d, light_positions, bg_color, generator, chunk, normals) -> dict[str, Tensor]:
        batch, height, width = rays_o.shape[:3]
        rays = (rays_o.reshape(batch, -1, 3), rays_d.reshape(batch, -1, 3))
        apart = self.cfg.occupancy_resolution and self.material is None  # views skip rays each for itself
        lined_up = [x.reshape(1, -1, 3) for x in rays] if apart else rays
        marched = self._march(*lined_up, light_positions, generator, chunk, normals)
        marched = {key: value.reshape(batch, -1, value.shape[-1]) for key, value in marched.items()}
        image = {
            key: marched[key].unflatten(1, (height, width))
            for key in ("rgb", "opacity", "depth", "z_variance", "normal")
            if key in marched
        }
        foreground = image.pop("rgb")
        background = self._background(rays_d, bg_color, foreground)
        rgb = foreground + background * (1 - image["opacity"])
        if not self.training and rgb.shape[-1] == 3:
            rgb = rgb.clamp(0, 1)  # the decoder's colours reach 0.001 beyond
        if "normal" in image:
            image["comp_normal"] = image.pop("normal")
        out = {"comp_rgb": rgb, "comp_rgb_fg": foreground, "comp_rgb_bg": background, **image}
        return {**out, **self._samples(*rays, marched)} if "weights" in marched else out

    def _background(self, rays_d: Tensor, bg_color: Tensor | None, like: Tensor) -> Tensor:
        if bg_color is None:
            return torch.ones_like(like) if self.background is None else self.background(dirs=rays_d)
        if bg_color.shape[0] != like.shape[0] or bg_color.shape[-1] != like.shape[-1] or bg_color.ndim not in (2, 4):
            raise UsageError(
                f"bg_color must be (B,C) or (B,H,W,C) for images {tuple(like.shape)}, got {tuple(bg_color.shape)}."
            )
        return (bg_color[:, None, None] if bg_color.ndim == 2 else bg_color).expand_as(like)

    @staticmethod
    def _samples(rays_o: Tensor, rays_d: Tensor, marched: dict[str, Tensor]) -> dict[str, Tensor]:
        """All samples in threestudio's flat form; samples of rays that miss have weight and interval 0."""
        t = marched["t"]  # (B,R,S)
        dirs = rays_d[..., None, :].expand(*t.shape, 3)
        rays = torch.arange(t.shape[0] * t.shape[1], device=t.device)
        return {
            "weights": marched["weights"].reshape(-1, 1),
            "t_points": t.reshape(-1, 1),
            "t_intervals": marched["deltas"].reshape(-1, 1),
            "points": (rays_o[..., None, :] + t[..., None] * dirs).reshape(-1, 3),
            "t_dirs": dirs.reshape(-1, 3),
            "ray_indices": rays.repeat_interleave(t.shape[2]),
        }
