"""tiny-cuda-nn as the decoder: packing of the weights, and the field against the reference.

Without a GPU the network is `tcnn_emulation.Network`, in float64 to check the arithmetic and in half precision to state
what rounding costs; with one and the package, `pytest -m gpu` compares the real one.
"""
import importlib.util
import sys
import types

import pytest
import torch
from portrait_diffusion.errors import EnvironmentProblem
from portrait_diffusion.ops import backends, field_tcnn
from portrait_diffusion.ops import triplane as tp
from portrait_diffusion.ops.field import query_field

from . import tcnn_emulation

HALF = (2e-3, 1e-2)
"""Largest error of values and of gradients, over the largest value."""


@pytest.fixture
def emulated(monkeypatch):
    """The emulation in the package's place, in half precision; returns its class."""
    field_tcnn.fused_network.cache_clear()
    monkeypatch.setattr(tcnn_emulation.Network, "half", True)
    monkeypatch.setitem(sys.modules, "tinycudann", types.SimpleNamespace(Network=tcnn_emulation.Network))
    for module in (backends, field_tcnn):
        monkeypatch.setattr(module, "missing", lambda name, device: "not here" if name == "triton" else None)
    yield tcnn_emulation.Network
    field_tcnn.fused_network.cache_clear()


def decoder(channels=32, hidden=64, outputs=4, dtype=torch.float32, scale=1.0) -> list:
    g = torch.Generator().manual_seed(0)
    shapes = (hidden, channels), (hidden,), (outputs, hidden), (outputs,)
    return [scale * torch.randn(s, generator=g, dtype=torch.float64).to(dtype) / s[-1] ** 0.5 for s in shapes]


def values_and_gradients(function, inputs: list, dtype: torch.dtype, pull: float = 1.0) -> list:
    leaves = [x.detach().to(dtype).requires_grad_(True) for x in inputs]
    raw = function(*leaves)
    g = torch.Generator().manual_seed(1)
    raw.backward(pull * torch.randn(raw.shape, generator=g, dtype=torch.float64).to(raw))
    return [raw.detach(), *(leaf.grad for leaf in leaves)]


def errors(got: list, expected: list) -> list[float]:
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and float(b.abs().max()) > 0
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(got, expected)]


# ---- weights --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels, hidden, outputs", [(32, 64, 4), (32, 64, 33), (15, 16, 16), (48, 128, 1)])
def test_weights_come_back_as_they_were(channels, hidden, outputs):
    weights = decoder(channels, hidden, outputs)
    params = field_tcnn.pack_decoder(*weights[:3])
    network = tcnn_emulation.Network(channels + 1, outputs, {
        "otype": "FullyFusedMLP", "activation": "Softplus", "output_activation": "None", "n_neurons": hidden,
        "n_hidden_layers": 1,
    })  # fmt: skip
    assert params.shape == network.params.shape
    for found, exact in zip(field_tcnn.unpack_decoder(params, channels, hidden, outputs), weights):
        torch.testing.assert_close(found, exact, rtol=2.4e-7, atol=0)  # two roundings of float32
    again = field_tcnn.pack_decoder(*field_tcnn.unpack_decoder(params, channels, hidden, outputs))
    torch.testing.assert_close(again, params, rtol=2.4e-7, atol=0)


def test_packing_by_hand():
    """Two channels, 16 hidden units, one output: rows of 16 columns, then 16 rows."""
    w1, b1, w2 = torch.arange(32.0).view(16, 2), 100 + torch.arange(16.0), 200 + torch.arange(16.0)[None]
    params = field_tcnn.pack_decoder(w1, b1, w2)
    first, second = params[:256].view(16, 16), params[256:].view(16, 16)
    torch.testing.assert_close(first[3, :4], torch.tensor([0.6, 0.7, 10.3, 0.0]))
    assert torch.equal(second[0], w2[0]) and not second[1:].any() and not first[:, 3:].any()


def test_parameters_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(4096,\) for 32 channels, 64 hidden units and 4 outputs"):
        field_tcnn.unpack_decoder(torch.zeros(3072), 32, 64, 4)


# ---- the decoder ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels, hidden, outputs", [(32, 64, 4), (32, 64, 33), (15, 16, 17), (40, 128, 1)])
def test_packed_weights_make_the_same_decoder(channels, hidden, outputs, monkeypatch):
    """In float64 only the arithmetic is left: equal to rounding, gradients too."""
    monkeypatch.setattr(tcnn_emulation.Network, "half", False)
    config = {"otype": "FullyFusedMLP", "activation": "Softplus", "output_activation": "None"}
    network = tcnn_emulation.Network(channels + 1, outputs, config | {"n_neurons": hidden, "n_hidden_layers": 1})

    def decode(features, w1, b1, w2, b2):
        inputs = torch.nn.functional.pad(features, (0, 1), value=1.0)
        packed = {"params": field_tcnn.pack_decoder(w1, b1, w2)}
        return 10 * torch.func.functional_call(network, packed, (inputs,)) + b2

    inputs = [torch.randn(300, channels, dtype=torch.float64), *decoder(channels, hidden, outputs, torch.float64)]
    got = values_and_gradients(decode, inputs, torch.float64)
    expected = values_and_gradients(lambda f, *w: tp.decode_raw(f, w), inputs, torch.float64)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("outputs", [4, 33])
