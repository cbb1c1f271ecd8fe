"""The package inside the real threestudio, on the CPU; skipped unless THREESTUDIO_ROOT names a checkout (28d9d80).

The packages that threestudio imports must be installed (or on PYTHONPATH), except the CUDA ones, which
`real_threestudio.py` stands in for. The checkout is only read.
"""
import json

import pytest
import torch
from host.checkout import PACKAGE, launch, needs_checkout, scratch_folder
from portrait_diffusion import host

pytestmark = needs_checkout

# Left out on purpose: online loggers, uv and cube maps, and names that only wrap Lightning's hooks or hold constants.
NOT_OFFERED = {
    "DEFAULT_GRAYSCALE_KWARGS", "DEFAULT_GRID_KWARGS", "DEFAULT_RGB_KWARGS", "DEFAULT_UV_KWARGS", "create_loggers",
    "get_grayscale_image_", "get_image_grid_", "get_loggers", "get_rgb_image_", "get_uv_image_",
    "guidance_evaluation_save", "on_before_optimizer_step", "on_predict_end", "on_predict_epoch_end",
    "on_test_epoch_end", "predict_step", "save_cubemap", "save_state_dict", "save_uv_image",
}  # fmt: skip

# A guidance and a prompt processor that pull the image towards grey: threestudio's own need a diffusion model.
TOY = """
import threestudio
from threestudio.utils.base import BaseObject

@threestudio.register("toy-guidance")
class Guidance(BaseObject):
    def __call__(self, rgb, prompt_utils, **kwargs):
        return {"loss_sds": (rgb - 0.5).square().mean(), "min_step": 1, "max_step": 2}

@threestudio.register("toy-prompt-processor")
class Prompt(BaseObject):
    def __call__(self):
        return None
"""
# Writes what the host layer must agree on: fields and defaults of its dataclasses, parameters of its functions, values.
FACTS = """
import dataclasses, inspect, json, re, sys
from omegaconf import OmegaConf

def facts(get):
    classes = {name: get(name) for name in (
        "BaseSystem", "BaseLift3DSystem", "BaseModule", "BaseObject", "BaseGeometry", "BaseImplicitGeometry",
        "BaseExplicitGeometry", "BaseMaterial", "BaseBackground", "Renderer", "VolumeRenderer", "Rasterizer",
        "Exporter")}
    records = {name: cls.Config for name, cls in classes.items()}
    records |= {name: get(name) for name in ("ExperimentConfig", "ExporterOutput")}
    def default(f):
        made = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        return "(none)" if made is dataclasses.MISSING else made
    functions = ("C", "C_max", "config_to_primitive", "dump_config", "find", "find_last_path", "load_module_weights",
                 "parse_structured", "update_if_possible", "update_end_if_possible", "parse_optimizer",
                 "parse_scheduler", "contract_to_unisphere")
    saver = {n: f for n, f in vars(get("SaverMixin")).items() if n.startswith(("save_", "set_save", "get_save"))}
    host_code = re.compile("threestudio|portrait_diffusion")
    schedules = [[0, 0.98, 0.5, 200], [0.98, 0.5, 200], [100, 0.0, 10.0, 500], [0, 0.0, 1.0, 2.0],
                 [0, 1.0, 0.5, 100, 0.1, 300], [0, 1.0, 0.5, 100, 0.1, 300, 0.7, 400], [5, 2, 1, 5.5, 7, 90, 3, 120]]
    steps = [0, 1, 5, 50, 99, 100, 150, 200, 299, 300, 350, 399, 400, 500, 999]
    return {
        "fields": {n: {f.name: default(f) for f in dataclasses.fields(c)} for n, c in records.items()},
        "parameters": {n: list(inspect.signature(get(n)).parameters) for n in functions},
        "saver": {n: list(inspect.signature(f).parameters) for n, f in saver.items()},
        "C": [[get("C")(OmegaConf.create(v), s // 100, s) for s in steps] for v in schedules],
        "C_max": [get("C_max")(OmegaConf.create(v)) for v in schedules],
        "members": {n: sorted(m for k in c.__mro__ if host_code.search(k.__module__)
                              for m in vars(k) if not m.startswith("_")) for n, c in classes.items()},
    }
"""
CONFIG = """
name: toy
tag: run
use_timestamp: false
data_type: random-camera-datamodule
data: {batch_size: 2, width: 12, height: 8, eval_width: 16, eval_height: 16, n_val_views: 1, n_test_views: 2,
       camera_distance_range: [2.7, 2.7], fovy_range: [13, 14], eval_camera_distance: 2.7, eval_fovy_deg: 13.374}
system_type: dreamfusion-system
system:
  geometry_type: portrait-diffusion-triplane
  geometry: {resolution: 16, channels: 4, hidden: 8}
  material_type: no-material
  material: {n_output_dims: 3, color_activation: none}
  background_type: solid-color-background
  renderer_type: portrait-diffusion-volume-renderer
  renderer: {num_samples_per_ray: 8, num_importance_samples: 8, return_normals: true}
  prompt_processor_type: toy-prompt-processor
  guidance_type: toy-guidance
  loss: {lambda_sds: 1.0, lambda_orient: 0.0, lambda_sparsity: 1.0, lambda_opaque: 0.0}
  optimizer: {name: AdamW, args: {lr: 0.01}}
  exporter_type: dummy-exporter
trainer: {max_steps: 3, log_every_n_steps: 1, num_sanity_val_steps: 0, val_check_interval: 2, precision: 32}
checkpoint: {save_last: true, save_top_k: -1, every_n_train_steps: 3}
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder with `custom/` as a user would have it: our package linked, a toy extension beside it."""
    folder = scratch_folder(tmp_path_factory)
    (folder / "custom" / "toy").mkdir(parents=True)
    (folder / "custom" / "toy" / "__init__.py").write_text(TOY)
    (folder / "custom" / "portrait_diffusion").symlink_to(PACKAGE)
    (folder / "custom" / "z_facts").mkdir()
    (folder / "custom" / "z_facts" / "__init__.py").write_text(
        FACTS + f"\nsys.path.append({str(PACKAGE.parent)!r})\nfrom portrait_diffusion import host\n"
        "assert host.IN_THREESTUDIO\njson.dump(facts(lambda n: getattr(host, n)), open('facts.json', 'w'))\n"
    )
    (folder / "toy.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def trained(scratch):
    launch(scratch, "--config", "toy.yaml", "--train")
    return scratch / "outputs" / "toy" / "run"


def test_our_geometry_and_renderer_train_in_the_built_in_system(trained):
    files = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    assert {"ckpts/last.ckpt", "configs/raw.yaml", "configs/parsed.yaml", "cmd.txt"} <= files
    assert {"save/it2-0.png", "save/it3-test/0.png", "save/it3-test/1.png", "save/it3-test.mp4"} <= files


def test_the_own_host_agrees_with_threestudio(scratch, trained):
    theirs = json.loads((scratch / "facts.json").read_text())
    namespace: dict = {}
    exec(FACTS, namespace)
    ours = json.loads(json.dumps(namespace["facts"](lambda name: getattr(host, name))))
    assert ours["fields"] == theirs["fields"]
    assert ours["C"] == [pytest.approx(row, abs=1e-12) for row in theirs["C"]] and ours["C_max"] == theirs["C_max"]
    for name, parameters in theirs["parameters"].items():
        assert ours["parameters"][name][: len(parameters)] == parameters, name
    for name, parameters in ours["saver"].items():  # save_mesh takes no texture coordinates here
        assert parameters == theirs["saver"][name][: len(parameters)], name
    for name, members in theirs["members"].items():
        assert set(members) - set(ours["members"][name]) <= NOT_OFFERED, name


def test_its_checkpoint_loads_in_the_own_host(trained):
    checkpoint = torch.load(trained / "ckpts" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    section = host.load_config(str(trained / "configs" / "parsed.yaml"), exp_root_dir=str(trained / "own")).system
    weights = {"weights": f"{trained / 'ckpts' / 'last.ckpt'}:geometry"}
    geometry = host.find("portrait-diffusion-triplane")({**section.geometry, **weights})
    stored = {k[len("geometry.") :]: v for k, v in checkpoint["state_dict"].items() if k.startswith("geometry.")}
    assert geometry.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[key]) for key, value in geometry.state_dict().items())
    fresh = host.find("portrait-diffusion-triplane")(section.geometry)
    assert not torch.equal(fresh.planes[0], geometry.planes[0])  # the three steps moved the planes


