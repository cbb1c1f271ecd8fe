"""Sizes and rendering options of a published generator: read from a state dict's shapes and a file's arguments."""
from dataclasses import dataclass, field

from ...errors import UsageError

FAMILIES = ("eg3d", "panohead", "spherehead", "pyramid")
POSE_BRANCH = {"pose_branch.net.0": (128, 537), "pose_branch.net.1": (32, 128), "pose_branch.net.2": (6, 32)}
"""Layers of the pyramid's head that estimates body poses: (out, in)."""
LARGEST_EDGE = 2048
LARGEST_WIDTH = 4096
Shapes = dict[str, tuple[int, ...]]


@dataclass
class Sizes:
    """Every size of a generator; the defaults are the released EG3D's.

    Attributes:
        family: one of `FAMILIES`.
        z_dim, c_dim, w_dim: latent, condition and latent row.
        backbone: {resolution: channels} of the plane generator; plane_channels: of its image.
        background: the same of the background network, empty if there is none; background_channels: of its image.
        sr_channels: (input, block 0, block 1) of the super-resolution; sr_resolution: edge of block 0's output.
        decoder: (input, hidden, output).
        features: channels of the colour head ``torgb``, 0 if there is none.
        sphere_channels: (input, hidden, output) of SphereHead's ConvA and ConvB.
        pose_branch: whether the file has the pyramid's body-pose head.
        camera_shift: whether there is a ``t_mapping``.
    """

    family: str = "eg3d"
    z_dim: int = 512
    c_dim: int = 25
    w_dim: int = 512
    backbone: dict[int, int] = field(
        default_factory=lambda: {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128}
    )
    plane_channels: int = 96
    background: dict[int, int] = field(default_factory=dict)
    background_channels: int = 32
    sr_channels: tuple[int, int, int] = (32, 256, 128)
    sr_resolution: int = 256
    decoder: tuple[int, int, int] = (32, 64, 33)
    features: int = 0
    sphere_channels: tuple[int, int, int] = (512, 256, 96)
    pose_branch: bool = False
    camera_shift: bool = False


def released(family: str) -> Sizes:
    """Sizes of the files that the authors released."""
    wide = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128}
    if family == "eg3d":
        return Sizes()
    if family == "panohead":
        return Sizes(family, plane_channels=288, background=wide, features=32, camera_shift=True)
    if family == "spherehead":
        return Sizes(family, plane_channels=512, background=wide, features=32, camera_shift=True)
    if family == "pyramid":
        return Sizes(
            family, c_dim=31, backbone={2**k: 108 for k in range(2, 9)}, plane_channels=108,
            background={4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256}, decoder=(12, 32, 33), features=32,
            pose_branch=True,
        )  # fmt: skip
    raise UsageError(f"There is no family of priors '{family}'; choose one of {', '.join(FAMILIES)}.")


def family_of(shapes: Shapes) -> str:
    """Family by the names in a state dict. Raises: UsageError if they are none's."""
    if "backbone.synthesis.b4.conv1.weight" not in shapes or "decoder.net.0.weight" not in shapes:
        raise UsageError(
            "The checkpoint holds no generator of the EG3D family ('backbone.synthesis.b4.conv1.weight' or "
            f"'decoder.net.0.weight' is missing among {len(shapes)} tensors); give a file listed in docs/priors.md."
        )
    if "ConvA.0.weight" in shapes:
        return "spherehead"
    if "backbone.synthesis.b3d4.block.conv0.weight" in shapes:
        return "pyramid"
    return "panohead" if "torgb.weight" in shapes else "eg3d"


