"""Rasterisation against brute force; baked colours against the field; GLB and PLY as other programs read them."""
import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from portrait_diffusion.errors import PortraitError, UsageError
from portrait_diffusion.export.bake import BakeConfig, bake, dilate, seen_depths, vertex_colours
from portrait_diffusion.export.fields import FieldFns, FieldSampler
from portrait_diffusion.export.glb import check_glb, read_glb, to_gltf, write_glb
from portrait_diffusion.export.mesh import FLOOR, MeshConfig, extract_mesh
from portrait_diffusion.export.mesh_render import mesh_render_fn, sample_texture
from portrait_diffusion.export.ply import write_ply
from portrait_diffusion.export.raster import Fragments, nearest_fragment, rasterise
from portrait_diffusion.export.renders import render_pose
from portrait_diffusion.ops.cameras import METRES_PER_UNIT

from .fixtures import (
    front_camera,
    head_field,
    position_colour,
    soft_density,
    sphere_field,
    volume_render_fn,
)

RADIUS = 0.2


def make(field, size=256, faces=2000, resolution=48, **settings):
    sampler = FieldSampler(field)
    extracted = extract_mesh(sampler, MeshConfig(resolution=resolution, target_faces=faces))
    config = BakeConfig(texture_size=size, **settings)
    return sampler, extracted, bake(sampler, extracted.mesh, extracted.spacing, config)


@pytest.fixture(scope="module")
def sphere():
    return make(sphere_field(RADIUS))


@pytest.fixture(scope="module")
def head():
    return make(head_field(), faces=4000, resolution=64, size=512)


def test_rasterise_equals_brute_force():
    rng = np.random.default_rng(0)
    height, width = 24, 37
    corners = rng.uniform(-8, 45, (60, 3, 2))
    corners[0] = [[1, 1], [2, 2], [3, 3]]  # no area
    got = rasterise(corners, height, width, tolerance=0.0)
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    centres = np.stack([x.ravel(), y.ravel()], -1)
    expected = set()
    for t, (a, b, c) in enumerate(corners):
        sides = [
            (q - p)[0] * (centres - p)[:, 1] - (q - p)[1] * (centres - p)[:, 0] for p, q in ((a, b), (b, c), (c, a))
        ]
        inside = (np.min(sides, 0) >= 0) | (np.max(sides, 0) <= 0)
        if t > 0:
            expected |= {(int(p), t) for p in np.flatnonzero(inside)}
    assert set(zip(got.pixel.tolist(), got.triangle.tolist())) == expected
    assert len(got.pixel) == len(expected)
    assert np.allclose(got.bary.sum(1), 1)
    assert np.allclose((got.bary[..., None] * corners[got.triangle]).sum(1), centres[got.pixel], atol=1e-9)


def test_a_split_square_leaves_no_gap():
    square = np.array([[[0.2, 0.3], [30.1, 0.3], [30.1, 20.7]], [[0.2, 0.3], [30.1, 20.7], [0.2, 20.7]]])
    assert len(np.unique(rasterise(square, 21, 31).pixel)) == 21 * 30


def test_nearest_fragment_is_the_depth_test():
    fragments = Fragments(np.array([3, 1, 3, 3]), np.arange(4), np.zeros((4, 3)))
    winner = nearest_fragment(fragments, np.array([2.0, 9.0, 1.0, 3.0]), 5)
    assert winner.tolist() == [-1, 1, -1, 2, -1]


def test_seen_depths_are_the_quantiles_of_an_exponential():
    sigma, samples = 300.0, 400
    field = FieldFns(lambda p: sigma * (p[:, :1] < 0.1), position_colour)  # matter below the plane x = 0.1
    points, normals = np.array([[0.1, 0.0, 0.0]]), np.array([[1.0, 0.0, 0.0]])
    half_range = 0.02
    depths = seen_depths(FieldSampler(field), points, normals, half_range, samples, 4)[0]
    total = 1 - np.exp(-sigma * 2 * half_range)
    expected = -np.log(1 - (np.arange(4) + 0.5) / 4 * total) / sigma
    assert np.abs(depths - expected).max() < 3 * half_range / samples


def test_seen_depths_without_matter_are_zero():
    field = FieldFns(lambda p: 0 * p[:, :1], position_colour)
    assert not seen_depths(FieldSampler(field), np.zeros((2, 3)), np.eye(3)[:2], 0.01, 8, 2).any()


