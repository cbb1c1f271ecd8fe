"""Draw synthetic people at random, deterministically from (seed, split, index).

Odds and ranges are the project's own choices, made by comparing contact sheets with photographs.
"""

import colorsys
from dataclasses import replace

import numpy as np

from ..errors import UsageError
from .assets import AssetPack
from .haircuts import sample_haircut
from .heads import ORIGINS, HeadBasis
from .subjects import SPLITS, Beard, Glasses, Light, Lighting, Subject, direction

#: Skin colour from light to dark under white light, sRGB 0..255, interpolated linearly by a tone value in [0,1].
SKIN_TONES = (
    np.array(
        [(235, 197, 174), (224, 176, 148), (207, 151, 120), (182, 127, 95), (147, 98, 70), (109, 71, 51), (78, 50, 38)]
    )
    / 255.0
)
ORIGIN_ODDS = {"caucasian": 0.5, "asian": 0.25, "african": 0.25}
TONE_RANGE = {"caucasian": (0.0, 0.38), "asian": (0.1, 0.5), "african": (0.52, 0.97)}
#: Natural hair colours, sRGB 0..255, with how often they occur for light-skinned people; others get the two darkest.
HAIR_COLOURS = {
    "black": (34, 29, 27),
    "dark brown": (58, 41, 32),
    "brown": (82, 58, 43),
    "light brown": (116, 86, 60),
    "dark blond": (160, 126, 84),
    "blond": (205, 172, 120),
    "red": (132, 66, 36),
    "auburn": (100, 48, 32),
    "grey": (150, 147, 143),
    "white": (214, 211, 206),
}
LIGHT_HAIR_ODDS = (0.08, 0.2, 0.22, 0.15, 0.12, 0.1, 0.06, 0.07, 0.0, 0.0)
DARK_HAIR_ODDS = (0.72, 0.22, 0.04, 0.01, 0.005, 0.0, 0.0, 0.005, 0.0, 0.0)
HAIR_ODDS = {  # relative odds (male, female) of each style; "buzz" and "bald" are procedural
    "afro01": (0.5, 0.7),
    "bob01": (0.05, 1.1),
    "braid01": (0.0, 1.0),
    "long01": (0.25, 2.6),
    "ponytail01": (0.15, 1.3),
    "short01": (1.6, 0.25),
    "short02": (1.6, 0.25),
    "short04": (1.6, 0.4),
    "buzz": (1.3, 0.06),
    "bald": (0.6, 0.02),
}
TIED_LESS = {"ponytail01": (0.15, 0.6), "braid01": (1.0, 0.6)}
"""Factors on the odds (male, female) of hair that a frontal photo hardly shows, in training: a model that often sees it
answers half a ponytail to any tight hair."""
SHORT = ("short01", "short02", "short04", "afro01", "buzz")  # styles for which cropped hair may stand
OPEN_EYES = {"-eye-scale-incr": 0.15, "-eye-height1-incr": 0.2, "-eye-height2-incr": 0.3, "-eye-height3-incr": 0.2}


