"""An invented head basis and asset pack in the real file formats, so that heads are rendered where neither MakeHuman's
assets nor Anny are at hand.

The head is a lathe's: rings of ellipses from crown to chest with a nose, ears, two eyeballs and the five landmarks
where `ops.canonical` wants them. Everything is a formula; nothing is random.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from portrait_diffusion.ops.canonical import CANONICAL_LANDMARKS_HEAD
from portrait_diffusion.synthetic.heads import FORMAT_VERSION, PHENOTYPE_AXES, quantise, write_npz
from portrait_diffusion.synthetic.skin import HEAD_RECT

DECIMETRES, ORIGIN = 5.6, np.array([0.0, 7.0, 0.4])  # body frame = DECIMETRES * head frame + ORIGIN
COLUMNS = 16
FRONT = COLUMNS // 2  # column of the profile's front; column 0 is the seam at the back
AXIS = -0.02  # z of the lathe's axis
#: Height, half width, z of the front, z of the back (head frame).
PROFILE = np.array(
    [
        (0.22, 0.0, AXIS, AXIS), (0.20, 0.06, 0.05, -0.11), (0.16, 0.10, 0.11, -0.15), (0.10, 0.122, 0.145, -0.18),
        (0.02, 0.125, 0.155, -0.185), (-0.06, 0.118, 0.165, -0.165), (-0.11, 0.10, 0.168, -0.14),
        (-0.16, 0.075, 0.16, -0.11), (-0.185, 0.06, 0.12, -0.10), (-0.20, 0.06, 0.05, -0.095),
        (-0.25, 0.065, 0.04, -0.10), (-0.29, 0.12, 0.05, -0.11), (-0.32, 0.25, 0.07, -0.13),
        (-0.36, 0.40, 0.09, -0.16), (-0.42, 0.46, 0.11, -0.18), (-0.52, 0.46, 0.12, -0.18),
    ]
)  # fmt: skip
EYE_Y, MOUTH_Y = CANONICAL_LANDMARKS_HEAD[0, 1], CANONICAL_LANDMARKS_HEAD[2, 1]
NOSE = np.array([0.0, -0.055, 0.2])
HEIGHTS = np.array(
    [0.22, 0.20, 0.165, 0.125, 0.085, 0.05, EYE_Y, -0.02, NOSE[1], -0.08, MOUTH_Y, -0.135, -0.16, -0.18, -0.2, -0.26]
    + [-0.285, -0.31, -0.34, -0.38, -0.44, -0.52]
)
HEAD_RINGS = 16  # rings that show on the head's part of the skin
EYEBALL = 0.02  # radius
EAR = np.array([0.14, 0.0, -0.03])
MISSING = 13001  # a vertex of the base mesh that the basis leaves out

#: Local changes: where, which way, how wide. Names that start with l- are mirrored to r-.
LOCAL = {
    "head-fat-incr": ((0.0, -0.06, 0.0), (0.0, 0.0, 0.006), 0.2),
    "nose-hump-incr": (tuple(NOSE), (0.0, 0.0, 0.02), 0.03),
    "mouth-scale-vert-incr": ((0.0, MOUTH_Y, 0.16), (0.0, 0.006, 0.0), 0.04),
    "chin-height-incr": ((0.0, -0.16, 0.15), (0.0, -0.02, 0.0), 0.05),
    "neck-scale-depth-incr": ((0.0, -0.23, 0.0), (0.0, 0.0, 0.01), 0.1),
    "l-eye-scale-incr": ((0.056, EYE_Y, 0.14), (0.0, 0.0, 0.004), 0.03),
    "l-cheek-volume-incr": ((0.07, -0.06, 0.12), (0.01, 0.0, 0.01), 0.04),
    "l-ear-trans-up": (tuple(EAR), (0.0, 0.02, 0.0), 0.03),
}
#: Facial actions; names that end in Left are mirrored to Right.
ACTIONS = {
    "mouthSmileLeft": ((0.0465, MOUTH_Y, 0.15), (0.015, 0.008, 0.0), 0.03),
    "mouthFrownLeft": ((0.0465, MOUTH_Y, 0.15), (0.0, -0.01, 0.0), 0.03),
    "mouthUpperUpLeft": ((0.02, -0.1, 0.16), (0.0, 0.01, 0.0), 0.02),
    "mouthLowerDownLeft": ((0.02, -0.13, 0.16), (0.0, -0.01, 0.0), 0.02),
    "mouthPressLeft": ((0.03, MOUTH_Y, 0.16), (0.0, 0.0, -0.005), 0.02),
    "cheekSquintLeft": ((0.07, -0.03, 0.12), (0.0, 0.008, 0.004), 0.03),
    "eyeSquintLeft": ((0.056, -0.005, 0.14), (0.0, 0.005, 0.0), 0.015),
    "eyeBlinkLeft": ((0.056, 0.045, 0.14), (0.0, -0.01, 0.0), 0.015),
    "browDownLeft": ((0.05, 0.06, 0.14), (0.0, -0.01, 0.0), 0.02),
    "browInnerUp": ((0.0, 0.06, 0.15), (0.0, 0.01, 0.0), 0.03),
    "mouthPucker": ((0.0, MOUTH_Y, 0.16), (0.0, 0.0, 0.012), 0.03),
    "jawOpen": ((0.0, -0.16, 0.15), (0.0, -0.03, 0.0), 0.05),
}
#: Names in the pack: some for training, and some of those that validation and test reserve.
NAMES = {
    "skins": {
        "young_caucasian_female_0": (228, 184, 160),
        "middleage_asian_male_0": (214, 168, 130),
        "young_african_male_0": (112, 74, 55),
        "old_asian_male_0": (205, 165, 135),  # validation
        "old_african_female_0": (98, 66, 50),  # test
        "young_asian_female_0": (225, 180, 150),  # test
    },
    "hair": {"short04": -0.02, "long01": -0.24, "short02": 0.02},  # how far down; the last for test
    "eyebrows": {"eyebrow001": 0.006, "eyebrow005": 0.008, "eyebrow003": 0.01},  # thickness; validation, test
    "eyelashes": {"eyelashes01": 0.006, "eyelashes03": 0.009},  # length; test
    "iris": {
        "brown_eye": (110, 70, 40),
        "blue_eye": (70, 110, 160),
        "ice_eye": (150, 180, 200),  # validation
        "grey_eye": (120, 125, 130),  # test
    },
    "clothes": {"male_casualsuit01": 0.012, "female_casualsuit01": 0.016, "male_casualsuit02": 0.014},  # distance; test
}


def surface(height, angle, margin: float = 0.0) -> np.ndarray:
    """Points (...,3) of the lathe, ``margin`` outside it; angle 0 in front, positive towards +x."""
    height, angle = np.broadcast_arrays(np.asarray(height, float), np.asarray(angle, float))
    width, front, back = (np.interp(height, PROFILE[::-1, 0], PROFILE[::-1, k]) for k in (1, 2, 3))
    depth = np.where(np.cos(angle) > 0, front - AXIS, AXIS - back) + margin
    return np.stack([(width + margin) * np.sin(angle), height, AXIS + depth * np.cos(angle)], -1)


def lattice(rows: int, columns: int, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (f,3) of a grid: of its vertices (closed: the last column is the first) and of its texture corners."""
    k, j = (a.ravel() for a in np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij"))
    faces = []
    for stride in (columns if closed else columns + 1, columns + 1):
        a, b, c, d = (
            row * stride + column % stride for row, column in ((k, j), (k + 1, j), (k + 1, j + 1), (k, j + 1))
        )
        faces.append(np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]))
    return faces[0], faces[1]


