"""A linear basis of human heads, extracted once from Anny and evaluated afterwards with numpy alone.

Anny (Apache-2.0 code, CC0 shapes of MakeHuman) describes a body by *phenotypes* (gender, age, muscle, weight,
origin), *local changes* (nose width, chin height ...) and *facial actions* (smile, blink ...). Local changes and
facial actions are linear up to a sign; phenotypes act through products of hat functions of each value (Anny's
``phenotype_blendshape_weights``), so that the rest shape is exactly the multilinear interpolation of its values at
the anchors of the phenotype axes. The basis stores that table after a lossless-in-practice principal component
analysis, for the vertices that heads need.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..files import atomic_path
from ..optional import require

LOG = logging.getLogger("portrait_diffusion")

FORMAT_VERSION = 1
#: Anchors of the phenotype axes kept here, in the order of the axes of ``macro_table``.
PHENOTYPE_AXES = {
    "gender": (0.0, 1.0),  # 0 male, 1 female
    "age": (1 / 3, 2 / 3, 1.0),  # child, young, old
    "muscle": (0.0, 0.5, 1.0),
    "weight": (0.0, 0.5, 1.0),
}
ORIGINS = ("african", "asian", "caucasian")
LOCAL_PREFIXES = (
    "head-",
    "nose-",
    "mouth-",
    "chin-",
    "forehead-",
    "eyebrows-",
    "l-eye-",
    "r-eye-",
    "l-cheek-",
    "r-cheek-",
    "l-ear-",
    "r-ear-",
    "neck-",
    "measure-neck-",
    "measure-shoulder-",
)
BODY_VERTICES = 13380  # hm08: vertices from here on are auxiliary geometry
SCALE_VERTICES = (5399, 11998, 791, 881, 962, 5320)  # what the fits of MakeHuman assets measure
LEFT_MOUTH_CORNER = 7185  # hm08 vertex at the outer end of the lip seam, positive x
EYE_VERTICES = (14598, 14742)  # hm08 helper eyeballs


@dataclass(frozen=True)
class HeadBasis:
    """Vertices, triangles and shape directions of the head, neck and shoulders (y up, decimetres, facing +z).

    ``vertex_index`` (n,) numbers the vertices in the full base mesh (hm08); ``macro_table`` (2,3,3,3,3,r) holds the
    principal coefficients at the phenotype anchors (axes gender, age, muscle, weight, origin); ``components`` (r+l+e,
    3n) holds principal directions, then local changes (two rows a label: increase, decrease), then facial actions.
    """

    vertex_index: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    macro_table: np.ndarray
    local_labels: tuple[str, ...]
    expression_labels: tuple[str, ...]
    uvs: np.ndarray
    faces: np.ndarray
    face_uvs: np.ndarray
    teeth_faces: np.ndarray
    tongue_faces: np.ndarray
    landmark_index: np.ndarray
    arm_weights: np.ndarray
    shoulder_index: np.ndarray

    def lookup(self) -> np.ndarray:
        """Map from a base-mesh vertex number to a row of this basis, -1 where the basis leaves the vertex out."""
        table = np.full(19158, -1, np.int64)
        table[self.vertex_index] = np.arange(len(self.vertex_index))
        return table

    def coefficients(self, phenotypes: dict, local_changes: dict, expression: dict) -> np.ndarray:
        """Coefficients (rows of ``components``,) of one subject; see `evaluate` for the arguments."""
        weights = np.ones(1)
        for name, anchors in PHENOTYPE_AXES.items():
            weights = np.multiply.outer(weights, hat_weights(phenotypes[name], np.asarray(anchors)))
        origin = np.array([max(0.0, phenotypes[name]) for name in ORIGINS])
        if origin.sum() <= 0:
            raise UsageError("phenotypes: at least one of african, asian, caucasian must be positive.")
        weights = np.multiply.outer(weights, origin / origin.sum())
        macro = np.tensordot(weights[0], self.macro_table, axes=5)
        local = np.zeros((len(self.local_labels), 2))
        for label, value in local_changes.items():
            local[_position(self.local_labels, label), 0 if value >= 0 else 1] = abs(value)
        action = np.zeros(len(self.expression_labels))
        for label, value in expression.items():
            action[_position(self.expression_labels, label)] = value
        return np.concatenate([macro, local.ravel(), action])

    def evaluate(
        self, phenotypes: dict, local_changes: dict | None = None, expression: dict | None = None
    ) -> np.ndarray:
        """Rest vertices of one subject.

        Args:
            phenotypes: gender, muscle, weight in [0, 1], age in [1/3, 1], and african, asian, caucasian >= 0 (not all
                0).
            local_changes: label -> value in [-1, 1].
            expression: facial action -> value in [0, 1].
        Returns: (n, 3) float32, y up, decimetres.
        Raises: UsageError for an unknown label.
        """
        coefficients = self.coefficients(phenotypes, local_changes or {}, expression or {}).astype(np.float32)
        active = np.flatnonzero(coefficients)
        return self.mean + (coefficients[active] @ self.components[active]).reshape(-1, 3)


def hat_weights(value: float, anchors: np.ndarray) -> np.ndarray:
    """Linear interpolation weights (k,) of a value at sorted anchors (k,), clamped to their range; they sum to one."""
    value = float(np.clip(value, anchors[0], anchors[-1]))
    right = int(np.clip(np.searchsorted(anchors, value), 1, len(anchors) - 1))
    t = (value - anchors[right - 1]) / (anchors[right] - anchors[right - 1])
    weights = np.zeros(len(anchors))
    weights[right - 1], weights[right] = 1 - t, t
    return weights


def _position(labels: tuple[str, ...], label: str) -> int:
    try:
        return labels.index(label)
    except ValueError:
        raise UsageError(f"The head basis knows no shape '{label}'; it has: {', '.join(labels[:8])} ...") from None


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 16-bit quantisation of each row: rows ~ int16 * scale; the error is at most scale/2."""
    scale = np.abs(rows).max(1, keepdims=True) / 32767.0
    scale[scale == 0] = 1.0
    return np.round(rows / scale).astype(np.int16), scale.astype(np.float32)