@pytest.mark.parametrize("pull", [1e-12, 1.0, 1e6])
def test_half_precision_loses_what_is_stated_whatever_the_size_of_the_gradients(outputs, pull, emulated):
    """Without the scaling, gradients of 1e-8 and below vanish and sums of large ones overflow."""
    inputs = [torch.randn(5000, 32, generator=torch.Generator().manual_seed(2)), *decoder(outputs=outputs)]
    got = values_and_gradients(lambda f, *w: field_tcnn.decode_raw_tcnn(f, w), inputs, torch.float32, pull)
    expected = values_and_gradients(lambda f, *w: tp.decode_raw(f, w), inputs, torch.float64, pull)
    found = errors(got, expected)
    assert found[0] < HALF[0] and max(found[1:]) < HALF[1], found
    assert got[0].dtype == torch.float32


def test_weights_of_real_decoders_sizes(emulated):
    """Features of several units, raw densities of hundreds."""
    inputs = [4 * torch.randn(1000, 32, generator=torch.Generator().manual_seed(2)), *decoder(scale=5.0)]
    got = values_and_gradients(lambda f, *w: field_tcnn.decode_raw_tcnn(f, w), inputs, torch.float32)
    expected = values_and_gradients(lambda f, *w: tp.decode_raw(f, w), inputs, torch.float64)
    assert expected[0].abs().max() > 200
    found = errors(got, expected)
    assert found[0] < HALF[0] and max(found[1:]) < HALF[1], found


def test_calls_of_the_network_add_up(emulated, monkeypatch):
    inputs = [torch.randn(2, 500, 32, generator=torch.Generator().manual_seed(2)), *decoder()]
    found = []
    for points in (1 << 18, 300):
        monkeypatch.setattr(field_tcnn, "CHUNK_POINTS", points)
        found.append(values_and_gradients(lambda f, *w: field_tcnn.decode_raw_tcnn(f, w), inputs, torch.float32))
    assert max(errors(*found)) < HALF[1]
    assert torch.equal(found[0][0], found[1][0])  # values do not depend on it


def test_gradients_that_are_no_numbers_stay_so(emulated):
    features = torch.randn(10, 32, requires_grad=True)
    field_tcnn.decode_raw_tcnn(features, decoder()).backward(torch.full((10, 4), float("nan")))
    assert features.grad.isnan().any()


