"""The package inside the real threestudio, on the CPU; skipped unless THREESTUDIO_ROOT names a checkout (28d9d80).

The packages that threestudio imports must be installed (or on PYTHONPATH), except the CUDA ones, which
`real_threestudio.py` stands in for. The checkout is only read.
"""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from portrait_diffusion import host

ROOT = os.environ.get("THREESTUDIO_ROOT")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ROOT, reason="THREESTUDIO_ROOT is not set: no threestudio checkout to test with"),
]
REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "custom" / "portrait_diffusion"
NAMES = ["portrait-diffusion-triplane", "portrait-diffusion-volume-renderer"]

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
    if not (Path(ROOT) / "launch.py").is_file():
        pytest.fail(f"THREESTUDIO_ROOT={ROOT} holds no launch.py; set it to the root of a threestudio checkout.")
    folder = tmp_path_factory.mktemp("run")
    (folder / "custom" / "toy").mkdir(parents=True)
    (folder / "custom" / "toy" / "__init__.py").write_text(TOY)
    (folder / "custom" / "portrait_diffusion").symlink_to(PACKAGE)
    (folder / "toy.yaml").write_text(CONFIG)
    return folder


def launch(scratch: Path, *arguments: str) -> str:
    environment = {
        **os.environ, "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    script = str(Path(__file__).with_name("real_threestudio.py"))
    done = subprocess.run(
        [sys.executable, script, ROOT, *arguments],
        cwd=scratch, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "IMPORT FAILED" not in output, output[-6000:]
    assert f"OUR NAMES {NAMES}" in output or all(name in output for name in NAMES), output[-6000:]
    return output


@pytest.fixture(scope="module")
def trained(scratch):
    launch(scratch, "--config", "toy.yaml", "--train")
    return scratch / "outputs" / "toy" / "run"


def test_our_geometry_and_renderer_train_in_the_built_in_system(trained):
    files = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    assert {"ckpts/last.ckpt", "configs/raw.yaml", "configs/parsed.yaml", "cmd.txt"} <= files
    assert {"save/it2-0.png", "save/it3-test/0.png", "save/it3-test/1.png", "save/it3-test.mp4"} <= files


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
