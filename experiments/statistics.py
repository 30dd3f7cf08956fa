"""From nats per token to a measure of a whole text, with intervals over seeds and its documents.

Shapes: N tokens, S seeds, D documents, R resamplings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import norm, t

HELPED = 0.01  # nats: beyond this a token counts as helped or hurt
RESAMPLINGS = 10_000
SEEDS = 5  # so many decide about less than 1 %
HOW = (
    "Intervals are 95 %, of a paired bootstrap over seeds and then documents, the part of the seeds widened as much as "
    "Student's t is wider than a normal distribution; behind `(one seed)` the noise of seeds is not in the interval."
)


@dataclass(frozen=True)
class Interval:
    """A difference and its 95 % interval. Of one seed the noise of seeds is not in it, and its text says so."""

    mean: float
    low: float
    high: float
    seeds: int

    def __neg__(self) -> Interval:
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low)

    def __str__(self) -> str:
        text = f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        return text if self.seeds > 1 else f"{text} (one seed)"

    def not_worse(self, margin: float) -> Literal["yes", "no", "undecided"]:
        """Whether what is better when lower is at most `margin` worse: its interval lies below that, or above.

        Fewer than 5 seeds do not decide about less than 1 %.
        """
        if self.seeds < SEEDS and margin < 1:
            return "undecided"
        return "yes" if self.high < margin else "no" if self.low >= margin else "undecided"


def by_document(values: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(N,) values and numbers of documents -> sums (D,), over the documents that occur."""
    return np.bincount(np.unique(documents, return_inverse=True)[1], weights=values)


def bits_per_byte(nats: np.ndarray, n_bytes: np.ndarray) -> float:
    """Of the sums of both."""
    return float(nats.sum() / math.log(2) / n_bytes.sum())


def change(nats: np.ndarray, base: np.ndarray, *, seed: int = 0) -> Interval:
    """How many per cent more `nats` (S, D) are than `base` (S, D); of the same text, so also in bits per byte."""
    return _bootstrap(nats, base, lambda mine, others: 100 * (mine / others - 1), seed)


def difference(values: np.ndarray, base: np.ndarray, *, seed: int = 0) -> Interval:
    """How much larger the mean of `values` (S, D) is than that of `base` (S, D)."""
    return _bootstrap(values, base, lambda mine, others: mine - others, seed)


Compare = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _bootstrap(values: np.ndarray, base: np.ndarray, compare: Compare, seed: int) -> Interval:
    """Of two means over the same seeds and documents: both are drawn anew, the same for both sides.

    Percentiles 2.5 and 97.5 (Efron 1979; two levels: Davison and Hinkley 1997, 3.8); of one document nothing is known.
    """
    if values.shape != base.shape or values.ndim != 2:
        raise ValueError(f"values of {values.shape} and {base.shape}: both must be of the same seeds and documents")
    S, D = values.shape
    mean = float(compare(values.mean(keepdims=True), base.mean(keepdims=True)).item())
    if D < 2:
        return Interval(mean, -math.inf, math.inf, S)
    generator = np.random.default_rng(seed)
    documents = generator.multinomial(D, np.full(D, 1 / D), size=RESAMPLINGS) / D  # (R, D) weights
    seeds = generator.multinomial(S, np.full(S, 1 / S), size=RESAMPLINGS) / S  # (R, S)
    of_all = compare(documents @ values.mean(0), documents @ base.mean(0))  # (R,) of all seeds
    drawn = compare(((seeds @ values) * documents).sum(1), ((seeds @ base) * documents).sum(1))
    low, high = np.percentile(of_all + widening(S) * (drawn - of_all), [2.5, 97.5])
    return Interval(mean, float(low), float(high), S)


def widening(n: int) -> float:
    """How much too narrow a bootstrap of the mean of `n` normal values is.

    Hesterberg 2015, doi:10.1080/00031305.2015.1089789.
    """
    return math.sqrt(n / (n - 1)) * float(t.ppf(0.975, n - 1) / norm.ppf(0.975)) if n > 1 else 1.0


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of a few values (Student's t)."""
    n = len(values)
    return float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def helped_and_hurt(nats: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Share of the tokens (N,) whose nats are lower, and higher, than the base's by more than HELPED."""
    return float((base - nats > HELPED).mean()), float((nats - base > HELPED).mean())
