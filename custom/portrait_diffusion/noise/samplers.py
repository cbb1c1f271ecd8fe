"""Where a guidance takes its noise from: registered classes with one method, so that ablations change one thing."""
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from ..host import BaseObject, register
from .field import NoiseField
from .transport import latent_depth


@dataclass
class NoiseRequest:
    """Noise wanted for B views.

    Attributes:
        shape: (B, C, h, w) of the latents.
        c2w: (B, 4, 4); fovy: (B,) radians: the views.
        depth: (B, H, W) distance along the rays, 0 for background, H and W whole multiples of h and w; None when the
            geometry is not known.
        generator: source of all randomness, on the latents' device.
        dtype: of the noise.
    """

    shape: tuple
    c2w: Tensor
    fovy: Tensor
    depth: Tensor | None
    generator: torch.Generator
    dtype: torch.dtype = torch.float32


class NoiseSampler(BaseObject):
    """What a guidance asks of a sampler: `__call__`, and for those that compare candidates also the rest.

    Attributes:
        statistics: numbers of the last step, for the log.
        seconds: time spent in it so far, in this process; on a GPU with what it waited for.
    """

    seconds: float = 0.0

    def configure(self) -> None:
        self.statistics: dict[str, float] = {}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the time of its body to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def __call__(self, request: NoiseRequest) -> Tensor:
        """(B, C, h, w), standard normal."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """Tensors and plain values with which another sampler of the same settings goes on bit for bit."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`."""

    def compares_now(self) -> bool:
        """Whether the coming step is one of comparison: the guidance then draws one timestep for all views."""
        return False

    def candidates(self, request: NoiseRequest) -> Tensor:
        """(K, B, C, h, w) noises to compare, one where there is nothing to; asked for in steps of comparison."""
        raise NotImplementedError

    def choose(self, gradients: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        """(B,) the candidate kept for each view, by the gradients (K, B, C, h, w) of the noises of the same shape."""
        raise NotImplementedError


@register("portrait-diffusion-iid-noise")
class IIDNoise(NoiseSampler):
    """Fresh noise for every view and step, as DreamFusion has it."""

    def __call__(self, request: NoiseRequest) -> Tensor:
        """(B, C, h, w) standard normal."""
        g = request.generator
        return torch.randn(request.shape, generator=g, device=g.device, dtype=request.dtype)


@register("portrait-diffusion-fixed-noise")
class FixedNoise(NoiseSampler):
    """The same noise in every view and step, in image coordinates: a cheap control for the other samplers."""

    @dataclass
    class Config(NoiseSampler.Config):
        seed: int = 0  # of the one draw

    cfg: Config

    def __call__(self, request: NoiseRequest) -> Tensor:
        """(B, C, h, w), one standard normal draw repeated over the batch."""
        g = torch.Generator().manual_seed(self.cfg.seed)
        noise = torch.randn(request.shape[1:], generator=g, dtype=request.dtype)
        return noise.to(request.generator.device).expand(request.shape).clone()


@register("portrait-diffusion-object-noise")
class ObjectNoise(NoiseSampler):
    """Noise that lives on the surface and is seen from any view (`noise.field`); needs the geometry of the views."""

    @dataclass
    class Config(NoiseSampler.Config):
        resolution: int = 96  # cells along the box's edge; 1.5 times that of the latents: 96 for 64 x 64
        gamma: float = 1e-4  # share of the noise that is renewed at each call, in [0, 1]
        probes: int = 6  # k; a latent pixel's surface is probed at k x k places
        seed: int = 0  # of the field

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self._field: NoiseField | None = None
        self._generator: torch.Generator | None = None
        self._saved: dict = {}

    def state_dict(self) -> dict:
        """Field and generator, once there are any."""
        if self._field is None:
            return self._saved
        return {"field": self._field.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`; the field is made with the first request."""
        self._field, self._saved = None, state

    def __call__(self, request: NoiseRequest) -> Tensor:
        """(B, C, h, w) standard normal, equal where views see the same surface.

        Raises: UsageError when the views' depth is not known.
        """
        if request.depth is None:
            raise UsageError(
                "portrait-diffusion-object-noise needs the depth of the renders, and the system gives the guidance "
                "none; use portrait-diffusion-iid-noise there."
            )
        fresh = self._field is None and not self._saved
        if self._field is None:
            device = request.generator.device
            self._generator = torch.Generator(device=device).manual_seed(self.cfg.seed)
            self._field = NoiseField(request.shape[1], self.cfg.resolution, self._generator)
        if self._saved:
            self._field.load_state_dict(self._saved["field"])
            self._generator.set_state(self._saved["generator"].cpu())
            self._saved = {}
        if not fresh and self.cfg.gamma > 0:
            self._field.refresh(self.cfg.gamma, self._generator)
        depth = latent_depth(request.depth, request.depth.shape[-1] // request.shape[-1])
        noise, _ = self._field.render(depth, request.c2w, request.fovy, request.generator, self.cfg.probes)
        return noise.to(request.dtype)
