"""Systems on pytorch-lightning: order of calls, optimisation, checkpoints, resume, weights, conversion, export."""
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from portrait_diffusion import host
from portrait_diffusion._standalone import registry
from portrait_diffusion.errors import UsageError
from torch import nn

pl = pytest.importorskip("pytorch_lightning")


class Geometry(host.BaseImplicitGeometry):
    @dataclass
    class Config(host.BaseImplicitGeometry.Config):
        width: int = 4

    cfg: Config

    def configure(self):
        super().configure()
        self.layer = nn.Linear(3, self.cfg.width)

    def forward(self, points, output_normal=False):
        return {"features": self.layer(points)}

    @staticmethod
    def create_from(other, cfg=None, copy_net=False, **kwargs):
        new = Geometry(cfg)
        new.layer.load_state_dict(other.layer.state_dict())
        new.copied_net = copy_net
        return new


class Material(host.BaseMaterial):
    def forward(self, features, **kwargs):
        return features.mean(-1, keepdim=True)


class Background(host.BaseBackground):
    def forward(self, dirs):
        return torch.ones_like(dirs)


class Renderer(host.VolumeRenderer):
    def forward(self, points, **kwargs):
        return {"value": self.material(**self.geometry(points))}


class Exporter(host.Exporter):
    def __call__(self):
        mesh = host.Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
        return [host.ExporterOutput("model.obj", "obj", {"mesh": mesh})]


class Data(torch.utils.data.IterableDataset, host.Updateable):
    """Endless; each item depends only on its number, so a resumed run needs the same items."""

    def __init__(self, log, first=0):
        self.log, self.first = log, first

    def __iter__(self):
        step = self.first
        while True:
            yield {"points": torch.randn(8, 3, generator=torch.Generator().manual_seed(step)), "index": step}
            step += 1

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.log.append(("dataset", global_step))

    def update_step_end(self, epoch, global_step):
        self.log.append(("dataset-end", global_step))


class System(host.BaseLift3DSystem):
    @dataclass
    class Config(host.BaseLift3DSystem.Config):
        freq: dict = field(default_factory=dict)

    cfg: Config

    def configure(self):
        self._log = []
        self._seen = []
        super().configure()

    def preprocess_data(self, batch, stage):
        self._log.append((f"preprocess-{stage}", self.true_global_step))

    def update_step(self, epoch, global_step, on_load_weights=False):
        self._log.append(("weights" if on_load_weights else "update", global_step))

    def update_step_end(self, epoch, global_step):
        self._log.append(("end", global_step))

    def training_step(self, batch, batch_idx):
        self._log.append(("step", self.true_global_step))
        self._seen.append(batch["index"])
        target = batch["points"].sum(-1, keepdim=True)
        error = (self.renderer(**batch)["value"] - target).square().mean()
        return {"loss": self.C(self.cfg.loss["lambda_fit"]) * error}

    def validation_step(self, batch, batch_idx):
        self.save_rgb_image(f"it{self.true_global_step}-{batch_idx}.png", torch.ones(2, 2, 3))

    def on_validation_epoch_end(self):
        pass

    def test_step(self, batch, batch_idx):
        self.save_rgb_image(f"it{self.true_global_step}-test/{batch_idx}.png", torch.ones(2, 2, 3))

    def on_test_epoch_end(self):
        pass


CLASSES = {
    "t-geometry": Geometry, "t-material": Material, "t-background": Background, "t-renderer": Renderer,
    "t-exporter": Exporter,
}  # fmt: skip
CONFIG = """
geometry_type: t-geometry
geometry: {width: 5}
material_type: t-material
background_type: t-background
renderer_type: t-renderer
renderer: {radius: 2.0}
exporter_type: t-exporter
loss: {lambda_fit: [0, 1.0, 0.5, 4]}
optimizer: {name: AdamW, args: {lr: 0.05, betas: [0.9, 0.99]}, params: {geometry.layer: {lr: 0.02}}}
scheduler: {name: StepLR, interval: step, args: {step_size: 2, gamma: 0.5}}
"""


@pytest.fixture(autouse=True)
def names():
    before = dict(registry.modules())
    registry.modules().update(CLASSES)
    yield
    registry.modules().clear()
    registry.modules().update(before)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return System(OmegaConf.merge(OmegaConf.create(CONFIG), changes))


