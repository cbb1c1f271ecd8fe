"""Fixtures of several folders."""
import functools
import os
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported: workers share the cores
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))


@pytest.fixture(scope="session", autouse=True)
def no_neighbours():
    """No file beside the repository stands in for a module.

    The repository is a package, for threestudio takes it for one; so pytest puts its parent in front of the path.
    """
    neighbours = str(Path(__file__).absolute().parents[2])
    sys.path[:] = [path for path in sys.path if path != neighbours]


@pytest.fixture
def one_thread():
    """One thread of torch: with several, sums in another order differ by more than what is allowed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def deterministic():
    """PyTorch's switch, on; operations that have no deterministic twin only warn."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def photo_prepared_once():
    """The pipeline prepares each photo once in a module: detection and matting are not what is tested there."""
    from portrait_diffusion import pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "prepare_photo", functools.cache(pipeline.prepare_photo))
        yield
