"""What the pipeline can be told: the sections of a configuration as dataclasses, read and checked."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from . import schema
from .errors import UsageError
from .export.bundle import ExportConfig
from .export.made_with import version_differences
from .inversion.config import InversionConfig
from .inversion.published_config import PublishedFitConfig
from .priors.published.sizes import FAMILIES
from .shipped import CONFIGS
from .systems.stages import Schedule, check_extras, check_facing

DEFAULT_CONFIG = CONFIGS / "portrait-mini.yaml"


@dataclass
class DataConfig:
    """The photo and how it is prepared."""

    image_path: str = ""
    """Photo to start from; the command line's --image sets it."""
    size: int = 512
    """Side of the canonical crop, pixels."""
    matte: str = "auto"
    """auto (own alpha, else the network), network, grabcut or none."""
    aligned: bool = False
    """The image already is a canonical crop."""
    camera: str = "network"
    """What finds the photo's camera and the head's size in it: network, or a face detector's landmarks (less exact)."""


@dataclass
class PriorConfig:
    """Which prior, and its weights; for the bundled one empty paths are the shipped files."""

    checkpoint: str = ""
    """Generator weights: .safetensors, for a published prior also the authors' .pkl."""
    encoder: str = ""
    """Encoder weights (.safetensors); the bundled prior alone has one."""
    type: str = "bundled"
    """bundled, or a published GAN whose file you bring: eg3d, panohead, spherehead, pyramid (docs/priors.md)."""

    def __post_init__(self):
        if self.type not in ("bundled", *FAMILIES):
            raise ValueError(f"prior.type must be one of bundled, {', '.join(FAMILIES)}, got '{self.type}'")
        if self.type != "bundled" and not self.checkpoint:
            raise ValueError(
                f"prior.type '{self.type}' needs prior.checkpoint, the path of its file; weights are never downloaded, "
                "docs/priors.md says where to get them"
            )
        if self.type != "bundled" and self.encoder:
            raise ValueError(
                f"prior.encoder '{self.encoder}' would not be used, for the prior of prior.type '{self.type}' has no "
                "encoder; leave it empty, or set prior.type to bundled"
            )
        if self.type == "bundled" and self.checkpoint.endswith(".pkl"):
            raise ValueError(
                f"prior.checkpoint '{self.checkpoint}' is the file of a published prior; set prior.type to its kind, "
                f"one of {', '.join(FAMILIES)}"
            )


@dataclass
class SystemConfig:
    """The modules of the head."""

    prior: PriorConfig = field(default_factory=PriorConfig)
    """Which GAN prior, and its weights."""
    inversion: InversionConfig = field(default_factory=InversionConfig)
    """How the bundled prior is fitted to the photo."""
    published_fit: PublishedFitConfig = field(default_factory=PublishedFitConfig)
    """How a published prior is fitted to the photo."""
    geometry_type: str = "portrait-diffusion-triplane"
    """Registered name of the class that holds density and colour."""
    geometry: dict = field(default_factory=dict)
    """Keys of that class."""
    renderer_type: str = "portrait-diffusion-volume-renderer"
    """Registered name of the class that renders them."""
    renderer: dict = field(default_factory=dict)
    """Keys of that class."""
    stages: dict = field(default_factory=dict)
    """Stages after the initialization, `restore` and `refine`: keys of `systems.stages.StageConfig`; default: none."""
    guidance_type: str = ""
    """Registered name of the guidance of the stages."""
    guidance: dict = field(default_factory=dict)
    """Keys of that class."""
    extra_guidances: list = field(default_factory=list)
    """More guidances: sections with type, guidance, weight, stages, prompt_processor_type and prompt_processor."""
    optimizer: dict = field(default_factory=lambda: {
        "name": "Adam", "args": {"lr": 0.02, "betas": [0.9, 0.99]}, "params": {"geometry.restoration": {}},
    })  # fmt: skip
    """Optimizer of the stages: name, args and, by attribute path, params."""
    scheduler: dict | None = None
    """Learning rate over the steps of the stages: name (of torch.optim.lr_scheduler), args, interval; null keeps it."""
    restoration_resolution: int = 96
    """Edge of the grid that the stages change, voxels."""
    restoration_blur: float = 0.0
    """Voxels: where the grid may change colours, they give way to blurred ones that it adds to; 0 keeps them."""
    restoration_reach: float = 0.0
    """How far from the initialization's matter the grid may change density, scene units; 0 is anywhere."""
    detail_preservation: bool = True
    """Close that grid where the photo shows the head; false leaves it open."""
    preservation_thickness: float = 0.05
    """How far behind the visible surface it is closed, scene units."""
    preservation_facing: list = field(default_factory=lambda: [0.15, 0.4])
    """Cosines between surface and the photo's rays: below the first it is open, from the second on closed."""
    exporter: ExportConfig = field(default_factory=ExportConfig)
    """What is written at the end, and in which sizes."""
    made_with: dict = field(default_factory=dict)
    """In a shared configuration (share.yaml): version, hashes of weights, revisions of models. A run compares them."""

    def __post_init__(self):
        kind = self.prior.get("type", "bundled") if isinstance(self.prior, Mapping) else self.prior.type
        if Schedule(self.stages).total and kind != "bundled":
            raise ValueError(
                f"stages after the initialization need prior.type 'bundled' so far, got '{kind}'; "
                "use --config portrait-init, which has none"
            )
        check_facing(self.preservation_facing)
        check_extras(self.extra_guidances)