def test_texture_shows_the_field_also_at_seams(sphere):
    _, _, mesh = sphere
    rng = np.random.default_rng(0)
    weights = np.concatenate([rng.dirichlet([1, 1, 1], 3000), rng.dirichlet([1, 1, 1e-9], 3000)])  # half on edges
    face = mesh.faces[rng.integers(0, len(mesh.faces), len(weights))]
    uv, points = ((weights[..., None] * values[face]).sum(1) for values in (mesh.uv, mesh.vertices))
    expected = position_colour(torch.from_numpy(points)).numpy()
    error = np.abs(sample_texture(mesh.texture, uv) - expected)
    # a texel is about 0.004 units and colour changes by 1.39 per unit, plus the depth the light goes in
    assert error.max() < 0.02 and error.mean() < 0.006


def test_colours_come_from_where_the_light_comes_from():
    def colour(p):  # a red skin of 0.008 over blue flesh: 96 % of the light comes from the skin
        red = (p.norm(dim=-1) > RADIUS - 0.008)[:, None]
        return torch.where(red, p.new_tensor([1.0, 0, 0]), p.new_tensor([0, 0, 1.0]))

    def density(p):
        return soft_density(p.norm(dim=-1) - RADIUS)

    sampler, extracted, mesh = make(FieldFns(density, colour), size=128)
    red, blue = mesh.texture[..., 0].mean() / 255, mesh.texture[..., 2].mean() / 255
    assert red > 0.97 and blue < 0.03
    assert (vertex_colours(sampler, extracted.mesh, extracted.spacing, BakeConfig()).mean(0)[0]) > 0.97 * 255


def test_field_evaluations_are_counted_and_bounded(sphere):
    sampler, extracted, mesh = sphere
    config = BakeConfig()
    fresh = FieldSampler(sphere_field(RADIUS))
    again = bake(fresh, extracted.mesh, extracted.spacing, BakeConfig(texture_size=256))
    texels = again.covered * 256 * 256
    assert np.array_equal(again.texture, mesh.texture)
    assert texels * config.colour_samples <= fresh.colour_points <= 1.05 * texels * config.colour_samples
    assert fresh.density_points == config.density_samples * len(extracted.mesh.vertices)


def test_dilate_copies_the_nearest_known_texel():
    image = np.zeros((5, 9, 1))
    known = np.zeros((5, 9), bool)
    image[2, 1], image[2, 7] = 3.0, 8.0
    known[2, 1] = known[2, 7] = True
    out = dilate(image, known)[..., 0]
    assert (out[:, :4] == 3).all() and (out[:, 5:] == 8).all()


def test_bad_bake_settings_are_usage_errors():
    with pytest.raises(UsageError, match="texture_size"):
        BakeConfig(texture_size=10)
    with pytest.raises(UsageError, match="colour_samples"):
        BakeConfig(colour_samples=0)


def read_gltf(path):
    """The JSON part of a GLB, read by hand from the specification (glTF 2.0, section 4.4)."""
    data = path.read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack("<I4s", data[12:20])
    assert kind == b"JSON"
    return json.loads(data[20 : 20 + size])


def test_glb_opens_again_with_texture_in_metres_and_the_right_way_round(tmp_path, head):
    _, extracted, mesh = head
    write_glb(tmp_path / "p.glb", mesh)
    assert [p.name for p in tmp_path.iterdir()] == ["p.glb"]
    back = read_glb(tmp_path / "p.glb")
    assert np.allclose(back.extents, extracted.mesh.extents[[1, 2, 0]] * METRES_PER_UNIT, atol=1e-4)
    texture = np.asarray(back.visual.material.baseColorTexture.convert("RGB"))
    assert np.array_equal(texture, mesh.texture)
    nose = back.vertices[np.argmax(np.where(np.abs(back.vertices[:, 1]) < 0.02, back.vertices[:, 2], -1))]
    assert nose == pytest.approx([0.0, 0.0, 0.21 * METRES_PER_UNIT], abs=0.006)  # the face looks along +z
    top = back.vertices[back.vertices[:, 1].argmax()]
    assert top[1] == pytest.approx(0.23 * METRES_PER_UNIT, abs=0.003)  # y is up
    assert back.vertices[:, 1].min() == pytest.approx(FLOOR * METRES_PER_UNIT, abs=1e-3)  # photos end there
    assert back.volume > 0

    def colour_near(point):
        nearest = np.linalg.norm(back.vertices - np.asarray(point) * METRES_PER_UNIT, axis=1).argmin()
        return sample_texture(texture, back.visual.uv[nearest][None])[0]

    assert colour_near([0, 0, 0.21]) == pytest.approx([0.9, 0.3, 0.3], abs=0.05)  # red nose in front
    assert colour_near([0, 0.05, -0.17]) == pytest.approx([0.25, 0.15, 0.1], abs=0.05)  # hair behind


