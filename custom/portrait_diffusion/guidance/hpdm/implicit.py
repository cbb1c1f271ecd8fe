"""The Implicit-Branch: attention to reference views, merged into the Explicit-Branch through zero-initialised blocks.

A reference network (an encoder of the denoiser's shape) sees each reference; what enters its self-attentions, after
their norms, is kept as a bank of tokens (the idea of ReferenceNet: Hu et al., "Animate Anyone", CVPR 2024, section
3.2). At the same places in the Explicit-Branch the bank is attended to, and the answer is added to the branch's own
self-attention through a residual block whose last layer starts at zero.
"""
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from .attention import biased_attention, for_tokens, gate_bias


def self_attentions(network: nn.Module) -> dict[str, nn.Module]:
    """The self-attention modules of a network's transformer blocks by name, in order of execution."""
    return {name: module for name, module in network.named_modules() if name.endswith(".attn1")}


class Recorder:
    """Keeps what enters each self-attention of a network, norm applied: `tokens` {name: (B, L, C)} of the last run."""

    def __init__(self, network: nn.Module):
        self.tokens: dict[str, Tensor] = {}
        for name, module in self_attentions(network).items():
            module.register_forward_pre_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, args: tuple) -> None:
        self.tokens[name] = args[0]

    def take(self) -> dict[str, Tensor]:
        """The tokens of the last run; forgets them."""
        tokens, self.tokens = self.tokens, {}
        return tokens


class ResidualMerge(nn.Module):
    """Cross-attention to the bank and a residual block that starts as zero.

    r = g_max * Z(a + W silu(norm(a))), a = attention(Q = x, K = V = bank, logits + log g); Z is zero at first.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.norm, self.inner = nn.LayerNorm(channels), nn.Linear(channels, channels)
        self.zero = nn.Linear(channels, channels)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, x: Tensor, bank: Tensor, gate: Tensor) -> Tensor:
        """Args: x (B, N, C), bank (B, R, L, C), gate (B, R) in [0, 1]. Returns: (B, N, C) to be added to x's branch."""
        b, n, c = x.shape
        bias = for_tokens(gate_bias(gate), bank.shape[2])
        bank = bank.flatten(1, 2)

        def heads(y: Tensor) -> Tensor:
            return y.view(b, -1, self.heads, c // self.heads).transpose(1, 2)

        q, k, v = heads(self.to_q(x)), heads(self.to_k(bank)), heads(self.to_v(bank))
        a = biased_attention(q, k, v, bias).transpose(1, 2).reshape(b, n, c)
        residual = self.zero(a + self.inner(F.silu(self.norm(a))))
        return residual * gate.amax(dim=1).to(x.dtype)[:, None, None]


class ImplicitBranch(ModelMixin, ConfigMixin):
    """One `ResidualMerge` for each self-attention of the Explicit-Branch; saved and loaded like any diffusers model.

    Args: blocks {name of the self-attention: [channels, heads]}, by keyword.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, blocks: dict):
        super().__init__()
        self.merges = nn.ModuleDict({n.replace(".", "/"): ResidualMerge(*size) for n, size in blocks.items()})
        self.bank: dict[str, Tensor] | None = None
        self.gate: Tensor | None = None

    @classmethod
    def like(cls, network: nn.Module) -> "ImplicitBranch":
        """A branch for a network; its attention starts as the network's own self-attention."""
        attentions = self_attentions(network)
        branch = cls(blocks={name: [a.to_q.in_features, a.heads] for name, a in attentions.items()})
        for name, attention in attentions.items():
            for projection in ("to_q", "to_k", "to_v"):
                ours = getattr(branch.merges[name.replace(".", "/")], projection)
                ours.weight.data.copy_(getattr(attention, projection).weight.data)
        return branch

    def attach(self, network: nn.Module) -> None:
        """Merge into a network's self-attentions whenever a bank is set.

        Raises: ValueError when the network has other self-attentions than this branch.
        """
        attentions = self_attentions(network)
        if set(attentions) != set(self.config.blocks):
            odd = sorted(set(attentions) ^ set(self.config.blocks))[:3]
            raise ValueError(f"the Implicit-Branch was made for another network: they differ in {', '.join(odd)}")
        for name, module in attentions.items():
            module.register_forward_hook(partial(self._merge, name))

    def _merge(self, name: str, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if self.bank is None:
            return output
        closed = len(output) - len(self.gate)
        seen = self.merges[name.replace(".", "/")](args[0][closed:], self.bank[name], self.gate)
        return output + seen if closed == 0 else torch.cat([output[:closed], output[closed:] + seen])

    def set(self, bank: dict[str, Tensor] | None, gate: Tensor | None = None) -> None:
        """The bank {name: (G, R, L, C)} and gate (G, R) of the next runs' last G rows; None for none."""
        self.bank, self.gate = bank, gate

    def forward(self, *args, **kwargs):
        """Not called: the branch works inside the network that it is attached to."""
        raise RuntimeError("the Implicit-Branch runs inside the Explicit-Branch; call HPDM.denoise")
