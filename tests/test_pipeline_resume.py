"""When a run may take up a checkpoint: same photo, same settings, and weights of the same contents."""
import os
import shutil
from pathlib import Path

import pytest
from portrait_diffusion import pipeline as module
from portrait_diffusion.errors import EnvironmentProblem
from portrait_diffusion.inversion.config import InversionConfig
from portrait_diffusion.pipeline import PortraitPipeline, run_key, weights_sha256
from portrait_diffusion.settings import PriorConfig
from portrait_diffusion.shipped import find_config
from priors.samples import save_tiny_prior

PHOTO = Path(__file__).resolve().parents[1] / "examples" / "astronaut.png"
SMALL = (
    "data.size=128", "data.matte=none", "system.inversion.latent_steps=2", "system.inversion.latent_size=32",
    "system.inversion.latent_samples=4", "system.inversion.novel_views=0", "system.inversion.detail_steps=0",
    "system.inversion.detail_size=32", "system.inversion.detail_resolution=16", "system.inversion.detail_samples=4",
    "system.inversion.lambda_perceptual=0", "system.inversion.checkpoint_every=1",
    "system.renderer.num_samples_per_ray=8", "system.renderer.num_importance_samples=8",
)  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    """Two files of a prior and the section that names them."""
    prior, encoder = tmp_path / "prior.safetensors", tmp_path / "encoder.safetensors"
    prior.write_bytes(b"generator")
    encoder.write_bytes(b"encoder")
    return PriorConfig(str(prior), str(encoder))


def key(prior: PriorConfig, photo: str = "photo", seed: int = 0, data: dict | None = None, **system) -> str:
    paths = {"checkpoint": prior.checkpoint, "encoder": prior.encoder}
    raw = {"seed": seed, "data": data or {}, "system": {"prior": paths, **system}}
    return run_key(photo, raw, prior)


def test_the_key_follows_the_contents_of_both_files_not_their_names(weights, tmp_path):
    before = key(weights)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    copies = [shutil.copy(path, moved / f"other-{Path(path).name}") for path in (weights.checkpoint, weights.encoder)]
    assert key(PriorConfig(*map(str, copies))) == before
    assert key(PriorConfig(weights.encoder, weights.checkpoint)) != before
    keys = {before}
    for path in (weights.checkpoint, weights.encoder):
        Path(path).write_bytes(b"trained anew")
        keys.add(key(weights))
    assert len(keys) == 3


def test_empty_paths_mean_the_shipped_files():
    shipped = module.prior_paths(PriorConfig())
    assert key(PriorConfig()) == key(PriorConfig(*map(str, shipped)))


def test_the_key_follows_photo_and_settings_but_not_what_only_shows_the_head(weights):
    before = key(weights)
    changed = [
        key(weights, photo="another"), key(weights, seed=1), key(weights, data={"size": 64}),
        key(weights, inversion={"latent_steps": 1}), key(weights, geometry={"levels": 2}),
    ]  # fmt: skip
    assert len({before, *changed}) == 6
    assert key(weights, exporter={"render_size": 8}, renderer={"num_samples_per_ray": 8}) == before
    assert key(weights, data={"image_path": "moved.png"}) == before


def test_the_key_follows_the_defaults_of_the_fit(weights, monkeypatch):
    """A checkpoint of an earlier version is not taken up where the version fits otherwise."""
    before = key(weights)
    monkeypatch.setattr(module, "InversionConfig", lambda: InversionConfig(density_scale=7.0))
    assert key(weights) != before


def test_the_key_follows_the_networks_that_look_at_the_photo(weights, tmp_path, monkeypatch):
    files = {name: tmp_path / f"{name}.safetensors" for name in ("camera", "matte")}
    for file in files.values():
        file.write_bytes(b"first")
    monkeypatch.setattr("portrait_diffusion.photo.prepare.CAMERA_WEIGHTS", files["camera"])
    monkeypatch.setattr("portrait_diffusion.photo.prepare.MATTE_WEIGHTS", files["matte"])
    plain = {"camera": "landmarks", "matte": "none"}
    named = [{}, plain | {"camera": "network"}, plain | {"matte": "network"}, plain]
    before = [key(weights, data=data) for data in named]
    assert len(set(before)) == 4 and key(weights, data={"camera": "network", "matte": "auto"}) != before[3]
    files["camera"].write_bytes(b"trained anew")
    after = [key(weights, data=data) for data in named]
    assert [a != b for a, b in zip(before, after)] == [True, True, False, False]
    files["matte"].write_bytes(b"trained anew")
    assert [a != b for a, b in zip(after, (key(weights, data=data) for data in named))] == [True, False, True, False]


