"""Fixtures of several folders."""
import functools

import pytest


@pytest.fixture
def one_thread():
    """One thread of torch: with several, sums in another order differ by more than what is allowed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photo_prepared_once():
    """The pipeline prepares each photo once in a module: detection and matting are not what is tested there."""
    from portrait_diffusion import pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "prepare_photo", functools.cache(pipeline.prepare_photo))
        yield
