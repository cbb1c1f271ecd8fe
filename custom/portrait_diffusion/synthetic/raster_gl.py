"""Draw scenes with OpenGL on a headless machine (moderngl, EGL): GPUs, or Mesa on a CPU."""

import numpy as np

from ..errors import EnvironmentProblem
from ..ops.canonical import BOX_RADIUS
from ..optional import require
from .cameras import Camera
from .parts import Scene
from .render_output import RenderOutput

VERTEX = """
#version 330
uniform mat4 view, projection;
in vec3 in_position, in_normal, in_light;
in vec2 in_uv;
in float in_sheen;
out vec3 position, normal, light;
out vec2 uv;
out float sheen;
void main() {
    position = in_position; normal = in_normal; light = in_light; uv = in_uv; sheen = in_sheen;
    gl_Position = projection * (view * vec4(in_position, 1.0));
}
"""

FRAGMENT = """
#version 330
uniform sampler2D albedo;
uniform vec3 tint, eye;
uniform float opacity, exposure, label, radius;
uniform int stage;     // 0: opaque, 1: alpha test, 2: what the alpha test left over
in vec3 position, normal, light;
in vec2 uv;
in float sheen;
layout(location = 0) out vec4 colour;
layout(location = 1) out vec4 surface;
layout(location = 2) out vec4 labels;
void main() {
    if (dot(position.xz, position.xz) > radius * radius || abs(position.y) > radius) discard;
    vec4 texel = texture(albedo, uv);
    float alpha = texel.a * opacity;
    if (stage == 0) alpha = 1.0;
    if (stage == 1) { if (alpha < 0.5) discard; alpha = 1.0; }
    if (stage == 2 && alpha < 0.004) discard;
    vec3 base = pow(texel.rgb / max(texel.a, 1e-3), vec3(2.2)) * tint;
    vec3 shade = (base * light + sheen) * exposure;
    shade = shade / pow(1.0 + pow(shade, vec3(4.0)), vec3(0.25));
    colour = vec4(pow(shade, vec3(1.0 / 2.2)) * alpha, alpha);
    vec3 n = normalize(normal);
    vec3 ray = position - eye;
    if (dot(n, ray) > 0.0) n = -n;
    surface = vec4(n, length(ray));
    labels = vec4(label / 255.0, 0.0, 0.0, 1.0);
}
"""

SCREEN = """
#version 330
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }
"""

RESOLVE = """
#version 330
uniform sampler2D colour, surface, labels;
uniform int factor;
layout(location = 0) out vec4 out_colour;
layout(location = 1) out vec4 out_surface;
layout(location = 2) out vec4 out_label;
void main() {
    ivec2 corner = ivec2(gl_FragCoord.xy) * factor;
    vec4 total = vec4(0.0);
    float nearest = 1e9;
    out_surface = vec4(0.0);
    out_label = vec4(0.0);
    for (int y = 0; y < factor; ++y) for (int x = 0; x < factor; ++x) {
        ivec2 p = corner + ivec2(x, y);
        total += texelFetch(colour, p, 0);
        float label = texelFetch(labels, p, 0).r;
        vec4 s = texelFetch(surface, p, 0);
        if (label > 0.0 && s.w < nearest) { nearest = s.w; out_surface = s; out_label = vec4(label); }
    }
    total /= float(factor * factor);
    out_colour = total.a > 0.0 ? vec4(total.rgb / total.a, total.a) : vec4(0.0);
}
"""


