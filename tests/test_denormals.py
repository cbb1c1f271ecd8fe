"""Numbers below the normal range."""
import pytest
import torch
from portrait_diffusion.denormals import flushed_denormals

pytestmark = pytest.mark.skipif(
    not torch.set_flush_denormal(False), reason="this processor always computes with numbers below the normal range"
)


def product() -> float:
    return float(torch.tensor(1e-39) * 1.0)


def test_they_are_zero_inside_and_what_they_were_outside():
    assert product() > 0
    with flushed_denormals():
        assert product() == 0
        with flushed_denormals():
            assert product() == 0
        assert product() == 0, "as it was before the inner one"
    assert product() > 0


def test_an_error_leaves_the_mode_as_it_was():
    with pytest.raises(ValueError, match="inside"), flushed_denormals():
        raise ValueError("inside")
    assert product() > 0


def test_a_decorated_function_can_be_called_again():
    call = flushed_denormals()(product)
    assert call() == call() == 0 and product() > 0
