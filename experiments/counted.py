"""Mixtures of a model with counts of n-grams, and with a cache too, their weights by expectation-maximisation.

Shapes: N tokens, G thetas of the cache, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_app.memory.knn import mixture_weights

ALONE, COUNTS, WITH_CACHE = ARMS = ("n-grams alone", "n-grams", "n-grams + cache")


@dataclass(frozen=True)
class Sides:
    """Probabilities of the tokens of a text.

    Attributes:
        model, counts: (N,).
        cache: (N, G) of the cache, the model's where it is empty.
    """

    model: Tensor
    counts: Tensor
    cache: Tensor


@dataclass(frozen=True)
class Mixed:
    """An arm.

    Attributes:
        p: (N,) of the scored tokens.
        tuning_nats: mean, of the tokens that the weights were chosen on.
        weights: of model, counts and cache; empty: the counts alone.
        theta: number of the cache's; None: without it.
    """

    p: Tensor
    tuning_nats: float
    weights: Sequence[float] = ()
    theta: int | None = None


def mixtures(tuned: Sides, scored: Sides) -> dict[str, Mixed]:
    """All arms, chosen on `tuned`."""
    with_cache = [
        _mixed([tuned.model, tuned.counts, tuned.cache[:, i]], [scored.model, scored.counts, scored.cache[:, i]], i)
        for i in range(tuned.cache.shape[1])
    ]
    return {
        ALONE: Mixed(scored.counts, _nats(tuned.counts)),
        COUNTS: _mixed([tuned.model, tuned.counts], [scored.model, scored.counts]),
        WITH_CACHE: min(with_cache, key=lambda one: one.tuning_nats),
    }


def _mixed(tuned: Sequence[Tensor], scored: Sequence[Tensor], theta: int | None = None) -> Mixed:
    p = torch.stack(list(tuned), dim=1)  # (N, E)
    weights = mixture_weights(p)
    return Mixed(torch.stack(list(scored), dim=1) @ weights, _nats(p @ weights), weights.tolist(), theta)


def _nats(p: Tensor) -> float:
    return float(-p.log().mean())


def facts(mixed: Mixed, thetas: Sequence[float]) -> dict[str, Any]:
    """For the record of an arm."""
    theta = None if mixed.theta is None else thetas[mixed.theta]
    return {"tuning_nats": mixed.tuning_nats, "weights": list(mixed.weights) or None, "theta": theta}
