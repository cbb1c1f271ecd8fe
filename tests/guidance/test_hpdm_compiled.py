"""Compiled networks give what plain ones give: without code generation on a CPU, with it and graphs on a GPU."""
import copy

import pytest
import torch

pytest.importorskip("diffusers")
from portrait_diffusion.guidance.hpdm.compiled import compile_networks  # noqa: E402
from portrait_diffusion.guidance.hpdm.graphed import GraphedPredict  # noqa: E402

from guidance.test_hpdm_assemble import SIZE, noise  # noqa: E402
from guidance.test_hpdm_graphed import model as assembled  # noqa: E402, F401
from guidance.test_hpdm_graphed import question  # noqa: E402
from guidance.test_hpdm_model import conditions, trained  # noqa: E402, F401


def test_both_models_answer_as_before(assembled, trained):  # noqa: F811
    own = noise(2, 4, 8, 8), torch.tensor([100, 700]), conditions()
    asked = {"assembled": (assembled, question(1)), "own": (trained, own)}
    for name, (model, (x, t, told, *bank)) in asked.items():
        model = model.requires_grad_(False)
        compiled = copy.deepcopy(model)
        compile_networks(compiled.networks(), backend="eager")
        for _ in range(2):
            got, expected = (m.predict(x, t, told, 7.5, 2.0, *bank) for m in (compiled, model))
            torch.testing.assert_close(got.noise, expected.noise, msg=name)
            torch.testing.assert_close(got.alone, expected.alone, msg=name)
        pictures = [noise(2, 3, SIZE, SIZE).requires_grad_(True) for _ in range(2)]
        for m, picture in zip((compiled, model), pictures):
            m.encode(picture).square().sum().backward()
        torch.testing.assert_close(pictures[0].grad, pictures[1].grad, msg=name)
        assert compiled.state_dict().keys() == model.state_dict().keys(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_networks_in_a_graph(assembled):  # noqa: F811
    plain = copy.deepcopy(assembled).cuda()
    compiled = copy.deepcopy(plain)
    compile_networks(compiled.networks())
    replaying = GraphedPredict(compiled)
    for seed in (1, 2, 3):
        x, t, told, bank = question(seed, "cuda")
        got, expected = (f(x, t, told, 7.5, 2.0, bank) for f in (replaying, plain.predict))
        off = float((got.noise - expected.noise).abs().max() / expected.noise.abs().max())
        assert off < 0.02, "rounding, which a guidance scale of 7.5 enlarges"
    assert len(replaying.recorded) == 1
