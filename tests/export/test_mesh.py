"""Meshes from analytic densities: radius, area, volume, topology; the iso rule; clean-up; clear errors."""
import numpy as np
import pytest
import torch
import trimesh
from portrait_diffusion.errors import PortraitError, UsageError
from portrait_diffusion.export.fields import FieldFns, FieldSampler
from portrait_diffusion.export.mesh import FLOOR, DensityGrid, MeshConfig, choose_iso_level, extract_mesh
from portrait_diffusion.export.mesh_clean import mesh_health, remove_folds, simplify, smooth_taubin, split_pinches
from portrait_diffusion.ops.cameras import BOX_RADIUS

from .fixtures import PLATEAU, head_field, position_colour, soft_density, sphere_field

RESOLUTION = 48


def extract(field, **settings):
    settings = {"resolution": RESOLUTION, "target_faces": 0, **settings}
    return extract_mesh(FieldSampler(field), MeshConfig(**settings))


def body(distance):
    return FieldFns(lambda p: soft_density(distance(p)), position_colour)


def test_sphere_has_the_right_radius_area_volume_and_is_watertight():
    centre = np.array([0.03, -0.05, 0.02])
    result = extract(sphere_field(0.2, centre.tolist()))
    radius = np.linalg.norm(result.mesh.vertices - centre, axis=1)
    assert np.abs(radius - 0.2).max() < 3e-4  # a grid cell is 1.5e-2
    assert result.health.area == pytest.approx(4 * np.pi * 0.2**2, rel=0.01)
    assert result.health.volume == pytest.approx(4 / 3 * np.pi * 0.2**3, rel=0.01)
    assert result.health.watertight and result.health.winding_consistent
    assert (result.health.components, result.health.euler_number) == (1, 2)
    assert np.allclose(result.mesh.bounds, [centre - 0.2, centre + 0.2], atol=2e-3)


def test_refinement_moves_vertices_onto_the_level_set():
    meshes = [extract(sphere_field(0.2), refine_steps=steps).mesh for steps in (0, 4)]
    errors = [np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.2).max() for mesh in meshes]
    assert errors[0] > 5 * errors[1]


def test_density_is_asked_for_inside_the_walls_only():
    seen = []

    def density(points):
        seen.append(points.abs().amax(0).tolist() + [float(points[:, :2].norm(dim=1).max())])
        return soft_density(points.norm(dim=-1) - 0.2)

    result = extract(FieldFns(density, position_colour), refine_steps=0)
    assert max(s[2] for s in seen) < BOX_RADIUS and max(s[3] for s in seen) < BOX_RADIUS
    share = (BOX_RADIUS - FLOOR) / (2 * BOX_RADIUS)
    assert result.density_points == pytest.approx(share * np.pi / 4 * RESOLUTION**3, rel=0.01)


def grid_of(profile):
    """A grid whose density depends on the distance from the middle plane of every axis: a cube of matter."""
    n = 102
    spacing = 1.0 / n
    axis = (np.arange(n) + 0.5) * spacing
    depth = 0.3 - np.abs(axis - 0.5)
    depth = np.minimum(np.minimum(depth[:, None, None], depth[None, :, None]), depth[None, None, :])
    return DensityGrid(profile(depth).astype(np.float32), np.ones((n, n, n), np.float32), spacing, 0.0)


def test_iso_level_of_a_sharp_wall_is_half_of_the_plateau():
    assert choose_iso_level(grid_of(lambda s: np.where(s > 0, 30.0, 0.0))) == pytest.approx(15.0)


def test_iso_level_of_a_soft_wall_follows_the_closed_form():
    slope = 2000.0  # sigma = slope s: tau = slope s^2 / 2 = ln 2, so sigma = sqrt(2 slope ln 2)
    expected = 0.5 * np.sqrt(2 * slope * np.log(2))
    assert choose_iso_level(grid_of(lambda s: slope * s.clip(0))) == pytest.approx(expected, rel=0.2)


