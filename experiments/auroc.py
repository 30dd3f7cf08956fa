"""AUROC with an interval over documents.

Shapes: S seeds, K documents of known texts, N of new ones, R resamplings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score
from torch import Tensor, cat

from experiments.statistics import Interval, widening

RESAMPLINGS = 2000


def auroc(known: Tensor, new: Tensor) -> float:
    """Chance that a new one has the higher score than a known one."""
    labels = np.concatenate([np.zeros(len(known)), np.ones(len(new))])
    return float(roc_auc_score(labels, cat([known, new]).numpy()))


@dataclass(frozen=True)
class Scored:
    """Scores of sequences, and the document (a number below `n`) that each is of."""

    scores: np.ndarray
    documents: np.ndarray
    n: int


def wins(known: Scored, new: Scored) -> np.ndarray:
    """(K, N) in how many pairs of sequences of two documents the new one scores higher; equal scores count half."""
    mine, others = known.scores[:, None], new.scores[None]
    higher = (others > mine) + 0.5 * (others == mine)
    return _sums(_sums(higher, known).T, new).T


def pairs(known: Scored, new: Scored) -> np.ndarray:
    """(K, N) pairs of sequences."""
    return np.outer(*(np.bincount(one.documents, minlength=one.n) for one in (known, new)))


def _sums(values: np.ndarray, of: Scored) -> np.ndarray:
    """Rows of values, summed by document."""
    sums = np.zeros((of.n, values.shape[1]))
    np.add.at(sums, of.documents, values)
    return sums


def interval(won: np.ndarray, of: np.ndarray, base: np.ndarray | None = None, *, same: bool, seed: int = 0) -> Interval:
    """The mean AUROC over the seeds, less that of another detector; 95 %, over seeds and then documents.

    Args:
        won: (S, K, N), see `wins`.
        of: (K, N), see `pairs`.
        base: of the other detector, with the same seeds and documents.
        same: whether document i is the same on both sides: it is drawn for both.
    """
    S, K, N = won.shape
    generator = np.random.default_rng(seed)
    known = generator.multinomial(K, np.full(K, 1 / K), size=RESAMPLINGS).astype(float)  # (R, K) weights
    new = known if same else generator.multinomial(N, np.full(N, 1 / N), size=RESAMPLINGS).astype(float)
    seeds = generator.multinomial(S, np.full(S, 1 / S), size=RESAMPLINGS) / S  # (R, S)
    more = won if base is None else won - base
    each = np.stack([((known @ one) * new).sum(1) for one in more], axis=1) / ((known @ of) * new).sum(1)[:, None]
    of_all = each.mean(1)
    low, high = np.nanpercentile(of_all + widening(S) * ((each * seeds).sum(1) - of_all), [2.5, 97.5])
    return Interval(float(more.sum(axis=(1, 2)).mean() / of.sum()), float(low), float(high), S)
