"""The field as one operation: the choice of implementation, and the Triton kernels against the reference.

Parity needs a GPU (``pytest -m gpu``), or ``TRITON_INTERPRET=1`` with Triton installed, which runs the kernels on the
CPU.
"""
import logging
import os

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem
from portrait_diffusion.ops import backends
from portrait_diffusion.ops import triplane as tp
from portrait_diffusion.ops.field import query_field

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda") if CUDA else torch.device("cpu")
needs_kernels = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs a CUDA device (none is visible)")
PLANES, GRID, FRONTAL = (3, None), (3, 4), (1, 3)
SIZES = {"float32": (1e-5, 2e-5), "bfloat16": (2e-2, 4e-2), "float16": (4e-3, 8e-3)}
"""Largest error of values and of gradients, over the largest value."""


def case(levels=(PLANES,), points=150, outputs=33, batch=2, dtype=torch.float32, size=12, channels=32) -> tuple:
    """Planes, points (a quarter outside the box), decoder."""
    g = torch.Generator().manual_seed(0)
    planes = [
        torch.randn(batch, p, channels, *([] if d is None else [d]), size, size, generator=g).to(DEVICE, dtype)
        for p, d in levels
    ]
    coords = torch.rand(batch, points, 3, generator=g) * 2.5 - 1.25
    if points > 2:
        coords[:, 0], coords[:, 1] = torch.tensor([-1.0, 1.0, 0.0]), 40.0
    shapes = (64, channels), (64,), (outputs, 64), (outputs,)
    weights = [torch.randn(shape, generator=g) / shape[-1] ** 0.5 for shape in shapes]
    return planes, coords.to(DEVICE), [w.to(DEVICE) for w in weights]


def values_and_gradients(planes, coords, weights, implementation, **options) -> list:
    leaves = [x.detach().clone().requires_grad_(True) for x in (*planes, *weights)]
    raw = query_field(leaves[:-4], coords, leaves[-4:], implementation=implementation, **options)
    pull = torch.randn(raw.shape, generator=torch.Generator().manual_seed(1)).to(raw)
    (raw * pull).sum().backward()
    return [raw.detach(), *(leaf.grad for leaf in leaves)]


def check(planes, coords, weights, tolerances, **options) -> None:
    got = values_and_gradients(planes, coords, weights, "triton", **options)
    exact = [x.double() for x in planes], coords.double(), [w.double() for w in weights]
    expected = values_and_gradients(*exact, "torch", **options)
    assert got[0].dtype == torch.float32
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape and float(b.abs().max()) > 0.01
        error = float((a - b).abs().max() / b.abs().max())
        assert error <= tolerances[i > 0], (i, error)


# ---- the choice of implementation -----------------------------------------------------------------------------------
def test_the_reference_is_the_decoder_on_the_samples():
    planes, coords, weights = case()
    expected = tp.decode_raw(tp.sample_planes(planes, coords), weights)
    torch.testing.assert_close(query_field(planes, coords, weights, implementation="torch"), expected)


def test_the_reference_has_second_precision_and_gradients_of_coordinates():
    planes, coords, weights = case(points=6, size=4, channels=2, batch=1, outputs=4)
    inputs = [x.double().requires_grad_(True) for x in (coords * 0.5, *planes, *weights)]

    def field(coords, planes, *weights):
        return query_field(planes, coords, weights, implementation="torch")

    assert torch.autograd.gradcheck(field, inputs)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="one of auto, torch, triton, tcnn, nerfacc, got 'cuda'"):
        query_field(*case(), implementation="cuda")


@pytest.mark.parametrize("name, package", [("tcnn", "tinycudann"), ("nerfacc", "nerfacc"), ("triton", "triton")])
def test_a_missing_package_is_named_with_its_fix(name, package, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=f"{package} is not installed; run: pip install"):
        query_field(*case(), implementation=name)


def test_a_package_that_is_there_but_not_for_this_operation(monkeypatch):
    monkeypatch.setattr(backends, "missing", lambda name, device: None)
    with pytest.raises(EnvironmentProblem, match="only triton, torch"):
        backends.choose("field", "tcnn", DEVICE, ("triton", "torch"))


