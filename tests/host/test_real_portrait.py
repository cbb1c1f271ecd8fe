"""custom/portrait.yaml in the real threestudio: train, validate, test, export, resume, its own guidance beside ours.

Skipped unless THREESTUDIO_ROOT names a checkout (see checkout.py). The models are tiny and random.
"""
import json
import shutil
import subprocess
import sys

import pytest
import torch
import trimesh
import yaml
from host.checkout import NAMES, PACKAGE, PHOTO, REPOSITORY, launch, needs_checkout, scratch_folder, start

pytestmark = needs_checkout
SMALL = [
    "system.inversion.latent_steps=1", "system.inversion.latent_size=32", "system.inversion.latent_samples=6",
    "system.inversion.novel_views=1", "system.inversion.novel_size=16", "system.inversion.detail_steps=1",
    "system.inversion.detail_size=48", "system.inversion.detail_resolution=48", "system.inversion.lambda_perceptual=0",
    "system.restoration_resolution=8", "system.renderer.num_samples_per_ray=8",
    "system.renderer.num_importance_samples=8", "system.stages.restore.steps=2", "system.stages.refine.steps=4",
    "system.stages.restore.resolution=[16]", "system.stages.restore.milestones=[]",
    "system.stages.restore.max_step_percent=0.5", "system.stages.refine.resolution=[16]",
    "system.stages.refine.milestones=[]", "system.stages.refine.loss.lambda_perceptual=0",
    "system.stages.refine.reference_every=3", "system.stages.refine.max_step_percent=[0,0.5,0.2,4]",
    "data.eval_size=32", "data.n_val_views=2", "data.n_test_views=2",
    "trainer.val_check_interval=2", "checkpoint.every_n_train_steps=3", "system.exporter.render_size=16",
    "system.exporter.mesh.resolution=48", "system.exporter.mesh.target_faces=1000",
    "system.exporter.bake.texture_size=64", "system.exporter.turntable.frames=3",
    "system.exporter.turntable.height=32", "use_timestamp=false",
]  # fmt: skip


def tiny_stable_diffusion(folder):
    """A Stable-Diffusion-shaped pipeline of random weights in diffusers' format, with text encoder and tokenizer."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    DDIMScheduler().save_pretrained(folder / "scheduler")
    text = """
