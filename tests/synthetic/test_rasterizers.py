"""Both rasterisers on hand-made scenes (no assets needed) and against each other."""

import numpy as np
import pytest
from portrait_diffusion.synthetic.cameras import HEAD_TO_WORLD, Camera
from portrait_diffusion.synthetic.mesh import vertex_normals
from portrait_diffusion.synthetic.parts import Part
from portrait_diffusion.synthetic.raster_soft import SoftRasterizer, mipmaps, sample

from synthetic.conftest import quad, scene_of

SIZE = 48


@pytest.fixture(params=["gl", "soft"])
def make(request, gl_rasterizer):
    return gl_rasterizer if request.param == "gl" else SoftRasterizer


def displayed(linear: float) -> float:
    shade = linear / (1 + linear**4) ** 0.25
    return 255 * shade ** (1 / 2.2)


def sphere(radius=0.25, count=24) -> Part:
    theta, phi = np.meshgrid(np.linspace(0, np.pi, count + 1), np.linspace(0, 2 * np.pi, 2 * count + 1), indexing="ij")
    points = radius * np.stack([np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)], -1).reshape(
        -1, 3
    )
    i, j = np.meshgrid(np.arange(count), np.arange(2 * count), indexing="ij")
    a = (i * (2 * count + 1) + j).ravel()
    faces = np.concatenate(
        [np.stack([a, a + 1, a + 2 * count + 2], 1), np.stack([a, a + 2 * count + 2, a + 2 * count + 1], 1)]
    )
    uv = np.stack([phi, theta], -1).reshape(-1, 2) / [2 * np.pi, np.pi]
    n = len(points)
    return Part("sphere", 1, points, points / radius, uv, faces, "pattern", light=np.ones((n, 3)), sheen=np.zeros(n))