def sizes_of(shapes: Shapes) -> Sizes:
    """Sizes from the shapes of a state dict (prefix ``renderer.`` already dropped).

    Raises: UsageError when a shape that decides a size is missing, malformed or beyond every published generator.
    """
    family = family_of(shapes)

    def dim(key: str, axis: int, rank: int) -> int:
        shape = shapes.get(key)
        if shape is None:
            raise UsageError(f"The {family} checkpoint lacks '{key}'; the file is incomplete, download it again.")
        if len(shape) != rank or not 1 <= shape[axis] <= LARGEST_WIDTH:
            raise UsageError(
                f"'{key}' of the {family} checkpoint has shape {shape}, expected {rank} axes of 1 to {LARGEST_WIDTH}; "
                "give a file listed in docs/priors.md."
            )
        return shape[axis]

    def widths(prefix: str) -> dict[int, int]:
        found = {}
        resolution = 4
        while f"{prefix}.b{resolution}.conv1.weight" in shapes and resolution <= LARGEST_EDGE:
            found[resolution] = dim(f"{prefix}.b{resolution}.conv1.weight", 0, 4)
            resolution *= 2
        return found

    w_dim = dim("backbone.mapping.fc1.weight", 0, 2)
    background = widths("bcg_synthesis")
    sr = "superresolution.block"
    if f"{sr}0.conv0.weight" not in shapes:
        raise UsageError(
            f"The {family} checkpoint has no '{sr}0.conv0.weight': its super-resolution is not the 8XDC kind of the "
            "512-pixel portrait models; other kinds (cars, 128 or 256 pixels) are not supported."
        )
    return Sizes(
        family,
        z_dim=dim("backbone.mapping.fc0.weight", 1, 2) - w_dim,
        c_dim=dim("backbone.mapping.embed.weight", 1, 2),
        w_dim=w_dim,
        backbone=widths("backbone.synthesis"),
        plane_channels=dim("backbone.synthesis.b4.torgb.weight", 0, 4),
        background=background,
        background_channels=dim("bcg_synthesis.b4.torgb.weight", 0, 4) if background else 32,
        sr_channels=(dim(f"{sr}0.conv0.weight", 1, 4), *(dim(f"{sr}{i}.conv1.weight", 0, 4) for i in (0, 1))),
        sr_resolution=dim(f"{sr}0.conv1.noise_const", 0, 2),
        decoder=(
            dim("decoder.net.0.weight", 1, 2), dim("decoder.net.0.weight", 0, 2), dim("decoder.net.2.weight", 0, 2),
        ),
        features=dim("torgb.weight", 1, 4) if family != "eg3d" else 0,
        sphere_channels=(
            (dim("ConvA.0.weight", 1, 4), dim("ConvA.0.weight", 0, 4), dim("ConvA.1.weight", 0, 4))
            if family == "spherehead" else Sizes.sphere_channels
        ),
        pose_branch="pose_branch.net.0.weight" in shapes,
        camera_shift="t_mapping.embed.weight" in shapes,
    )  # fmt: skip


@dataclass
class RenderOptions:
    """How a family's rays are sampled and composited; the defaults are the released EG3D's.

    Attributes:
        ray_start, ray_end: first and last distance along a ray; coarse, fine: samples of the two passes.
        box_warp: edge of the cube that the planes span.
        raw_resolution: edge of the volume-rendered image.
        crop: density is removed where |x| or |z| exceeds this (head frame); None removes nothing.
        sigmoid: features pass EG3D's widened sigmoid, else they stay raw.
        white_back: white behind (1 - opacity added to the features).
        c_scale: factor on the condition before the mapping network.
    """

    ray_start: float = 2.25
    ray_end: float = 3.3
    coarse: int = 48
    fine: int = 48
    box_warp: float = 1.0
    raw_resolution: int = 64
    crop: float | None = None
    sigmoid: bool = True
    white_back: bool = False
    c_scale: float = 1.0


DEFAULTS = {
    "eg3d": RenderOptions(raw_resolution=128),
    "panohead": RenderOptions(sigmoid=False),
    "spherehead": RenderOptions(sigmoid=False),
    "pyramid": RenderOptions(ray_start=2.35, ray_end=3.12, box_warp=0.7, sigmoid=False),
}


def render_options(family: str, arguments: dict, raw_resolution: int | None = None) -> RenderOptions:
    """Options from a checkpoint's ``rendering_kwargs``; what it does not say is the family's default.

    Args:
        arguments: the file's dictionary, possibly empty; raw_resolution: its ``neural_rendering_resolution``.
    Raises: UsageError for values that cannot be used.
    """
    base = DEFAULTS[family]

    def number(name: str, default: float, low: float, high: float) -> float:
        value = arguments.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UsageError(
                f"rendering_kwargs.{name} of the {family} checkpoint is {str(value)[:40]!r}, expected a number from "
                f"{low:g} to {high:g}."
            )
        return value

    box_warp = float(number("box_warp", base.box_warp, 0.05, 10.0))
    crops = {"eg3d": None, "panohead": box_warp / 2 - 0.1, "spherehead": box_warp / 2 - 0.1, "pyramid": 0.4 * box_warp}
    conditioned = not arguments.get("c_gen_conditioning_zero", False)
    start = float(number("ray_start", base.ray_start, 0.0, 100.0))
    end = float(number("ray_end", base.ray_end, 0.0, 100.0))
    if end <= start:
        raise UsageError(f"rendering_kwargs of the {family} checkpoint end rays at {end} before they start at {start}.")
    size = base.raw_resolution if raw_resolution is None else raw_resolution
    if isinstance(size, bool) or not isinstance(size, int) or not 4 <= size <= LARGEST_EDGE:
        raise UsageError(f"neural_rendering_resolution of the {family} checkpoint is {str(size)[:40]!r}, expected 4 to "
                         f"{LARGEST_EDGE}.")  # fmt: skip
    return RenderOptions(
        ray_start=start, ray_end=end, box_warp=box_warp, raw_resolution=size, crop=crops[family],
        coarse=int(number("depth_resolution", base.coarse, 4, 1024)),
        fine=int(number("depth_resolution_importance", base.fine, 0, 1024)),
        sigmoid=arguments.get("decoder_activation", "sigmoid" if base.sigmoid else "none") == "sigmoid",
        white_back=bool(arguments.get("white_back", False)),
        c_scale=float(number("c_scale", base.c_scale, -1e6, 1e6)) if conditioned else 0.0,
    )  # fmt: skip