def test_the_key_of_the_stages_follows_the_guidances_model_too(weights, tmp_path, monkeypatch):
    folder = tmp_path / "hpdm"
    (folder / "unet").mkdir(parents=True)
    file = folder / "unet" / "model.safetensors"
    file.write_bytes(b"first")
    monkeypatch.setattr("portrait_diffusion.guidance.hpdm_guidance.BUNDLED", folder)

    def staged(stage="refine", **guidance):
        section = {"guidance_type": "portrait-diffusion-hpdm-guidance", "guidance": guidance}
        return run_key("photo", {"system": section}, weights, stage)

    named = [{}, {"pretrained_model_name_or_path": "bundled"}, {"pretrained_model_name_or_path": str(folder)}]
    before, start = [staged(**guidance) for guidance in named], staged(stage=None)
    hub = staged(pretrained_model_name_or_path="some/model")
    file.write_bytes(b"trained on")
    after = [staged(**guidance) for guidance in named]
    assert all(a != b for a, b in zip(before, after, strict=True)) and len(set(before)) == 3
    assert staged(stage=None) == start and staged(pretrained_model_name_or_path="some/model") == hub


def test_the_key_of_the_stages_follows_what_they_do_unasked(weights, monkeypatch):
    from portrait_diffusion.guidance.hpdm_guidance import HPDMGuidance
    from portrait_diffusion.settings import SystemConfig
    from portrait_diffusion.systems.stages import StageConfig

    def key() -> str:
        return run_key("photo", {"system": {"guidance_type": "portrait-diffusion-hpdm-guidance"}}, weights, "refine")

    keys = [key()]
    for cls, name in ((HPDMGuidance.Config, "inversion_steps"), (SystemConfig, "restoration_blur")):
        monkeypatch.setattr(cls.__dataclass_fields__[name], "default", 99)
        keys.append(key())
    original = module.asdict
    changed = {"views": 99}
    monkeypatch.setattr(module, "asdict", lambda c: original(c) | (changed if isinstance(c, StageConfig) else {}))
    keys.append(key())
    assert len(set(keys)) == 4 and keys[-1] == key()


def test_a_stage_does_not_depend_on_those_after_it(weights):
    def keys(restore: int, refine: int, **system) -> list[str]:
        stages = {"restore": {"steps": restore}, "refine": {"steps": refine}}
        return [run_key("photo", {"system": {"stages": stages, **system}}, weights, n) for n in ("restore", "refine")]

    first, later, earlier = keys(2, 3), keys(2, 4), keys(1, 3)
    assert first[0] == later[0] and first[1] != later[1] and len(set(first)) == 2
    assert not set(first) & set(earlier)
    assert not set(first) & set(keys(2, 3, restoration_resolution=8)), "what all stages share"


def test_a_file_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    reads = []
    original = module.sha256_file
    monkeypatch.setattr(module, "sha256_file", lambda path: reads.append(path) or original(path))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    first = weights_sha256(path)
    assert weights_sha256(path) == first == original(path) and len(reads) == 1
    path.write_bytes(b"other size")
    assert weights_sha256(path) == original(path) != first and len(reads) == 2
    path.write_bytes(b"equal size")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # a later write, also where the clock ticks slowly
    assert weights_sha256(path) == original(path) and len(reads) == 3


def fit(out: Path | None, weights: Path, seen: list | None = None):
    """A tiny run; `seen` collects its steps."""
    paths = [f"system.prior.checkpoint={weights / 'prior.safetensors'}",
             f"system.prior.encoder={weights / 'encoder.safetensors'}"]  # fmt: skip
    steps = seen if seen is not None else []

    def note(stage, done, total, values):
        if stage == "latent":
            steps.append(done)

    return PortraitPipeline.from_config(find_config("portrait-init"), [*SMALL, *paths]).run(PHOTO, out, note)


def test_a_run_goes_on_with_the_same_weights_and_starts_anew_with_others(tmp_path):
    weights, out, steps = tmp_path / "weights", tmp_path / "out", []
    weights.mkdir()
    save_tiny_prior(weights, seed=0)
    first = fit(out, weights, steps)
    again = fit(out, weights, steps)
    assert steps == [1, 2] and again.field_id() == first.field_id()  # the second run had nothing left to do
    save_tiny_prior(weights, seed=1)  # other weights in the same files
    other = fit(out, weights, steps)
    assert steps == [1, 2, 1, 2]
    assert other.field_id() == fit(None, weights).field_id() != first.field_id()


def test_missing_weights_are_a_problem_of_the_environment_also_with_a_checkpoint_folder(tmp_path):
    with pytest.raises(EnvironmentProblem, match="prior.safetensors"):
        fit(tmp_path / "out", tmp_path)