def sample_subject(seed: int, split: str, index: int, basis: HeadBasis, assets: AssetPack) -> Subject:
    """Draw subject number ``index`` of a split; the same arguments always give the same subject.

    Raises: UsageError for an unknown split.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, not '{split}'.")
    rng = np.random.default_rng([seed, SPLITS[split], index])
    more = np.random.default_rng([seed, SPLITS[split], index, 6])
    female = bool(rng.random() < 0.5)
    old = bool(rng.random() < 0.25)
    skin, origin = _skin(rng, assets.names("skins", split), female, old)
    age = rng.uniform(0.72, 0.98) if old else rng.uniform(0.55, 0.74)
    tone, skin_srgb = _skin_colour(rng, origin)
    hair_name, grey = _hair(rng, assets.names("hair", split), female, age, split)
    variety, cropped = _variety(more, split, female)
    hair_name = "buzz" if cropped and hair_name in SHORT else hair_name
    odds = DARK_HAIR_ODDS if origin != "caucasian" else LIGHT_HAIR_ODDS
    hair_srgb = _hair_colour(rng, odds, dyed=female and rng.random() < 0.06)
    expression = _expression(rng)
    return Subject(
        seed=seed,
        split=split,
        index=index,
        phenotypes=_phenotypes(rng, female, age, origin),
        local_changes=_local_changes(rng, basis),
        expression=expression,
        skin=skin,
        skin_srgb=skin_srgb,
        flush=float(rng.beta(2, 3) * (1 - 0.6 * tone)),
        freckles=float(rng.random() ** 2 if tone < 0.35 and rng.random() < 0.25 else 0.0),
        pores=float(rng.uniform(0.3, 1.0)),
        lips_srgb=_lips(rng, female, skin_srgb),
        lips_strength=float(rng.uniform(0.35, 0.8) if female and rng.random() < 0.55 else rng.uniform(0.0, 0.35)),
        hair=hair_name,
        hair_srgb=hair_srgb,
        hair_grey=grey,
        hair_volume=float(np.clip(rng.normal(1.0, 0.04), 0.93, 1.12)),
        hair_cut=float(rng.uniform(-0.36, -0.12) if rng.random() < 0.5 else -1.0),
        hair_wave=float(max(0.0, rng.normal(0.25, 0.4)) if female else 0.0),
        hair_mirror=bool(rng.random() < 0.5),
        hair_ends=float(rng.normal(0.1, 0.25)),
        buzz_length=_buzz_length(rng, more, cropped),
        hairline=float(
            np.clip(rng.normal(0.0, 0.008) + (0.0 if female else rng.choice([0.0, 0.02], p=[0.7, 0.3])), -0.01, 0.035)
        ),
        eyebrow=_choice(rng, assets.names("eyebrows", split)),
        eyelash=_choice(rng, assets.names("eyelashes", split)),
        iris=_iris(rng, assets.names("iris", split), origin),
        gaze_deg=tuple(float(v) for v in rng.normal(0, [5.0, 2.5]).clip(-12, 12)),
        clothes=_clothes(rng, assets.names("clothes", split), female),
        clothes_srgb=_clothes_colour(rng),
        clothes_second_srgb=_clothes_colour(rng),
        clothes_accent_srgb=_rgb(rng.uniform(0.75, 0.95) * (1 - rng.uniform(0, 0.25) * rng.dirichlet([1, 1, 1]))),
        clothes_pattern=str(
            rng.choice(["plain", "stripes", "checks", "dots", "melange"], p=[0.6, 0.12, 0.1, 0.05, 0.13])
        ),
        beard=Beard() if female else _beard(rng),
        glasses=_glasses(rng) if rng.random() < 0.17 else None,
        lighting=_lighting(rng),
        hair_variety=variety,
    )


def grown_hair(subject: Subject, share: float) -> Subject:
    """The subject, or for this share of those who have hair that is neither bald nor a buzz cut, the same one with a
    grown haircut in its place."""
    if subject.hair in ("bald", "buzz"):
        return subject
    cut = sample_haircut(subject.rng(13), share, female=subject.phenotypes["gender"] > 0.5)
    return subject if cut is None else replace(subject, hair="grown", haircut=cut)


def _choice(rng, names: list[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _rgb(values) -> tuple[float, float, float]:
    return tuple(float(v) for v in np.clip(values, 0.0, 1.0))


def _skin(rng, names: list[str], female: bool, old: bool) -> tuple[str, str]:
    """A skin texture that suits a random origin, sex and age as far as there is a choice, and the origin in its
    name."""
    origin = str(rng.choice(list(ORIGIN_ODDS), p=list(ORIGIN_ODDS.values())))
    named = [name for name in names if f"_{origin}_" in name] or names
    sex = "_female_" if female else "_male_"
    suited = [name for name in named if sex in name or (old and name.startswith("old"))] or named
    aged = [name for name in suited if name.startswith("old" if old else ("young", "middleage"))]
    name = _choice(rng, aged or suited)
    return name, next((origin for origin in ORIGINS if f"_{origin}_" in name), "caucasian")


def _skin_colour(rng, origin: str) -> tuple[float, tuple]:
    low, high = TONE_RANGE[origin]
    tone = float(rng.uniform(low, high))
    position = tone * (len(SKIN_TONES) - 1)
    k = min(int(position), len(SKIN_TONES) - 2)
    colour = SKIN_TONES[k] + (position - k) * (SKIN_TONES[k + 1] - SKIN_TONES[k])
    warm = rng.normal(0, 0.012)  # towards yellow-red or pink
    return tone, _rgb(colour * (1 + np.array([warm * 0.3, warm * 0.2, -1.5 * warm])))


def _phenotypes(rng, female: bool, age: float, origin: str) -> dict:
    mix = {name: float(rng.uniform(0, 0.25)) for name in ORIGINS}
    mix[origin] = 1.0
    gender = rng.uniform(0.72, 1.0) if female else rng.uniform(0.0, 0.25)
    return {
        "gender": float(gender),
        "age": float(age),
        "muscle": float(np.clip(rng.normal(0.5, 0.13), 0.15, 0.9)),
        "weight": float(np.clip(rng.normal(0.52, 0.16), 0.1, 0.95)),
        **mix,
    }


def _local_changes(rng, basis: HeadBasis, deviation: float = 0.2, asymmetry: float = 0.06) -> dict:
    values: dict[str, float] = {}
    for label in basis.local_labels:
        if label.startswith("r-"):
            continue
        spread = deviation
        if label.startswith(("measure-", "neck-", "head-angle", "head-trans")):
            spread *= 0.4
        elif "ear-" in label or "mouth-trans" in label or label.startswith("eyebrows-"):
            spread *= 0.7
        value = rng.normal(0, spread)
        values[label] = float(np.clip(value, -1, 1))
        if label.startswith("l-"):
            values["r-" + label[2:]] = float(np.clip(value + rng.normal(0, asymmetry), -1, 1))
    for label, shift in OPEN_EYES.items():  # MakeHuman's neutral eyes look tired
        for side in "lr":
            if side + label in values:
                values[side + label] = float(np.clip(values[side + label] + shift, -1, 1))
    return {label: value for label, value in values.items() if label in basis.local_labels}


def _expression(rng) -> dict:
    def pair(name, value):
        return {name + side: float(np.clip(value * rng.uniform(0.9, 1.1), 0, 1)) for side in ("Left", "Right")}

    mood = rng.choice(["neutral", "slight", "smile", "laugh", "other"], p=[0.3, 0.24, 0.22, 0.14, 0.1])
    values = {}
    if mood in ("slight", "smile", "laugh"):
        strength = {"slight": rng.uniform(0.1, 0.35), "smile": rng.uniform(0.35, 0.7), "laugh": rng.uniform(0.5, 0.85)}[
            mood
        ]
        values |= pair("mouthSmile", strength) | pair("cheekSquint", 0.5 * strength) | pair("eyeSquint", 0.3 * strength)
        if mood == "laugh":
            values |= pair("mouthUpperUp", rng.uniform(0.2, 0.5)) | pair("mouthLowerDown", rng.uniform(0.05, 0.3))
            values["jawOpen"] = float(rng.uniform(0.02, 0.16))
    elif mood == "other":
        values |= (
            pair("mouthFrown", rng.uniform(0, 0.4))
            | pair("browDown", rng.uniform(0, 0.5))
            | pair("mouthPress", rng.uniform(0, 0.4))
        )
        values["mouthPucker"] = float(rng.uniform(0, 0.3))
    values["browInnerUp"] = float(rng.uniform(0, 0.3) if rng.random() < 0.3 else 0.0)
    values |= pair("eyeBlink", float(rng.uniform(0.0, 0.08)))
    return values


def _hair(rng, names: list[str], female: bool, age: float, split: str) -> tuple[str, float]:
    options = [*names, "buzz", "bald"]
    odds = np.array([HAIR_ODDS.get(name, (1.0, 1.0))[int(female)] for name in options])
    if split == "train":
        odds *= [TIED_LESS.get(name, (1.0, 1.0))[int(female)] for name in options]
    if female and odds[:-2].sum() > 0:
        odds[-2:] *= 0.5
    name = options[int(rng.choice(len(options), p=odds / odds.sum()))]
    grey = (
        float(np.clip(rng.normal((age - 0.72) * 4, 0.2), 0, 1))
        if age > 0.7 and not (female and rng.random() < 0.5)
        else 0.0
    )
    return name, grey


def _variety(rng, split: str, female: bool) -> tuple[float, bool]:
    """How far hair differs from its asset, and whether short hair is cropped instead.

    Training only: held-out heads keep their hair as it was made, so that their numbers compare over time.
    """
    amount, cropped = float(rng.uniform(0.3, 1.0)), bool(rng.random() < (0.2 if female else 0.3))
    return (amount, cropped) if split == "train" else (0.0, False)


def _buzz_length(rng, more, cropped: bool) -> float:
    short, long = rng.uniform(0.003, 0.016), np.exp(more.uniform(*np.log([0.008, 0.05])))
    return float(long if cropped else short)


def _hair_colour(rng, odds, dyed: bool) -> tuple:
    if dyed:
        return _rgb(
            colorsys.hsv_to_rgb(
                rng.choice([0.0, 0.93, 0.78, 0.6, 0.04]), rng.uniform(0.15, 0.45), rng.uniform(0.3, 0.7)
            )
        )
    base = np.array(list(HAIR_COLOURS.values())[int(rng.choice(len(odds), p=np.array(odds) / sum(odds)))]) / 255.0
    return _rgb(base * rng.normal(1.0, 0.08) * (1 + rng.normal(0, 0.03, 3)))


def _lips(rng, female: bool, skin) -> tuple:
    if female and rng.random() < 0.4:  # lipstick
        return _rgb(
            colorsys.hsv_to_rgb(float(rng.normal(0.985, 0.015) % 1), rng.uniform(0.4, 0.72), rng.uniform(0.4, 0.7))
        )
    return _rgb(np.array(skin) * [0.88, 0.66, 0.66])


def _iris(rng, names: list[str], origin: str) -> str:
    brown = [name for name in names if name.startswith("brown")]
    if brown and rng.random() < (0.35 if origin == "caucasian" else 0.93):
        return _choice(rng, brown)
    return _choice(rng, names)


def _clothes(rng, names: list[str], female: bool) -> str:
    if female and rng.random() < 0.1:
        return "bare"
    suited = [name for name in names if name.startswith("female_") == female]
    return _choice(rng, suited if suited and rng.random() < 0.75 else names)


def _clothes_colour(rng) -> tuple:
    kind = rng.random()
    if kind < 0.25:  # white to black
        value = rng.choice([rng.uniform(0.7, 0.93), rng.uniform(0.1, 0.3), rng.uniform(0.3, 0.7)])
        return _rgb(value * (1 + rng.normal(0, 0.015, 3)))
    value = rng.uniform(0.13, 0.75)
    return _rgb(
        colorsys.hsv_to_rgb(
            rng.choice([0.6, 0.0, rng.random()]) + rng.normal(0, 0.03),
            rng.uniform(0.1, 0.75 if value < 0.5 else 0.45),
            value,
        )
    )


def _beard(rng) -> Beard:
    style = str(rng.choice(["none", "stubble", "full", "goatee", "moustache"], p=[0.45, 0.27, 0.17, 0.07, 0.04]))
    if style == "none":
        return Beard()
    if style == "stubble":
        return Beard(style, 0.0, float(rng.uniform(0.15, 0.7)))
    return Beard(style, float(rng.uniform(0.006, 0.03)), float(rng.uniform(0.7, 1.15)))


def _glasses(rng) -> Glasses:
    dark = rng.random() < 0.2
    frame = rng.choice([0, 1, 2, 3], p=[0.5, 0.15, 0.2, 0.15])
    colour = [(0.06, 0.055, 0.06), (0.3, 0.18, 0.1), (0.55, 0.52, 0.48), colorsys.hsv_to_rgb(rng.random(), 0.5, 0.4)][
        frame
    ]
    thin = frame == 2 or rng.random() < 0.2
    return Glasses(
        exponent=float(rng.uniform(2.0, 5.0)),
        half_width=float(rng.uniform(0.040, 0.050)),
        half_height=float(rng.uniform(0.024, 0.038)),
        rim=float(rng.uniform(0.0018, 0.0026) if thin else rng.uniform(0.0028, 0.0048)),
        frame_srgb=_rgb(colour),
        lens_srgb=_rgb(colorsys.hsv_to_rgb(rng.random(), 0.15, rng.uniform(0.05, 0.15))) if dark else (0.8, 0.85, 0.88),
        lens_alpha=float(rng.uniform(0.8, 0.96) if dark else rng.uniform(0.03, 0.1)),
    )


def _light_colour(rng, strength: float) -> tuple:
    warmth = rng.normal(0, 0.07)
    return tuple(float(v) for v in strength * np.array([1 + warmth, 1.0, 1 - warmth]))


def _lighting(rng) -> Lighting:
    key = Light(
        direction(rng.normal(0, 50), rng.uniform(5, 60)),
        _light_colour(rng, rng.uniform(0.4, 2.2)),
        float(rng.uniform(3, 25)),
    )
    lights = [key]
    if rng.random() < 0.5:
        lights.append(
            Light(
                direction(rng.uniform(-180, 180), rng.uniform(0, 50)),
                _light_colour(rng, rng.uniform(0.15, 1.2)),
                float(rng.uniform(5, 25)),
            )
        )
    axis = np.array(direction(rng.uniform(-180, 180), rng.uniform(20, 90)))
    return Lighting(
        tuple(lights),
        _light_colour(rng, 1.0),
        tuple(float(v) for v in axis),
        float(rng.uniform(0.1, 0.75)),
        float(rng.uniform(0.7, 1.15)),
    )
