"""Attention with a bias for each key: agreement with a mask, in half precision too, closed keys, gradients."""
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")
from portrait_diffusion.errors import UsageError  # noqa: E402
from portrait_diffusion.guidance.hpdm.assemble import ReferenceAttention  # noqa: E402
from portrait_diffusion.guidance.hpdm.attention import NEVER, biased_attention, gate_bias  # noqa: E402

from guidance.test_hpdm_assemble import noise, parts  # noqa: E402


def question(d=10, dtype=torch.float64):
    q, k, v = (noise(2, 3, n, d, seed=s).to(dtype) for s, n in enumerate((5, 7, 7)))
    gate = torch.rand(2, 7, generator=torch.Generator().manual_seed(3))
    gate[0, 2] = gate[1, 5] = 0
    return q, k, v, gate_bias(gate)


def with_mask(q, k, v, bias):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None, None].to(q).expand(-1, 1, q.shape[2], -1))


@pytest.mark.parametrize("d", [6, 10, 16])
def test_it_is_attention_with_a_mask(d):
    asked = question(d)
    torch.testing.assert_close(biased_attention(*asked), with_mask(*asked), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_round_the_bias(dtype):
    """Logits of 0 and values that name their keys: the answer is the softmax of the bias, to the output's rounding."""
    bias = gate_bias(torch.cat([torch.zeros(1), torch.linspace(1.1e-6, 9e-6, 7)]))[None]
    q, k = (torch.zeros(1, 1, n, 8, dtype=dtype) for n in (3, 8))
    got = biased_attention(q, k, torch.eye(8, dtype=dtype)[None, None], bias)[0, 0, 0]
    expected = bias[0].softmax(0)
    torch.testing.assert_close(got.float(), expected, rtol=1.5 * torch.finfo(dtype).eps, atol=1e-4)
    rounded = bias[0].to(dtype).float().softmax(0)
    assert float((rounded / expected - 1)[1:].abs().max()) > 2 * torch.finfo(dtype).eps
    assert float(got[0]) == 0


def test_closed_keys_are_not_seen():
    q, k, v, bias = question()
    elsewhere = v.clone()
    elsewhere[0, :, 2] = elsewhere[1, :, 5] = 1e6
    torch.testing.assert_close(biased_attention(q, k, elsewhere, bias), biased_attention(q, k, v, bias))
    assert gate_bias(torch.zeros(1)) == NEVER


def test_gradients_reach_queries_keys_and_values():
    q, k, v, bias = question(4)
    tensors = tuple(x[:, :1, :3].clone().requires_grad_(True) for x in (q, k, v))
    bias = bias[:, :3].clamp(min=-3)
    assert torch.autograd.gradcheck(lambda *x: biased_attention(*x, bias), tensors)


def test_reading_is_the_modules_own_attention_with_a_mask():
    """Two rows, the last reads two references of 9 tokens; beside it diffusers' processor, told the same by a mask."""
    unet = parts()[0].double()
    owner = ReferenceAttention(unet)
    module = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    x, bank = noise(2, 9, 8, seed=1).double(), noise(1, 18, 8, seed=2).double()
    gates = torch.tensor([[0.3, 1.0]])
    owner.mode, owner.bias = "read", gate_bias(gates)
    owner.bank = {name: bank for name in ("down_blocks.0.attentions.0.transformer_blocks.0.attn1",)}
    with torch.no_grad():
        got = module(x)
        bias = torch.cat([torch.zeros(1, 9), gate_bias(gates).repeat_interleave(9, dim=1)], dim=1).double()
        inner = module.processor.inner
        told = inner(module, x[1:], torch.cat([x[1:], bank], dim=1), bias[:, None])
        alone, expected = inner(module, x[1:]), torch.cat([inner(module, x[:1]), told])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    assert float((got[1:] - alone).abs().max()) > 1e-3


def test_attention_of_other_families_is_refused():
    unet = parts()[0]
    unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.norm_q = torch.nn.LayerNorm(8)
    with pytest.raises(UsageError, match="has norm_q.*reference_attention to false"):
        ReferenceAttention(unet)
