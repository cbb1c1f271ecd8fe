"""Attention with a bias for each key, in the form that flash attention takes."""
import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1.0e4
"""Logit of a key that must not be seen."""
LOWEST = -6.0e4
"""Least entry of a key's extra channel: within float16."""
ALIGNED = 8
"""Head channels are filled up to a multiple of this, as GPU kernels want them."""


def gate_bias(gate: Tensor) -> Tensor:
    """log g of gates in [0, 1], float32; `NEVER` where they are closed."""
    return gate.float().clamp(min=1e-6).log().masked_fill(gate <= 0, NEVER)


def for_tokens(bias: Tensor, tokens: int) -> Tensor:
    """(B, R L) of a bias of each reference (B, R), the same for its L tokens."""
    return bias[..., None].expand(-1, -1, tokens).flatten(1)


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, with q' = [q, 1, 1] and k' = [k, sqrt(d) bias] in the place of a mask.

    Flash attention takes no mask. In half precision the bias goes in two parts, its rounded value and what that leaves,
    so that it is as good as in float32.

    Args:
        q: (B, H, N, D); k, v: (B, H, L, D).
        bias: (B, L), added to the logits of all rows and heads; no gradient reaches it.
    Returns: (B, H, N, D).
    """
    d = q.shape[-1]
    more = ALIGNED * -(-(d + 2) // ALIGNED) - d
    wide = (bias.detach().float() * d**0.5).clamp(min=LOWEST)
    first = wide.to(k.dtype)
    second = (wide - first.float()).to(k.dtype)
    extra = F.pad(torch.stack([first, second], dim=-1), (0, more - 2))[:, None]
    ones = F.pad(q.new_ones(2), (0, more - 2))
    q = torch.cat([q, ones.expand(*q.shape[:-1], more)], dim=-1)
    k = torch.cat([k, extra.expand(*k.shape[:-1], more)], dim=-1)
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, more)), scale=d**-0.5)[..., :d]
