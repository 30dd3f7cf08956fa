"""The arms that are mixtures of a model with what is looked up beside it.

Shapes: N tokens of all documents, Q of those asked for, E experts, F features of a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments import newer_experts, newer_gate
from experiments.newer_experts import SCALES, Candidates, Counts, Near, best_of, p_of_memory, signs
from experiments.newer_pointer import Start
from experiments.newer_states import Columns, Read
from lightning_app.memory.knn import mixture_weights

PLAIN, LONG, ALONE = "512 tokens of context", "2,048 tokens of context", "n-grams alone"
COUNTS, CACHE, KNN, STORING, POINTER = "n-grams", "cache", "kNN", "kNN, storing", "pointer"
ALL = (KNN, COUNTS, CACHE)


@dataclass(frozen=True)
class Mixture:
    """What joins the model; with the longer context, and with weights for each token, or not."""

    kinds: tuple[str, ...] = ()
    long: bool = False
    gated: bool = False


MIXTURES = {
    PLAIN: Mixture(),
    LONG: Mixture(long=True),
    "n-grams": Mixture((COUNTS,)),
    "cache": Mixture((CACHE,)),
    "cache, gated": Mixture((CACHE,), gated=True),
    "pointer, gated": Mixture((POINTER,), gated=True),
    "n-grams + cache": Mixture((COUNTS, CACHE)),
    "n-grams + cache, gated": Mixture((COUNTS, CACHE), gated=True),
    "kNN": Mixture((KNN,)),
    "kNN, storing": Mixture((STORING,)),
    "kNN, gated": Mixture((KNN,), gated=True),
    "kNN, storing, gated": Mixture((STORING,), gated=True),
    "kNN + n-grams + cache": Mixture(ALL),
    "kNN + n-grams + cache, gated": Mixture(ALL, gated=True),
    "kNN + n-grams + cache + pointer, gated": Mixture((*ALL, POINTER), gated=True),
    "2,048 + n-grams + cache, gated": Mixture((COUNTS, CACHE), long=True, gated=True),
    "2,048 + kNN": Mixture((KNN,), long=True),
    "2,048 + kNN, gated": Mixture((KNN,), long=True, gated=True),
    "2,048 + kNN + n-grams + cache, gated": Mixture(ALL, long=True, gated=True),
}


@dataclass(frozen=True)
class Rows:
    """A split: (Q,) the tokens to choose on and those to score, and (N,) which ones are stored."""

    tuned: Tensor
    scored: Tensor
    stored: Tensor


@dataclass(frozen=True)
class Side:
    """What an expert says of tokens: (Q,) probabilities, and (Q, F) what a gate may know before each."""

    p: Tensor
    signs: Tensor


@dataclass(frozen=True)
class Expert:
    """The model itself, a cache, a memory, or counts, of the tokens to choose on and of those to score."""

    tuned: Side
    scored: Side
    temperature: float | None = None


@dataclass(frozen=True)
class Mixed:
    """An arm: nats of the tokens to score, and what was chosen.

    Attributes:
        weights: of all experts, the model first; of a gate their means.
    """

    nats: Tensor
    tuning_nats: float
    weights: list[float]
    temperatures: list[float | None]


def of_model(read: Read, rows: Rows) -> Expert:
    tuned, scored = (Side(read.p[some], read.entropies[some, None].double()) for some in (rows.tuned, rows.scored))
    return Expert(tuned, scored)


def of_counts(counts: Counts, tuned: Sequence[int], scored: Sequence[int]) -> Expert:
    """Of documents."""
    return Expert(Side(counts.p(tuned), counts.signs(tuned)), Side(counts.p(scored), counts.signs(scored)))


def of_states(read: Read, near: Near, rows: Rows) -> dict[str, Expert]:
    """What is read off states, at the temperatures that are best on the tokens to choose on."""

    def memory(some: Tensor) -> Candidates:
        return newer_experts.in_memory(near, some, rows.stored)

    def with_own(some: Tensor) -> Candidates:
        return newer_experts.joined(memory(some), newer_experts.before(near, some))

    scale = newer_experts.usual_distance(near, rows.tuned)
    return {
        KNN: _memory(memory, read, rows, scale),
        STORING: _memory(with_own, read, rows, scale),
        CACHE: _cache(near, read, rows, scale),
    }


def of_pointer(read: Read, cache: Expert, rows: Rows, make: Callable[[Start], Columns]) -> Expert:
    """Taught from the cache on; `make` gives what it says of the tokens to choose on, and then of those to score."""
    assert cache.temperature is not None
    weights = mixture_weights(torch.stack([read.p[rows.tuned], cache.tuned.p], dim=1))
    found = make(Start(float(weights[1]), cache.temperature))
    tuned, scored = (found[name].split([len(rows.tuned), len(rows.scored)]) for name in ("p", "signs"))
    return Expert(Side(tuned[0], scored[0]), Side(tuned[1], scored[1]))


def _memory(look: Callable[[Tensor], Candidates], read: Read, rows: Rows, scale: float) -> Expert:
    tuned, scored = look(rows.tuned), look(rows.scored)
    p_model = read.p[rows.tuned]
    T = scale * SCALES[best_of(p_model, lambda g: p_of_memory(tuned, read, rows.tuned, scale * SCALES[g]))]
    sides = [
        Side(p_of_memory(found, read, some, T), signs(found, read, T))
        for found, some in ((tuned, rows.tuned), (scored, rows.scored))
    ]
    return Expert(sides[0], sides[1], T)


def _cache(near: Near, read: Read, rows: Rows, scale: float) -> Expert:
    best = best_of(read.p[rows.tuned], lambda g: newer_experts.p_of_cache(near, read, rows.tuned, g))
    T = scale / 8  # about what is chosen for memories
    sides = [
        Side(newer_experts.p_of_cache(near, read, some, best), signs(newer_experts.before(near, some), read, T))
        for some in (rows.tuned, rows.scored)
    ]
    return Expert(sides[0], sides[1], newer_experts.thetas_of(read)[best])


def mixed(experts: Sequence[Expert], *, gated: bool) -> Mixed:
    """With weights, or a gate, that are best on the tokens to choose on."""
    (tuned, known), (scored, known_scored) = _sides([e.tuned for e in experts]), _sides([e.scored for e in experts])
    weights = mixture_weights(tuned)
    if gated:
        gate = newer_gate.learned(tuned, known, weights=weights)
        p_tuned, p_scored = gate.mixed(tuned, known), gate.mixed(scored, known_scored)
        weights = gate.shares(known_scored).mean(0)
    else:
        p_tuned, p_scored = tuned @ weights, scored @ weights
    nats = float(-p_tuned.log().mean())
    return Mixed(-p_scored.log(), nats, weights.tolist(), [expert.temperature for expert in experts[1:]])


def _sides(sides: Sequence[Side]) -> tuple[Tensor, Tensor]:
    """(Q, E) probabilities and (Q, F) signs."""
    return torch.stack([side.p for side in sides], dim=1), torch.cat([side.signs for side in sides], dim=1)
