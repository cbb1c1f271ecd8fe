"""Anchors of MV-NRS: order, whiteness, agreement of neighbours, replacing, moved geometry, state."""
import math

import pytest
import torch
from portrait_diffusion.noise.anchors import AnchorRing, Anchors, angles_between
from portrait_diffusion.ops.cameras import get_rays, orbit_c2w

SIZE = 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Ellipsoid:
    """Depth of a head-sized ellipsoid, which can be moved."""

    def __init__(self, size=SIZE):
        self.radii, self.size = (0.2, 0.16, 0.22), size

    def __call__(self, c2w, fovy):
        rays_o, rays_d = get_rays(c2w, fovy, self.size, self.size)
        scale = 1 / torch.tensor(self.radii)
        o, d = rays_o * scale, rays_d * scale
        a, b, c = d.square().sum(-1), (o * d).sum(-1), o.square().sum(-1) - 1
        root = b.square() - a * c
        return torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, 0)


def make(channels=4, azimuth=10.0, seed=0, head=None, **ring):
    c2w = orbit_c2w(torch.tensor([azimuth]), torch.zeros(1))
    fovy = torch.tensor([math.radians(13.374)])
    return Anchors(AnchorRing(**ring), c2w, fovy, (channels, SIZE, SIZE), head or Ellipsoid(), generator(seed), k=4)


def test_anchors_stand_close_and_inherit_from_the_nearest_made():
    anchors = make()
    assert len(anchors.c2w) == 37 and sorted([0, *anchors.order]) == list(range(37))
    angles = angles_between(anchors.c2w, anchors.c2w)
    made = {0}
    for index in anchors.order:
        parent = int(anchors.parent[index])
        assert parent in made and float(angles[index, parent]) <= 30.1
        made.add(index)
    assert float(angles[0, anchors.order].diff().min()) >= -1e-3, "from the reference outwards"


def test_every_anchor_is_white():
    """200 draws of 24 x 24 for each of 5 anchors; 4 sigma, a false alarm in 1 of 10,000 checks."""
    anchors = make(channels=200, azimuths=(0, 30, 90, 180), elevations=(0,))
    for noise in anchors.noise:
        n = noise.numel()
        assert abs(float(noise.mean())) < 4 / math.sqrt(n)
        assert abs(float(noise.square().mean()) - 1) < 4 * math.sqrt(2 / n)
        for a, b in ((noise[..., 1:], noise[..., :-1]), (noise[..., 1:, :], noise[..., :-1, :])):
            assert abs(float((a * b).mean())) < 4 / math.sqrt(a.numel())


def test_a_view_at_an_anchor_sees_its_noise_and_near_ones_share_it():
    anchors = make(channels=100)
    row = 5
    view = anchors.c2w[row : row + 1], anchors.fovy[row : row + 1], anchors.depth[row : row + 1]
    noise, carried, index = anchors.seen_from(*view, generator(1))
    assert index.tolist() == [row]
    torch.testing.assert_close(noise * carried, anchors.noise[row : row + 1] * carried, rtol=1e-3, atol=1e-3)
    near = orbit_c2w(torch.tensor([13.0]), torch.tensor([0.0]))
    depth = Ellipsoid()(near, anchors.fovy[:1])
    seen = anchors.seen_from(near, anchors.fovy[:1], depth, generator(1))
    assert seen[2].tolist() == [0], "the photo's own camera is an anchor too"
    assert float(seen[1].sum() / (depth > 0).sum()) > 0.9


def test_replacing_gives_an_anchor_what_won_and_spares_the_reference():
    anchors = make(channels=100)
    before = anchors.noise.clone()
    index = torch.tensor([0, 7])
    won = torch.randn(2, 100, SIZE, SIZE, generator=generator(3))
    anchors.replace(index, won, anchors.c2w[index], anchors.fovy[index], anchors.depth[index], generator(4))
    assert torch.equal(anchors.noise[0], before[0])
    inside = anchors.depth[7] > 0
    same = (anchors.noise[7] * won[1])[:, inside].mean()
    assert float(same) > 0.9 and not torch.equal(anchors.noise[7], before[7])
    rest = [i for i in range(37) if i not in (0, 7)]
    assert torch.equal(anchors.noise[rest], before[rest])


def test_anchors_are_given_up_after_so_many_rounds():
    anchors = make(azimuths=(0, 30, 60), elevations=(0,))
    before = anchors.noise.clone()
    assert anchors.count_round(torch.tensor([0, 2]), 3, generator(6)).tolist() == []
    assert anchors.count_round(torch.tensor([2, 2, 0]), 3, generator(6)).tolist() == [2]
    assert anchors.rounds.tolist() == [2, 0, 0, 0] and not torch.equal(anchors.noise[2], before[2])
    assert anchors.count_round(torch.tensor([0]), 3, generator(6)).tolist() == [], "the reference stays"
    assert torch.equal(anchors.noise[[0, 1, 3]], before[[0, 1, 3]])


def test_only_anchors_whose_surface_moved_inherit_anew():
    head = Ellipsoid()
    anchors = make(head=head, azimuths=(0, 30, 60, 90, 180), elevations=(0,))
    before = anchors.noise.clone()
    assert len(anchors.update_geometry(generator(5))) == 0 and torch.equal(anchors.noise, before)
    head.radii = (0.26, 0.16, 0.22)  # longer towards the front and the back
    again = anchors.update_geometry(generator(5)).tolist()
    assert again and 0 not in again
    kept = [i for i in range(len(before)) if i not in again]
    assert torch.equal(anchors.noise[kept], before[kept])
    assert all(not torch.equal(anchors.noise[i], before[i]) for i in again)
    assert len(anchors.update_geometry(generator(5))) == 0, "the new geometry is known now"


def test_seed_decides_and_state_restores():
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(a.noise, b.noise) and not torch.equal(a.noise, c.noise)
    state = a.state_dict()
    c.load_state_dict(state)
    assert torch.equal(c.noise, a.noise) and torch.equal(c.depth, a.depth)
    a.noise.zero_()
    assert not torch.equal(c.noise, a.noise), "a state is a copy"
    with pytest.raises(ValueError, match="ring and latents"):
        make(azimuths=(0, 90)).load_state_dict(state)
