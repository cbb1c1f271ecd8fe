"""What the stages after the initialization are: how long, which cameras, losses and guidance, by global step."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import UsageError
from .losses import known_names

STAGES = ("restore", "refine")
"""Stages that take training steps, in order; the initialization comes before step 0."""
PAIRS = ("neighbours", "antipodal", "independent")
LOSSES = tuple(sorted(f"lambda_{name}" for name in known_names()))
"""Keys of a stage's `loss`."""


def check_facing(fade: list) -> None:
    """Raise UsageError for a `preservation_facing` that is not two rising cosines in [0, 1]."""
    numbers = len(fade) == 2 and all(isinstance(v, int | float) for v in fade)
    if not numbers or not 0 <= fade[0] < fade[1] <= 1:
        raise UsageError(f"preservation_facing is {list(fade)}, expected two rising cosines, such as [0.15, 0.4].")


@dataclass
class StageConfig:
    """One stage. Schedules (numbers or threestudio's ``[start, from, to, end]``) count the stage's own steps."""

    steps: int = 0
    """Training steps; 0 leaves the stage out."""
    views: int = 2
    """Views a step."""
    pairs: str = "neighbours"
    """How the views of a step lie: neighbours (pair_deg apart), antipodal (a half turn apart) or independent."""
    pair_deg: list = field(default_factory=lambda: [10.0, 30.0])
    """Smallest and largest angle between neighbours, degrees."""
    azimuths: list = field(default_factory=lambda: [[-180.0, 180.0]])
    """Ranges from which azimuths are taken, degrees; all parts of them come equally often."""
    elevations: list = field(default_factory=lambda: [-15.0, 25.0])
    """Smallest and largest elevation, degrees."""
    resolution: list = field(default_factory=lambda: [64])
    """Sides of the renders in pixels; the next one from each of `milestones` on."""
    milestones: list = field(default_factory=list)
    """Steps of the stage at which the resolution changes."""
    reference_every: int = 2
    """One step in so many shows the photo's own view and compares it with the photo; 0 is never."""
    guidance: Any = 1.0
    """Weight of the guidance's loss; a schedule. The guidance is not called where it is 0."""
    min_step_percent: Any = 0.02
    """Smallest timestep of the guidance as a share of all, a schedule."""
    max_step_percent: Any = 0.6
    """Largest timestep of the guidance as a share of all, a schedule."""
    views_every: int = 50
    """Steps between looks at the head for the guidance's known views; 0 is once, at the start of the stage."""
    painted: int = 0
    """Views of a look that the guidance paints anew (`HPDMGuidance.paint`) and the steps are fitted to, until the next
    look (`views_every`); 0 asks the guidance for its gradient in every step instead."""
    paint_steps: int = 8
    """Denoiser calls of such a look, from max_step_percent down."""
    keep_samples: bool = False
    """Photo and painted views keep where they are sampled and what planes, decoder and detail say there, so that a step
    costs a look-up in the restoration grid: several times faster, for optimizers that change that grid alone."""
    remove_floaters: bool = False
    """After the last step dust and shreds beside the head are taken away, where the photo does not show them."""
    known_azimuths: list = field(default_factory=lambda: [90.0, -90.0, 180.0])
    """Azimuths of renders that the guidance knows beside the photo, degrees."""
    loss: dict = field(default_factory=dict)
    """lambda_NAME: weight of a loss, a schedule, 0 if missing. Of the photo's view: rgb, alpha, perceptual; of painted
    views: painted, painted_perceptual; of every render: opaque, sparsity, z_variance (hard surfaces), depth_smooth; of
    the grid: tv, chroma_tv (coloured specks), restoration. See `systems.losses`."""

    def __post_init__(self) -> None:
        if self.pairs not in PAIRS:
            raise UsageError(f"pairs must be one of {', '.join(PAIRS)}; got '{self.pairs}'.")
        for name, low in (("steps", 0), ("views", 1), ("reference_every", 0), ("views_every", 0), ("painted", 0),
                          ("paint_steps", 1)):
            if not isinstance(getattr(self, name), int):
                raise UsageError(f"{name} must be a whole number; got {getattr(self, name)!r}.")
            if getattr(self, name) < low:
                raise UsageError(f"{name} must be at least {low}; got {getattr(self, name)}.")
        for name in ("keep_samples", "remove_floaters"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false; got {getattr(self, name)!r}.")
        if self.keep_samples and not self.painted:
            raise UsageError("keep_samples is for stages with painted views; set painted, or keep_samples: false.")
        if len(self.milestones) != len(self.resolution) - 1 or list(self.milestones) != sorted(self.milestones):
            raise UsageError(
                f"milestones must be {len(self.resolution) - 1} rising steps, one fewer than resolution has sizes; got "
                f"{list(self.milestones)}."
            )
        listed = isinstance(self.known_azimuths, Sequence) and not isinstance(self.known_azimuths, str)
        if not listed or not isinstance(self.loss, Mapping):
            raise UsageError("known_azimuths must be a list of degrees, loss a section of lambda_NAME: weight.")
        for key in self.loss:
            if key not in LOSSES:
                raise UsageError(f"loss has no '{key}'; there are {', '.join(LOSSES)}.")
        ranges = [*self.azimuths, self.elevations, self.pair_deg]
        if not self.azimuths or any(len(r) != 2 or r[0] > r[1] for r in ranges):
            raise UsageError("azimuths must be a list of [low, high], elevations and pair_deg one [low, high] each.")

    def resolution_at(self, step: int) -> int:
        """Side of the renders at a step of the stage."""
        return int(self.resolution[sum(step >= m for m in self.milestones)])

    def shows_photo(self, step: int) -> bool:
        """Whether a step of the stage shows the photo's own view."""
        return self.reference_every > 0 and step % self.reference_every == 0


@dataclass
class ExtraGuidance:
    """Another guidance beside the system's own, with its own prompts."""

    type: str = ""  # registered name
    guidance: dict = field(default_factory=dict)  # keys of that class
    weight: Any = 1.0  # of its losses, a schedule of the stage's own steps
    stages: list = field(default_factory=lambda: ["refine"])  # in which it is asked
    prompt_processor_type: str = ""  # registered name; empty is none
    prompt_processor: dict = field(default_factory=dict)  # keys of that class


def check_extras(extras: list) -> None:
    """Raise UsageError for a section of `extra_guidances` that is none, names no class, or has unknown keys."""
    keys = {f.name for f in fields(ExtraGuidance)}
    for k, extra in enumerate(extras):
        place = f"extra_guidances[{k}]"
        if not isinstance(extra, Mapping) or not extra.get("type"):
            raise UsageError(f"{place} must be a section with a type, the registered name of a guidance.")
        unknown = sorted(map(str, set(extra) - keys))
        if unknown:
            raise UsageError(f"{place} has no key '{unknown[0]}'; there are {', '.join(sorted(keys))}.")
        other = sorted(set(extra.get("stages") or []) - set(STAGES))
        if other:
            raise UsageError(f"{place}.stages has no '{other[0]}'; there are {', '.join(STAGES)}.")


@dataclass
class Place:
    """Where training is: the stage's name and settings, its own step, and its first global step."""

    name: str
    stage: StageConfig
    step: int
    start: int


class Schedule:
    """The stages of a configuration in order.

    Args: stages {name: settings}, names of `STAGES`.
    Raises: UsageError naming the stage and what is wrong with it.
    """

    def __init__(self, stages: dict):
        unknown = sorted(set(stages) - set(STAGES))
        if unknown:
            raise UsageError(f"system.stages has no stage '{unknown[0]}'; there are {', '.join(STAGES)}.")
        self.stages = {}
        for name in STAGES:
            if stages.get(name):
                try:
                    self.stages[name] = StageConfig(**stages[name])
                except (TypeError, UsageError) as error:
                    text = str(error).replace("StageConfig.__init__() got an unexpected keyword argument", "no key")
                    raise UsageError(f"system.stages.{name}: {text}") from error

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages.values())

    @property
    def names(self) -> list[str]:
        """The stages that have steps, in order."""
        return [name for name, stage in self.stages.items() if stage.steps]

    def boundaries(self) -> list[int]:
        """Global steps at which a stage ends."""
        ends, end = [], 0
        for stage in self.stages.values():
            end += stage.steps
            if stage.steps:
                ends.append(end)
        return ends

    def at(self, step: int) -> Place:
        """Where a global step is; after the last one the last step of the last stage. Raises UsageError if none."""
        start, found = 0, None
        for name, stage in self.stages.items():
            if not stage.steps:
                continue
            found = Place(name, stage, min(step - start, stage.steps - 1), start)
            if step < start + stage.steps:
                return found
            start += stage.steps
        if found is None:
            raise UsageError("system.stages has no stage with steps; set system.stages.refine.steps, for example.")
        return found
