"""tiny-cuda-nn's `Network` with a FullyFusedMLP of one hidden layer in plain torch, on any device, for tests.

Written from the layout and the arithmetic that `portrait_diffusion.ops.field_tcnn` lists. In half precision it rounds
where tiny-cuda-nn does: inputs, weights, sums after every 16 products, hidden units, outputs and all gradients; the
gradients of the weights are sums of 4096 points each, added up in half precision.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRANULARITY, SLICE = 256, 4096


def round_up(number: int, multiple: int = 16) -> int:
    return -(-number // multiple) * multiple


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in a's type: sums of 16 products are exact, and rounded when added to the sum so far."""
    if a.dtype != torch.half:
        return a @ b
    total = torch.zeros(*a.shape[:-1], b.shape[-1], dtype=torch.half, device=a.device)
    for i in range(0, a.shape[-1], 16):
        total = (total.float() + a[..., i : i + 16].float() @ b[..., i : i + 16, :].float()).half()
    return total


def outer_sum(a: Tensor, b: Tensor) -> Tensor:
    """a.T @ b over the points (rows), slice after slice."""
    total = a.new_zeros(a.shape[1], b.shape[1])
    for x, y in zip(a.split(SLICE), b.split(SLICE)):
        total = total + product(x.T, y)
    return total


class Fused(torch.autograd.Function):
    """W2 s(W1 x), s(a) = log(1 + exp(10 a)) / 10; the derivative of s is taken from its value, as it is stored."""

    @staticmethod
    def forward(ctx, x: Tensor, w1: Tensor, w2: Tensor, loss_scale: float) -> Tensor:
        before = product(x, w1.T).float() if x.dtype == torch.half else product(x, w1.T)
        hidden = (torch.log(1 + torch.exp(10 * before)) / 10).to(x.dtype)
        ctx.save_for_backward(x, w1, w2, hidden)
        ctx.loss_scale = loss_scale
        return product(hidden, w2.T)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, w1, w2, hidden = ctx.saved_tensors
        grad = grad * ctx.loss_scale
        slope = 1 - torch.exp(-10 * (hidden.float() if x.dtype == torch.half else hidden))
        pull = product(grad, w2) * slope.to(x.dtype)
        grads = product(pull, w1), outer_sum(pull, x), outer_sum(grad, hidden)
        return *(g / ctx.loss_scale for g in grads), None


class Network(nn.Module):
    """The class of that name in `tinycudann`, as far as it is used; `half` False computes in the parameters' type."""

    half = True

    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict, seed: int = 1337):
        super().__init__()
        assert network_config["otype"] == "FullyFusedMLP" and network_config["activation"] == "Softplus"
        assert network_config["output_activation"] == "None" and network_config["n_hidden_layers"] == 1
        self.n_output_dims, self.width = n_output_dims, network_config["n_neurons"]
        self.n_input_dims = n_input_dims
        assert self.width in (16, 32, 64, 128)
        count = self.width * (round_up(n_input_dims) + round_up(n_output_dims))
        self.params = nn.Parameter(torch.rand(count, generator=torch.Generator().manual_seed(seed)))
        self.loss_scale = 128.0 if self.half else 1.0

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 2 and x.shape[1] == self.n_input_dims and len(x) > 0
        dtype = torch.half if self.half else self.params.dtype
        inputs = F.pad(x, (0, 0, 0, round_up(len(x), GRANULARITY) - len(x))).to(dtype)
        inputs = F.pad(inputs, (0, round_up(self.n_input_dims) - self.n_input_dims), value=1.0)  # with ones
        params = self.params.to(dtype)
        first = self.width * inputs.shape[1]
        w1, w2 = params[:first].view(self.width, -1), params[first:].view(-1, self.width)
        return Fused.apply(inputs, w1, w2, self.loss_scale)[: len(x), : self.n_output_dims]
