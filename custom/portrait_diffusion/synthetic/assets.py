"""The MakeHuman CC0 asset pack: where it comes from, what its folder holds, and how an asset follows a body.

Origin: MakeHuman's core assets, released as CC0 in September 2020, which MakeHuman's community offers as the asset
pack "MakeHuman system assets" (`PACK_PAGE`). A MakeHuman asset is an ``.obj`` mesh, an ``.mhclo`` fit and ``.png``
textures; what is read here are arrays made of them, and this project ships no converter.

Layout: ``hair eyebrows eyelashes clothes`` hold ``NAME.npz`` and ``NAME.png``, ``eyes`` one ``NAME.npz`` and its
textures ``iris/NAME.png``, ``skins`` ``AGE_ORIGIN_SEX_NUMBER.png`` (young, middleage, old; african, asian, caucasian;
female, male) in the base mesh's texture layout. Textures have at most `MAX_TEXTURE` texels a side. In ``NAME.npz``:
  ``verts (n,3)`` (not read), ``uvs (m,2)`` v up, ``faces (f,3)``, ``face_uvs (f,3)``: the mesh, quads cut into
  triangles, indices from 0;
  ``ref_idx (n,3)``, ``ref_weights (n,3)``, ``offsets (n,3)``: the nine numbers of a vertex's line in the ``.mhclo``,
  which follows three vertices of the base mesh hm08 (decimetres, y up);
  ``scale_refs (3,3)``: the numbers after ``x_scale``, ``y_scale``, ``z_scale`` there, 0 where there are none.
`TEST_ONLY` and `VAL_ONLY` name the assets that only test and validation subjects wear; each split needs one of every
kind.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import EnvironmentProblem, UsageError

ASSETS_VARIABLE = "PORTRAIT_DIFFUSION_ASSETS"
PACK_PAGE = "https://static.makehumancommunity.org/assets/assetpacks/makehuman_system_assets.html"
KINDS = ("skins", "hair", "eyebrows", "eyelashes", "eyes", "clothes", "iris")
#: Assets that only test subjects wear.
TEST_ONLY = {
    "skins": ("middleage_caucasian_male_0", "old_african_female_0", "young_asian_female_0", "young_caucasian_female_1"),
    "hair": ("short02", "braid01"),
    "eyebrows": ("eyebrow003", "eyebrow008", "eyebrow011"),
    "iris": ("bluegreen_eye", "grey_eye"),
    "clothes": ("male_casualsuit02", "female_sportsuit01"),
    "eyelashes": ("eyelashes03",),
}
#: Assets that only validation subjects wear.
VAL_ONLY = {"skins": ("old_asian_male_0",), "eyebrows": ("eyebrow005",), "iris": ("ice_eye",)}
MAX_TEXTURE = 4096


@dataclass(frozen=True)
class FittedAsset:
    """A mesh that follows the body: see the module text."""

    ref_idx: np.ndarray
    ref_weights: np.ndarray
    offsets: np.ndarray
    scale_refs: np.ndarray
    uvs: np.ndarray
    faces: np.ndarray
    face_uvs: np.ndarray

    def restricted(self, lookup: np.ndarray) -> "FittedAsset":
        """The part whose references exist in a head basis (``HeadBasis.lookup``), renumbered to its rows."""
        refs = lookup[self.ref_idx]
        present = (refs >= 0).all(1)
        row = np.cumsum(present) - 1
        keep = present[self.faces].all(1)
        scale = self.scale_refs.copy()
        scale[:, :2] = np.where(scale[:, 2:] > 0, lookup[scale[:, :2].astype(int)], 0)
        if (scale[:, :2] < 0).any():
            raise UsageError(
                "Asset fit: the head basis lacks a vertex that the asset's scale refers to; build the basis again."
            )
        return FittedAsset(
            refs[present],
            self.ref_weights[present],
            self.offsets[present],
            scale,
            self.uvs,
            row[self.faces[keep]],
            self.face_uvs[keep],
        )

    def fit(self, base: np.ndarray) -> np.ndarray:
        """Vertices (n,3) on a body with vertices ``base``.

        Formula: v = sum_k w_k base[ref_k] + offset * s with s_a = |base[i,a] - base[j,a]| / d, (i, j, d) =
            scale_refs[a], 1 where d = 0.
        """
        scale = np.ones(3)
        for axis, (i, j, distance) in enumerate(self.scale_refs):
            if distance > 0:
                scale[axis] = abs(base[int(i), axis] - base[int(j), axis]) / distance
        return np.einsum("nk,nkc->nc", self.ref_weights, base[self.ref_idx]) + self.offsets * scale


class AssetPack:
    """Lists, loads and caches the assets of one folder."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        self._fits: dict[tuple[str, str], FittedAsset] = {}
        self._images: dict[tuple[str, str], np.ndarray] = {}

    def names(self, kind: str, split: str | None = None) -> list[str]:
        """Sorted names of one kind; with ``split`` ('train', 'val', 'test') only those that split may use.

        Raises: EnvironmentProblem when there are names but none for the split.
        """
        folder, suffix = (
            (self.root / "eyes" / "iris", ".png")
            if kind == "iris"
            else (self.root / kind, ".png" if kind == "skins" else ".npz")
        )
        names = sorted(path.stem for path in folder.glob("*" + suffix))
        if split is None or kind == "eyes":
            return names
        fit = [name for name in names if allowed(kind, name, split)]
        if names and not fit:
            test, val = (", ".join(table.get(kind, ())) or "none" for table in (TEST_ONLY, VAL_ONLY))
            raise EnvironmentProblem(
                f"The asset folder '{self.root}' has {kind} but none for the split '{split}': reserved are {test} for "
                f"test and {val} for val."
            )
        return fit

    def asset(self, kind: str, name: str) -> FittedAsset:
        """The mesh and fit of one asset."""
        key = (kind, name)
        if key not in self._fits:
            with np.load(self._path(kind, name, ".npz"), allow_pickle=False) as data:
                arrays = {field: data[field] for field in FittedAsset.__dataclass_fields__}
            arrays = {
                k: v.astype(np.int64 if k in ("ref_idx", "faces", "face_uvs") else np.float64)
                for k, v in arrays.items()
            }
            self._fits[key] = FittedAsset(**arrays)
        return self._fits[key]

    def image(self, kind: str, name: str) -> np.ndarray:
        """Texture (H,W,4) uint8, straight alpha, first row on top."""
        key = (kind, name)
        if key not in self._images:
            path = self._path(kind, name, ".png")
            with Image.open(path) as image:
                if max(image.size) > MAX_TEXTURE:
                    raise UsageError(
                        f"Texture '{path}' is {image.size[0]}x{image.size[1]} pixels; at most {MAX_TEXTURE} a side "
                        "are read."
                    )
                self._images[key] = np.asarray(image.convert("RGBA"))
        return self._images[key]

    def _path(self, kind: str, name: str, suffix: str) -> Path:
        folder = self.root / "eyes" / "iris" if kind == "iris" else self.root / kind
        path = folder / (name + suffix)
        if not path.is_file():
            raise EnvironmentProblem(f"Asset '{kind}/{name}{suffix}' is missing in '{self.root}'. {_ADVICE}")
        return path

    @cached_property
    def eye_name(self) -> str:
        """The eyeball mesh of the pack."""
        names = self.names("eyes")
        if not names:
            raise EnvironmentProblem(f"No eyeball mesh eyes/*.npz in '{self.root}'. {_ADVICE}")
        return names[0]