def test_resume_and_weights_inside_threestudio(scratch, trained):
    last = str(trained / "ckpts" / "last.ckpt")
    launch(scratch, "--config", "toy.yaml", "--train", "tag=longer", f"resume={last}", "trainer.max_steps=4")
    assert (scratch / "outputs" / "toy" / "longer" / "save" / "it4-test.mp4").is_file()
    launch(scratch, "--config", "toy.yaml", "--test", "tag=again", f"system.weights={last}")
    assert (scratch / "outputs" / "toy" / "again" / "save" / "it0-test.mp4").is_file()


def test_our_guidance_trains_in_the_built_in_system(scratch, trained):
    """The HPDM guidance (tiny, random weights) in the place of Stable Diffusion's, with a schedule from YAML."""
    from portrait_diffusion.guidance.hpdm.model import build_mini
    from portrait_diffusion.guidance.hpdm.storage import save_hpdm

    torch.manual_seed(0)
    model = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=32)
    folder = save_hpdm(model, scratch / "hpdm")
    launch(
        scratch, "--config", "toy.yaml", "--train", "tag=guided",
        "system.guidance_type=portrait-diffusion-hpdm-guidance",
        f"system.guidance.pretrained_model_name_or_path={folder}",
        "system.guidance.max_step_percent=[0,0.98,0.5,3]", "system.guidance.explicit_scale=2.0",
    )  # fmt: skip
    guided = torch.load(scratch / "outputs" / "toy" / "guided" / "ckpts" / "last.ckpt", weights_only=True)
    toy = torch.load(trained / "ckpts" / "last.ckpt", weights_only=True)
    assert guided["global_step"] == 3
    assert guided["state_dict"].keys() == toy["state_dict"].keys(), "the guidance adds nothing to the checkpoint"
    key = next(k for k in toy["state_dict"] if "planes" in k)
    assert not torch.equal(guided["state_dict"][key], toy["state_dict"][key])