def test_world_to_gltf_is_a_rotation_with_the_face_on_z():
    assert np.allclose(to_gltf([[1.0, 2.0, 3.0]]), np.array([[2.0, 3.0, 1.0]]) * METRES_PER_UNIT)
    assert np.linalg.det(to_gltf(np.eye(3)) / METRES_PER_UNIT) == pytest.approx(1.0)


def test_glb_material_and_attributes_by_the_specification(tmp_path, sphere):
    write_glb(tmp_path / "p.glb", sphere[2])
    gltf = read_gltf(tmp_path / "p.glb")
    (material,) = gltf["materials"]
    pbr = material["pbrMetallicRoughness"]
    assert (pbr["metallicFactor"], pbr["roughnessFactor"]) == (0.0, 1.0)
    assert "baseColorTexture" in pbr and not material.get("doubleSided", False)
    (primitive,) = gltf["meshes"][0]["primitives"]
    assert {"POSITION", "NORMAL", "TEXCOORD_0"} <= set(primitive["attributes"])
    assert len(gltf["images"]) == 1 and "uri" not in gltf["images"][0]


def test_a_damaged_glb_is_noticed(tmp_path, sphere, head):
    path = tmp_path / "p.glb"
    write_glb(path, sphere[2])
    check_glb(path, sphere[2])
    with pytest.raises(PortraitError, match="does not read back"):
        check_glb(path, head[2])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PortraitError, match="cannot be read back"):
        check_glb(path, sphere[2])


def test_ply_has_the_colours_and_normals_of_the_field(tmp_path, sphere):
    sampler, extracted, _ = sphere
    colours = vertex_colours(sampler, extracted.mesh, extracted.spacing, BakeConfig())
    write_ply(tmp_path / "p.ply", extracted.mesh, colours)
    back = trimesh.load(tmp_path / "p.ply", process=False)
    assert np.allclose(back.vertices, to_gltf(extracted.mesh.vertices), atol=1e-6)
    expected = position_colour(torch.from_numpy(np.array(extracted.mesh.vertices))).numpy() * 255
    assert np.abs(back.visual.vertex_colors[:, :3] - expected).max() < 4
    outward = back.vertices / np.linalg.norm(back.vertices, axis=1, keepdims=True)
    nx = back.metadata["_ply_raw"]["vertex"]["data"]["nx"].ravel()
    assert (nx * outward[:, 0]).mean() == pytest.approx(1 / 3, abs=0.03)  # the mean of cos^2 over a sphere


def test_the_drawn_mesh_looks_like_the_volume(head):
    c2w, fovy = front_camera()
    size = 64
    drawn = render_pose(mesh_render_fn(head[2], supersample=4), c2w, fovy, size)
    volume = render_pose(volume_render_fn(head_field(), samples=160), c2w, fovy, size)
    assert np.abs(drawn.opacity - volume.opacity).mean() < 0.02
    inside = (drawn.opacity[..., 0] > 0.999) & (volume.opacity[..., 0] > 0.999)
    assert inside.mean() > 0.2
    assert np.median(np.abs(drawn.colour - volume.colour)[inside]) < 0.02
    assert np.median(np.abs(drawn.normal - volume.normal)[inside]) < 0.05


def test_drawn_depth_is_the_distance_along_the_ray(sphere):
    c2w, fovy = front_camera()
    out = mesh_render_fn(sphere[2], supersample=1)(c2w[None], fovy, 65, 65)
    assert float(out["depth"][0, 32, 32, 0]) == pytest.approx(2.7 - RADIUS, abs=1e-3)
    assert float(out["opacity"][0, 0, 0, 0]) == 0.0
    assert out["comp_normal"][0, 32, 32].tolist() == pytest.approx([1.0, 0.5, 0.5], abs=0.03)
