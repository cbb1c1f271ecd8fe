"""Baked light and bust caps against closed forms."""

import numpy as np
import pytest
from portrait_diffusion.synthetic.caps import bust_caps
from portrait_diffusion.synthetic.lighting import bake, cone_directions, sphere_directions, visibility
from portrait_diffusion.synthetic.subjects import Light, Lighting

NOTHING = np.array([[0.0, -0.6, -0.6]])


def lamp(direction, colour=(1.0, 1.0, 1.0), sky=0.0):
    return Lighting((Light(direction, colour, 1.0),), (sky, sky, sky), (0.0, 1.0, 0.0), 0.0, 1.0)


def disc(height: float, radius: float, count: int = 20000) -> np.ndarray:
    rng = np.random.default_rng(0)
    r, a = radius * np.sqrt(rng.random(count)), rng.random(count) * 2 * np.pi
    return np.stack([r * np.cos(a), np.full(count, height), r * np.sin(a)], 1)


def test_sphere_directions_are_unit_and_balanced():
    d = sphere_directions(200)
    assert np.allclose(np.linalg.norm(d, axis=1), 1) and np.abs(d.mean(0)).max() < 0.01
    assert np.allclose(d.T @ d / 200, np.eye(3) / 3, atol=0.01)


def test_cone_stays_within_its_radius():
    axis = np.array([0.6, 0.0, 0.8])
    assert np.degrees(np.arccos((cone_directions(axis, 10.0, 50) @ axis).clip(-1, 1))).max() <= 10.0 + 1e-6


def test_lamp_follows_the_cosine_law():
    angles = np.radians([0, 30, 60, 90, 120])
    normals = np.stack([np.sin(angles), np.cos(angles), np.zeros(5)], 1)
    light, _ = bake(np.zeros((5, 3)), normals, np.zeros((5, 3)), NOTHING, lamp((0.0, 1.0, 0.0)))
    assert np.allclose(light, np.maximum(0, np.cos(angles))[:, None].repeat(3, 1), atol=0.02)


def test_unoccluded_white_sky_gives_about_one():
    light, ambient = bake(
        np.zeros((1, 3)), np.array([[0.0, 1.0, 0.0]]), np.zeros((1, 3)), NOTHING, lamp((0, 1, 0), (0, 0, 0), sky=1.0)
    )
    assert light == pytest.approx(1.0, abs=0.06) and ambient == pytest.approx(1.0)


def test_points_under_a_disc_are_in_shadow_and_outside_are_not():
    occluders = disc(0.3, 0.2)
    points = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.05], [0.4, 0.0, 0.0], [0.0, 0.35, 0.0]])
    assert np.allclose(
        visibility(points.astype(np.float32), occluders.astype(np.float32), np.array([0.0, 1.0, 0.0])), [0, 0, 1, 1]
    )


def test_ambient_occlusion_of_a_facing_disc_equals_its_form_factor():
    radius, height = 0.3, 0.2  # sin^2 of the half angle of a coaxial disc: r^2 / (r^2 + h^2)
    light, _ = bake(
        np.zeros((1, 3)),
        np.array([[0.0, 1.0, 0.0]]),
        np.zeros((1, 3)),
        disc(height, radius),
        lamp((0, 1, 0), (0, 0, 0), sky=1.0),
        sky_count=2000,
    )
    assert light[0, 0] == pytest.approx(1 - radius**2 / (radius**2 + height**2), abs=0.03)


def tube_mesh(radius, low, high, count=64):
    a = np.arange(count) * 2 * np.pi / count
    ring = np.stack([np.sin(a), np.zeros(count), np.cos(a)], 1) * radius
    v = np.concatenate([ring + [0, low, 0], ring + [0, high, 0]])
    i, j = np.arange(count), (np.arange(count) + 1) % count
    return v, np.concatenate([np.stack([i, j, j + count], 1), np.stack([i, j + count, i + count], 1)])


def area(v, f):
    return 0.5 * np.linalg.norm(np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]]), axis=1).sum()


def test_bottom_cap_of_a_pipe_fills_its_cross_section():
    vertices, normals, faces = bust_caps([tube_mesh(0.1, -0.6, 0.0)])
    assert area(vertices, faces) == pytest.approx(np.pi * 0.1**2, rel=0.02)
    assert np.allclose(vertices[np.unique(faces)][:, 1], -0.36, atol=1e-3)


def test_wall_cap_of_a_slab_reaches_its_height():
    top = -0.2
    corner = np.array([[-1, top, -1], [1, top, -1], [1, top, 1], [-1, top, 1]], float) * [0.6, 1, 0.6]
    grid = np.linspace(-0.6, 0.6, 60)
    x, z = np.meshgrid(grid, grid)
    v = np.stack([x.ravel(), np.full(x.size, top), z.ravel()], 1)
    a = (np.arange(59)[:, None] * 60 + np.arange(59)).ravel()
    f = np.concatenate([np.stack([a, a + 1, a + 61], 1), np.stack([a, a + 61, a + 60], 1)])
    vertices, normals, faces = bust_caps([(v, f)])
    wall = faces[np.abs(normals[faces][:, :, 1]).max(1) < 0.5]
    assert corner[0, 1] == top and area(vertices, wall) == pytest.approx(2 * np.pi * 0.36 * (0.36 + top), rel=0.01)
    floor = faces[np.abs(normals[faces][:, :, 1]).min(1) > 0.5]
    assert area(vertices, floor) == pytest.approx(np.pi * 0.36**2, rel=0.01)


def test_nothing_to_cap():
    assert len(bust_caps([])[2]) == 0
    assert len(bust_caps([tube_mesh(0.1, -0.2, 0.2)])[2]) == 0
