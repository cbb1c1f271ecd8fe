"""How sure a difference is: bootstrap intervals over subjects, sign-flip tests, Holm's correction.

The subject is the unit that was drawn at random: values of its views and seeds are averaged before they come here.
Differences are paired: both ways of doing a thing are measured on the same subjects.
"""
import math
from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

from ..errors import UsageError

RESAMPLES = 10000
LEAST = 5
"""Values that an interval needs: resamples stay within the values' range, which holds the mean of four normal values in
88 % of draws only, whatever is done about its tails."""
EXACT_UP_TO = 12
"""Differences up to which all sign flips are tried; 2^12 of them."""


def known(values: Sequence[float | None] | Tensor) -> Tensor:
    """(N,) float64 of the values that are there: None and NaN are missing."""
    listed = values.tolist() if isinstance(values, Tensor) else values
    tensor = torch.tensor([math.nan if v is None else float(v) for v in listed], dtype=torch.float64)
    return tensor[~tensor.isnan()]


def bootstrap_interval(
    values: Sequence[float | None] | Tensor, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES,
    expanded: bool = True,
) -> tuple[float, float, float] | None:
    """Bootstrap interval of the mean over N subjects: (low, mean, high).

    Percentiles of means of resamples. The plain interval is too short for few subjects by sqrt((n - 1) / n) and by the
    normal instead of the t distribution; expanded, its tails are Phi(sqrt(n / (n - 1)) t_{(1 - level) / 2, n - 1})
    (Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 2015).

    Args: values (N,), missing ones None or NaN; level of confidence in (0, 1).
    Returns: None for fewer than `LEAST` values where expanded, for none where not.
    Raises: UsageError for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise UsageError(f"A level of confidence lies between 0 and 1; got {level}.")
    x = known(values)
    n = len(x)
    if n < (LEAST if expanded else 1):
        return None
    tail = (1 - level) / 2
    if expanded:
        tail = float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1)))
    generator = torch.Generator().manual_seed(seed)
    means = x[torch.randint(n, (resamples, n), generator=generator)].mean(dim=1)
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, float(x.mean()), high


def sign_flip_p(
    differences: Sequence[float | None] | Tensor, seed: int = 0, resamples: int = RESAMPLES
) -> float | None:
    """Two-sided p-value of "the paired differences are symmetric about 0" (Fisher's randomisation test).

    The share of all ways to flip signs whose mean is at least as far from 0 as the one seen. Up to `EXACT_UP_TO`
    differences all ways are tried, beyond that so many random ones, the one seen among them: the rate of false alarms
    is at most the level, whatever the distribution. N differences cannot give less than 2^(1 - N).

    Returns: in (0, 1], None without any difference.
    """
    x = known(differences)
    n = len(x)
    if n == 0:
        return None
    if n <= EXACT_UP_TO:
        bits = torch.arange(2**n)[:, None] >> torch.arange(n) & 1
        signs, extra = 1.0 - 2.0 * bits.double(), 0
    else:
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (resamples, n), generator=generator).double() * 2 - 1
        extra = 1
    seen = float(x.mean().abs())
    as_far = (signs @ x / n).abs() >= seen - 1e-12 * max(1.0, seen)
    return (int(as_far.sum()) + extra) / (len(signs) + extra)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number, in the order given (Holm, Scandinavian Journal of Statistics 1979).

    The k-th smallest of m is multiplied by m - k + 1, and none is below a smaller one's; at most 1. At a level a the
    chance of any false alarm among them is at most a, however they depend on one another. None stays and doesn't count.

    Raises: UsageError for values outside [0, 1].
    """
    there = [(p, k) for k, p in enumerate(p_values) if p is not None]
    if any(not 0 <= p <= 1 for p, _ in there):
        raise UsageError(f"p-values lie in [0, 1]; got {[p for p, _ in there]}.")
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, k) in enumerate(sorted(there)):
        highest = max(highest, min(1.0, (len(there) - rank) * p))
        corrected[k] = highest
    return corrected
