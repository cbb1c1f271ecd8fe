"""Every configuration that ships is small, valid and complete, those made from another are current, and all train."""
import math
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from portrait_diffusion import host
from portrait_diffusion.host import prepare_resolvers
from portrait_diffusion.pipeline import PortraitPipeline
from portrait_diffusion.settings import load_pipeline_config
from portrait_diffusion.systems.stages import Schedule

pytestmark = pytest.mark.usefixtures("photo_prepared_once")
ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
SMALL = [
    "system.inversion.latent_steps=1", "system.inversion.latent_size=32", "system.inversion.latent_samples=6",
    "system.inversion.novel_views=2", "system.inversion.novel_size=16", "system.inversion.detail_steps=2",
    "system.inversion.detail_size=48", "system.inversion.detail_resolution=48",
]  # fmt: skip
QUICK = {"portrait-mini", "portrait-init", "portrait"}
"""Configurations that train in every run of the tests; the others are slow ones."""


def shrunk(path, model) -> list[str]:
    """Overrides that make a configuration tiny: two steps of every stage it has, a random model of a few kilobytes."""
    out, system = list(SMALL), yaml.safe_load(path.read_text())["system"]
    for name, stage in (system.get("stages") or {}).items():
        place = f"system.stages.{name}"
        out += [f"{place}.steps={min(2, stage['steps'])}", f"{place}.resolution=[32]", f"{place}.milestones=[]",
                f"{place}.max_step_percent=0.5"]  # fmt: skip
    if system.get("guidance"):
        out += [f"system.guidance.pretrained_model_name_or_path={model}", "system.restoration_resolution=8",
                "system.renderer.num_samples_per_ray=8", "system.renderer.num_importance_samples=8"]  # fmt: skip
    return out


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    pytest.importorskip("diffusers"), pytest.importorskip("pytorch_lightning")
    from portrait_diffusion.guidance.hpdm.model import build_mini
    from portrait_diffusion.guidance.hpdm.storage import save_hpdm

    torch.manual_seed(0)
    tiny = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=32)
    return str(save_hpdm(tiny, tmp_path_factory.mktemp("hpdm")))


def test_there_are_configurations():
    names = {path.stem for path in CONFIGS}
    own = {"portrait-mini", "portrait-sharp", "portrait-distilled", "portrait-init", "portrait-fast"}
    assert own | {"portrait", "portrait-12gb"} <= names
    assert len(list((ROOT / "configs" / "ablations").glob("*.yaml"))) >= 9


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_is_short_and_valid(path):
    assert len(path.read_text().splitlines()) <= 150
    config, plain = load_pipeline_config(path)
    assert config.name == path.stem == plain["name"]


def test_those_made_from_another_are_current(capsys):
    script = runpy.run_path(str(ROOT / "configs" / "make.py"))
    assert script["main"](["--check"]) == 0, capsys.readouterr().err


def test_a_stale_one_is_noticed(monkeypatch, capsys):
    script = runpy.run_path(str(ROOT / "configs" / "make.py"))
    made = {path: text.replace("steps: 1200", "steps: 1201") for path, text in script["files"]().items()}
    monkeypatch.setitem(script["main"].__globals__, "files", lambda: made)
    assert script["main"](["--check"]) == 1
    assert "custom/portrait.yaml" in capsys.readouterr().err


def test_threestudios_copy_is_the_same_run():
    """custom/portrait.yaml: every key of configs/portrait.yaml, as the registered classes take it."""
    ours = yaml.safe_load((ROOT / "configs" / "portrait.yaml").read_text())
    theirs = yaml.safe_load((ROOT / "custom" / "portrait.yaml").read_text())
    assert len((ROOT / "custom" / "portrait.yaml").read_text().splitlines()) <= 150
    same = set(ours["system"])
    assert {k: theirs["system"][k] for k in same} == {k: ours["system"][k] for k in same}
    assert theirs["seed"] == ours["seed"] and ours["data"].items() <= theirs["data"].items()
    steps = theirs["trainer"]["max_steps"]
    prepare_resolvers()
    for refine in (theirs["system"]["stages"]["refine"]["steps"], 7):
        theirs["system"]["stages"]["refine"]["steps"] = refine
        assert OmegaConf.create(theirs).trainer.max_steps == Schedule(theirs["system"]["stages"]).total
    assert "restore" in steps and "refine" in steps, "it follows the stages"
    pytest.importorskip("pytorch_lightning")
    from portrait_diffusion.data.portrait import PortraitDataConfig
    from portrait_diffusion.systems.portrait import PortraitSystem

    PortraitSystem.Config(**theirs["system"]), PortraitDataConfig(**theirs["data"])
    for name in ("geometry", "renderer", "guidance", "exporter"):
        host.find(theirs["system"][f"{name}_type"]).Config(**theirs["system"][name])
    assert host.find(theirs["data_type"]) and host.find(theirs["system_type"]) is PortraitSystem


@pytest.mark.parametrize(
    "path", [p if p.stem in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in CONFIGS], ids=lambda p: p.stem
)
def test_two_steps(path, model):
    result = PortraitPipeline.from_config(path, shrunk(path, model)).run(ROOT / "examples" / "astronaut.png")
    stages = {name: stage for name, stage in Schedule(result.raw_config["system"].get("stages", {})).stages.items()
              if stage.steps}  # fmt: skip
    assert {name.split("/")[0] for name in result.curves} == {"latent", "detail"} | set(stages)
    for name, curve in result.curves.items():
        assert 1 <= len(curve) <= 2 and all(math.isfinite(value) for value in curve), name
    if stages:
        assert float(result.geometry.restoration.detach().abs().max()) > 0, "the stages changed something"
    for name, stage in stages.items():
        asked = "painted" if stage.painted else "guidance_loss_sds"
        assert f"{name}/{asked}" in result.curves, f"one step of each stage asks the model: {sorted(result.curves)}"
    image = result.render_input_fn(32, 32)["comp_rgb"]
    assert image.shape == (1, 32, 32, 3) and bool(image.isfinite().all())