def load_head_basis(path: str | os.PathLike) -> HeadBasis:
    """Read a basis written by `build_head_basis`; needs numpy only.

    Raises: UsageError when the file is missing or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"Head basis '{path}' does not exist; make it once with: "
            f"python -m portrait_diffusion.synthetic.heads {path}"
        )
    with np.load(path, allow_pickle=False) as data:
        meta = json.loads(str(data["meta"]))
        if meta.get("format") != FORMAT_VERSION:
            raise UsageError(
                f"Head basis '{path}' has format {meta.get('format')}, expected {FORMAT_VERSION}; build it again."
            )
        components = data["components"].astype(np.float32) * data["scale"]
        arrays = {
            name: data[name]
            for name in (
                "vertex_index",
                "mean",
                "macro_table",
                "uvs",
                "faces",
                "face_uvs",
                "teeth_faces",
                "tongue_faces",
                "landmark_index",
                "arm_weights",
                "shoulder_index",
            )
        }
    return HeadBasis(
        components=components,
        local_labels=tuple(meta["local_labels"]),
        expression_labels=tuple(meta["expression_labels"]),
        **arrays,
    )


def build_anny():
    """Anny with MakeHuman's topology and every shape (about a minute on a CPU); needs the ``synthetic`` extra."""
    anny = require("anny", extra="synthetic")
    return anny.Anny(topology="makehuman", local_changes="all", facial_actions="all", phenotypes="all")


def anny_rest_vertices(
    model, phenotypes: dict, local_changes: dict | None = None, expression: dict | None = None
) -> np.ndarray:
    """Anny's rest vertices (19158, 3) in this module's frame, for building and for checking the basis."""
    torch = require("torch", extra="synthetic")
    with torch.no_grad():
        inputs = model.get_tensor_inputs(None, phenotypes, local_changes or {}, expression or {})[1:]
        vertices = model.get_rest_vertices(model._get_phenotype_blendshape_coefficients(*inputs))[0]
    return to_decimetres(vertices.double().cpu().numpy())


