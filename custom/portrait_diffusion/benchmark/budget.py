"""How often a configuration asks its denoiser, and the same configuration with another number of calls.

A row is one picture that the denoiser looks at: what costs, whatever the batch. The count is a prediction from the
configuration; `guidance.denoiser_rows` is what a run really needed, and results show both.
"""
import copy
import math

from ..errors import UsageError
from ..guidance.hpdm.model import guidance_factors
from ..systems.stages import StageConfig

SCHEDULES = ("guidance", "min_step_percent", "max_step_percent")


def rows_a_view(guidance: dict) -> int:
    """Rows of one prediction of one view: as many as classifier-free guidance has terms."""
    explicit, implicit = (float(guidance.get(f"{name}_scale", 1.0)) for name in ("explicit", "implicit"))
    return sum(factor != 0 for factor in guidance_factors(explicit, implicit, True, True).values())


def guided_steps(stage: StageConfig) -> int:
    """Steps that show other views than the photo's."""
    return stage.steps - (math.ceil(stage.steps / stage.reference_every) if stage.reference_every else 0)


def looks(stage: StageConfig) -> int:
    """How often a stage looks around to have views painted: once in `views_every` steps that hold a guided one."""
    if not stage.views_every:
        return int(guided_steps(stage) > 0)
    return len({k // stage.views_every for k in range(stage.steps) if not stage.shows_photo(k)})


def denoiser_rows(system: dict) -> int:
    """Predicted rows of all stages of a system's configuration that knows photo and other views; 0 without a guidance.

    MV-NRS's comparisons come every so many calls of its sampler, counted over all stages.
    """
    if not system.get("guidance_type"):
        return 0
    guidance = system.get("guidance") or {}
    rows, kind = rows_a_view(guidance), guidance.get("loss_type", "sds")
    inversion = int(guidance.get("inversion_steps", 8))
    extra = {"sds": 0, "csd": 1, "sdi": inversion * rows, "ism": inversion + 1}[kind]
    sampler, every, candidates = guidance.get("noise_sampler") or {}, 0, 1
    if guidance.get("noise_sampler_type") == "portrait-diffusion-mvnrs-noise" and kind in ("sds", "csd"):
        every, candidates = sampler.get("resample_every", 10), sampler.get("candidates", 2)
    total = sampled = 0
    for plain in (system.get("stages") or {}).values():
        stage = StageConfig(**plain)
        if stage.painted:
            count = looks(stage)
            total += count * stage.painted * stage.paint_steps * rows
            sampled += count
        elif stage.guidance != 0:
            count = guided_steps(stage)
            compared = math.ceil((sampled + count) / every) - math.ceil(sampled / every) if every else 0
            total += stage.views * (count * (rows + extra) + compared * (candidates - 1) * rows)
            sampled += count
    return total


def stretched(stage: dict, factor: float) -> dict:
    """A stage with its steps, milestones and the ends of its schedules times a factor."""
    out = copy.deepcopy(stage)
    out["steps"] = round(stage.get("steps", 0) * factor)
    if "milestones" in stage:
        out["milestones"] = [round(step * factor) for step in stage["milestones"]]
    for holder in (out, out.get("loss") or {}):
        for name, value in holder.items():
            if (name in SCHEDULES or name.startswith("lambda_")) and isinstance(value, list) and len(value) == 4:
                holder[name] = [round(value[0] * factor), value[1], value[2], round(value[3] * factor)]
    return out


def stretched_system(system: dict, factor: float) -> dict:
    """A system with all its stages `stretched`."""
    stages = {name: stretched(stage, factor) for name, stage in (system.get("stages") or {}).items()}
    return {**system, "stages": stages} if stages else system


def factor_for(system: dict, rows: int) -> float:
    """The largest factor of the stages' lengths with which the denoiser sees at most so many rows; 1 without one.

    Raises: UsageError where even the shortest stages need more.
    """
    if denoiser_rows(system) == 0:
        return 1.0
    low, high = 0.0, 1.0
    while denoiser_rows(stretched_system(system, high)) <= rows:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if denoiser_rows(stretched_system(system, middle)) <= rows else (low, middle)
    if denoiser_rows(stretched_system(system, low)) == 0:
        raise UsageError(f"{rows} denoiser rows are too few for this configuration; its smallest part needs more.")
    return low