def test_iso_level_is_reported_and_can_be_given():
    chosen = extract(sphere_field())
    assert chosen.iso_level == pytest.approx(PLATEAU / 2, rel=0.02) and "half" in chosen.iso_rule
    given = extract(sphere_field(), iso_level=50.0)
    assert given.iso_level == 50.0 and "settings" in given.iso_rule


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_an_empty_field_is_a_clear_error(value):
    field = FieldFns(lambda p: torch.full_like(p[:, :1], value), position_colour)
    with pytest.raises(PortraitError, match="empty: no ray"):
        extract(field)


def test_an_iso_level_that_nothing_reaches_is_a_clear_error():
    with pytest.raises(PortraitError, match="No matter reaches the iso level"):
        extract(sphere_field(), iso_level=1e6)


def test_bad_field_values_and_shapes_are_clear_errors():
    with pytest.raises(PortraitError, match="not finite"):
        extract(FieldFns(lambda p: p[:, :1] / 0.0, position_colour))
    with pytest.raises(PortraitError, match=r"density function must return shape"):
        extract(FieldFns(lambda p: p[:, 0], position_colour))


@pytest.mark.parametrize("bad", [{"resolution": 4}, {"iso_level": -1.0}, {"min_component_fraction": 2.0}])
def test_bad_settings_are_usage_errors(bad):
    with pytest.raises(UsageError, match="mesh."):
        MeshConfig(**bad)


def test_floaters_go_and_can_be_kept():
    def distance(p):
        floater = (p - p.new_tensor([0.25, 0.0, 0.2])).norm(dim=-1) - 0.03
        return torch.minimum(p.norm(dim=-1) - 0.2, floater)

    assert (clean := extract(body(distance))).health.components == 1 and clean.removed_components == 1
    assert extract(body(distance), min_component_fraction=0.0).health.components == 2


def test_closed_cavities_disappear():
    def shell(p):
        return (p.norm(dim=-1) - 0.2).abs() - 0.04

    expected = pytest.approx(4 / 3 * np.pi * 0.24**3, rel=0.02)
    assert extract(body(shell)).health.volume == expected
    unfilled = extract(body(shell), fill_interior=False)
    assert unfilled.health.volume == expected and unfilled.removed_components == 1


def test_a_head_that_is_hollow_and_open_below_is_filled():
    def tube(p):  # a bell: closed on top at z = 0.2, open towards the bottom of the box
        ring = (p[..., :2].norm(dim=-1) - 0.2).abs() - 0.04
        wall = torch.maximum(ring, p[..., 2] - 0.2)
        lid = torch.maximum(p[..., :2].norm(dim=-1) - 0.24, (p[..., 2] - 0.2).abs() - 0.04)
        return torch.minimum(wall, lid)

    solid = np.pi * 0.24**2 * (0.24 - FLOOR)
    hollow = solid - np.pi * 0.16**2 * (0.16 - FLOOR)
    filled = extract(body(tube))
    assert filled.health.volume == pytest.approx(solid, rel=0.03) and filled.filled_cells > 1000
    assert extract(body(tube), fill_interior=False).health.volume == pytest.approx(hollow, rel=0.06)
    assert filled.health.watertight


def test_matter_everywhere_becomes_the_cylinder():
    mesh = extract(FieldFns(lambda p: torch.full_like(p[:, :1], PLATEAU), position_colour))
    assert mesh.health.volume == pytest.approx(np.pi * BOX_RADIUS**2 * (BOX_RADIUS - FLOOR), rel=0.01)
    assert mesh.health.watertight
    assert np.allclose(mesh.mesh.bounds, [[-BOX_RADIUS, -BOX_RADIUS, FLOOR], [BOX_RADIUS] * 3], atol=1e-3)


def test_the_bottom_is_a_flat_cap_or_open():
    closed = extract(head_field())
    assert closed.health.watertight
    spacing = 2 * BOX_RADIUS / RESOLUTION
    x, y, z = closed.mesh.vertices.T
    below = (z < FLOOR + 0.4 * spacing) & (np.hypot(x, y) < BOX_RADIUS - 2 * spacing)  # away from the rim
    assert below.sum() > 50 and np.allclose(z[below], FLOOR, atol=1e-6)
    opened = extract(head_field(), close_bottom=False)
    assert not opened.health.watertight and opened.health.boundary_edges > 20
    cap = closed.mesh.area_faces[(np.abs(closed.mesh.triangles[..., 2] - FLOOR) < 1e-6).all(1)].sum()
    assert cap > 0.1 and opened.health.area == pytest.approx(closed.health.area - cap, rel=1e-3)
    assert opened.health.non_manifold_edges == 0