@dataclass
class PipelineConfig:
    """Everything about a run."""

    name: str = "portrait-mini"
    """Name of the configuration; a part of the default output folder."""
    description: str = ""
    """What the configuration is for; kept with the results, without any effect."""
    tag: str = ""
    """Free label of a run; kept with the results, without any effect."""
    seed: int = 0
    """Seed of every random choice."""
    deterministic: bool = False
    """On a GPU: the same numbers from every run on the same kind of GPU, a little slower. A CPU always does so."""
    preview_every: int = 100
    """Steps of a stage between pictures of the head (save/STAGE-STEP.png: front, sides, back); 0 makes none."""
    exp_root_dir: str = "outputs"
    """Runs go to EXP_ROOT_DIR/NAME/IMAGE unless an output folder is given."""
    data: DataConfig = field(default_factory=DataConfig)
    """The photo and how it is prepared."""
    system: SystemConfig = field(default_factory=SystemConfig)
    """The modules of the head."""


STAGE_KEYS = (
    "stages", "guidance_type", "guidance", "extra_guidances", "optimizer", "scheduler", "restoration_resolution",
    "restoration_blur", "restoration_reach", "detail_preservation", "preservation_thickness", "preservation_facing",
)  # fmt: skip
"""Keys of the system that matter to the stages after the initialization alone."""


def stage_section(system: SystemConfig) -> dict:
    """What `portrait-diffusion-system` is told of a configuration's system, for the stages on our own host."""
    keys = (*STAGE_KEYS, "geometry_type", "geometry", "renderer_type", "renderer")
    return {key: getattr(system, key) for key in keys} | {
        "material_type": "portrait-diffusion-no-material", "background_type": "portrait-diffusion-white-background",
        "prior": {"checkpoint": system.prior.checkpoint, "encoder": system.prior.encoder},
        "inversion": vars(system.inversion),
    }  # fmt: skip


def typed(cls: type, section: Any) -> Any:
    """A dataclass from a plain section, nested ones included."""
    values = {}
    for f in cls.__dataclass_fields__.values():
        if f.name in section:
            value = section[f.name]
            nested = f.type if isinstance(f.type, type) and hasattr(f.type, "__dataclass_fields__") else None
            values[f.name] = typed(nested, value) if nested else value
    return cls(**values)


def load_pipeline_config(source: Any = None, overrides: Sequence[str] = ()) -> tuple[PipelineConfig, dict]:
    """Validated configuration and its plain form. Raises UsageError naming file, key path and the nearest valid key."""
    source = DEFAULT_CONFIG if source is None else source
    try:
        checked = schema.validate(source, PipelineConfig, overrides)
    except UsageError as error:
        reasons = _version_differences(source)
        if not reasons:
            raise
        raise UsageError(f"{error} The reason may be that {reasons[0]}.") from error
    plain = OmegaConf.to_container(checked)
    return typed(PipelineConfig, plain), plain


def _version_differences(source: Any) -> list[str]:
    """What `made_with` says of a configuration that does not fit; nothing where it can't be read at all."""
    try:
        content = source if isinstance(source, dict) else OmegaConf.to_container(schema.read_yaml(source))
        return version_differences(content)
    except (UsageError, TypeError, AttributeError):
        return []


def prior_paths(prior: PriorConfig) -> tuple[Path, ...]:
    """Files that a configuration means: generator and encoder, of a published prior its one file."""
    if prior.type != "bundled":
        return (Path(prior.checkpoint),)
    from .priors.bundled import prior_files

    return prior_files(prior.checkpoint, prior.encoder)


def prior_weights(prior: PriorConfig) -> dict[str, Path]:
    """`prior_paths` by what they are: ``prior`` and, of the bundled prior, ``encoder``."""
    return dict(zip(("prior", "encoder"), prior_paths(prior)))
