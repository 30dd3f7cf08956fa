"""From nats per token to a measure of a whole text, with intervals over its documents.

Shapes: N tokens, D documents, R resamplings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

HELPED = 0.01  # nats: beyond this a token counts as helped or hurt
RESAMPLINGS = 10_000


@dataclass(frozen=True)
class Interval:
    """A difference and its 95 % interval."""

    mean: float
    low: float
    high: float


def by_document(values: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(N,) values and numbers of documents -> sums (D,), over the documents that occur."""
    return np.bincount(np.unique(documents, return_inverse=True)[1], weights=values)


def bits_per_byte(nats: np.ndarray, n_bytes: np.ndarray) -> float:
    """Of the sums of both."""
    return float(nats.sum() / math.log(2) / n_bytes.sum())


def change(nats: np.ndarray, base: np.ndarray, *, seed: int = 0) -> Interval:
    """How many per cent more `nats` (D,) are than `base` (D,); of the same text, so also in bits per byte.

    A paired bootstrap over documents (Efron 1979), percentiles 2.5 and 97.5; of one document nothing is known.
    """
    mean = float(100 * (nats.sum() / base.sum() - 1))
    if len(base) < 2:
        return Interval(mean, -math.inf, math.inf)
    draws = np.random.default_rng(seed).integers(len(base), size=(RESAMPLINGS, len(base)))  # (R, D)
    changes = 100 * (nats[draws].sum(1) / base[draws].sum(1) - 1)
    low, high = np.percentile(changes, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of a few values (Student's t)."""
    n = len(values)
    return float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def helped_and_hurt(nats: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Share of the tokens (N,) whose nats are lower, and higher, than the base's by more than HELPED."""
    return float((base - nats > HELPED).mean()), float((nats - base > HELPED).mean())