def pattern() -> np.ndarray:
    y, x = np.mgrid[0:64, 0:64]
    rgb = np.stack([x * 4, y * 4, np.where((x // 8 + y // 8) % 2, 220, 40)], -1).astype(np.uint8)
    return np.concatenate([rgb, np.full((64, 64, 1), 255, np.uint8)], -1)


def test_square_depth_normal_label_colour(make):
    raster = make(SIZE, 2)
    raster.upload(scene_of(quad((0, 0, 0.1), 0.2, label=5, tint=(0.2, 0.5, 0.9))))
    camera = Camera(0, 0)
    view = raster.render(camera)
    hit = view.label == 5
    span = SIZE * 0.2 / np.tan(np.radians(13.374 / 2)) / (2.7 - 0.1)
    assert abs(hit.sum() - span**2) < 2 * span + 2  # the silhouette may differ by half a pixel on each side
    _, directions = camera.rays(SIZE)
    inner = hit & (view.rgba[..., 3] == 255)
    expected = (
        2.6 / -(directions @ camera.head_to_camera()[:3, :3].T)[..., 2]
    )  # plane z = 0.1 is 2.6 in front of the camera
    assert np.abs(view.depth - expected)[inner].max() < 2e-3  # the sample is within half a pixel of the pixel's centre
    assert np.allclose(view.normal[hit], HEAD_TO_WORLD[:3, :3] @ [0, 0, 1], atol=1e-6)
    assert np.abs(view.rgba[inner][:, :3].astype(float) - [displayed(v) for v in (0.2, 0.5, 0.9)]).max() <= 1
    assert (view.depth[~hit] == 0).all() and (view.normal[~hit] == 0).all() and (view.rgba[~hit][:, 3] == 0).all()


def test_back_faces_are_lit_and_their_normals_face_the_viewer(make):
    raster = make(SIZE, 2)
    raster.upload(scene_of(quad((0, 0, 0.0), 0.2, tint=(0.5, 0.5, 0.5))))
    front, back = raster.render(Camera(0, 0)), raster.render(Camera(180, 0))
    assert np.abs(front.rgba[SIZE // 2, SIZE // 2].astype(int) - back.rgba[SIZE // 2, SIZE // 2]).max() <= 1
    assert np.allclose(back.normal[SIZE // 2, SIZE // 2], [-1, 0, 0], atol=1e-6)


def test_straight_colour_of_a_translucent_square(make):
    raster = make(SIZE, 2)
    raster.upload(scene_of(quad((0, 0, 0), 0.2, mode="blend", opacity=0.4, tint=(0.3, 0.3, 0.3))))
    view = raster.render(Camera())
    middle = view.rgba[SIZE // 2, SIZE // 2]
    assert abs(int(middle[3]) - 0.4 * 255) <= 1
    assert (
        np.abs(middle[:3] - displayed(0.3)).max() <= 3
    )  # straight: not darkened by the coverage; 8-bit premultiplied inside
    assert (view.label == 0).all() and (view.depth == 0).all()  # a blended surface is no opaque hit


def test_nearer_surface_hides_and_blending_composes(make):
    raster = make(SIZE, 2)
    far, near = (
        quad((0, 0, 0), 0.2, label=1, tint=(0.6, 0.6, 0.6)),
        quad((0, 0, 0.1), 0.1, label=2, tint=(0.1, 0.1, 0.1)),
    )
    lens = quad((0, 0.0, 0.2), 0.3, mode="blend", opacity=0.5, tint=(0.0, 0.0, 0.0), label=6)
    raster.upload(scene_of(far, near, lens))
    view = raster.render(Camera())
    middle, edge = view.rgba[SIZE // 2, SIZE // 2], view.rgba[SIZE // 2, SIZE // 2 + int(SIZE * 0.24)]
    assert view.label[SIZE // 2, SIZE // 2] == 2 and view.label[SIZE // 2, SIZE // 2 + int(SIZE * 0.24)] == 1
    assert (
        abs(middle[0] - 0.5 * displayed(0.1)) <= 2
        and abs(edge[0] - 0.5 * displayed(0.6)) <= 2
        and middle[3] == edge[3] == 255
    )


def test_alpha_test_then_blend(make):
    picture = np.zeros((1, 2, 4), np.uint8)
    picture[0, 0], picture[0, 1] = (255, 255, 255, 255), (255, 255, 255, 64)
    raster = make(SIZE, 2)
    raster.upload(
        scene_of(
            quad((0, 0, 0), 0.25, mode="hair", texture="strand", tint=(0.4, 0.4, 0.4)), textures={"strand": picture}
        )
    )
    view = raster.render(Camera())
    solid, soft = view.rgba[SIZE // 2, SIZE // 4], view.rgba[SIZE // 2, 3 * SIZE // 4]
    assert solid[3] == 255 and view.label[SIZE // 2, SIZE // 4] == 1
    assert abs(int(soft[3]) - 64) <= 2 and view.label[SIZE // 2, 3 * SIZE // 4] == 0
    assert np.abs(soft[:3].astype(float) - displayed(0.4)).max() <= 6


def test_matter_outside_the_cylinder_is_cut(make):
    raster = make(SIZE, 2)
    raster.upload(scene_of(quad((0, 0, 0.0), 1.0)))
    wide = raster.render(Camera(0, 0, fovy_deg=30.0))
    _, columns = np.nonzero(wide.label)
    half = (columns.max() - columns.min() + 1) / 2
    assert abs(half - SIZE / 2 * 0.36 / (2.7 * np.tan(np.radians(15)))) <= 1
    assert (wide.label[:, SIZE // 2] > 0).sum() == pytest.approx(2 * half, abs=2)


def test_rasterizers_agree_on_a_textured_sphere(gl_rasterizer):
    scene = scene_of(
        sphere(), quad((0.05, 0.1, 0.3), 0.05, mode="hair", opacity=0.7, label=2), textures={"pattern": pattern()}
    )
    exact, soft = gl_rasterizer(SIZE, 2), SoftRasterizer(SIZE, 2)
    exact.upload(scene)
    soft.upload(scene)
    for camera in (Camera(), Camera(70, 20), Camera(-150, -15, distance=2.5, fovy_deg=15.0, target=(0.0, 0.05, 0.02))):
        a, b = exact.render(camera), soft.render(camera)
        assert (a.label == b.label).mean() > 0.995
        same = (a.label == b.label) & (a.label > 0)
        assert np.abs(a.depth - b.depth)[same].max() < 2e-3
        assert np.percentile(np.abs(a.normal - b.normal)[same], 99) < 0.02
        assert np.abs(a.over() - b.over()).mean() < 3 / 255


def test_uploading_again_replaces_the_scene(make):
    raster = make(SIZE, 1)
    raster.upload(scene_of(quad((0, 0, 0), 0.2, label=3)))
    raster.render(Camera())
    raster.upload(scene_of(quad((0, 0, 0), 0.1, label=4)))
    assert set(np.unique(raster.render(Camera()).label)) == {0, 4}


def test_mipmaps_conserve_the_mean_and_sampling_hits_texel_centres():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    levels = mipmaps(picture)
    assert [level.shape[0] for level in levels] == [16, 8, 4, 2, 1]
    for level in levels:
        assert np.allclose(level.mean((0, 1)), levels[0].mean((0, 1)))
    uv = np.array([[(5 + 0.5) / 16, 1 - (3 + 0.5) / 16]])
    assert np.allclose(sample(levels, uv, 0.0), levels[0][3, 5])
    assert np.allclose(sample(levels, uv, 99.0), levels[-1][0, 0])


def test_vertex_normals_of_a_sphere_point_outward():
    part = sphere()
    normals = vertex_normals(part.positions, part.faces)
    cosine = np.abs((normals * part.normals).sum(1))
    inner = np.abs(part.normals[:, 1]) < 0.98
    assert cosine[inner].min() > 0.98
