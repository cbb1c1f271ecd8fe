"""The decoder of a field as Triton kernels: two layers of features that lie in memory, forward and backward.

Twin of `ops.triplane.decode_raw`: raw = W2 softplus(W1 f + b1) + b2. The hidden layer is in registers only and computed
again for the gradients. Each program keeps the weights, walks over blocks of points, and adds the gradients of the
weights up for itself; one sum over programs follows.
"""
import os

import torch
import triton
import triton.language as tl

FORWARD_BLOCK, FORWARD_WARPS, FORWARD_PROGRAMS, FORWARD_STAGES = 64, 4, 8, 3
BACKWARD_BLOCK, BACKWARD_WARPS, BACKWARD_PROGRAMS, BACKWARD_STAGES = 32, 4, 2, 1
"""Points of a block, warps of a program, programs a multiprocessor, blocks whose loads are under way at a time."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _approximate(x, INSTRUCTION: tl.constexpr):
    """One instruction of the special-function unit, 2^-22 exact where it is used: ``lg2`` in [1, 2], ``rcp``."""
    return tl.inline_asm_elementwise(
        INSTRUCTION + ".approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _hidden(features, w1, b1, DOT: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr):
    """softplus and its derivative, the sigmoid, of the first layer; w1 (HIDDEN, C)."""
    before = tl.dot(features.to(DOT), tl.trans(w1).to(DOT), input_precision=PRECISION) + b1[None, :]
    small = tl.exp2(-1.4426950408889634 * tl.abs(before))
    total = 1.0 + small
    if FAST:
        softplus = tl.maximum(before, 0.0) + 0.6931471805599453 * _approximate(total, "lg2")
        inverse = _approximate(total, "rcp")
    else:
        softplus = tl.maximum(before, 0.0) + tl.log(total)
        inverse = 1.0 / total
    return softplus, tl.where(before >= 0, inverse, small * inverse)


@triton.jit
def _rows(w2, FIRST: tl.constexpr, ROWS: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr):
    """So many rows of the second layer from FIRST on, zeros after K."""
    k, h = FIRST + tl.arange(0, ROWS), tl.arange(0, HIDDEN)
    return tl.load(w2 + k[:, None] * HIDDEN + h[None, :], mask=(k < K)[:, None], other=0.0)


@triton.jit
def _first(w1, C: tl.constexpr, HIDDEN: tl.constexpr):
    """The first layer (HIDDEN, C)."""
    return tl.load(w1 + tl.arange(0, HIDDEN)[:, None] * C + tl.arange(0, C)[None, :])


@triton.jit(do_not_specialize=["n_points", "start", "count", "n_blocks"])
def decode(
    features, w1, b1, w2, b2, out, n_points, start, count, n_blocks,
    C: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out`` (B, n_points, K) at start to start + count, of features (B, count, C)."""
    b = tl.program_id(1).to(tl.int64)
    i, c, k = tl.arange(0, BLOCK), tl.arange(0, C), tl.arange(0, MAIN)
    first, bias, second = _first(w1, C, HIDDEN), tl.load(b1 + tl.arange(0, HIDDEN)), _rows(w2, 0, MAIN, HIDDEN, K)
    shift = tl.load(b2 + k, mask=k < K, other=0.0)
    if REST > 0:
        more = MAIN + tl.arange(0, REST)
        second_rest, shift_rest = _rows(w2, MAIN, REST, HIDDEN, K), tl.load(b2 + more, mask=more < K, other=0.0)
    for block in range(tl.program_id(0), n_blocks, tl.num_programs(0)):
        inside = (block * BLOCK + i < count)[:, None]
        near = features + (b * count + block * BLOCK) * C
        seen = tl.load(near + i[:, None] * C + c[None, :], mask=inside, other=0.0)
        hidden, _ = _hidden(seen, first, bias, DOT, PRECISION, FAST)
        hidden = hidden.to(DOT)
        target = out + (b * n_points + start + block * BLOCK) * K
        raw = tl.dot(hidden, tl.trans(second).to(DOT), input_precision=PRECISION) + shift[None, :]
        tl.store(target + i[:, None] * K + k[None, :], raw, mask=inside & (k < K)[None, :])
        if REST > 0:
            raw = tl.dot(hidden, tl.trans(second_rest).to(DOT), input_precision=PRECISION) + shift_rest[None, :]
            tl.store(target + i[:, None] * K + more[None, :], raw, mask=inside & (more < K)[None, :])


