"""Turn a subject into triangles, textures and baked light that either rasteriser draws."""

from functools import cached_property

import numpy as np

from ..ops.canonical import BOX_RADIUS
from . import cards, fur, hair, lighting
from .assets import AssetPack, FittedAsset
from .bake import bake_light
from .caps import bust_caps
from .clothes import paint_clothes
from .glasses import glasses_parts
from .heads import HeadBasis
from .mesh import split_corners, unit, vertex_normals
from .normalise import normalise_head
from .parts import LABELS, Part, Scene, compact
from .skin import facial_hair_linear, hair_linear, paint_skin, scalp_region, skin_layout, to_linear
from .subjects import Subject
from .turn import turn_part
from .variety import vary_shape

NEAR_CYLINDER = 0.5  # triangles farther from the axis than this are dropped


class SceneBuilder:
    """Builds scenes from a head basis and an asset pack; keeps what does not depend on the subject."""

    def __init__(self, basis: HeadBasis, assets: AssetPack):
        self.basis, self.assets = basis, assets
        self._lookup = basis.lookup()
        self._fits: dict[tuple[str, str], FittedAsset] = {}
        self._hair_textures: dict[str, np.ndarray] = {}
        self._irises: dict[str, np.ndarray] = {}

    @cached_property
    def layout(self):
        """Where skin features lie in the texture."""
        return skin_layout(self.basis)

    @cached_property
    def _fur(self):
        return fur.fur_regions(self.basis, self.layout)

    def asset(self, kind: str, name: str) -> FittedAsset:
        """An asset restricted to the vertices that the basis has."""
        key = (kind, name)
        if key not in self._fits:
            self._fits[key] = self.assets.asset(kind, name).restricted(self._lookup)
        return self._fits[key]

    def hair_texture(self, kind: str, name: str) -> np.ndarray:
        """Strand texture whose brightness is NEUTRAL on average, so that a tint is the hair's
        colour."""
        key = f"{kind}/{name}"
        if key not in self._hair_textures:
            self._hair_textures[key] = hair.neutral_strands(
                self.assets.image(kind, name), streaks=0.22 if kind == "hair" else 0.0
            )
        return self._hair_textures[key]

    def iris_texture(self, name: str) -> np.ndarray:
        """Iris and sclera in natural colours."""
        if name not in self._irises:
            self._irises[name] = hair.natural_iris(self.assets.image("iris", name))
        return self._irises[name]

    def build(self, subject: Subject) -> Scene:
        """Geometry, textures and light of one subject."""
        basis = self.basis
        body = basis.evaluate(subject.phenotypes, subject.local_changes, subject.expression).astype(np.float64)
        head, scale, translation = normalise_head(body, body[basis.landmark_index])
        textures: dict[str, np.ndarray] = {}
        parts = self._clothes(subject, body, scale, translation, textures)
        head_normals = vertex_normals(head, basis.faces)
        covered = _covered(head, head_normals, parts)
        hairs = fur.fur_parts(subject, head, basis, self.layout, self._fur, textures)
        if subject.haircut is not None:
            hairs += cards.grown_parts(subject, head, head_normals, basis, self._fur, parts, textures)
        else:
            hairs += self._hair(subject, body, scale, translation, textures)
        parts = (
            self._skin(subject, head, covered, textures)
            + self._mouth(head, textures)
            + self._eyes(subject, body, scale, translation, textures)
            + parts
        )
        parts = [turn_part(part, subject.torso_deg) for part in parts]
        parts += self._caps(subject, parts, textures)
        if subject.glasses is not None:
            parts += glasses_parts(subject.glasses, head, basis, textures)
        parts += self._lashes_and_brows(subject, body, scale, translation, textures)
        parts += [turn_part(part, subject.torso_deg) for part in hairs]
        parts = [part for part in (_near(part) for part in parts) if len(part.faces)]
        scene = Scene(parts, textures, head[basis.landmark_index], scale)
        bake_light(scene, subject)
        return scene

    def _fitted(self, kind: str, name: str, body, scale, translation):
        asset = self.asset(kind, name)
        vertices = asset.fit(body) * scale + translation
        corner_vertex, corner_uv, faces = split_corners(asset.faces, asset.face_uvs)
        normals = vertex_normals(vertices, asset.faces)
        return vertices[corner_vertex], normals[corner_vertex], asset.uvs[corner_uv], faces

    def _skin(self, subject, head, covered, textures) -> list[Part]:
        layout = self.layout
        textures["skin_head"], textures["skin_body"] = paint_skin(
            subject, layout, self.assets.image("skins", subject.skin)
        )
        normals = vertex_normals(head, self.basis.faces)
        depth = np.where(covered, 0.014, 0.0)
        if subject.haircut is None and subject.hair not in ("bald", "buzz"):  # keep the skull beneath the hair
            depth += 0.012 * scalp_region(self._fur.mean, subject.hairline + 0.045) * (1 - self._fur.bare)
        head = head - depth[:, None] * normals
        positions, normals = head[layout.corner_vertex], normals[layout.corner_vertex]
        common = {"label": LABELS["skin"], "wrap": lighting.WRAP_SKIN}
        return [
            compact(
                Part(
                    "face",
                    positions=positions,
                    normals=normals,
                    uvs=layout.uv_head,
                    faces=layout.faces[layout.on_head],
                    texture="skin_head",
                    **common,
                )
            ),
            compact(
                Part(
                    "body",
                    positions=positions,
                    normals=normals,
                    uvs=layout.uv_body,
                    faces=layout.faces[~layout.on_head],
                    texture="skin_body",
                    **common,
                )
            ),
        ]

    def _mouth(self, head, textures) -> list[Part]:
        textures["asset:white"] = np.full((1, 1, 4), 255, np.uint8)
        parts = []
        for name, faces, colour in (
            ("teeth", self.basis.teeth_faces, (0.72, 0.67, 0.58)),
            ("tongue", self.basis.tongue_faces, (0.35, 0.1, 0.09)),
        ):
            normals = vertex_normals(head, faces)
            parts.append(
                compact(
                    Part(
                        name, LABELS["skin"], head, normals, np.zeros((len(head), 2)), faces, "asset:white", tint=colour
                    )
                )
            )
        return parts

    def _eyes(self, subject, body, scale, translation, textures) -> list[Part]:
        positions, normals, uvs, faces = self._fitted("eyes", self.assets.eye_name, body, scale, translation)
        yaw, pitch = np.radians(subject.gaze_deg)
        turn = _rotation_y(yaw) @ _rotation_x(pitch)
        for side in (positions[:, 0] < 0, positions[:, 0] >= 0):
            centre = 0.5 * (positions[side].min(0) + positions[side].max(0))
            positions[side] = (positions[side] - centre) @ turn.T + centre
        normals = normals @ turn.T
        key = f"asset:iris/{subject.iris}"
        textures[key] = self.iris_texture(subject.iris)
        eyes = Part("eyes", LABELS["eyes"], positions, normals, uvs, faces, key, mode="cutout", tint=(0.72, 0.72, 0.72))
        return [
            eyes,
            *(
                _catchlight(positions[side], turn[:, 2], subject)
                for side in (positions[:, 0] < 0, positions[:, 0] >= 0)
            ),
        ]

    def _clothes(self, subject, body, scale, translation, textures) -> list[Part]:
        if subject.clothes == "bare":
            return []
        positions, normals, uvs, faces = self._fitted("clothes", subject.clothes, body, scale, translation)
        textures["clothes"] = paint_clothes(subject, self.assets.image("clothes", subject.clothes))
        return [Part("clothes", LABELS["clothes"], positions, normals, uvs, faces, "clothes")]

    def _lashes_and_brows(self, subject, body, scale, translation, textures) -> list[Part]:
        parts = []
        colour = facial_hair_linear(subject)
        for kind, name, label, tint, opacity in (
            ("eyelashes", subject.eyelash, "brows", 0.25 * colour, 0.8),
            ("eyebrows", subject.eyebrow, "brows", colour, 0.9),
        ):
            positions, normals, uvs, faces = self._fitted(kind, name, body, scale, translation)
            positions = positions + (0.0015 * normals * np.sign(normals[:, 2:]) if kind == "eyebrows" else 0.0)
            key = f"asset:{kind}/{name}"
            textures[key] = self.hair_texture(kind, name)
            parts.append(
                Part(
                    kind,
                    LABELS[label],
                    positions,
                    normals,
                    uvs,
                    faces,
                    key,
                    mode="hair",
                    tint=tint * hair.NEUTRAL_GAIN,
                    opacity=opacity,
                    wrap=lighting.WRAP_HAIR,
                    casts=0.0,
                )
            )
        return parts

    def _hair(self, subject, body, scale, translation, textures) -> list[Part]:
        if subject.hair in ("bald", "buzz"):
            return []
        positions, normals, uvs, faces = self._fitted("hair", subject.hair, body, scale, translation)
        positions, faces = hair.shape_hair(positions, faces, subject)
        positions = vary_shape(positions, subject.hair_variety, subject.rng(7))
        normals = unit(hair.smooth_normals(positions, normals))
        key = f"asset:hair/{subject.hair}"
        textures[key] = self.hair_texture("hair", subject.hair)
        return [
            Part(
                "hair",
                LABELS["hair"],
                positions,
                normals,
                uvs,
                faces,
                key,
                mode="hair",
                tint=hair_linear(subject) * hair.NEUTRAL_GAIN,
                wrap=lighting.WRAP_HAIR,
            )
        ]

    def _caps(self, subject, parts, textures) -> list[Part]:
        solid = [(part.positions, part.faces) for part in parts if part.name in ("face", "body", "clothes")]
        positions, normals, faces = bust_caps(solid)
        if not len(faces):
            return []
        bare = subject.clothes == "bare"
        colour = to_linear(subject.skin_srgb if bare else subject.clothes_srgb)
        return [
            Part(
                "cap",
                LABELS["skin" if bare else "clothes"],
                positions,
                normals.astype(np.float32),
                np.zeros((len(positions), 2)),
                faces,
                "asset:white",
                tint=colour,
                casts=0.0,
            )
        ]


