"""Where memory ran out: what to make smaller."""


def smaller_setting(stage: str, config) -> str:
    """Overrides that halve what takes the memory in a stage, as text for the command line."""
    from ..systems.stages import Schedule

    fit, export = config.system.inversion, config.system.exporter
    settings = {
        "photo": {"data.size": max(64, config.data.size // 2)},
        "latent": {"system.inversion.latent_size": max(32, fit.latent_size // 2)},
        "detail": {
            "system.inversion.detail_size": max(32, fit.detail_size // 2),
            "system.inversion.detail_resolution": max(32, fit.detail_resolution // 2),
        },
        "export": {
            "system.exporter.mesh.resolution": max(16, export.mesh.resolution // 2),
            "system.exporter.points_per_call": max(4096, export.points_per_call // 4),
            "system.exporter.render_size": max(8, export.render_size // 2),
        },
    }
    before = {"preview": "detail", "metrics": "export"}  # preview reports when it is over: the fit comes next
    if config.system.prior.type != "bundled":
        published, before["preview"] = config.system.published_fit, "latent"
        settings["latent"] = settings["tuning"] = {
            "system.published_fit.ray_chunk": max(64, published.ray_chunk // 2),
            "system.published_fit.size": max(32, published.size // 2),
        }
    for name, part in Schedule(config.system.stages).stages.items():
        counts = {key: getattr(part, key) // 2 for key in ("views", "painted") if getattr(part, key) > 1}
        settings[name] = {f"system.stages.{name}.{key}": count for key, count in counts.items()} or settings["export"]
        if part.painted:
            before.setdefault("paint", name)
    chosen = settings.get(before.get(stage, stage), settings["export"])
    return " ".join(f"{key}={value}" for key, value in chosen.items())
