"""MV-NRS, multi-view noise resampling, as a noise sampler: registered as ``portrait-diffusion-mvnrs-noise``.

After arXiv 2411.10369: noise is kept for anchor views and carried to the views of a step; now and then it is compared
with a fresh draw by how well the distillation gradients of neighbouring views agree, and the better one is kept. The
guidance evaluates all candidates in one call of the denoiser, at one timestep for all views.
"""
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UsageError
from ..host import register
from .agreement import ViewOfLatents, keep_best, pair_scores, shuffled_control
from .anchors import AnchorRing, Anchors, angles_between
from .samplers import NoiseRequest, NoiseSampler
from .transport import latent_depth, transport


@register("portrait-diffusion-mvnrs-noise")
class MVNRSNoise(NoiseSampler):
    """Noise of anchors, resampled where a fresh draw makes the gradients of neighbouring views agree better.

    The system gives it the geometry with `set_geometry`; a step should hold neighbouring views, else there is nothing
    to compare and the anchors' noise is used.
    """

    @dataclass
    class Config(NoiseSampler.Config):
        azimuths: list = field(default_factory=lambda: list(range(-180, 180, 30)))  # of the anchors, degrees
        elevations: list = field(default_factory=lambda: [-20, 0, 20])  # of the anchors, degrees
        resample_every: int = 10  # steps between comparisons; each costs a view (candidates - 1) rows of the denoiser
        candidates: int = 2  # noises compared: the anchors' and fresh ones
        max_rounds: int = 100  # comparisons after which an anchor is made anew, against the drift of selection
        max_pair_deg: float = 60.0  # views further apart are no neighbours
        geometry_every: int = 50  # steps between looks at the geometry; one render of depth for each anchor
        geometry_tolerance: float = 0.01  # mean change of depth above which an anchor is made anew, scene units
        cells: int = 4  # k; a latent pixel is cut into k x k cells to be carried

        def __post_init__(self) -> None:
            if self.candidates < 2 or self.resample_every < 1:
                raise UsageError(
                    "noise_sampler.candidates must be at least 2 and resample_every at least 1, got "
                    f"{self.candidates} and {self.resample_every}."
                )

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self._anchors: Anchors | None = None
        self._geometry: tuple | None = None
        self._steps = 0
        self._saved: dict | None = None

    def set_geometry(self, depth_of, reference_c2w: Tensor, reference_fovy: Tensor) -> None:
        """What the anchors see: ``depth_of(c2w, fovy) -> (B, h, w)`` on the latent grid, and the photo's camera."""
        self._geometry = depth_of, reference_c2w, reference_fovy
        self._anchors = None

    @property
    def has_geometry(self) -> bool:
        """Whether `set_geometry` was called."""
        return self._geometry is not None

    @property
    def anchors(self) -> Anchors | None:
        """The anchors, once there are any."""
        return self._anchors

    def compares_now(self) -> bool:
        """One step in `resample_every`."""
        return self._steps % self.cfg.resample_every == 0

    def __call__(self, request: NoiseRequest) -> Tensor:
        """(B, C, h, w) standard normal, carried from the nearest anchors."""
        self.statistics = {}
        with self.timed():
            return self._carried(request)[0]

    def candidates(self, request: NoiseRequest) -> Tensor:
        """(K, B, C, h, w): the anchors' noise, then fresh noise that is the same on the surface that views share.

        K is 1 where no views of the batch are neighbours: opposite views have nothing to compare, and pay for nothing.
        """
        with self.timed():
            noise, views, index = self._carried(request)
            pairs = self._pairs(views)
            self._last = views, index, pairs
            rows = [noise]
            for _ in range(self.cfg.candidates - 1 if len(pairs) else 0):
                rows.append(self._redraw(request, views))
            return torch.stack(rows)

    def choose(self, gradients: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        """(B,) the candidate kept for each view, by gradients (K, B, C, h, w) of noise of the same shape; keeps it.

        A view is compared with its nearest neighbour of the batch; if a fresh draw wins, its anchor takes it over.
        """
        with self.timed():
            return self._choose(gradients, noise, generator)

    def _choose(self, gradients: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        views, index, pairs = self._last
        b = gradients.shape[1]
        best = torch.zeros(b, dtype=torch.long, device=gradients.device)
        self.statistics = {"compared": float(len(pairs)), "rows": float((len(gradients) - 1) * b)}
        if len(pairs) == 0:
            return best
        scores = pair_scores(gradients, views, pairs)
        kept = keep_best(scores)
        best[pairs[:, 0]] = kept
        won = (best > 0).nonzero()[:, 0]
        if len(won):
            self._anchors.replace(
                index[won], noise[best[won], won], views.c2w[won], views.fovy[won], views.depth[won], generator
            )
        self._anchors.count_round(index[pairs[:, 0]], self.cfg.max_rounds, generator)
        control = shuffled_control(gradients, views, pairs, generator)
        chosen = scores.gather(0, kept[None])[0]
        self.statistics |= {
            "accepted": float((kept > 0).float().mean()), "score": float(scores[0].nanmean()),
            "score_kept": float(chosen.nanmean()), "control": float(control.nanmean()),
        }  # fmt: skip
        return best

    def _carried(self, request: NoiseRequest) -> tuple[Tensor, ViewOfLatents, Tensor]:
        if request.depth is None or self._geometry is None:
            raise UsageError(
                "portrait-diffusion-mvnrs-noise needs the renders' depth and the geometry (set_geometry), and the "
                "system gives none; use portrait-diffusion-iid-noise there."
            )
        if self._anchors is None:
            depth_of, c2w, fovy = self._geometry
            ring = AnchorRing(tuple(self.cfg.azimuths), tuple(self.cfg.elevations))
            # restored anchors are overwritten: making them must not draw from the step's own generator
            g = request.generator if self._saved is None else torch.Generator(request.generator.device)
            self._anchors = Anchors(ring, c2w, fovy, request.shape[1:], depth_of, g, self.cfg.cells)
            if self._saved is not None:
                self._anchors.load_state_dict(self._saved)
                self._saved = None
        if self._steps and self._steps % self.cfg.geometry_every == 0:
            self._anchors.update_geometry(request.generator, self.cfg.geometry_tolerance)
        self._steps += 1
        depth = latent_depth(request.depth, request.depth.shape[-1] // request.shape[-1])
        noise, _, index = self._anchors.seen_from(request.c2w, request.fovy, depth, request.generator)
        return noise.to(request.dtype), ViewOfLatents(request.c2w, request.fovy, depth), index

    def _redraw(self, request: NoiseRequest, views: ViewOfLatents) -> Tensor:
        """Fresh noise: each view takes over from its nearest earlier view of the batch what both see."""
        g = request.generator
        noise = torch.randn(request.shape, generator=g, device=g.device)
        angles = angles_between(views.c2w, views.c2w)
        for row in range(1, len(noise)):
            source = int(angles[row, :row].argmin())
            if float(angles[row, source]) > self.cfg.max_pair_deg:
                continue
            r, s = slice(row, row + 1), slice(source, source + 1)
            noise[r] = transport(
                noise[s], views.depth[s], views.c2w[s], views.fovy[s], views.c2w[r], views.fovy[r], views.depth[r], g,
                self.cfg.cells, fresh=noise[r],
            )[0]  # fmt: skip
        return noise.to(request.dtype)

    def _pairs(self, views: ViewOfLatents) -> Tensor:
        """(P, 2) each view and its nearest neighbour, where that is near enough."""
        angles = angles_between(views.c2w, views.c2w).fill_diagonal_(torch.inf)
        nearest, index = angles.min(dim=1)
        near = (nearest <= self.cfg.max_pair_deg).nonzero()[:, 0]
        return torch.stack([near, index[near]], dim=1)

    def state_dict(self) -> dict:
        """Everything needed to go on bit for bit, besides the guidance's generator."""
        anchors = self._saved if self._anchors is None else self._anchors.state_dict()
        return {"steps": self._steps, "anchors": anchors}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`; the anchors are made with the first request, which tells the latents' shape."""
        self._anchors, self._saved, self._steps = None, state["anchors"], state["steps"]