import json, sys, torch
from pathlib import Path
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
folder = Path(sys.argv[1])
torch.manual_seed(0)
letters = [chr(c) for c in range(97, 123)] + [","]
words = letters + [f"{c}</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
(folder / "raw").mkdir()
(folder / "raw" / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
(folder / "raw" / "merges.txt").write_text("#version: 0.2\\n")
tokenizer = CLIPTokenizer(str(folder / "raw" / "vocab.json"), str(folder / "raw" / "merges.txt"), model_max_length=77)
tokenizer.save_pretrained(folder / "tokenizer")
CLIPTextModel(CLIPTextConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
              num_attention_heads=2, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
              pad_token_id=len(words) - 1)).save_pretrained(folder / "text_encoder")
"""
    subprocess.run([sys.executable, "-c", text, str(folder)], check=True, capture_output=True, timeout=300)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "safety_checker": [None, None], "feature_extractor": [None, None]}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder with `custom/` as a user would have it, the public models in the local folder `models/`."""
    folder = scratch_folder(tmp_path_factory)
    (folder / "custom" / "portrait_diffusion").symlink_to(PACKAGE)
    shutil.copy(REPOSITORY / "custom" / "portrait.yaml", folder / "custom" / "portrait.yaml")
    shutil.copy(PHOTO, folder / "me.png")
    (folder / "models" / "sd").mkdir(parents=True)
    tiny_stable_diffusion(folder / "models" / "sd")
    return folder


def run(scratch, *arguments, tag="run"):
    return launch(
        scratch, "--config", "custom/portrait.yaml", *arguments, *SMALL, "data.image_path=me.png", f"tag={tag}",
        "system.guidance.pretrained_model_name_or_path=models/sd", "system.guidance.controlnets=[]",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(scratch):
    """Six steps with threestudio's own Stable Diffusion guidance and prompt processor mixed in while refining."""
    mixed = (
        "{type: stable-diffusion-guidance, weight: 0.1, stages: [refine], guidance: {pretrained_model_name_or_path: "
        "models/sd, half_precision_weights: false, guidance_scale: 7.5}, prompt_processor_type: "
        "stable-diffusion-prompt-processor, prompt_processor: {pretrained_model_name_or_path: models/sd, prompt: a "
        "person, spawn: false}}"
    )
    run(scratch, "--train", f"system.extra_guidances=[{mixed}]")
    return scratch / "outputs" / "portrait" / "run"


def test_it_trains_validates_and_tests_with_a_foreign_guidance_beside_ours(trained):
    names = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    assert {"save/it2-0.png", "save/it2-1.png", "save/it4-0.png", "save/it6-test.mp4", "share.yaml"} <= names
    header, *rows = (trained / "csv_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    column = columns.index("train/guidance_extra0_loss_sds")
    values = [float(row.split(",")[column]) for row in rows if row.split(",")[column]]
    assert values and all(0 < value < float("inf") for value in values), "the other guidance was asked while refining"
    ours = [row.split(",")[columns.index("train/guidance_loss_sds")] for row in rows]
    assert len([value for value in ours if value]) > len(values), "ours was asked in both stages"


def test_its_shared_configuration_is_the_run_without_machine_paths(trained, scratch):
    text = (trained / "share.yaml").read_text()
    share = yaml.safe_load(text)
    assert str(scratch) not in text and "timestamp" not in share and share["trainer"]["max_steps"] == 6
    assert share["data"]["image_path"] == "me.png" and share["system"]["stages"]["refine"]["steps"] == 4
    made = share["system"]["made_with"]
    assert made["version"] and len(made["weights"]["prior"]) == 64 and made["models"][0]["id"] == "sd"
    assert len(made["models"][0]["sha256"]["unet/diffusion_pytorch_model.safetensors"]) == 64
    (scratch / "share.yaml").write_text(text)
    launch(scratch, "--config", "share.yaml", "--train", "tag=shared", "use_timestamp=false", "trainer.max_steps=1")


def test_it_exports_what_was_trained(trained, scratch):
    run(scratch, "--export", f"resume={trained / 'ckpts' / 'last.ckpt'}", "exp_root_dir=exported")
    out = scratch / "exported" / "portrait" / "run" / "save" / "it6-export"
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    wanted = {"portrait.glb", "portrait.ply", "portrait.obj", "turntable.mp4", "report.html", "provenance.json"}
    assert wanted | {"share.yaml"} <= names and len([n for n in names if n.startswith("views/")]) == 16
    mesh = trimesh.load(out / "portrait.ply", process=False)
    assert len(mesh.faces) > 500 and 0.15 < float(mesh.extents.max()) < 0.45, "a head in metres"
    assert yaml.safe_load((out / "share.yaml").read_text())["trainer"]["max_steps"] == 6, "the run's own settings"
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["photo"]["name"] == "me.png"
    assert {"prior", "encoder", "camera"} <= set(provenance["weights_sha256"])


def test_it_resumes_exactly(trained, scratch):
    last = torch.load(trained / "ckpts" / "last.ckpt", weights_only=True)
    half = next((trained / "ckpts").glob("*step=3*.ckpt"))
    config = yaml.safe_load((trained / "share.yaml").read_text())
    (scratch / "again.yaml").write_text(yaml.safe_dump(config))
    launch(scratch, "--config", "again.yaml", "--train", "tag=again", "use_timestamp=false", f"resume={half}")
    again = torch.load(scratch / "outputs" / "portrait" / "again" / "ckpts" / "last.ckpt", weights_only=True)
    key = "geometry.restoration"
    assert again["global_step"] == 6 and float(last["state_dict"][key].abs().max()) > 0
    assert torch.equal(again["state_dict"][key], last["state_dict"][key])
    run(scratch, "--validate", f"resume={half}", tag="validated")
    assert (scratch / "outputs" / "portrait" / "validated" / "save" / "it3-0.png").is_file()


def test_its_rate_falls_and_runs_may_be_deterministic(scratch):
    """From the third step on the rate is 0, and PyTorch's deterministic algorithms stop nothing."""
    rate = "{name: LinearLR, interval: step, args: {start_factor: 1.0, end_factor: 0.0, total_iters: 3}}"
    run(scratch, "--train", f"system.scheduler={rate}", "trainer.deterministic=true", tag="falling")
    ckpts = scratch / "outputs" / "portrait" / "falling" / "ckpts"
    half, last = (torch.load(path, weights_only=True) for path in (next(ckpts.glob("*step=3*")), ckpts / "last.ckpt"))
    grids = [state["state_dict"]["geometry.restoration"] for state in (half, last)]
    assert last["global_step"] == 6 and float(grids[0].abs().max()) > 0 and torch.equal(*grids)


def test_our_parts_serve_another_system(scratch):
    """Data module, geometry, renderer, guidance, noise sampler and exporter in threestudio's dreamfusion-system."""
    (scratch / "mixed.yaml").write_text("""
name: mixed
tag: run
use_timestamp: false
data_type: portrait-diffusion-datamodule
data: {stages: {refine: {steps: 5, resolution: [16]}}, eval_size: 32, n_val_views: 2, n_test_views: 2}
system_type: dreamfusion-system
system:
  geometry_type: portrait-diffusion-triplane
  geometry: {resolution: 16, channels: 4, hidden: 8, init_density: 3.0}
  material_type: no-material
  material: {n_output_dims: 3, color_activation: none}
  background_type: solid-color-background
  renderer_type: portrait-diffusion-volume-renderer
  renderer: {num_samples_per_ray: 8, num_importance_samples: 8, return_normals: true}
  prompt_processor_type: stable-diffusion-prompt-processor
  prompt_processor: {pretrained_model_name_or_path: models/sd, prompt: a person, spawn: false}
  guidance_type: portrait-diffusion-sd-guidance
  guidance: {pretrained_model_name_or_path: models/sd, offline: true,
             noise_sampler_type: portrait-diffusion-fixed-noise}
  loss: {lambda_sds: 1.0, lambda_orient: 0.0, lambda_sparsity: 1.0, lambda_opaque: 0.0}
  optimizer: {name: AdamW, args: {lr: 0.01}}
  exporter_type: portrait-diffusion-exporter
  exporter: {save_video: true, render_size: 16, view_elevations_deg: [0], mesh: {resolution: 32, target_faces: 500},
             bake: {texture_size: 64}, turntable: {frames: 3, height: 32}}
trainer: {max_steps: 3, log_every_n_steps: 1, num_sanity_val_steps: 0, val_check_interval: 2, precision: 32}
checkpoint: {save_last: true, save_top_k: -1, every_n_train_steps: 3}
""")
    launch(scratch, "--config", "mixed.yaml", "--train")
    last = scratch / "outputs" / "mixed" / "run" / "ckpts" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    launch(scratch, "--config", "mixed.yaml", "--export", f"resume={last}")
    save = scratch / "outputs" / "mixed" / "run" / "save"
    assert (save / "it3-export" / "portrait.glb").is_file() and (save / "it3-test.mp4").is_file()


def tracked(folder):
    """What `git clone` would bring, with changes that are not committed yet."""
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (REPOSITORY / name).is_file() and not name.startswith(("docs/", "benchmarks/", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)


@pytest.mark.parametrize("form", ["copy", "symlink", "clone", "clone under the package's name"])
def test_every_form_of_installation_registers_every_name(form, tmp_path_factory):
    folder = scratch_folder(tmp_path_factory)
    custom = folder / "custom"
    if form == "copy":
        shutil.copytree(PACKAGE, custom / "portrait_diffusion", ignore=shutil.ignore_patterns("__pycache__"))
    elif form == "symlink":
        (custom / "portrait_diffusion").symlink_to(PACKAGE)
    else:
        tracked(custom / ("portrait-diffusion" if form == "clone" else "portrait_diffusion"))
    (folder / "none.yaml").write_text("name: none\ntag: x\ndata_type: no-such-thing\n")
    done = start(folder, "--config", "none.yaml", "--test")  # all that is wanted is the loading
    assert "no-such-thing" in done.stderr and "IMPORT FAILED" not in done.stdout, done.stderr[-3000:]
    assert f"OUR NAMES {NAMES}" in done.stdout