def test_decimation_reaches_its_target_and_stays_watertight():
    result = extract(head_field(), resolution=64, target_faces=3000)
    assert 2700 < result.health.faces <= 3000
    assert result.health.watertight and result.health.non_manifold_edges == 0
    assert result.health.volume == pytest.approx(extract(head_field(), resolution=64).health.volume, rel=0.01)


def test_touching_sheets_get_their_own_vertices():
    tetrahedron = trimesh.creation.icosahedron()
    other = tetrahedron.copy()
    edge = tetrahedron.edges_unique[0]
    a, b = tetrahedron.vertices[edge]
    # turn the copy by 180 degrees about the shared edge: two bodies that touch along it
    other.apply_transform(trimesh.transformations.rotation_matrix(np.pi, b - a, a))
    both = trimesh.util.concatenate([tetrahedron, other])
    both.merge_vertices()
    assert mesh_health(both).non_manifold_edges == 1
    split = split_pinches(both)
    health = mesh_health(split)
    assert health.watertight and health.components == 2 and len(split.vertices) == 24
    assert split.volume == pytest.approx(2 * tetrahedron.volume)
    assert split_pinches(tetrahedron) is tetrahedron


def test_folded_faces_go_and_nothing_opens():
    body = trimesh.creation.icosahedron()
    a, b, c = body.faces[0]
    fin, flat = [[a, b, 12], [b, a, 12]], [[c, c, a]]
    vertices = np.concatenate([body.vertices, [[2.0, 2.0, 2.0]]])
    spoilt = trimesh.Trimesh(vertices, np.concatenate([fin, body.faces, flat]), process=False)
    clean = remove_folds(spoilt)
    assert len(clean.faces) == 20 and len(clean.vertices) == 12
    assert clean.is_watertight and clean.volume == pytest.approx(body.volume)
    doubled = np.concatenate([body.faces, body.faces[:1, ::-1], body.faces[:1]])
    assert remove_folds(trimesh.Trimesh(body.vertices, doubled, process=False)).is_watertight


def test_decimation_of_a_rough_surface_stays_closed():
    def rough(p):
        x, y, z = (p * 90).unbind(-1)
        return p.norm(dim=-1) - 0.2 + 0.012 * torch.sin(x) * torch.sin(y + torch.sin(x)) * torch.sin(z)

    mesh = extract(body(rough), resolution=96).mesh
    pinched = 0
    for target in (4000, 3000, 2000, 1500, 1000, 600, 300):
        pinched += mesh_health(mesh.simplify_quadric_decimation(face_count=target)).non_manifold_edges > 0
        health = mesh_health(simplify(mesh, target))
        assert health.watertight and health.winding_consistent and health.faces <= target
    assert pinched > 0  # the plain decimation does pinch this surface, so the repair was needed


def test_simplify_keeps_a_sphere_round():
    sphere = trimesh.creation.icosphere(subdivisions=4)
    small = simplify(sphere, 800)
    assert len(small.faces) <= 800 and np.abs(np.linalg.norm(small.vertices, axis=1) - 1).max() < 0.03


def test_taubin_removes_noise_but_not_volume():
    sphere = trimesh.creation.icosphere(subdivisions=4)
    noisy = sphere.copy()
    noisy.vertices += 0.01 * np.random.default_rng(0).normal(size=noisy.vertices.shape)

    def roughness(mesh):
        return np.linalg.norm(mesh.vertices, axis=1).std()

    smooth = smooth_taubin(noisy, 10)
    assert roughness(smooth) < 0.6 * roughness(noisy)
    assert smooth.volume == pytest.approx(sphere.volume, rel=0.01)
    assert np.array_equal(noisy.faces, smooth.faces)


def test_extraction_is_deterministic():
    first, second = extract(head_field(), target_faces=2000), extract(head_field(), target_faces=2000)
    assert np.array_equal(first.mesh.vertices, second.mesh.vertices)
    assert np.array_equal(first.mesh.faces, second.mesh.faces)