@triton.jit(do_not_specialize=["n_points", "start", "count", "n_blocks"])
def decode_gradients(
    features, grad_out, least, w1, b1, w2, grad_features, partial, n_points, start, count, n_blocks,
    C: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    FEATURES: tl.constexpr, WEIGHTS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients (B, count, C) of the features, and those of the weights added to this program's row of `partial`.

    Points of which no gradient exceeds `least`, one number in memory, count as without; blocks of such are left out.
    """
    b = tl.program_id(1).to(tl.int64)
    i, c, h, k = tl.arange(0, BLOCK), tl.arange(0, C), tl.arange(0, HIDDEN), tl.arange(0, MAIN)
    first, bias, second = _first(w1, C, HIDDEN), tl.load(b1 + h), _rows(w2, 0, MAIN, HIDDEN, K)
    grad_first = tl.zeros((HIDDEN, C), dtype=tl.float32)
    grad_bias = tl.zeros((BLOCK, HIDDEN), dtype=tl.float32)  # by point of a block: summed over the threads at the end
    grad_second = tl.zeros((MAIN, HIDDEN), dtype=tl.float32)
    grad_shift = tl.zeros((BLOCK, MAIN), dtype=tl.float32)
    smallest = tl.load(least)
    if REST > 0:
        more, second_rest = MAIN + tl.arange(0, REST), _rows(w2, MAIN, REST, HIDDEN, K)
        grad_second_rest = tl.zeros((REST, HIDDEN), dtype=tl.float32)
        grad_shift_rest = tl.zeros((BLOCK, REST), dtype=tl.float32)
    for block in range(tl.program_id(0), n_blocks, tl.num_programs(0)):
        inside = (block * BLOCK + i < count)[:, None]
        at = (b * count + block * BLOCK) * C
        source = grad_out + (b * n_points + start + block * BLOCK) * K + i[:, None] * K
        pull = tl.load(source + k[None, :], mask=inside & (k < K)[None, :], other=0.0)
        largest = tl.max(tl.abs(pull), axis=1)
        if REST > 0:
            rest = tl.load(source + more[None, :], mask=inside & (more < K)[None, :], other=0.0)
            largest = tl.maximum(largest, tl.max(tl.abs(rest), axis=1))
        counts = (largest <= smallest) == 0  # all where `least` is NaN, as for gradients that are not finite
        pull = tl.where(counts[:, None], pull, 0.0)
        if REST > 0:
            rest = tl.where(counts[:, None], rest, 0.0)
        if tl.sum(counts.to(tl.int32), axis=0) > 0:
            seen = tl.load(features + at + i[:, None] * C + c[None, :], mask=inside, other=0.0)
            hidden, slope = _hidden(seen, first, bias, DOT, PRECISION, FAST)
            grad_before = tl.dot(pull.to(DOT), second.to(DOT), input_precision=PRECISION)
            if REST > 0:
                grad_before += tl.dot(rest.to(DOT), second_rest.to(DOT), input_precision=PRECISION)
            grad_before *= slope
            short = grad_before.to(DOT)
            if FEATURES:
                found = tl.dot(short, first.to(DOT), input_precision=PRECISION).to(grad_features.dtype.element_ty)
                tl.store(grad_features + at + i[:, None] * C + c[None, :], found, mask=inside)
            if WEIGHTS:
                grad_bias += grad_before
                grad_shift += pull
                grad_first += tl.dot(tl.trans(short), seen.to(DOT), input_precision=PRECISION)
                grad_second += tl.dot(tl.trans(pull.to(DOT)), hidden.to(DOT), input_precision=PRECISION)
                if REST > 0:
                    grad_shift_rest += rest
                    grad_second_rest += tl.dot(tl.trans(rest.to(DOT)), hidden.to(DOT), input_precision=PRECISION)
        elif FEATURES:
            nothing = tl.zeros((BLOCK, C), dtype=grad_features.dtype.element_ty)
            tl.store(grad_features + at + i[:, None] * C + c[None, :], nothing, mask=inside)
    if WEIGHTS:
        own = partial + (b * tl.num_programs(0) + tl.program_id(0)) * (HIDDEN * C + HIDDEN + K * HIDDEN + K)
        _add(own + h[:, None] * C + c[None, :], grad_first, None)
        own += HIDDEN * C
        _add(own + h, tl.sum(grad_bias, axis=0), None)
        own += HIDDEN
        _add(own + k[:, None] * HIDDEN + h[None, :], grad_second, (k < K)[:, None])
        _add(own + K * HIDDEN + k, tl.sum(grad_shift, axis=0), k < K)
        if REST > 0:
            _add(own + more[:, None] * HIDDEN + h[None, :], grad_second_rest, (more < K)[:, None])
            _add(own + K * HIDDEN + more, tl.sum(grad_shift_rest, axis=0), more < K)


@triton.jit
def _add(at, value, mask):
    """Add to memory that no other program touches."""
    tl.store(at, tl.load(at, mask=mask) + value, mask=mask)


def parts(outputs: int) -> tuple[int, int]:
    """Outputs as one or two powers of two of 16 or more, the last filled up: (main, rest); 33 are 32 and 16."""
    padded = max(16, triton.next_power_of_2(outputs))
    main = padded // 2
    rest = max(16, triton.next_power_of_2(outputs - main)) if outputs > main else 0
    return (main, rest) if main >= 16 and main + rest < padded else (padded, 0)


def operands(dtype: torch.dtype, backward: bool) -> tuple:
    """Data type of the products' operands, how float32 ones are multiplied, and whether functions are approximate.

    float16 has no room for small gradients: its backward products are those of float32, whose short form has as many
    digits. For float32 planes `torch.set_float32_matmul_precision` decides, as it does for torch's own products.
    """
    fast = not INTERPRETED
    if dtype == torch.float32 or INTERPRETED:  # the interpreter cannot multiply bfloat16
        return tl.float32, "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32", fast
    if dtype == torch.float16 and backward:
        return tl.float32, "tf32", fast
    return (tl.bfloat16 if dtype == torch.bfloat16 else tl.float16), "tf32", fast


def processors(device: torch.device) -> int:
    """Multiprocessors of a device; where the kernels are interpreted, one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