def trainer(steps, **kwargs):
    kwargs = {"limit_val_batches": 0, "num_sanity_val_steps": 0, **kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.Trainer(
            max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, inference_mode=False, **kwargs,
        )  # fmt: skip


def loader(log=None, first=0):
    return torch.utils.data.DataLoader(Data([] if log is None else log, first), batch_size=None)


def views(n=2):
    return torch.utils.data.DataLoader([{"points": torch.zeros(1, 3), "index": i} for i in range(n)], batch_size=None)


def fit(system, steps, ckpt_path=None, first=0, **kwargs):
    run = trainer(steps, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(system, loader(system._log, first), ckpt_path=ckpt_path)
    return run


def test_three_steps_train_in_the_documented_order():
    system = make()
    before = {k: v.clone() for k, v in system.state_dict().items()}
    run = fit(system, 3)
    per_step = [
        [("preprocess-train", n), ("dataset", n), ("update", n), ("step", n), ("dataset-end", n + 1), ("end", n + 1)]
        for n in range(3)
    ]
    assert system._log == [entry for step in per_step for entry in step]
    moved = {k for k, v in system.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"geometry.layer.weight", "geometry.layer.bias"}
    assert run.global_step == system.true_global_step == 3
    (group,) = run.optimizers[0].param_groups
    assert group["name"] == "geometry.layer" and group["lr"] == 0.01 and type(group["betas"]) is not type(CONFIG)
    assert isinstance(group["betas"], list | tuple) and not OmegaConf.is_config(group["betas"])


def test_the_loss_falls():
    system = make(loss={"lambda_fit": 1.0}, scheduler=None)
    points = torch.randn(64, 3, generator=torch.Generator().manual_seed(99))

    def error():
        return (system.renderer(points)["value"] - points.sum(-1, keepdim=True)).square().mean().item()

    before = error()
    fit(system, 60)
    assert error() < 0.3 * before


def test_resuming_equals_an_uninterrupted_run(tmp_path):
    whole = make()
    fit(whole, 5)
    half = make()
    fit(half, 2).save_checkpoint(tmp_path / "half.ckpt")
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=True)  # plain containers and tensors only
    assert {"epoch", "global_step", "state_dict", "optimizer_states"} <= set(checkpoint)
    assert checkpoint["global_step"] == 2 and "renderer.bbox" in checkpoint["state_dict"]
    resumed = make(seed=1)
    fit(resumed, 5, ckpt_path=tmp_path / "half.ckpt", first=2)
    assert whole._seen == half._seen + resumed._seen == [0, 1, 2, 3, 4]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert ("step", 2) in resumed._log and ("step", 1) not in resumed._log


def test_system_weights_load_what_fits_and_start_again_at_step_zero(tmp_path):
    source = make()
    fit(source, 2).save_checkpoint(tmp_path / "c.ckpt")
    loaded = make(seed=1, weights=str(tmp_path / "c.ckpt"))
    assert torch.equal(loaded.geometry.layer.weight, source.geometry.layer.weight)
    assert loaded._log == [("weights", 2)] and loaded.true_global_step == 0
    partly = make(seed=1, weights=str(tmp_path / "c.ckpt"), weights_ignore_modules=["geometry"])
    assert not torch.equal(partly.geometry.layer.weight, source.geometry.layer.weight)
    fit(loaded, 1)
    assert loaded._log[1:3] == [("preprocess-train", 0), ("dataset", 0)]


def test_newest_weights(tmp_path):
    source = make()
    folder = tmp_path / "me@20250101-000000" / "ckpts"
    folder.mkdir(parents=True)
    (tmp_path / "me@20240101-000000").mkdir()
    fit(source, 1).save_checkpoint(folder / "last.ckpt")
    loaded = make(seed=1, weights=str(tmp_path / "me@LAST" / "ckpts" / "last.ckpt"))
    assert torch.equal(loaded.geometry.layer.weight, source.geometry.layer.weight)


def test_evaluation_uses_the_step_of_the_checkpoint_and_saves_under_known_names(tmp_path):
    system = make()
    system.set_save_dir(str(tmp_path / "save"))
    system.set_resume_status(3, 120)
    assert (system.true_current_epoch, system.true_global_step) == (3, 120)
    assert system.C(OmegaConf.create([100, 0.0, 1.0, 200])) == pytest.approx(0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(1, limit_val_batches=1.0).validate(system, views(), verbose=False)
        trainer(1).test(system, views(), verbose=False)
        trainer(1).predict(system, views())
    written = sorted(p.relative_to(tmp_path / "save").as_posix() for p in (tmp_path / "save").rglob("*.*"))
    assert written == ["it120-0.png", "it120-1.png", "it120-export/model.obj", "it120-test/0.png", "it120-test/1.png"]
    assert [e for e in system._log if e[0].startswith("preprocess")] == [
        (f"preprocess-{stage}", 120) for stage in ("validation", "test", "predict") for _ in range(2)
    ]
    assert ("end", 120) in system._log  # outside training both ends of a batch get the same number


def test_export_refuses_an_unknown_kind_of_file(tmp_path):
    system = make()
    system.set_save_dir(str(tmp_path))
    system.on_predict_start()
    system.exporter = lambda: [host.ExporterOutput("a", "hologram", {})]
    system.exporter.cfg = OmegaConf.create({"save_video": False})
    with pytest.raises(ValueError, match="save_hologram"):
        system.on_predict_epoch_end()


def test_geometry_conversion_from_a_former_stage(tmp_path):
    former = make()
    (tmp_path / "configs").mkdir()
    (tmp_path / "ckpts").mkdir()
    fit(former, 2).save_checkpoint(tmp_path / "ckpts" / "last.ckpt")
    parsed = OmegaConf.create({"tag": "former", "system": OmegaConf.create(CONFIG)})
    host.dump_config(str(tmp_path / "configs" / "parsed.yaml"), parsed)
    source = str(tmp_path / "ckpts" / "last.ckpt")
    converted = make(seed=1, geometry_convert_from=source, geometry_convert_inherit_texture=True)
    assert torch.equal(converted.geometry.layer.weight, former.geometry.layer.weight) and converted.geometry.copied_net
    torch.manual_seed(1)
    resumed = System(OmegaConf.merge(OmegaConf.create(CONFIG), {"geometry_convert_from": source}), resumed=True)
    assert not torch.equal(resumed.geometry.layer.weight, former.geometry.layer.weight)  # resume= brings its own
    with pytest.raises(RuntimeError, match="size mismatch"):
        make(geometry_convert_from=source, geometry_convert_override={"width": 7})


def test_all_four_scene_types_are_mandatory():
    with pytest.raises(KeyError):
        make(material_type="")


def test_plain_base_system_demands_its_steps():
    system = host.BaseSystem({"optimizer": {"name": "SGD", "args": {"lr": 0.1}}})
    for call in (lambda: system.training_step({}, 0), lambda: system.validation_step({}, 0),
                 system.on_validation_epoch_end, lambda: system.test_step({}, 0)):  # fmt: skip
        with pytest.raises(NotImplementedError):
            call()
    assert system.resumed is False and system.true_global_step == 0


def test_unavailable_logger_is_reported(caplog):
    make(loggers={"wandb": {"enable": True}})
    assert "wandb" in caplog.text


def test_optimizer_configuration():
    system = make()
    everything = host.parse_optimizer(OmegaConf.create({"name": "Adam", "args": {"lr": 0.1}}), system)
    assert len(everything.param_groups[0]["params"]) == 2
    single = host.parse_optimizer(
        OmegaConf.create({"name": "SGD", "args": {"lr": 0.1}, "params": {"geometry.layer.bias": {}}}), system
    )
    assert single.param_groups[0]["params"][0] is system.geometry.layer.bias and single.param_groups[0]["lr"] == 0.1
    for path in ("geometry.encoding", "geometry.cfg", "nothing"):
        with pytest.raises(UsageError, match=path):
            host.parse_optimizer({"name": "SGD", "args": {"lr": 0.1}, "params": {path: {}}}, system)
    for name in ("Adann", "lr_scheduler"):
        with pytest.raises(UsageError, match="AdamW"):
            host.parse_optimizer({"name": name}, system)


def test_scheduler_configuration():
    def optimizer():
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)

    def rates(config, n=6):
        opt = optimizer()
        schedule = host.parse_scheduler(OmegaConf.create(config), opt)
        values = []
        for _ in range(n):
            values.append(opt.param_groups[0]["lr"])
            opt.step()
            schedule["scheduler"].step()
        return values, schedule["interval"]

    decay = {"name": "ExponentialLR", "args": {"gamma": 0.5}}
    assert rates(decay, 3) == ([1.0, 0.5, 0.25], "epoch")
    constant = {"name": "ConstantLR", "args": {"factor": 0.1, "total_iters": 100}}
    chained = {"name": "ChainedScheduler", "interval": "step", "schedulers": [decay, constant]}
    assert rates(chained, 3)[0] == pytest.approx([0.1, 0.05, 0.025])
    sequence = {"name": "SequentialLR", "interval": "step", "schedulers": [constant, decay], "milestones": [2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, interval = rates(sequence)
    assert values == pytest.approx([0.1, 0.1, 1.0, 0.5, 0.25, 0.125]) and interval == "step"
    with pytest.raises(UsageError, match="interval"):
        host.parse_scheduler({**decay, "interval": "batch"}, optimizer())
    with pytest.raises(UsageError, match="StepLR"):
        host.parse_scheduler({"name": "StepLRR"}, optimizer())


def test_nothing_is_written_beside_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(make(), 1)
    assert list(Path(".").iterdir()) == []