def _catchlight(eye: np.ndarray, gaze: np.ndarray, subject: Subject, radius: float = 0.0022) -> Part:
    """The reflection of the key light on an eyeball (n,3) as a small disc, fixed where a viewer in front sees it."""
    centre = 0.5 * (eye.min(0) + eye.max(0))
    key = np.asarray(subject.lighting.lights[0].direction)
    normal = unit(unit(gaze) + 0.35 * (key if key[2] > 0 else unit(key * [1, 1, 0] + [0, 0, 0.5])))
    across = unit(np.cross([0.0, 1.0, 0.0], normal))
    angle = np.arange(8) * (np.pi / 4)
    ring = radius * (np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * np.cross(normal, across))
    positions = centre + normal * (0.5 * float(np.ptp(eye[:, 0])) * 1.04) + np.concatenate([ring, np.zeros((1, 3))])
    fan = np.stack([np.arange(8), (np.arange(8) + 1) % 8, np.full(8, 8)], 1)
    return Part(
        "catchlight",
        LABELS["eyes"],
        positions,
        np.tile(normal, (9, 1)),
        np.zeros((9, 2)),
        fan,
        "asset:white",
        mode="blend",
        opacity=0.8,
        casts=0.0,
    )


def _covered(head: np.ndarray, normals: np.ndarray, clothes: list[Part], closeness: float = 0.016) -> np.ndarray:
    """Which skin vertices (n,) lie closely beneath clothes: a cloth point within ``closeness`` sideways and a little
    above the skin."""
    covered = np.zeros(len(head), bool)
    radius = np.hypot(head[:, 0], head[:, 2])
    low = np.flatnonzero((head[:, 1] < -0.12) & (head[:, 1] > -BOX_RADIUS - 0.1) & (radius < NEAR_CYLINDER))
    for part in clothes:
        cloth = part.positions[part.faces].mean(1).astype(np.float32)
        cloth = cloth[np.hypot(cloth[:, 0], cloth[:, 2]) < NEAR_CYLINDER + 0.03]
        skin, normal = head[low].astype(np.float32), normals[low].astype(np.float32)
        along = normal @ cloth.T - (normal * skin).sum(1, keepdims=True)
        distance2 = (skin**2).sum(1)[:, None] + (cloth**2).sum(1) - 2 * skin @ cloth.T
        covered[low] |= ((distance2 - along**2 < closeness**2) & (along > -0.012) & (along < 0.03)).any(1)
    return covered


def _near(part: Part) -> Part:
    """Drop triangles that cannot reach the cylinder."""
    p = part.positions
    outside = (np.hypot(p[:, 0], p[:, 2]) > NEAR_CYLINDER) | (np.abs(p[:, 1]) > BOX_RADIUS + 0.1)
    part.faces = part.faces[~outside[part.faces].any(1)]
    return compact(part) if len(part.faces) else part


def _rotation_y(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _rotation_x(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
