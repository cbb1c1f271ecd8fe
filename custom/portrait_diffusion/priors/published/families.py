"""Facts about the published priors: camera, alignment, where files come from, licence, citation, known checksums."""
import math
from dataclasses import dataclass

from ...errors import UsageError
from .sizes import FAMILIES

RADIUS = 2.7
"""Distance of every family's cameras from the origin, GAN units."""


@dataclass(frozen=True)
class Family:
    """What a user and the pipeline must know about one family.

    Attributes:
        title: for people; coverage: which views it can show.
        focal: focal length of its labels, in image heights.
        target: point that its sampler's cameras look at, GAN head frame.
        landmarks: (4,2) where its aligned crops have eyes and mouth corners (u right, v down, left first), in [0, 1].
        aligned_how: the authors' alignment in a sentence.
        obtain: where the user gets the file; files: {SHA-256: file name} of published files with a known checksum.
        licence, citation: texts; a licence is printed once a process when weights are loaded.
    """

    title: str
    coverage: str
    focal: float
    target: tuple[float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    aligned_how: str
    obtain: str
    files: dict[str, str]
    licence: str
    citation: str

    @property
    def fovy_deg(self) -> float:
        """True vertical field of view: ``2 atan(0.5 / focal)``."""
        return math.degrees(2 * math.atan(0.5 / self.focal))


MEAN_FACE_DM = {"eye": (0.3106, 0.2900), "mouth": (0.2503, -0.3813)}
"""Half distance and height of eyes and mouth corners of the mean Basel face, decimetres about its origin: the standard
landmarks that Deep3DFaceRecon aligns photographs to."""


def _aligned(share: float, origin_v: float) -> tuple:
    """Landmarks of the mean face in a crop: a decimetre is `share` of the side, its origin at (0.5, origin_v)."""
    (eye_x, eye_y), (mouth_x, mouth_y) = MEAN_FACE_DM.values()
    eye, mouth = (origin_v - share * y for y in (eye_y, mouth_y))
    eye_x, mouth_x = share * eye_x, share * mouth_x
    return (0.5 - eye_x, eye), (0.5 + eye_x, eye), (0.5 - mouth_x, mouth), (0.5 + mouth_x, mouth)


_EG3D = _aligned(300 / 700, 0.5)
"""Scaled to 300 px a decimetre, the inner 700 px kept."""
_PANOHEAD = _aligned(1e5 / 2000 / 120 * 512 / 563, (256 + 51) / 563)
"""3DDFA's scale 1 / 2000 px a micrometre in a crop of 120 px; of 512 px then 51 more on top, 26 and 25 at the sides."""
_PYRAMID = _aligned(0.2, 0.46)
"""An estimate: the authors align by a body, and publish no landmarks."""

FACTS = {
    "eg3d": Family(
        title="EG3D (FFHQ, rebalanced)",
        coverage="front, about 45 degrees to each side; no back of the head",
        focal=4.2647, target=(0.0, 0.0, 0.2), landmarks=_EG3D,
        aligned_how="five landmarks and a fit of the Basel face model; the inner 700 of a 1024-pixel crop",
        obtain="NVIDIA's NGC catalogue, models of research/eg3d: ffhqrebalanced512-128.pkl",
        files={"7f418947f38202a3c4c9de6e18d0617b380dd5e42c21ba78efe8cc235fde44a7": "ffhqrebalanced512-128.pkl"},
        licence="NVIDIA Source Code License for EG3D: research and evaluation only, no commercial use",
        citation="Chan et al., Efficient Geometry-aware 3D Generative Adversarial Networks, CVPR 2022",
    ),
    "panohead": Family(
        title="PanoHead", coverage="the whole head, 360 degrees",
        focal=4.2647, target=(0.0, 0.0, 0.0), landmarks=_PANOHEAD,
        aligned_how="FFHQ's landmarks crop, refined by a 3D morphable model, 10 % larger on top, 5 % at the sides",
        obtain="the folder linked from github.com/SizheAn/PanoHead: easy-khair-180-gpc0.8-trans10-025000.pkl",
        files={
            "0f64f787f5e48b69511f3ee5c6e29416d038979e0bd015d1f710ed1c178d4e57":
                "easy-khair-180-gpc0.8-trans10-025000.pkl",
            "5e64d62086fa1857f2ae28b9f58ffb6624fe081f6febc408c9b7fa4223487f03": "ablation-trigridD-1-025000.pkl",
        },
        licence="CC BY-NC-SA 4.0 and the EG3D licence: no commercial use (its README's badge says CC BY 4.0)",
        citation="An et al., PanoHead: Geometry-Aware 3D Full-Head Synthesis in 360 degrees, CVPR 2023",
    ),
    "spherehead": Family(
        title="SphereHead", coverage="the whole head, 360 degrees, fewer faces on the back of the head",
        focal=4.2647, target=(0.0, 0.0, 0.0), landmarks=_PANOHEAD,
        aligned_how="as PanoHead",
        obtain="the link in the README of github.com/lhyfst/SphereHead: spherehead-ckpt-025000.pkl",
        files={},
        licence="no licence file; badge CC BY 4.0, derived from EG3D: treat as non-commercial",
        citation="Li et al., SphereHead: Stable 3D Full-head Synthesis with Spherical Tri-plane Representation, 2024",
    ),
    "pyramid": Family(
        title="3DPortraitGAN-Pyramid (Portrait3D)", coverage="head, neck and shoulders, 360 degrees",
        focal=5000 / 1024 / 0.75, target=(0.0, 0.0649, 0.0), landmarks=_PYRAMID,
        aligned_how="a fitted SMPL body: the neck joint at the origin",
        obtain="the folder linked from github.com/oneThousand1000/Portrait3D: model_512.pkl",
        files={},
        licence="no licence of its own, NVIDIA headers in its files, SMPL separately: treat as non-commercial",
        citation="Wu et al., Portrait3D: Text-Guided High-Quality 3D Portrait Generation, SIGGRAPH 2024",
    ),
}  # fmt: skip
FOCAL = {name: facts.focal for name, facts in FACTS.items()}
assert tuple(FACTS) == FAMILIES


def facts_of(family: str) -> Family:
    """Facts about a family. Raises: UsageError for an unknown name."""
    if family not in FACTS:
        raise UsageError(f"There is no family of priors '{family}'; choose one of {', '.join(FAMILIES)}.")
    return FACTS[family]


def known_file(sha256: str) -> tuple[str, str] | None:
    """(family, file name) of a published file, None for an unknown checksum."""
    for name, facts in FACTS.items():
        if sha256 in facts.files:
            return name, facts.files[sha256]
    return None
