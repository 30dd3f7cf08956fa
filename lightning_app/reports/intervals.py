"""95 % intervals from what logs hold: over the passages of a text, and over seeds.

Shapes: P passages, S sums of each (`SUMS`), R resamplings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SUMS = ("nats", "tokens", "bytes", "right")  # of each passage: the columns of an array of sums (P, S)
MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # from total sums (..., S)
    "val/ce": lambda sums: sums[..., 0] / sums[..., 1],
    "val/ppl": lambda sums: np.exp(sums[..., 0] / sums[..., 1]),
    "val/bpb": lambda sums: sums[..., 0] / math.log(2) / sums[..., 2],
    "val/acc": lambda sums: sums[..., 3] / sums[..., 1],
}
RESAMPLINGS = 5_000
LEAST = 8  # passages below which a bootstrap says nothing


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; both ends are None where nothing allows one."""

    value: float
    low: float | None = None
    high: float | None = None


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of runs with different seeds, and Student's t interval of it; of one run nothing is known."""
    from scipy.stats import t  # a second of import, only where there are seeds

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half)


def over_passages(sums: np.ndarray, name: str) -> Estimate:
    """A measure of a text from the sums (P, S) of its passages: percentiles of a bootstrap (Efron 1979)."""
    measure = MEASURES[name]
    sums = scored(sums)
    value = float(measure(sums.sum(0)))
    if len(sums) < LEAST:
        return Estimate(value)
    low, high = np.percentile(measure(_resampled(sums)), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def change(sums: np.ndarray, base: np.ndarray, name: str = "val/bpb") -> Estimate:
    """How many per cent more a measure is than the base's on the same passages (P, S): a paired bootstrap."""
    measure = MEASURES[name]
    common = (sums[:, 1:3].min(1) > 0) & (base[:, 1:3].min(1) > 0)
    sums, base = sums[common], base[common]
    value = float(100 * (measure(sums.sum(0)) / measure(base.sum(0)) - 1))
    if len(sums) < LEAST:
        return Estimate(value)
    low, high = np.percentile(100 * (measure(_resampled(sums)) / measure(_resampled(base)) - 1), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def change_over_seeds(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """How many per cent more runs (their geometric mean) are than the base's: Welch's t interval of the logarithms."""
    from scipy.stats import ttest_ind

    ours, theirs = np.log(values), np.log(base)
    ends = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    value, low, high = (100 * math.expm1(x) for x in (ours.mean() - theirs.mean(), ends.low, ends.high))
    return Estimate(value, low, high)


def scored(sums: np.ndarray) -> np.ndarray:
    """The passages, of (P, S), in which something was predicted."""
    return sums[sums[:, 1:3].min(1) > 0]


def _resampled(sums: np.ndarray) -> np.ndarray:
    """(P, S) -> (R, S) totals of P passages drawn with replacement; the same draws for every text of P passages."""
    total: np.ndarray = _times_drawn(len(sums)) @ sums
    return total


@lru_cache(maxsize=2)  # a page of ten runs asks for the same a hundred times
def _times_drawn(passages: int) -> np.ndarray:
    """(R, P): how often each resampling has drawn each passage."""
    draws = np.random.default_rng(0).integers(passages, size=(RESAMPLINGS, passages))
    places = draws + passages * np.arange(RESAMPLINGS)[:, None]
    return np.bincount(places.ravel(), minlength=draws.size).reshape(draws.shape).astype(float)
