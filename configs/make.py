"""Write the configurations that are made from another one, each complete in itself with its differences in the header.

    python configs/make.py            # write them, the copies in the package, and custom/portrait.yaml
    python configs/make.py --check    # exit code 1 when a file and this script disagree
"""
import argparse
import copy
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).absolute().parents[1]
sys.path.insert(0, str(ROOT / "custom"))

from portrait_diffusion.benchmark.ladder import changed  # noqa: E402
from portrait_diffusion.files import write_text  # noqa: E402

CONFIGS = ROOT / "configs"
PACKAGED = ROOT / "custom" / "portrait_diffusion" / "configs"
BASE = "portrait"
STAGES = ("restore", "refine")

VARIANTS: dict[str, tuple[str, dict]] = {
    "portrait-12gb": (
        "for a GPU with 12 GB: a tiny autoencoder, fewer samples a ray, smaller renders and grids",
        {
            "system.guidance.vae": "madebyollin/taesd",
            "system.renderer.num_samples_per_ray": 32,
            "system.renderer.num_importance_samples": 32,
            "system.restoration_resolution": 96,
            "system.stages.restore.resolution": [64],
            "system.stages.restore.milestones": [],
            "system.stages.refine.resolution": [64, 128],
            "system.exporter.mesh.resolution": 192,
            "system.exporter.turntable.height": 384,
        },
    ),
    "portrait-fast": (
        "a preview: the initialization alone with fewer steps, and small files; no public model",
        {
            "system.inversion.latent_steps": 30,
            "system.inversion.detail_steps": 100,
            "system.inversion.detail_size": 128,
            "system.inversion.detail_resolution": 160,
            "system.stages": {},
            "system.guidance_type": "",
            "system.guidance": {},
            "system.renderer.num_samples_per_ray": 24,
            "system.renderer.num_importance_samples": 24,
            "system.renderer.occupancy_resolution": 64,
            "system.exporter": {
                "render_size": 128, "view_azimuths_deg": [0, 90, 180, -90], "view_elevations_deg": [0],
                "mesh": {"resolution": 112, "target_faces": 8000}, "bake": {"texture_size": 512},
                "turntable": {"frames": 24, "fps": 12, "height": 256},
            },
        },
    ),
    "ablations/no-restore": ("without the restoration stage", {"system.stages.restore.steps": 0}),
    "ablations/no-refine": ("without the refinement stage", {"system.stages.refine.steps": 0}),
    "ablations/no-preservation": ("later stages may change the front", {"system.detail_preservation": False}),
    "ablations/explicit-only": (
        "HPDM without the implicit condition",
        {"system.guidance.reference_attention": False, "system.guidance.implicit_scale": 0.0},
    ),
    "ablations/implicit-only": (
        "HPDM without the explicit condition",
        {"system.guidance.controlnets": []},
    ),
    "ablations/plain-diffusion": (
        "Stable Diffusion without projections and references in the place of HPDM",
        {
            "system.guidance_type": "portrait-diffusion-sd-guidance",
            "system.guidance": {
                "pretrained_model_name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
                "prompt": "portrait photo of a person, white background",
                "negative_prompt": "blurry, deformed, two faces",
                "offline": True, "guidance_scale": 100.0, "loss_type": "sds", "half_precision_weights": True,
                "noise_sampler_type": "portrait-diffusion-mvnrs-noise", "noise_sampler": {"resample_every": 4},
            },
        },
    ),
    **{
        f"ablations/{name}-noise": (
            f"{told} in the place of MV-NRS",
            {"system.guidance.noise_sampler_type": f"portrait-diffusion-{name}-noise",
             "system.guidance.noise_sampler": {}},
        )
        for name, told in (("iid", "fresh noise"), ("fixed", "one noise kept"), ("object", "noise on the surface"))
    },
}  # fmt: skip
"""Name -> (what it is, differences from `BASE`: key path -> value)."""

MINI = "portrait-mini"
MINI_VARIANTS: dict[str, tuple[str, dict]] = {
    "portrait-sharp": (
        "portrait-mini with twice as many pixels across: the photo is fitted, and all is rendered, at 256",
        {
            "system.inversion.detail_size": 256,
            "system.inversion.detail_resolution": 320,
            "system.exporter.render_size": 256,
        },
    ),
    "portrait-distilled": (
        "all three stages: portrait-mini, then refined by score distillation from HPDM with MV-NRS",
        {
            "system.stages.refine": {
                "steps": 100, "pairs": "antipodal", "azimuths": [[35, 325]], "resolution": [64, 128],
                "milestones": [50], "reference_every": 3, "views_every": 50, "max_step_percent": [0, 0.4, 0.1, 100],
                "guidance": 0.01,
                "loss": {"lambda_rgb": 100, "lambda_alpha": 5, "lambda_perceptual": 1, "lambda_tv": 1,
                         "lambda_chroma_tv": 3, "lambda_z_variance": 1000},
            },
            "system.scheduler.args.total_iters": 220,
            "system.guidance.noise_sampler_type": "portrait-diffusion-mvnrs-noise",
            "system.guidance.noise_sampler": {"resample_every": 10},
        },
    ),
}
"""The same, from `MINI`."""

