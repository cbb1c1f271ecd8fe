"""What one synthetic person looks like: every random choice, drawn deterministically from (seed, split, index).

Colours named ``*_srgb`` are display values in [0,1]; light colours are linear. Ranges are the project's own choices,
made by comparing contact sheets with photographs.
"""

from dataclasses import asdict, dataclass, field

import numpy as np

from .haircuts import Haircut

SPLITS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Light:
    """A distant light: unit direction towards it (head frame), linear colour, angular radius in degrees (soft
    shadows)."""

    direction: tuple[float, float, float]
    colour: tuple[float, float, float]
    radius_deg: float


@dataclass(frozen=True)
class Lighting:
    """Baked, fixed in the head frame: distant lights, a sky that is linear in direction, and the mean brightness of
    the lit face."""

    lights: tuple[Light, ...]
    sky: tuple[float, float, float]
    sky_axis: tuple[float, float, float]
    sky_contrast: float
    exposure: float


@dataclass(frozen=True)
class Beard:
    """Facial hair: style, length of the longest hair in scene units, density in [0,1]."""

    style: str = "none"
    length: float = 0.0
    density: float = 0.0


@dataclass(frozen=True)
class Glasses:
    """Spectacles: outline exponent (2 round .. 6 boxy), half sizes and tube radius in scene units, colours, lens
    opacity in [0,1]."""

    exponent: float
    half_width: float
    half_height: float
    rim: float
    frame_srgb: tuple[float, float, float]
    lens_srgb: tuple[float, float, float]
    lens_alpha: float


@dataclass(frozen=True)
class Subject:
    """One person; `sample_subject` draws it, ``scene.build_scene`` turns it into geometry."""

    seed: int
    split: str
    index: int
    phenotypes: dict
    local_changes: dict
    expression: dict
    skin: str
    skin_srgb: tuple[float, float, float]
    flush: float
    freckles: float
    pores: float
    lips_srgb: tuple[float, float, float]
    lips_strength: float
    hair: str
    hair_srgb: tuple[float, float, float]
    hair_grey: float
    hair_volume: float
    hair_cut: float
    hair_wave: float
    hair_mirror: bool
    hair_ends: float
    buzz_length: float
    hairline: float
    eyebrow: str
    eyelash: str
    iris: str
    gaze_deg: tuple[float, float]
    clothes: str
    clothes_srgb: tuple[float, float, float]
    clothes_second_srgb: tuple[float, float, float]
    clothes_accent_srgb: tuple[float, float, float]
    clothes_pattern: str
    beard: Beard = field(default_factory=Beard)
    glasses: Glasses | None = None
    lighting: Lighting | None = None
    hair_variety: float = 0.0
    torso_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    haircut: Haircut | None = None

    def rng(self, stream: int) -> np.random.Generator:
        """An independent random stream of this subject (noise textures and the like)."""
        return np.random.default_rng([self.seed, SPLITS[self.split], self.index, stream])

    def to_dict(self) -> dict:
        """Plain JSON-ready values; straight shoulders and hair that is not grown are not mentioned: earlier
        descriptions stay what they were."""
        values = asdict(self)
        if not any(self.torso_deg):
            del values["torso_deg"]
        if self.haircut is None:
            del values["haircut"]
        return values


def direction(azimuth_deg: float, elevation_deg: float) -> tuple:
    """Unit vector of the head frame; azimuth 0 is +z (in front of the face), 90 is +x."""
    a, e = np.radians([azimuth_deg, elevation_deg])
    return (float(np.sin(a) * np.cos(e)), float(np.sin(e)), float(np.cos(a) * np.cos(e)))


def canonical_lighting() -> Lighting:
    """One soft frontal studio light, for evaluation."""
    return Lighting((Light(direction(20, 30), (0.8, 0.8, 0.8), 20.0),), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0), 0.4, 0.95)
