"""Training with several processes: both ranks agree, and one step is the step of the averaged gradients."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

pytest.importorskip("diffusers"), pytest.importorskip("pytorch_lightning"), pytest.importorskip("tensorboard")
from balls import add_normals, write_shards  # noqa: E402
from portrait_diffusion.guidance.hpdm import train  # noqa: E402
from portrait_diffusion.guidance.hpdm.model import build_mini  # noqa: E402
from portrait_diffusion.guidance.hpdm.ranks import average_gradients  # noqa: E402
from portrait_diffusion.multiview import load_shards  # noqa: E402
from portrait_diffusion.seeds import step_seed  # noqa: E402

from guidance.rank_worker import averaged  # noqa: E402

SIZE = 32
CONFIG = {"batch": 4, "total_steps": 2, "warmup_steps": 1, "w_equivariance": 0.0}
WORKER = """
import sys, torch
from portrait_diffusion.guidance.hpdm import train
from test_hpdm_ranks import stage_of
if __name__ == "__main__":
    data, out = sys.argv[1:3]
    stage = train.run_stage(stage_of(data), train.Path(out), 600.0, 2, "cpu", False)
    torch.save(stage.trained_weights, f"{out}/rank{stage.global_rank}.pt")
"""


class Kept(train.DenoiserStage):
    """Keeps the weights as the last step left them, before the average takes their place."""

    def on_train_batch_end(self, *args) -> None:
        self.trained_weights = {name: value.clone() for name, value in self.model.state_dict().items()}


def stage_of(folder) -> Kept:
    torch.manual_seed(0)
    model = build_mini((16, 16, 32), vae_channels=8, token_dim=16, head_dim=8, image_size=SIZE)
    return Kept(model.train(), load_shards(folder, "cpu"), train.HPDMTrainConfig(**CONFIG))


def test_gradients_are_averaged_over_ranks(tmp_path):
    multiprocessing.spawn(averaged, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        first, second, none = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(first, torch.full((2, 3), 2.0)) and torch.equal(second, torch.full((4,), 6.0))
        assert none is None


def test_a_single_process_keeps_its_gradients():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]


@pytest.mark.slow
def test_two_ranks_make_the_steps_of_their_mean_gradient(tmp_path, one_thread):  # each rank has one
    folder = add_normals(write_shards(tmp_path / "balls", subjects=4, per_shard=2, size=SIZE))
    script, out = tmp_path / "worker.py", tmp_path / "out"
    script.write_text(WORKER)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, script, folder, out], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [torch.load(out / f"rank{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(value, ranks[1][name]) for name, value in ranks[0].items()), "the ranks have drifted apart"

    stage = stage_of(folder)
    optimizer = stage.configure_optimizers()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(CONFIG["total_steps"]):
        for group in optimizer.param_groups:
            group["lr"] = stage.config.learning_rate * train.learning_rate_factor(step / 2, step, stage.config)
        optimizer.zero_grad()
        for rank in (0, 1):
            generator = torch.Generator().manual_seed(step_seed(stage.config.seed, step, rank))
            (sum(stage.losses(generator).values()) / 2).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    start, expected = stage_of(folder).model.state_dict(), stage.model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(ranks[0][name], value, atol=2e-6, rtol=1e-4)
    assert any(not torch.equal(value, start[name]) for name, value in expected.items())