def test_a_second_backward_pass_and_gradients_of_zero(emulated):
    features = torch.randn(10, 32, requires_grad=True)
    raw = field_tcnn.decode_raw_tcnn(features, decoder())
    first, again = (torch.autograd.grad(raw.sum(), features, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.autograd.grad((0 * raw).sum(), features)[0].any()


def test_the_network_is_made_once_and_scales_nothing(emulated):
    network = field_tcnn.fused_network(32, 64, 4, torch.device("cpu"))
    assert network is field_tcnn.fused_network(32, 64, 4, torch.device("cpu"))
    assert network.loss_scale == 1 and not any(p.requires_grad for p in network.parameters())
    before = network.params.clone()
    field_tcnn.decode_raw_tcnn(torch.randn(5, 32), [w.requires_grad_() for w in decoder()]).sum().backward()
    assert torch.equal(network.params, before) and network.params.grad is None


# ---- the field ------------------------------------------------------------------------------------------------------
def scene(device="cpu", points=300, outputs=4, size=12, dtype=torch.float32) -> tuple:
    g = torch.Generator().manual_seed(3)
    planes = [torch.randn(2, 3, 32, size, size, generator=g).to(device, dtype),
              torch.randn(2, 1, 32, 4, size, size, generator=g).to(device, dtype)]  # fmt: skip
    coords = torch.rand(2, points, 3, generator=g) * 2.5 - 1.25
    return planes, coords.to(device), [w.to(device) for w in decoder(outputs=outputs)]


def field_errors(planes, coords, weights, **options) -> list[float]:
    def run(implementation, points):
        return lambda *leaves: query_field(
            list(leaves[:-4]), points, leaves[-4:], implementation=implementation, **options
        )

    leaves = [*(p.float() for p in planes), *weights]  # planes of fewer bits are exact in float32
    expected = values_and_gradients(run("torch", coords.double()), leaves, torch.float64)

    def chosen(*leaves):
        levels = [p.to(planes[0].dtype) for p in leaves[:-4]]
        return query_field(levels, coords, leaves[-4:], implementation="tcnn", **options)

    got = values_and_gradients(chosen, leaves, torch.float32)
    return errors(got, expected)


@pytest.mark.parametrize("options", [{}, {"reduce": "sum"}, {"level_reduce": "mean", "axes": tp.PANOHEAD_AXES}])
def test_the_field_agrees_with_the_reference(options, emulated):
    found = field_errors(*scene(), **options)
    assert found[0] < HALF[0] and max(found[1:]) < HALF[1], found


def test_half_precision_planes_are_looked_up_exactly(emulated):
    planes, coords, weights = scene(dtype=torch.float16)
    found = field_errors(planes, coords, weights)
    assert found[0] < HALF[0] and max(found[1:]) < HALF[1], found


def test_no_points(emulated):
    planes, coords, weights = scene(points=0)
    leaves = [x.requires_grad_() for x in (*planes, *weights)]
    raw = query_field(leaves[:-4], coords, leaves[-4:], implementation="tcnn")
    raw.sum().backward()
    assert raw.shape == (2, 0, 4) and not any(leaf.grad.any() for leaf in leaves)


def test_without_gradients_nothing_is_kept(emulated):
    planes, coords, weights = scene()
    with torch.no_grad():
        raw = query_field(planes, coords, [w.requires_grad_() for w in weights], implementation="tcnn")
    assert not raw.requires_grad


@pytest.mark.parametrize("change, reason", [
    ("coordinates", "no gradient with respect to coordinates"), ("float64", "computes in half precision"),
    ("hidden", "needs 16, 32, 64 or 128 hidden units, got 24"),
])  # fmt: skip
def test_inputs_that_it_cannot_take_name_the_way_out(change, reason, emulated):
    planes, coords, weights = scene()
    if change == "coordinates":
        coords.requires_grad_(True)
    if change == "float64":
        planes = [p.double() for p in planes]
    if change == "hidden":
        weights = decoder(hidden=24)
    with pytest.raises(EnvironmentProblem, match=f"'tcnn' cannot be used: .*{reason}.*; choose torch for such inputs"):
        query_field(planes, coords, weights, implementation="tcnn")


def test_auto_never_takes_it(monkeypatch):
    monkeypatch.setattr(backends, "missing", lambda name, device: "not here" if name == "triton" else None)
    assert backends.choose("field", "auto", torch.device("cpu"), ("torch", "triton", "tcnn")) == "torch"


# ---- the package itself ---------------------------------------------------------------------------------------------
REAL = (
    "needs a CUDA device (none is visible)" if not torch.cuda.is_available()
    else "needs the package tinycudann (not installed)" if importlib.util.find_spec("tinycudann") is None else None
)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(REAL is not None, reason=str(REAL))
class TestPackage:
    @pytest.mark.parametrize("points, outputs", [(1, 4), (70, 4), (3000, 33), (3000, 1)])
    def test_small_sizes(self, points, outputs):
        planes, coords, weights = scene("cuda", points, outputs)
        found = field_errors(planes, coords.clamp(-0.9, 0.9), weights)
        assert found[0] < 4e-3 and max(found[1:]) < 1e-2, found

    @pytest.mark.parametrize("dtype, tolerances", [(torch.float16, (8e-3, 1.6e-2)), (torch.bfloat16, (2e-2, 4e-2))])
    def test_half_precision_planes(self, dtype, tolerances):
        found = field_errors(*scene("cuda", dtype=dtype))
        assert found[0] < tolerances[0] and max(found[1:]) < tolerances[1], found

    @pytest.mark.parametrize("outputs", [4, 33])
    def test_real_sizes(self, outputs):
        """Two calls of the network; the weights' gradients are half-precision sums of 2^18 products."""
        found = field_errors(*scene("cuda", 200_000, outputs, size=256))
        assert found[0] < 4e-3 and max(found[1:]) < 2e-2, found

    @pytest.mark.parametrize("pull", [1e-12, 1.0, 1e6])
    def test_sizes_of_gradients(self, pull):
        """Gradients of biases are half-precision sums over all points: measured up to 2 % off."""
        inputs = [torch.randn(5000, 32), *decoder()]
        inputs = [x.cuda() for x in inputs]
        got = values_and_gradients(lambda f, *w: field_tcnn.decode_raw_tcnn(f, w), inputs, torch.float32, pull)
        expected = values_and_gradients(lambda f, *w: tp.decode_raw(f, w), inputs, torch.float64, pull)
        found = errors(got, expected)
        assert found[0] < 4e-3 and max(found[1:]) < 4e-2, found

    def test_the_emulation_rounds_as_the_package_does(self, monkeypatch):
        features, weights = torch.randn(2000, 32), decoder()
        real = field_tcnn.decode_raw_tcnn(features.cuda(), [w.cuda() for w in weights]).cpu()
        field_tcnn.fused_network.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "tinycudann", types.SimpleNamespace(Network=tcnn_emulation.Network))
            emulated = field_tcnn.decode_raw_tcnn(features, weights)
        field_tcnn.fused_network.cache_clear()
        assert float((real - emulated).abs().max() / emulated.abs().max()) < 2e-3