HOST_HEADER = """\
# Made from configs/portrait.yaml by configs/make.py; do not edit. For threestudio, with this package in its custom/:
#   python launch.py --config custom/portrait.yaml --train --gpu 0 data.image_path=me.png
#   python launch.py --config custom/portrait.yaml --export --gpu 0 data.image_path=me.png resume=PATH/TO/last.ckpt
# The public models must be in the local cache: python launch_portrait.py models --config portrait
"""


def for_threestudio(config: dict) -> dict:
    """The same run as threestudio's launch.py takes it: types named, cameras told of the stages, trainer."""
    system = copy.deepcopy(config["system"])
    kept = [name for name, stage in system["stages"].items() if stage.get("steps")]
    steps = [f"${{system.stages.{name}.steps}}" for name in kept]
    steps = steps[0] if len(steps) == 1 else f"${{add:{','.join(steps)}}}"
    modules = {
        "material_type": "portrait-diffusion-no-material", "background_type": "portrait-diffusion-white-background",
        "exporter_type": "portrait-diffusion-exporter",
    }  # fmt: skip
    return {
        "name": config["name"], "tag": "${rmspace:${basename:${data.image_path}},_}", "seed": config["seed"],
        "data_type": "portrait-diffusion-datamodule",
        "data": {"image_path": "", **config["data"], "stages": "${system.stages}", "seed": "${seed}",
                 "eval_size": config["system"]["exporter"]["render_size"], "n_val_views": 8, "n_test_views": 120},
        "system_type": "portrait-diffusion-system",
        "system": {"seed": "${seed}", **system, **modules},
        "trainer": {"max_steps": steps, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "val_check_interval": 200,
                    "enable_progress_bar": True, "precision": "32-true"},
        "checkpoint": {"save_last": True, "save_top_k": -1, "every_n_train_steps": 200},
    }  # fmt: skip


class Dumper(yaml.SafeDumper):
    """Block style for sections, flow style for lists of plain values."""

    def represent_list(self, values: list):
        """A list in one line unless it holds sections."""
        flow = not any(isinstance(value, dict) for value in values)
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)

    def ignore_aliases(self, data) -> bool:
        """Everything is written out."""
        return True


Dumper.add_representer(list, Dumper.represent_list)


def dumped(config: dict) -> str:
    """YAML of a configuration."""
    return yaml.dump(config, Dumper=Dumper, sort_keys=False, width=110, allow_unicode=True)


def variant(base: dict, name: str, told: str, changes: dict) -> str:
    """Text of a variant: header with its differences, and the whole configuration."""
    shown = [f"#   {key}: {yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]}"
             for key, value in changes.items()]  # fmt: skip
    header = f"# Made from configs/{base['name']}.yaml by configs/make.py; do not edit. {told[0].upper()}{told[1:]}.\n"
    header += "# Differences:\n" + "\n".join(line if len(line) <= 118 else line[:115] + "..." for line in shown) + "\n"
    title = {"name": name.split("/")[-1], "description": told}
    return header + dumped(changed(base, {**title, **changes}))


def files() -> dict[Path, str]:
    """Every file that is made, and its text."""
    base, mini = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")) for name in (BASE, MINI))
    made = {
        CONFIGS / f"{name}.yaml": variant(source, name, *settings)
        for source, variants in ((base, VARIANTS), (mini, MINI_VARIANTS))
        for name, settings in variants.items()
    }
    made[ROOT / "custom" / f"{BASE}.yaml"] = HOST_HEADER + dumped(for_threestudio(base))
    for path in sorted(CONFIGS.glob("*.yaml")):
        made[PACKAGED / path.name] = made.get(path) or path.read_text(encoding="utf-8")
    for path, text in list(made.items()):
        if path.parent == CONFIGS:
            made[PACKAGED / path.name] = text
    return made


def main(arguments: list[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a file is out of date")
    options = parser.parse_args(arguments)
    stale = []
    for path, text in files().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not options.check:
                write_text(path, text)
    if options.check and stale:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in stale)
        print(f"error: out of date: {names}; run: python configs/make.py", file=sys.stderr)
    return int(options.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