def test_triton_on_a_cpu_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: True)
    planes, coords, weights = ([x.cpu() for x in part] if isinstance(part, list) else part.cpu() for part in case())
    with pytest.raises(EnvironmentProblem, match="needs tensors on a CUDA device, got cpu"):
        query_field(planes, coords, weights, implementation="triton")


def test_auto_says_once_what_it_took(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_told", set())
    with caplog.at_level(logging.INFO, logger="portrait_diffusion"):
        for _ in range(2):
            backends.choose("field", "auto", torch.device("cpu"), ("torch",))
    assert [record.message for record in caplog.records] == ["field: implementation auto is torch on cpu"]


def test_auto_falls_back_for_inputs_that_kernels_cannot_take(monkeypatch):
    monkeypatch.setattr(backends, "missing", lambda name, device: None)
    assert backends.choose("field", "auto", DEVICE, ("triton", "torch"), unfit="too few channels") == "torch"
    with pytest.raises(EnvironmentProblem, match="too few channels; choose torch"):
        backends.choose("field", "triton", DEVICE, ("triton", "torch"), unfit="too few channels")


# ---- the kernels ----------------------------------------------------------------------------------------------------
@pytest.mark.gpu
@needs_kernels
class TestKernels:
    @pytest.mark.parametrize("axes", [tp.PLANE_AXES, tp.EG3D_AXES, tp.PANOHEAD_AXES], ids=["ours", "eg3d", "panohead"])
    def test_axes(self, axes):
        check(*case(points=70), SIZES["float32"], axes=axes)

    @pytest.mark.parametrize("levels", [(GRID,), (FRONTAL,), (PLANES, FRONTAL), (GRID, PLANES)])
    def test_grids_and_pyramids(self, levels):
        check(*case(levels, points=70, outputs=4), SIZES["float32"], level_reduce="mean")

    @pytest.mark.parametrize("points", [1, 64, 65])
    @pytest.mark.parametrize("outputs", [1, 4, 17, 64])
    def test_sizes_of_blocks_and_outputs(self, points, outputs):
        planes, coords, weights = case(points=points, outputs=outputs)
        check(planes, coords.clamp(-0.9, 0.9), weights, SIZES["float32"], reduce="sum")

    @staticmethod
    def gradients(pull) -> list:
        """Of planes and weights, for 200 points whose raw outputs have these gradients (1,200,33)."""
        planes, coords, weights = case(points=200, batch=1)
        leaves = [x.detach().clone().requires_grad_(True) for x in (*planes, *weights)]
        query_field(leaves[:1], coords, leaves[1:], implementation="triton").backward(pull)
        return [leaf.grad for leaf in leaves]

    def test_points_whose_gradients_are_nothing_beside_the_largest_are_left_out(self):
        """Whole blocks of them, and some within blocks: as if their gradients were 0, and within 2^-40 of the truth."""
        pull = torch.randn(1, 200, 33, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        few = torch.zeros_like(pull)
        few[:, 130:170:3] = pull[:, 130:170:3]
        tiny = torch.where(few == 0, 1e-14 * pull, few)
        for got, expected in zip(self.gradients(tiny), self.gradients(few), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
            assert torch.equal(got == 0, expected == 0)
        alone = self.gradients(tiny - few)[0]
        assert 1e-16 < float(alone.abs().max()) < 1e-12, "they count where there are no larger ones"

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_gradients_that_are_not_finite_are_not_hidden(self, bad):
        pull = torch.randn(1, 200, 33, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        pull[0, 40:60, 3] = bad
        assert not any(bool(gradient.isfinite().all()) for gradient in self.gradients(pull)[:2])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_planes(self, dtype):
        planes, coords, weights = case(dtype=dtype)
        check(planes, coords, weights, SIZES[str(dtype)[6:]])
        gradient = values_and_gradients(planes, coords, weights, "triton")[1]
        assert gradient.dtype == dtype

    def test_features_kept_or_looked_up_again(self, monkeypatch):
        from portrait_diffusion.ops import field_triton

        found = []
        monkeypatch.setattr(field_triton, "CHUNK_BYTES", 1)  # 64 points at a time
        for limit in (1 << 30, 0):
            monkeypatch.setattr(field_triton, "KEEP_BYTES", limit)
            found.append(values_and_gradients(*case((PLANES, FRONTAL), points=70), "triton"))
        for kept, again in zip(*found, strict=True):
            torch.testing.assert_close(kept, again, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("limit", [1 << 30, 0], ids=["kept", "chunks"])
    def test_deterministic_runs_give_the_same_bits(self, monkeypatch, limit):
        from portrait_diffusion.ops import field_triton

        monkeypatch.setattr(field_triton, "CHUNK_BYTES", 1 << 20)
        monkeypatch.setattr(field_triton, "KEEP_BYTES", limit)
        inputs = case((PLANES, FRONTAL), points=100_000)
        usual = values_and_gradients(*inputs, "triton")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            first, *others = (values_and_gradients(*inputs, "triton") for _ in range(4))
        finally:
            torch.use_deterministic_algorithms(False)
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        for a, b in zip(first, usual, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))

    def test_only_the_gradients_that_are_wanted(self):
        planes, coords, weights = case(points=70)
        expected = values_and_gradients(planes, coords, weights, "triton")
        for wanted in ((1,), (2, 5)):
            leaves = [x.clone().requires_grad_(i + 1 in wanted) for i, x in enumerate((*planes, *weights))]
            raw = query_field(leaves[:-4], coords, leaves[-4:], implementation="triton")
            raw.backward(torch.randn(raw.shape, generator=torch.Generator().manual_seed(1)).to(raw))
            for i, leaf in enumerate(leaves):
                assert (leaf.grad is not None) == (i + 1 in wanted)
                if leaf.grad is not None:
                    torch.testing.assert_close(leaf.grad, expected[i + 1], rtol=1e-4, atol=1e-4)

    def test_extreme_densities_have_finite_values_and_gradients(self):
        planes, coords, weights = case(points=70)
        for x in values_and_gradients([1000 * p for p in planes], coords, weights, "triton"):
            assert torch.isfinite(x).all()

    def test_no_points(self):
        planes, coords, weights = case(points=0)
        found = values_and_gradients(planes, coords, weights, "triton")
        assert found[0].shape == (2, 0, 33) and all((x == 0).all() for x in found[1:])

    def test_planes_in_channels_last_need_no_copy(self):
        planes, coords, weights = case(points=70)
        inner = [p.movedim(2, -1).contiguous().movedim(-1, 2) for p in planes]
        for a, b in zip(*(values_and_gradients(p, coords, weights, "triton") for p in (planes, inner)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("change", ["coordinates", "channels", "float64"])
    def test_inputs_that_the_kernels_cannot_take_name_the_way_out(self, change):
        planes, coords, weights = case(channels=8 if change == "channels" else 32)
        if change == "coordinates":
            coords.requires_grad_(True)
        if change == "float64":
            planes = [p.double() for p in planes]
        with pytest.raises(EnvironmentProblem, match="choose torch for such inputs"):
            query_field(planes, coords, weights, implementation="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device (none is visible)")
@pytest.mark.parametrize("precision, tolerances", [("highest", (1e-5, 1e-4)), ("high", (2e-3, 4e-3))])
@pytest.mark.parametrize("outputs", [4, 33])
def test_real_sizes(precision, tolerances, outputs):
    """200 000 points, 3 x 32 x 256^2 planes and a frontal grid; sums of 2e5 terms round more than those of a few."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        check(*case((PLANES, FRONTAL), 200_000, outputs, 1, size=256), tolerances)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device (none is visible)")
def test_no_host_synchronisation():
    planes, coords, weights = case(points=5000)
    leaves = [x.requires_grad_(True) for x in (*planes, *weights)]
    query_field(leaves[:-4], coords, leaves[-4:], implementation="triton").sum().backward()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        query_field(leaves[:-4], coords, leaves[-4:], implementation="triton").sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