def grid_uvs(rows: int, columns: int, rect=(0.0, 1.0, 0.0, 1.0)) -> np.ndarray:
    """Texture corners (rows * (columns + 1), 2) over a rectangle (u from, u to, v from, v to), the first row on top."""
    u, v = np.meshgrid(np.linspace(rect[0], rect[1], columns + 1), np.linspace(rect[3], rect[2], rows))
    return np.stack([u.ravel(), v.ravel()], 1)


def eyeball(pupil: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A ball whose foremost point, vertex 0, is ``pupil``: vertices (34,3) and triangles."""
    polar, around = np.linspace(0, np.pi, 6)[1:-1], np.arange(8) * (np.pi / 4)
    t, a = np.meshgrid(polar, around, indexing="ij")
    ring = np.stack([np.sin(t) * np.cos(a), np.sin(t) * np.sin(a), np.cos(t)], -1).reshape(-1, 3)
    points = np.concatenate([[[0, 0, 1]], ring, [[0, 0, -1]]])
    k, j = np.arange(8), (np.arange(8) + 1) % 8
    faces = [np.stack([np.zeros(8, int), 1 + k, 1 + j], 1)]
    for row in range(3):
        a, b = 1 + 8 * row, 9 + 8 * row
        faces += [np.stack([a + k, b + k, b + j], 1), np.stack([a + k, b + j, a + j], 1)]
    faces.append(np.stack([25 + k, np.full(8, 33), 25 + j], 1))
    return pupil + EYEBALL * (points - [0, 0, 1]), np.concatenate(faces)


class InventedHead:
    """The mean head: ``vertices (n,3)`` in the head frame, ``numbers (n,)`` in the base mesh, and who is who."""

    def __init__(self):
        angle = (np.arange(COLUMNS) - FRONT) * (2 * np.pi / COLUMNS)
        skin = surface(HEIGHTS[:, None], angle[None])
        for side in (1, -1):
            for back, out in ((0, 0.02), (1, 0.03)):
                column = (FRONT + side * (COLUMNS // 4 + back)) % COLUMNS
                skin[:, column, 0] += side * out * np.exp(-(((HEIGHTS - EAR[1]) / 0.03) ** 2))
        rows = {height: int(np.argmin(np.abs(HEIGHTS - height))) for height in (NOSE[1], MOUTH_Y)}
        skin[rows[NOSE[1]], FRONT] = NOSE
        corners = [rows[MOUTH_Y] * COLUMNS + FRONT + step for step in (-1, 1)]
        skin = skin.reshape(-1, 3)
        skin[corners] = CANONICAL_LANDMARKS_HEAD[2:]
        self.faces, corner = lattice(len(HEIGHTS), COLUMNS, closed=True)
        on_head = self.faces.max(1) < HEAD_RINGS * COLUMNS
        u0, u1, v0, v1 = HEAD_RECT
        inner = (u0 + 0.01, u1 - 0.002, v0 + 0.01, v1 - 0.01)
        head_uvs = grid_uvs(HEAD_RINGS, COLUMNS, inner)
        self.uvs = np.concatenate([head_uvs, grid_uvs(len(HEIGHTS), COLUMNS, (0.02, 0.6, 0.02, 0.98))])
        self.face_uvs = np.where(on_head[:, None], corner, corner + len(head_uvs))
        balls = [eyeball(pupil) for pupil in CANONICAL_LANDMARKS_HEAD[:2]]
        inside = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * [0.02, 0.006, 0] + [0, MOUTH_Y, 0.12]
        self.vertices = np.concatenate([skin, balls[0][0], balls[1][0], inside, inside - [0, 0.004, 0.01]])
        self.skin = len(skin)
        self.balls = [(self.skin + k * len(balls[0][0]), balls[0][1]) for k in (0, 1)]
        self.teeth = len(skin) + 2 * len(balls[0][0])
        self.landmarks = np.array([self.balls[0][0], self.balls[1][0], rows[NOSE[1]] * COLUMNS + FRONT, *corners])
        helpers = len(self.vertices) - self.skin
        self.numbers = np.concatenate([5 * np.arange(self.skin) + 1, 14598 + np.arange(helpers)])

    def bump(self, centre, direction, width: float) -> np.ndarray:
        """Displacements (n,3) around a point, none far from it."""
        weight = np.exp(-((self.vertices - np.asarray(centre)) ** 2).sum(1) / width**2)
        return np.where(weight > 0.05, weight, 0.0)[:, None] * np.asarray(direction)

    def shapes(self, table: dict, left: str, right: str) -> dict[str, np.ndarray]:
        """Displacements by name, those of the left also mirrored."""
        found = {}
        for name, (centre, direction, width) in table.items():
            found[name] = self.bump(centre, direction, width)
            if left in name:
                mirror = np.array([-1, 1, 1])
                found[name.replace(left, right)] = self.bump(centre * mirror, direction * mirror, width)
        return found

    def follow(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """The fit (fields of a FittedAsset) that keeps points (m,3) where they are on the mean head."""
        distance = np.linalg.norm(points[:, None] - self.vertices[None, : self.skin], axis=2)
        nearest = np.argsort(distance, axis=1)[:, :3]
        weights = 1 / (np.take_along_axis(distance, nearest, 1) + 0.01)
        weights /= weights.sum(1, keepdims=True)
        offsets = points - np.einsum("nk,nkc->nc", weights, self.vertices[nearest])
        return {
            "verts": body_frame(points),
            "ref_idx": self.numbers[nearest],
            "ref_weights": weights,
            "offsets": offsets * DECIMETRES,
            "scale_refs": self.scale_refs(),
        }

    def scale_refs(self) -> np.ndarray:
        """(3,3): the vertices that are farthest apart along each axis of the head, and how far that is."""
        head = self.vertices[: HEAD_RINGS * COLUMNS]
        ends = self.numbers[np.stack([head.argmax(0), head.argmin(0)], 1)]
        return np.concatenate([ends, DECIMETRES * np.ptp(head, axis=0)[:, None]], 1)


def body_frame(points: np.ndarray) -> np.ndarray:
    """Head frame to the frame of the base mesh: decimetres, y up."""
    return DECIMETRES * points + ORIGIN


def write_basis(path: Path) -> Path:
    """Write the head basis (.npz)."""
    head = InventedHead()
    middle = head.vertices - [0, 0.5 * (EYE_Y + MOUTH_Y), 0.15]
    macro = [
        0.1 * middle,  # size: the normalised head does not change
        middle * [0.06, 0, 0] * (middle[:, 1:2] < -0.05),  # a wider jaw and neck
        head.bump((0.0, -0.1, 0.05), (0.0, -0.006, 0.0), 0.12),  # a longer face
        head.bump(NOSE, (0.0, 0.0, 0.012), 0.03),  # a longer nose
    ]
    gender, age, muscle, weight = np.meshgrid(*PHENOTYPE_AXES.values(), indexing="ij")
    origin = np.array([0.0, -1.0, 1.0])
    table = np.stack(
        [
            np.broadcast_to(value[..., None] + tilt * origin, (*gender.shape, 3))
            for value, tilt in ((age - 2 / 3, 0.0), (weight - gender, 0.0), (muscle - gender, 0.1), (0 * age, 0.5))
        ],
        -1,
    )
    local, actions = head.shapes(LOCAL, "l-", "r-"), head.shapes(ACTIONS, "Left", "Right")
    rows = [*macro, *(sign * shape for shape in local.values() for sign in (1, -1)), *actions.values()]
    components, scale = quantise(DECIMETRES * np.stack(rows).reshape(len(rows), -1))
    square = np.array([[0, 1, 2], [0, 2, 3]]) + head.teeth
    write_npz(
        path,
        meta=np.array(
            json.dumps(
                {
                    "format": FORMAT_VERSION,
                    "source": "invented for tests",
                    "local_labels": list(local),
                    "expression_labels": list(actions),
                }
            )
        ),
        vertex_index=head.numbers.astype(np.int32),
        mean=body_frame(head.vertices).astype(np.float32),
        components=components,
        scale=scale,
        macro_table=table.astype(np.float32),
        uvs=head.uvs.astype(np.float32),
        faces=head.faces.astype(np.int32),
        face_uvs=head.face_uvs.astype(np.int32),
        teeth_faces=square.astype(np.int32),
        tongue_faces=(square + 4).astype(np.int32),
        landmark_index=head.landmarks.astype(np.int32),
        arm_weights=np.zeros((len(head.vertices), 2), np.float32),
        shoulder_index=np.array([[FRONT + 4], [FRONT - 4]], np.int32),
    )
    return path


def write_assets(root: Path) -> Path:
    """Write the asset pack: folders of meshes (.npz) and textures (.png)."""
    head = InventedHead()
    for name, colour in NAMES["skins"].items():
        shade = 1 + 0.04 * np.sin(np.arange(64) / 3.0)
        _picture(root / "skins" / f"{name}.png", (shade[:, None, None] * np.array(colour)).repeat(64, 1))
    for name, lowest in NAMES["hair"].items():
        _grid(root / "hair" / name, head, *hair_cap(lowest))
        _picture(root / "hair" / f"{name}.png", strands())
    for name, thickness in NAMES["eyebrows"].items():
        _grid(root / "eyebrows" / name, head, *strips(np.linspace(0.028, 0.085, 5), 0.055, 0.008, thickness))
        _picture(root / "eyebrows" / f"{name}.png", strands())
    for name, length in NAMES["eyelashes"].items():
        _grid(root / "eyelashes" / name, head, *strips(np.linspace(0.04, 0.072, 5), 0.036, 0.02, length))
        _picture(root / "eyelashes" / f"{name}.png", strands())
    for name, margin in NAMES["clothes"].items():
        _clothes(root / "clothes" / name, head, margin)
        cloth = np.full((16, 16, 3), 120)
        cloth[::4] = 90
        _picture(root / "clothes" / f"{name}.png", cloth)
    _eyes(root / "eyes" / "ball", head)
    for name, colour in NAMES["iris"].items():
        _picture(root / "eyes" / "iris" / f"{name}.png", iris(colour))
    return root


def hair_cap(lowest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A cap that ends at the forehead in front and at ``lowest`` elsewhere: points, triangles, corners, their
    triangles."""
    angle = (np.arange(COLUMNS) - FRONT) * (2 * np.pi / COLUMNS)
    bottom = np.where(np.cos(angle) > 0.5, 0.12, lowest)
    height = 0.245 + np.linspace(0, 1, 6)[:, None] * (bottom - 0.245)
    return surface(height, angle[None], 0.02).reshape(-1, 3), *_closed(6)


def _closed(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    faces, corners = lattice(rows, COLUMNS, closed=True)
    return faces, grid_uvs(rows, COLUMNS), corners


def strips(x: np.ndarray, y: float, out: float, thickness: float):
    """A strip of two rows over each eye, ``out`` in front of the skin: what `hair_cap` returns."""
    points, faces, uvs, corners = [], [], [], []
    for k, side in enumerate((-1, 1)):
        across = side * x[::side]  # from left to right on both sides
        angle = np.arcsin(across / np.interp(y, PROFILE[::-1, 0], PROFILE[::-1, 1]))
        rows = np.array([y + thickness, y - thickness])[:, None]
        points.append(surface(np.broadcast_to(rows, (2, len(x))), angle[None]).reshape(-1, 3) + [0, 0, out])
        face, corner = lattice(2, len(x) - 1, closed=False)
        faces.append(face + 2 * len(x) * k)
        corners.append(corner + 2 * len(x) * k)
        uvs.append(grid_uvs(2, len(x) - 1))
    return np.concatenate(points), np.concatenate(faces), np.concatenate(uvs), np.concatenate(corners)


def strands() -> np.ndarray:
    """(32,32,4) streaks that thin out below."""
    streak = 90 + 50 * np.sin(np.arange(32) * 1.7)
    alpha = np.clip(np.linspace(420, 60, 32), 0, 255)
    picture = np.empty((32, 32, 4))
    picture[..., :3], picture[..., 3] = streak[None, :, None], alpha[:, None]
    return picture


def iris(colour) -> np.ndarray:
    """(32,32,4) white with a coloured disc and a pupil."""
    y, x = np.mgrid[0:32, 0:32] - 15.5
    radius = np.hypot(x, y)[..., None]
    rgb = np.where(radius < 3, 15, np.where(radius < 8, np.array(colour), 235))
    return np.concatenate([rgb, np.full((32, 32, 1), 255)], -1)


def _grid(path: Path, head: InventedHead, points, faces, uvs, corners) -> None:
    _mesh(path, uvs=uvs, faces=faces, face_uvs=corners, **head.follow(points))


def _clothes(path: Path, head: InventedHead, margin: float) -> None:
    """A shirt whose lowest row follows vertices that the basis leaves out."""
    angle = (np.arange(COLUMNS) - FRONT) * (2 * np.pi / COLUMNS)
    height = np.array([-0.26, -0.285, -0.31, -0.34, -0.38, -0.42, -0.45, -0.54])
    fit = head.follow(surface(height[:, None], angle[None], margin).reshape(-1, 3))
    fit["ref_idx"][-COLUMNS:, 2] = MISSING
    faces, uvs, corners = _closed(len(height))
    _mesh(path, uvs=uvs, faces=faces, face_uvs=corners, **fit)


def _eyes(path: Path, head: InventedHead) -> None:
    rows = np.concatenate([first + np.arange(34) for first, _ in head.balls])
    points = head.vertices[rows]
    faces = np.concatenate([triangles + 34 * k for k, (_, triangles) in enumerate(head.balls)])
    flat = np.concatenate([ball[:, :2] - ball[0, :2] for ball in np.split(points, 2)])
    _mesh(
        path,
        verts=body_frame(points),
        uvs=0.5 + flat / (2 * EYEBALL),
        faces=faces,
        face_uvs=faces,
        ref_idx=np.stack([head.numbers[rows]] * 3, 1),
        ref_weights=np.tile([1.0, 0.0, 0.0], (len(rows), 1)),
        offsets=np.zeros((len(rows), 3)),
        scale_refs=np.zeros((3, 3)),
    )


def _mesh(path: Path, **arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = ("faces", "face_uvs", "ref_idx")
    np.savez(path, **{k: v.astype(np.int32 if k in whole else np.float32) for k, v in arrays.items()})


def _picture(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).save(path)
