"""Draw scenes with numpy: the reference for `raster_gl` and the way out where no OpenGL can be opened. Slow and simple.

Same passes, same resolve, same mipmaps (box-filtered, trilinear) with one level of detail for a whole triangle and no
anisotropy. Pictures agree with OpenGL's up to texture filtering.
"""

import numpy as np

from ..ops.canonical import BOX_RADIUS
from .cameras import Camera
from .parts import Scene
from .render_output import RenderOutput


class SoftRasterizer:
    """The interface of `GLRasterizer`. Args: size in pixels, samples a pixel side."""

    def __init__(self, size: int, supersample: int = 2):
        self.size, self.supersample = size, supersample
        self._kept: dict[str, list[np.ndarray]] = {}

    def upload(self, scene: Scene) -> None:
        """Prepare a scene for `render`."""
        self._scene, self._pyramids = scene, {}
        for key, picture in scene.textures.items():
            if key in self._kept:
                self._pyramids[key] = self._kept[key]
                continue
            self._pyramids[key] = mipmaps(picture)
            if key.startswith("asset:"):
                self._kept[key] = self._pyramids[key]

    def render(self, camera: Camera) -> RenderOutput:
        """Draw the uploaded scene."""
        side = self.size * self.supersample
        target = _Target(side)
        eye = camera.position_head()
        prepared = [(part, _Projected(part, camera, side)) for part in self._scene.parts]
        for stage, modes in ((0, ("opaque",)), (1, ("cutout", "hair")), (2, ("hair", "blend"))):
            for part, projected in prepared:
                if part.mode in modes:
                    self._draw(target, part, projected, stage, eye)
        return self._resolve(target, camera)

    def _draw(self, target: "_Target", part, projected: "_Projected", stage: int, eye: np.ndarray) -> None:
        pyramid = self._pyramids[part.texture]
        tint = np.asarray(part.tint, np.float64)
        for face in projected.drawable:
            hit = projected.pixels(face, target)
            if hit is None:
                continue
            y, x, weights, depth = hit
            corners = part.faces[face]
            position = weights @ part.positions[corners]
            keep = (position[:, 0] ** 2 + position[:, 2] ** 2 <= BOX_RADIUS**2) & (np.abs(position[:, 1]) <= BOX_RADIUS)
            texel = sample(pyramid, weights @ part.uvs[corners], projected.level_of_detail(face, part, pyramid))
            alpha = texel[:, 3] * part.opacity
            if stage == 0:
                alpha = np.ones(len(alpha))
            elif stage == 1:
                keep &= alpha >= 0.5
                alpha = np.ones(len(alpha))
            else:
                keep &= alpha >= 0.004
            if not keep.any():
                continue
            y, x, weights, depth, position, texel, alpha = (
                a[keep] for a in (y, x, weights, depth, position, texel, alpha)
            )
            base = (texel[:, :3] / np.maximum(texel[:, 3:], 1e-3)) ** 2.2 * tint
            shade = (
                base * (weights @ part.light[corners]) + (weights @ part.sheen[corners])[:, None]
            ) * self._scene.exposure
            shade = shade / (1 + shade**4) ** 0.25
            colour = np.concatenate([shade ** (1 / 2.2) * alpha[:, None], alpha[:, None]], 1)
            if stage == 2:
                target.colour[y, x] = colour + target.colour[y, x] * (1 - alpha[:, None])
                continue
            normal = weights @ part.normals[corners]
            normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
            ray = position - eye
            normal *= np.where((normal * ray).sum(1, keepdims=True) > 0, -1.0, 1.0)
            target.colour[y, x], target.z[y, x] = colour, depth
            target.normal[y, x], target.distance[y, x], target.label[y, x] = (
                normal,
                np.linalg.norm(ray, axis=1),
                part.label,
            )

    def _resolve(self, target: "_Target", camera: Camera) -> RenderOutput:
        size, factor = self.size, self.supersample

        def blocks(a):
            return (
                a.reshape(size, factor, size, factor, *a.shape[2:])
                .swapaxes(1, 2)
                .reshape(size, size, factor * factor, *a.shape[2:])
            )

        colour = np.round(blocks(target.colour).clip(0, 1) * 255).mean(2) / 255.0
        alpha = colour[..., 3:]
        rgba = np.concatenate([np.where(alpha > 0, colour[..., :3] / np.maximum(alpha, 1e-9), 0), alpha], -1)
        distance, label, normal = blocks(target.distance), blocks(target.label), blocks(target.normal)
        nearest = np.where(label > 0, distance, np.inf).argmin(2)[..., None]
        label = np.take_along_axis(label, nearest, 2)[..., 0]
        distance = np.where(label > 0, np.take_along_axis(distance, nearest, 2)[..., 0], 0)
        normal = np.where(label[..., None] > 0, np.take_along_axis(normal, nearest[..., None], 2)[:, :, 0], 0)
        rgba = (rgba.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return RenderOutput.from_head_frame(
            rgba, distance.astype(np.float32), normal.astype(np.float32), label.astype(np.uint8), camera
        )


class _Target:
    """Supersampled picture: premultiplied colour, depth in NDC, distance, normal, label."""

    def __init__(self, side: int):
        self.colour = np.zeros((side, side, 4))
        self.z, self.distance = np.full((side, side), 1.0), np.zeros((side, side))
        self.normal, self.label = np.zeros((side, side, 3)), np.zeros((side, side), np.uint8)


class _Projected:
    """Triangles of a part on the screen."""

    def __init__(self, part, camera: Camera, side: int):
        matrix = camera.projection() @ camera.head_to_camera()
        clip = part.positions @ matrix[:, :3].T + matrix[:, 3]
        self.inverse_w = 1.0 / clip[:, 3]
        ndc = clip[:, :3] * self.inverse_w[:, None]
        self.screen = np.stack([(ndc[:, 0] + 1) / 2 * side, (1 - ndc[:, 1]) / 2 * side], 1)
        self.z, self.faces, self.side = ndc[:, 2], part.faces, side
        p = self.screen[part.faces]
        e1, e2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
        self.area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
        self.low = np.ceil(p.min(1) - 0.5).astype(int).clip(0)
        self.high = np.floor(p.max(1) - 0.5).astype(int).clip(max=side - 1)
        self.drawable = np.flatnonzero((np.abs(self.area) > 1e-9) & (self.low <= self.high).all(1))

    def pixels(self, face: int, target: _Target):
        """Samples of a triangle that pass the depth test: rows, columns, perspective-correct weights (m,3), depths;
        None if there are none."""
        low, high = self.low[face], self.high[face]
        x, y = np.arange(low[0], high[0] + 1)[None], np.arange(low[1], high[1] + 1)[:, None]
        (p0, p1, p2), area = self.screen[self.faces[face]], self.area[face]
        dx, dy = x + 0.5 - p0[0], y + 0.5 - p0[1]
        b1 = (dx * (p2[1] - p0[1]) - dy * (p2[0] - p0[0])) / area
        b2 = (dy * (p1[0] - p0[0]) - dx * (p1[1] - p0[1])) / area
        inside = (b1 >= 0) & (b2 >= 0) & (b1 + b2 <= 1)
        z0, z1, z2 = self.z[self.faces[face]]
        depth = z0 + b1 * (z1 - z0) + b2 * (z2 - z0)
        inside &= depth < target.z[low[1] : high[1] + 1, low[0] : high[0] + 1]
        if not inside.any():
            return None
        rows, columns = np.nonzero(inside)
        b1, b2 = b1[inside], b2[inside]
        weights = np.stack([1 - b1 - b2, b1, b2], 1) * self.inverse_w[self.faces[face]]
        return rows + low[1], columns + low[0], weights / weights.sum(1, keepdims=True), depth[inside]

    def level_of_detail(self, face: int, part, pyramid) -> float:
        """log2 of the texels a screen sample covers along the longer axis of its footprint."""
        uv = part.uvs[part.faces[face]] * np.array(pyramid[0].shape[1::-1])
        (p0, p1, p2) = self.screen[part.faces[face]]
        screen, texture = np.stack([p1 - p0, p2 - p0]), np.stack([uv[1] - uv[0], uv[2] - uv[0]])
        jacobian = np.linalg.solve(screen, texture)
        return float(0.5 * np.log2(max((jacobian**2).sum(1).max(), 1e-12)))


def mipmaps(picture: np.ndarray) -> list[np.ndarray]:
    """Premultiplied levels (H,W,4) in [0,1], each half the size of the one before, down to one texel."""
    alpha = picture[..., 3:].astype(np.uint16)
    level = np.concatenate([(picture[..., :3] * alpha + 127) // 255, alpha], -1) / 255.0
    levels = [level]
    while max(level.shape[:2]) > 1:
        rows, columns = max(level.shape[0] // 2, 1), max(level.shape[1] // 2, 1)
        a = level[: 2 * rows if level.shape[0] > 1 else 1, : 2 * columns if level.shape[1] > 1 else 1]
        level = a.reshape(rows, a.shape[0] // rows, columns, a.shape[1] // columns, 4).mean((1, 3))
        levels.append(level)
    return levels


def sample(pyramid: list[np.ndarray], uv: np.ndarray, level: float) -> np.ndarray:
    """Trilinear look-up (n,4) at uv (n,2), v up, clamped at the edges."""
    level = min(max(level, 0.0), len(pyramid) - 1.0)
    k = min(int(level), len(pyramid) - 2) if len(pyramid) > 1 else 0
    first = _bilinear(pyramid[k], uv)
    return first if level == k else first + (level - k) * (_bilinear(pyramid[k + 1], uv) - first)


def _bilinear(picture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    rows, columns = picture.shape[:2]
    x, y = uv[:, 0] * columns - 0.5, (1 - uv[:, 1]) * rows - 0.5
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    tx, ty = (x - x0)[:, None], (y - y0)[:, None]
    xa, xb, ya, yb = (
        x0.clip(0, columns - 1),
        (x0 + 1).clip(0, columns - 1),
        y0.clip(0, rows - 1),
        (y0 + 1).clip(0, rows - 1),
    )
    top = picture[ya, xa] * (1 - tx) + picture[ya, xb] * tx
    bottom = picture[yb, xa] * (1 - tx) + picture[yb, xb] * tx
    return top * (1 - ty) + bottom * ty
