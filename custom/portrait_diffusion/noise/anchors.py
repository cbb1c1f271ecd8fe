"""Anchors of MV-NRS: noise kept for a ring of views, made from the reference view outwards, so that neighbours agree.

The paper (arXiv 2411.10369) projects the noise of one view into others through the geometry. One hop from the front to
the side covers little (two fifths of a head at 60 degrees), so anchors stand close and each takes its noise from the
nearest one that has it already (`transport`, exactly white).
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.cameras import canonical_fovy, orbit_c2w
from .transport import transport

DepthFn = Callable[[Tensor, Tensor], Tensor]
"""(c2w (B, 4, 4), fovy (B,)) -> depth (B, h, w) of the latent pixels along their rays, 0 for background."""


@dataclass
class AnchorRing:
    """Where anchors stand.

    Attributes: azimuths and elevations in degrees, their product is the set of views; largest spacing of azimuths 30.
    """

    azimuths: tuple = tuple(range(-180, 180, 30))
    elevations: tuple = (-20, 0, 20)

    def cameras(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """c2w (N, 4, 4) and fovy (N,) of all anchors, canonical distance, device and dtype as `like`."""
        elevation, azimuth = torch.meshgrid(
            torch.tensor(self.elevations).to(like), torch.tensor(self.azimuths).to(like), indexing="ij"
        )
        c2w = orbit_c2w(azimuth.flatten(), elevation.flatten())
        return c2w, canonical_fovy(like).expand(len(c2w))


def angles_between(c2w: Tensor, others: Tensor) -> Tensor:
    """(A, B) degrees between the lines of sight of cameras (A, 4, 4) and (B, 4, 4)."""
    return torch.rad2deg(torch.acos((c2w[:, None, :3, 2] * others[:, :3, 2]).sum(-1).clamp(-1, 1)))


class Anchors:
    """Noise of a ring of views, and of the reference view, which is never changed.

    Args:
        ring: where they stand.
        reference_c2w (1, 4, 4), reference_fovy (1,): the photo's camera.
        shape: (C, h, w) of the latents.
        depth_of: renders depth of the current geometry.
        generator: source of all noise, on the latents' device.
        k: cells along a latent pixel's side in transport.
    """

    def __init__(
        self, ring: AnchorRing, reference_c2w: Tensor, reference_fovy: Tensor, shape: tuple, depth_of: DepthFn,
        generator: torch.Generator, k: int = 4,
    ):  # fmt: skip
        c2w, fovy = ring.cameras(reference_c2w)
        self.c2w, self.fovy = torch.cat([reference_c2w, c2w]), torch.cat([reference_fovy, fovy])
        self.depth_of, self.k = depth_of, k
        self.depth = depth_of(self.c2w, self.fovy)
        start = torch.randn((1, *shape), generator=generator, device=generator.device)
        self.noise = start.repeat(len(self.c2w), 1, 1, 1)
        self.rounds = torch.zeros(len(self.c2w), dtype=torch.long, device=generator.device)
        self.parent = self._plan()
        for index in self.order:
            self._inherit(index, generator)

    def _plan(self) -> Tensor:
        """(N,) the anchor from which each takes its noise, the reference's is itself; sets `order`, that of making."""
        angles = angles_between(self.c2w, self.c2w)
        self.order = angles[0].argsort(stable=True).tolist()[1:]
        parent, made = torch.zeros(len(self.c2w), dtype=torch.long), [0]
        for index in self.order:
            parent[index] = made[int(angles[index, made].argmin())]
            made.append(index)
        return parent

    def _inherit(self, index: int, generator: torch.Generator) -> None:
        """Noise of one anchor from its parent's."""
        i, p = slice(index, index + 1), slice(int(self.parent[index]), int(self.parent[index]) + 1)
        self.noise[i] = transport(
            self.noise[p], self.depth[p], self.c2w[p], self.fovy[p], self.c2w[i], self.fovy[i], self.depth[i],
            generator, self.k,
        )[0]  # fmt: skip
        self.rounds[index] = 0

    def nearest(self, c2w: Tensor) -> Tensor:
        """(B,) the anchor nearest to each camera (B, 4, 4) by line of sight; the reference is one of them."""
        return angles_between(c2w, self.c2w).argmin(dim=1)

    def seen_from(
        self, c2w: Tensor, fovy: Tensor, depth: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise for views, carried from their nearest anchors.

        Args: c2w (B, 4, 4), fovy (B,), depth (B, h, w) of the latent pixels.
        Returns: noise (B, C, h, w), carried (B, 1, h, w), index of the anchors (B,).
        """
        index = self.nearest(c2w)
        noise, carried = transport(
            self.noise[index], self.depth[index], self.c2w[index], self.fovy[index], c2w, fovy, depth, generator, self.k
        )
        return noise, carried, index

    def replace(
        self, index: Tensor, noise: Tensor, c2w: Tensor, fovy: Tensor, depth: Tensor, generator: torch.Generator
    ) -> None:
        """Give anchors the noise that won in a view (B, C, h, w), carried back to them; what it does not show is fresh.

        The reference keeps its noise: it stands for the photo. Of several views of one anchor the last counts.
        """
        for row, anchor in enumerate(index.tolist()):
            if anchor == 0:
                continue
            r, a = slice(row, row + 1), slice(anchor, anchor + 1)
            self.noise[a] = transport(
                noise[r], depth[r], c2w[r], fovy[r], self.c2w[a], self.fovy[a], self.depth[a], generator, self.k
            )[0]

    def count_round(self, index: Tensor, most: int, generator: torch.Generator) -> Tensor:
        """Note that candidates were compared at these anchors (B,); those compared `most` times inherit anew.

        Choosing among fresh candidates again and again biases the kept noise along the scored direction, by 2.5 sigma
        after 100 rounds; so an anchor is given up in time. Returns the numbers of those that were. The reference stays.
        """
        self.rounds.scatter_add_(0, index, torch.ones_like(index))
        old = [anchor for anchor in self.order if int(self.rounds[anchor]) >= most]
        for anchor in old:
            self._inherit(anchor, generator)
        return torch.tensor(old, dtype=torch.long)

    def update_geometry(self, generator: torch.Generator, tolerance: float = 0.01) -> Tensor:
        """Look at the geometry again; anchors whose surface has moved inherit anew. Returns their numbers.

        Moved: the mean change of depth over what was or is solid is above `tolerance`, scene units; a pixel that became
        solid or empty counts as 0.1.
        """
        now = self.depth_of(self.c2w, self.fovy)
        either, both = (now > 0) | (self.depth > 0), (now > 0) & (self.depth > 0)
        change = torch.where(both, (now - self.depth).abs(), 0.1) * either
        moved = change.sum(dim=(1, 2)) / either.sum(dim=(1, 2)).clamp(min=1) > tolerance
        self.depth = torch.where(moved[:, None, None], now, self.depth)
        again = [index for index in self.order if bool(moved[index])]
        for index in again:
            self._inherit(index, generator)
        return torch.tensor(again, dtype=torch.long)

    def state_dict(self) -> dict:
        """Everything needed to go on bit for bit."""
        return {"noise": self.noise.clone(), "depth": self.depth.clone(), "rounds": self.rounds.clone()}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`. Raises: ValueError when it is of another ring or size of latents."""
        if state["noise"].shape != self.noise.shape:
            raise ValueError(
                f"the saved anchors have noise {tuple(state['noise'].shape)}, here it is {tuple(self.noise.shape)}; "
                "ring and latents must be the same."
            )
        for name in ("noise", "depth", "rounds"):
            setattr(self, name, state[name].to(getattr(self, name)))
