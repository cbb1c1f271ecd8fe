"""The denoiser as a CUDA graph: its bookkeeping on a CPU, with copies of the inputs, and all of it on a GPU."""
import pytest
import torch

pytest.importorskip("diffusers")
from portrait_diffusion.guidance.hpdm import graphed  # noqa: E402
from portrait_diffusion.guidance.hpdm.conditions import EXPLICIT_CHANNELS, Conditions, References  # noqa: E402
from portrait_diffusion.guidance.hpdm.graphed import GraphedPredict, refill, static_copy  # noqa: E402

from guidance.test_hpdm_assemble import SIZE, TEXT, AssembledHPDM, noise, parts  # noqa: E402


@pytest.fixture(scope="module")
def model():
    unet, vae, scheduler, control = parts()
    tokens = noise(1, 5, TEXT, seed=1), noise(1, 5, TEXT, seed=2)
    return AssembledHPDM(unet, vae, scheduler, [(control, "inpaint", 1.0)], *tokens).eval().requires_grad_(False)


def question(seed: int, device="cpu", references=True) -> tuple:
    """Noisy latents, timesteps, conditions and bank of two views with two references."""

    def made(*shape, plus):
        return noise(*shape, seed=10 * seed + plus).to(device)

    refs = bank = None
    if references:
        gate = torch.rand(2, 2, generator=torch.Generator().manual_seed(seed)).to(device)
        bank = {"latents": made(1, 2, 4, 8, 8, plus=1).expand(2, -1, -1, -1, -1),
                "tokens": made(1, 2, 5, TEXT, plus=2).expand(2, -1, -1, -1)}  # fmt: skip
        refs = References(bank["latents"], torch.empty(0), bank["tokens"], gate)
    explicit = made(2, EXPLICIT_CHANNELS, SIZE, SIZE, plus=3)
    conditions = Conditions(made(2, 5, TEXT, plus=4), explicit, refs, made(2, 5, TEXT, plus=5))
    t = torch.tensor([100 + seed, 700 - seed], device=device)
    return made(2, 4, 8, 8, plus=6), t, conditions, bank


def test_copies_keep_what_is_shared():
    shared, own = torch.arange(3.0).expand(4, 3), torch.zeros(4, 3)
    copy = static_copy(shared)
    assert copy.stride(0) == 0 and copy.data_ptr() != shared.data_ptr() and static_copy(own).stride(0) == 3
    refill(copy, torch.full((4, 3), 7.0))
    assert (copy == 7).all() and float(shared[0, 2]) == 2


def test_answers_follow_the_inputs_and_not_those_of_the_recording(model):
    replaying = GraphedPredict(model, enabled=False)
    for seed in (1, 2, 3):
        x, t, conditions, bank = question(seed)
        got, expected = (f(x, t, conditions, 7.5, 2.0, bank) for f in (replaying, model.predict))
        for a, b in zip(vars(got).values(), vars(expected).values(), strict=True):
            torch.testing.assert_close(a, b)
    assert len(replaying.recorded) == 1
    x, t, conditions, _ = question(4, references=False)
    torch.testing.assert_close(replaying(x, t, conditions, 7.5).noise, model.predict(x, t, conditions, 7.5).noise)
    assert len(replaying.recorded) == 2


class Replayed:
    """`Recorded` as it is on a GPU: the function runs when it is captured, not when it is replayed."""

    calls = 3

    def __init__(self, function, inputs, pool):
        self.result = [function(*inputs) for _ in range(self.calls)][-1]

    def __call__(self, inputs):
        return self.result


@pytest.mark.parametrize("recorded", [graphed.Recorded, Replayed])
def test_rows_of_replays_are_counted_and_those_of_the_capture_are_not(model, monkeypatch, recorded):
    monkeypatch.setattr(graphed, "Recorded", recorded)
    replaying = GraphedPredict(model, enabled=False)
    x, t, conditions, bank = question(1)
    before = model.rows_seen
    model.predict(x, t, conditions, 7.5, 2.0, bank)
    rows = model.rows_seen - before
    assert rows == 2 * 2 + 3 * 2, "two references of two views, then three terms of guidance"
    for calls in (1, 2, 3):
        replaying(x, t, conditions, 7.5, 2.0, bank)
        assert model.rows_seen - before == (1 + calls) * rows


def test_schedules_of_scales_do_not_fill_the_memory(model):
    replaying = GraphedPredict(model, enabled=False)
    x, t, conditions, bank = question(1)
    for scale in range(10):
        replaying(x, t, conditions, 2.0 + scale, 2.0, bank)
    assert len(replaying.recorded) == GraphedPredict.MOST


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (none is visible)")
def test_a_graph_answers_as_the_model_without_waiting(model):
    model = model.cuda()
    replaying = GraphedPredict(model)
    counts = []
    for seed in (1, 2, 3):
        x, t, conditions, bank = question(seed, "cuda")
        before = model.rows_seen
        expected = model.predict(x, t, conditions, 7.5, 2.0, bank)
        if seed == 3:
            torch.cuda.set_sync_debug_mode("error")
        try:
            got = replaying(x, t, conditions, 7.5, 2.0, bank)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for a, b in zip(vars(got).values(), vars(expected).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        counts.append(model.rows_seen - before)
    assert counts == [20] * 3, "ten rows plainly, ten as a graph"
    model.cpu()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (none is visible)")
def test_a_prediction_does_not_wait_for_the_gpu(model):
    model = model.cuda()
    x, t, conditions, bank = question(1, "cuda")
    model.predict(x, t, conditions, 7.5, 2.0, bank)  # the references' noise is brought over once
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.predict(x, t, conditions, 7.5, 2.0, bank)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    model.cpu()