_ADVICE = (
    "Synthetic portraits need the MakeHuman CC0 asset pack laid out as folders skins, hair, eyebrows, eyelashes, "
    "eyes (with eyes/iris) and clothes of meshes with their fits (NAME.npz) and textures (NAME.png): get 'MakeHuman "
    f"system assets' from {PACK_PAGE}, convert them as the docstring of portrait_diffusion.synthetic.assets describes "
    "(no converter is shipped), and pass the folder (--assets) or set the environment variable "
    f"{ASSETS_VARIABLE}."
)


def allowed(kind: str, name: str, split: str) -> bool:
    """Whether a split may use an asset: test and validation assets are used nowhere else; a split with reserved
    assets uses only those."""
    test, val = TEST_ONLY.get(kind, ()), VAL_ONLY.get(kind, ())
    if split == "test":
        return name in test if test else True
    if split == "val":
        return name in val if val else name not in test
    if split == "train":
        return name not in test and name not in val
    raise UsageError(f"split must be 'train', 'val' or 'test', not '{split}'.")


def find_assets(root: str | os.PathLike | None = None) -> AssetPack:
    """Open the asset pack at ``root`` or, without it, where the environment variable PORTRAIT_DIFFUSION_ASSETS points.

    Raises: EnvironmentProblem when it is not there or incomplete.
    """
    root = root or os.environ.get(ASSETS_VARIABLE)
    if not root:
        raise EnvironmentProblem(f"No folder of assets was given. {_ADVICE}")
    pack = AssetPack(root)
    empty = [kind for kind in KINDS if not pack.names(kind)]
    if empty:
        raise EnvironmentProblem(f"The asset folder '{root}' has no {', '.join(empty)}. {_ADVICE}")
    return pack
