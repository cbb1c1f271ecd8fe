"""Draw a textured mesh: a software rasteriser behind the same RenderFn contract as the volume renderer."""
import numpy as np
import torch
from torch import Tensor

from ..ops.cameras import project_points
from .bake import TexturedMesh
from .raster import nearest_fragment, rasterise
from .renders import RenderFn


def sample_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear texture look-up. Args: texture (S,S,C) uint8, uv (K,2) with v upwards. Returns: (K,C) in [0,1]."""
    height, width = texture.shape[:2]
    x = (uv[:, 0] * width - 0.5).clip(0, width - 1)
    y = ((1.0 - uv[:, 1]) * height - 0.5).clip(0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    top = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    bottom = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return (top * (1 - fy) + bottom * fy) / 255.0


def draw(mesh: TexturedMesh, c2w: Tensor, fovy: Tensor, height: int, width: int) -> dict[str, np.ndarray]:
    """One camera. Args: c2w (4,4), fovy () radians. Returns: rgb, opacity, depth, normal, each (H,W,channels)."""
    points = torch.as_tensor(mesh.vertices, dtype=torch.float64)[None]
    pixels, along = project_points(points, c2w[None].double(), fovy[None].double(), height, width)
    pixels, along = pixels[0].numpy(), along[0].numpy()
    corners = mesh.faces[(along[mesh.faces] > 1e-6).all(1)]  # triangles in front of the camera
    ab = pixels[corners[:, 1]] - pixels[corners[:, 0]]
    ac = pixels[corners[:, 2]] - pixels[corners[:, 0]]
    corners = corners[ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0] < 0]  # y points down: front faces turn clockwise
    fragments = rasterise(pixels[corners], height, width)
    inverse = fragments.bary / along[corners[fragments.triangle]]  # perspective-correct weights
    depth = 1.0 / inverse.sum(1)
    winner = nearest_fragment(fragments, depth, height * width)
    hit = np.flatnonzero(winner >= 0)
    chosen = winner[hit]
    weight = inverse[chosen] * depth[chosen, None]
    vertex = corners[fragments.triangle[chosen]]
    position, normal, uv = (
        sum(weight[:, i : i + 1] * values[vertex[:, i]] for i in range(3))
        for values in (mesh.vertices, mesh.normals, mesh.uv)
    )
    channels = {"rgb": 3, "opacity": 1, "depth": 1, "normal": 3}
    out = {k: np.zeros((height * width, c), np.float32) for k, c in channels.items()}
    out["rgb"][hit] = sample_texture(mesh.texture, uv)
    out["opacity"][hit] = 1.0
    out["depth"][hit, 0] = np.linalg.norm(position - c2w[:3, 3].double().numpy(), axis=1)
    out["normal"][hit] = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    return {k: v.reshape(height, width, -1) for k, v in out.items()}


def mesh_render_fn(mesh: TexturedMesh, supersample: int = 2) -> RenderFn:
    """A RenderFn that shows the mesh, on white; every pixel is the mean of supersample^2 samples.

    Returns: render(c2w (B,4,4), fovy (B,), height, width) -> the render dictionary. Not differentiable.
    """

    def shrink(image: np.ndarray) -> np.ndarray:
        s, (height, width, channels) = supersample, image.shape
        return image.reshape(height // s, s, width // s, s, channels).mean((1, 3))

    def render(c2w: Tensor, fovy: Tensor, height: int, width: int) -> dict[str, Tensor]:
        images = []
        for pose, angle in zip(c2w.detach().cpu(), fovy.detach().cpu().expand(len(c2w))):
            image = draw(mesh, pose, angle, height * supersample, width * supersample)
            opacity = shrink(image["opacity"])
            foreground = shrink(image["rgb"])
            images.append({
                "comp_rgb": foreground + (1.0 - opacity), "comp_rgb_fg": foreground,
                "comp_rgb_bg": np.ones_like(foreground),
                "opacity": opacity, "depth": shrink(image["depth"]) / np.maximum(opacity, 1e-6),
                "comp_normal": shrink((image["normal"] + 1.0) / 2.0 * image["opacity"]),
            })  # fmt: skip
        return {k: torch.from_numpy(np.stack([i[k] for i in images])).to(c2w) for k in images[0]}

    return render
