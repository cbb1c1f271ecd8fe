"""The switch for deterministic algorithms: it is taken back, and what it is for, on a GPU."""
import warnings

import pytest
import torch
from portrait_diffusion.deterministic import HARMLESS, deterministic_algorithms
from portrait_diffusion.ops.triplane import PLANE_AXES, _sample_fast, sample_planes


@pytest.fixture
def as_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")


def state() -> tuple:
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )  # fmt: skip


def test_it_is_on_within_and_taken_back_also_after_an_error(as_with_a_gpu):
    before = state()
    with pytest.raises(ZeroDivisionError), deterministic_algorithms():
        assert state() == (True, True, False)
        1 / 0  # noqa: B018
    assert state() == before


def test_who_has_switched_it_on_strictly_gets_that_back(as_with_a_gpu):
    torch.use_deterministic_algorithms(True)
    try:
        with deterministic_algorithms():
            assert state()[1]
        assert state()[:2] == (True, False)
    finally:
        torch.use_deterministic_algorithms(False)


def test_only_what_is_known_to_be_harmless_is_silent(as_with_a_gpu):
    with pytest.warns(UserWarning, match="scatter") as told, deterministic_algorithms():
        for operation in HARMLESS:
            warnings.warn(f"{operation} does not have a deterministic implementation", UserWarning, stacklevel=1)
        warnings.warn("scatter_kernel does not have a deterministic implementation", UserWarning, stacklevel=1)
    assert len(told) == 1


@pytest.mark.parametrize("on", [False, True])
def test_off_or_without_a_gpu_nothing_happens(monkeypatch, on):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not on)
    before = state()
    with deterministic_algorithms(on):
        assert state() == before


LEVELS = (1, 3, 16, 64, 64), (1, 1, 16, 4, 32, 32)


def levels_and_coords(points: int, device: str = "cpu") -> tuple:
    """Planes with a frontal grid, and points within."""
    g = torch.Generator().manual_seed(0)
    coords = torch.rand(1, points, 3, generator=g) * 2 - 1
    return [torch.randn(shape, generator=g).to(device) for shape in LEVELS], coords.to(device)


def test_where_no_kernel_can_be_used_sampling_is_a_sum_of_rows(as_with_a_gpu, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "grid_sample", None)  # whose gradient has no deterministic form
    levels, coords = levels_and_coords(500)
    coords.requires_grad_(True)
    expected = sample_planes(levels, coords, reduce="sum", implementation="gather")
    with deterministic_algorithms():
        got = _sample_fast(levels, coords, PLANE_AXES, "auto")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (none is visible)")
def test_gradients_of_coordinates_are_the_same_bits_on_a_gpu():
    levels, coords = levels_and_coords(200_000, "cuda")
    pull = torch.randn(1, 200_000, 16, generator=torch.Generator().manual_seed(1)).cuda()

    def gradients() -> list:
        leaves = [x.clone().requires_grad_(True) for x in (*levels, coords)]
        sample_planes(leaves[:-1], leaves[-1]).backward(pull)
        return [leaf.grad for leaf in leaves]

    with deterministic_algorithms():
        first, *others = (gradients() for _ in range(4))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for got, usual in zip(first, gradients(), strict=True):
        torch.testing.assert_close(got, usual, rtol=1e-3, atol=1e-3 * float(usual.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (none is visible)")
@pytest.mark.parametrize("shape", [(1, 3, 32, 64, 64), (1, 1, 5, 32, 32, 32)], ids=["planes", "grid"])
def test_gradients_of_planes_are_the_same_bits_on_a_gpu(shape):
    g = torch.Generator().manual_seed(0)
    planes, coords = torch.randn(shape, generator=g).cuda(), (torch.rand(1, 200_000, 3, generator=g) * 2 - 1).cuda()
    pull = torch.randn(1, 200_000, shape[2], generator=g).cuda()

    def gradient() -> torch.Tensor:
        leaf = planes.clone().requires_grad_(True)
        sample_planes(leaf, coords).backward(pull)
        return leaf.grad

    with deterministic_algorithms():
        assert len({gradient().cpu().numpy().tobytes() for _ in range(5)}) == 1
    torch.testing.assert_close(gradient(), gradient(), rtol=1e-3, atol=1e-2)
