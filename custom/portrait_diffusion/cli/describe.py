"""What a run would do, in words: for ``--dry-run`` and before a shared configuration runs."""
from collections.abc import Sequence
from pathlib import Path


def describe_run(
    pipeline, image: Path, out: Path, weights: Sequence[tuple[str, int]], origin: str = ""
) -> str:
    """What a run would do, for ``--dry-run`` and before a shared configuration runs. Args: origin: of a shared one."""
    import yaml

    from .. import host
    from ..visible import escaped

    config = pipeline.config
    export = config.system.exporter
    views = len(export.view_azimuths_deg) * len(export.view_elevations_deg)
    rows = {
        **({"from": origin} if origin else {}),
        "photo": str(image),
        "output": f"{out}{' (exists, would be continued)' if out.is_dir() else ''}",
        "fit": describe_fit(config.system),
        **({"stages": stages} if (stages := describe_stages(config.system)) else {}),
        "export": f"mesh from {export.mesh.resolution}^3 cells, {views} views and {export.turntable.frames} frames of "
        f"video at {export.render_size} px",
        "weights": ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in weights),
        "device": str(host.get_device()),
    }
    table = "\n".join(f"{label:<8}{escaped(text)}" for label, text in rows.items())
    return f"{table}\n\n{yaml.safe_dump(pipeline.raw_config, sort_keys=False, allow_unicode=True)}"


def describe_fit(system) -> str:
    """Steps of the fit of the bundled prior, or of a published one."""
    if system.prior.type == "bundled":
        fit = system.inversion
        return f"{fit.latent_steps} steps at {fit.latent_size} px, then {fit.detail_steps} at {fit.detail_size} px"
    fit = system.published_fit
    tuning = {"planes": "on its planes", "generator": "on its weights"}.get(fit.tuning)
    after = f", then {fit.tuning_steps} {tuning}" if tuning else ""
    return f"{system.prior.type}, {fit.latent_steps} steps at {fit.size} px{after}; at most {fit.attempts} starts"


def describe_stages(system) -> str:
    """Steps of the stages after the initialization and the model that guides them; empty where there are none."""
    from ..export.made_with import named_models
    from ..systems.stages import Schedule

    schedule = Schedule(system.stages)
    steps = ", ".join(f"{name} {stage.steps} steps" for name, stage in schedule.stages.items() if stage.steps)
    models = ", ".join(name for *_, name in named_models(vars(system)))
    return f"{steps}, guided by {system.guidance_type or 'nothing'} ({models or 'no model'})" if steps else ""


def made_elsewhere(pipeline) -> list[str]:
    """What differs from where a shared configuration was made."""
    from ..export.made_with import differences
    from ..settings import prior_weights

    return differences(pipeline.raw_config, prior_weights(pipeline.config.system.prior))