class GLRasterizer:
    """Owns an OpenGL context; `upload` a scene once, then `render` many views.

    Args:
        size: side of the square pictures in pixels.
        supersample: samples a pixel side.
        anisotropy: texture samples along the steep direction (1 switches it off).
    Raises: EnvironmentProblem when no headless OpenGL 3.3 can be opened.
    """

    def __init__(self, size: int, supersample: int = 2, anisotropy: float = 8.0):
        moderngl = require("moderngl", extra="synthetic")
        try:
            self.ctx = moderngl.create_context(standalone=True, backend="egl", require=330)
        except Exception as error:
            raise EnvironmentProblem(
                f"No headless OpenGL 3.3 could be opened through EGL ({error}); install libegl1 and libgl1-mesa-dri "
                "(or the NVIDIA driver's EGL with libglvnd)."
            ) from error
        self._gl, self.size, self.supersample, self.anisotropy = moderngl, size, supersample, anisotropy
        self.program = self.ctx.program(vertex_shader=VERTEX, fragment_shader=FRAGMENT)
        self.resolve = self.ctx.program(vertex_shader=SCREEN, fragment_shader=RESOLVE)
        big, small = (size * supersample,) * 2, (size,) * 2
        self._big = [
            self.ctx.texture(big, 4, dtype="f1"),
            self.ctx.texture(big, 4, dtype="f4"),
            self.ctx.texture(big, 4, dtype="f1"),
        ]
        self._small = [
            self.ctx.texture(small, 4, dtype="f1"),
            self.ctx.texture(small, 4, dtype="f4"),
            self.ctx.texture(small, 1, dtype="f1"),
        ]
        depth = self.ctx.depth_renderbuffer(big)
        self._all = self.ctx.framebuffer(self._big, depth)
        self._colour_only = self.ctx.framebuffer(self._big[:1], depth)
        self._out = self.ctx.framebuffer(self._small)
        for texture in self._big:
            texture.filter = (moderngl.NEAREST, moderngl.NEAREST)
        self._screen = self.ctx.vertex_array(self.resolve, [])
        self._kept: dict = {}
        self._own: dict = {}
        self._buffers: list = []
        self._draws: list = []
        self.program["radius"].value = BOX_RADIUS

    def renderer_name(self) -> str:
        """What draws, for example 'llvmpipe' or the GPU's name."""
        return self.ctx.info["GL_RENDERER"]

    def upload(self, scene: Scene) -> None:
        """Copy a scene to the device, replacing the previous one; textures named ``asset:`` stay for later scenes."""
        with self.ctx:  # another rasteriser of this process may have come in between
            self._upload(scene)

    def render(self, camera: Camera) -> RenderOutput:
        """Draw the uploaded scene."""
        with self.ctx:
            return self._render(camera)

    def release(self) -> None:
        """Free the context."""
        self.ctx.release()

    def _upload(self, scene: Scene) -> None:
        for item in [*self._own.values(), *self._buffers]:
            item.release()
        self._own, self._buffers, self._draws = {}, [], []
        for key, picture in scene.textures.items():
            store = self._kept if key.startswith("asset:") else self._own
            if key not in store:
                store[key] = self._texture(picture)
        rows = [
            np.concatenate([p.positions, p.normals, p.light, p.uvs, p.sheen[:, None]], 1).astype(np.float32)
            for p in scene.parts
        ]
        starts = np.cumsum([0, *map(len, rows)])
        faces = [(p.faces + start).astype(np.int32) for p, start in zip(scene.parts, starts)]
        vertices, indices = (
            self.ctx.buffer(np.concatenate(rows).tobytes()),
            self.ctx.buffer(np.concatenate(faces).tobytes()),
        )
        array = self.ctx.vertex_array(
            self.program,
            [(vertices, "3f 3f 3f 2f 1f", "in_position", "in_normal", "in_light", "in_uv", "in_sheen")],
            indices,
        )
        self._buffers = [array, vertices, indices]
        first = 0
        for part, face in zip(scene.parts, faces):
            texture = self._kept.get(part.texture) or self._own[part.texture]
            self._draws.append((part, texture, first, face.size))
            first += face.size
        self._array, self._exposure = array, scene.exposure

    def _render(self, camera: Camera) -> RenderOutput:
        ctx, gl, program = self.ctx, self._gl, self.program
        program["view"].write(camera.head_to_camera().T.astype(np.float32).tobytes())
        program["projection"].write(camera.projection().T.astype(np.float32).tobytes())
        program["eye"].value = tuple(camera.position_head())
        program["exposure"].value = self._exposure
        self._all.use()
        self._all.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)
        ctx.enable_only(gl.DEPTH_TEST)
        ctx.depth_func = "<"
        self._pass(0, ("opaque",))
        self._pass(1, ("cutout", "hair"))
        self._colour_only.use()
        self._colour_only.depth_mask = False
        ctx.enable_only(gl.DEPTH_TEST | gl.BLEND)
        ctx.blend_func = gl.ONE, gl.ONE_MINUS_SRC_ALPHA
        self._pass(2, ("hair", "blend"))
        self._out.use()
        ctx.enable_only(gl.NOTHING)
        for unit, (name, texture) in enumerate(zip(("colour", "surface", "labels"), self._big)):
            texture.use(unit)
            self.resolve[name].value = unit
        self.resolve["factor"].value = self.supersample
        self._screen.render(gl.TRIANGLES, vertices=3)
        size = self.size
        colour = np.frombuffer(self._out.read(components=4, attachment=0), np.uint8).reshape(size, size, 4)[::-1]
        surface = np.frombuffer(self._out.read(components=4, attachment=1, dtype="f4"), np.float32).reshape(
            size, size, 4
        )[::-1]
        label = np.frombuffer(self._out.read(components=1, attachment=2), np.uint8).reshape(size, size)[::-1]
        return RenderOutput.from_head_frame(colour, surface[..., 3], surface[..., :3], label, camera)

    def _pass(self, stage: int, modes: tuple[str, ...]) -> None:
        program = self.program
        program["stage"].value = stage
        for part, texture, first, count in self._draws:
            if part.mode not in modes:
                continue
            texture.use(0)
            program["tint"].value = tuple(float(v) for v in part.tint)
            program["opacity"].value = part.opacity
            program["label"].value = float(part.label)
            self._array.render(self._gl.TRIANGLES, vertices=count, first=first)

    def _texture(self, picture: np.ndarray):
        """Premultiplied, flipped to GL's bottom-up rows, with mipmaps."""
        alpha = picture[..., 3:].astype(np.uint16)
        data = np.concatenate([(picture[..., :3] * alpha + 127) // 255, alpha], -1).astype(np.uint8)[::-1]
        texture = self.ctx.texture(picture.shape[1::-1], 4, np.ascontiguousarray(data).tobytes())
        texture.build_mipmaps()
        texture.repeat_x = texture.repeat_y = False
        texture.filter = (self._gl.LINEAR_MIPMAP_LINEAR, self._gl.LINEAR)
        if self.anisotropy > 1:
            texture.anisotropy = self.anisotropy
        return texture