def to_decimetres(vertices: np.ndarray) -> np.ndarray:
    """Anny's z-up metres facing -y -> y-up decimetres facing +z."""
    return np.stack([vertices[..., 0], vertices[..., 2], -vertices[..., 1]], -1) * 10.0


def read_obj_groups(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Quads (f,4) of every group of an OBJ file whose faces all have four corners."""
    groups: dict[str, list] = {}
    current = groups.setdefault("", [])
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("g "):
                current = groups.setdefault(line[2:].strip(), [])
            elif line.startswith("f "):
                current.append([int(corner.split("/")[0]) - 1 for corner in line.split()[1:5]])
    return {name: np.array(quads, np.int64) for name, quads in groups.items() if quads}


def triangulate(quads: np.ndarray) -> np.ndarray:
    """(f,4) quads -> (2f,3) triangles."""
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def build_head_basis(path: str | os.PathLike, tolerance: float = 2e-4) -> HeadBasis:
    """Extract the basis from Anny and write it (needs the ``synthetic`` extra, about two minutes on a CPU).

    Args:
        path: file to write (.npz).
        tolerance: largest error allowed for the principal components at the anchors, decimetres.
    Returns: the basis as read back from the file.
    """
    anny = require("anny", extra="synthetic")
    model = build_anny()
    groups = read_obj_groups(Path(anny.__file__).parent / "data" / "mpfb2" / "3dobjs" / "base.obj")

    anchors = [
        {**dict(zip(PHENOTYPE_AXES, values)), **{o: float(o == origin) for o in ORIGINS}}
        for values in _product(*PHENOTYPE_AXES.values())
        for origin in ORIGINS
    ]
    table = np.stack([anny_rest_vertices(model, phenotypes) for phenotypes in anchors])
    keep, landmarks = _select_vertices(table)
    row = np.full(table.shape[1], -1, np.int64)
    row[keep] = np.arange(len(keep))

    table = table[:, keep].reshape(len(anchors), -1)
    mean = table.mean(0)
    left, values, right = np.linalg.svd(table - mean, full_matrices=False)
    for rank in range(8, len(values) + 1, 4):
        if np.abs((left[:, :rank] * values[:rank]) @ right[:rank] - (table - mean)).max() < tolerance:
            break
    shape = tuple(len(axis) for axis in PHENOTYPE_AXES.values()) + (len(ORIGINS), rank)

    blend = to_decimetres(model.blendshapes.double().cpu().numpy())[:, keep].reshape(len(model.blendshapes), -1)
    first_action = len(model.blendshape_labels) - 2 * len(model.local_change_labels) - len(model.facial_action_labels)
    first_local = first_action + len(model.facial_action_labels)
    local_labels = [
        label for label in model.local_change_labels if label.startswith(LOCAL_PREFIXES) and "trans-out" not in label
    ]
    local_rows = [
        first_local + 2 * model.local_change_labels.index(label) + side for label in local_labels for side in (0, 1)
    ]
    components = np.concatenate([right[:rank], blend[local_rows], blend[first_action:first_local]])
    quantised, scale = quantise(components)

    quads, quad_uvs = model.faces.cpu().numpy(), model.face_texture_coordinate_indices.cpu().numpy()
    body = (quads.max(1) < BODY_VERTICES) & (row[quads] >= 0).all(1)
    faces, face_uvs = triangulate(quads[body]), triangulate(quad_uvs[body])
    used_uvs, face_uvs = np.unique(face_uvs, return_inverse=True)
    teeth = np.concatenate([groups["helper-upper-teeth"], groups["helper-lower-teeth"]])
    arms = np.stack([_arm_weights(model, side)[keep] for side in "LR"], 1)
    shoulders = np.stack([np.unique(groups[f"joint-{side}-shoulder"]) for side in "lr"])

    meta = {
        "format": FORMAT_VERSION,
        "source": "Anny (Apache-2.0 code, CC0 MakeHuman shapes)",
        "anny": getattr(anny, "__version__", "unknown"),
        "local_labels": local_labels,
        "expression_labels": list(model.facial_action_labels),
    }
    write_npz(
        path,
        meta=np.array(json.dumps(meta)),
        vertex_index=keep.astype(np.int32),
        mean=mean.reshape(-1, 3).astype(np.float32),
        components=quantised,
        scale=scale,
        macro_table=(left[:, :rank] * values[:rank]).reshape(shape).astype(np.float32),
        uvs=model.texture_coordinates.cpu().numpy()[used_uvs].astype(np.float32),
        faces=row[faces].astype(np.int32),
        face_uvs=face_uvs.reshape(-1, 3).astype(np.int32),
        teeth_faces=row[triangulate(teeth)].astype(np.int32),
        tongue_faces=row[triangulate(groups["helper-tongue"])].astype(np.int32),
        landmark_index=row[landmarks].astype(np.int32),
        arm_weights=arms.astype(np.float32),
        shoulder_index=row[shoulders].astype(np.int32),
    )
    LOG.info("wrote %s: %d vertices, %d components of %d shapes", path, len(keep), rank, len(components))
    return load_head_basis(path)


def write_npz(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Write a compressed .npz atomically."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def _product(*axes):
    grids = np.meshgrid(*axes, indexing="ij")
    return np.stack([grid.ravel() for grid in grids], 1).tolist()


def _select_vertices(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices that come near the canonical cylinder for some anchor shape, and the five landmark vertices (eyes,
    nose, mouth corners)."""
    average = table.mean(0)
    eyes = np.arange(*EYE_VERTICES)
    by_side = [eyes[np.sign(average[eyes, 0]) == side] for side in (-1, 1)]
    pupils = [side[np.argmax(average[side, 2])] for side in by_side]
    body = average[:BODY_VERTICES]
    eye_y, mouth_y = average[pupils, 1].mean(), average[LEFT_MOUTH_CORNER, 1]
    middle = np.flatnonzero((np.abs(body[:, 0]) < 0.02) & (body[:, 1] < eye_y) & (body[:, 1] > mouth_y))
    nose = middle[np.argmax(body[middle, 2])]
    mirrored = average[LEFT_MOUTH_CORNER] * [-1, 1, 1]
    corners = [int(np.argmin(np.linalg.norm(body - mirrored, axis=1))), LEFT_MOUTH_CORNER]
    near = np.zeros(table.shape[1], bool)
    for vertices in table:
        centre = 0.5 * (vertices[pupils].mean(0) + vertices[corners].mean(0))
        unit = np.linalg.norm(vertices[pupils[1]] - vertices[pupils[0]]) / 0.112  # decimetres a unit: eyes 0.112 apart
        p = (vertices - centre) / unit
        near |= (np.hypot(p[:, 0], p[:, 2]) < 0.5) & (p[:, 1] > -0.5)
    near[list(SCALE_VERTICES)] = True
    return np.flatnonzero(near), np.array([*pupils, nose, *corners])


def _arm_weights(model, side: str) -> np.ndarray:
    """Sum (V,) of the skinning weights of the bones from the upper arm to the fingers of one side ('L' or 'R')."""
    prefixes = ("upperarm", "lowerarm", "wrist", "finger", "metacarpal")
    arm = np.array([label.startswith(prefixes) and label.endswith("." + side) for label in model.bone_labels])
    weights, bones = model.vertex_bone_weights.cpu().numpy(), model.vertex_bone_indices.cpu().numpy()
    return (weights * arm[bones]).sum(1)


if __name__ == "__main__":
    import sys

    logging.basicConfig(level=logging.INFO)
    build_head_basis(sys.argv[1])
