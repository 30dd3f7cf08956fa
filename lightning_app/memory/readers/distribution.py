"""Readers that change the next-token distribution by what followed similar states: kNN-LM, neural cache, TRIME.

An entry is a state and the token that came after it. Shapes: B batch, T positions, D width (equal to M memory_dim), C
entries that a position may read, V vocabulary, n entries of a memory.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.memory.kinds import Metric
from lightning_app.memory.knn import interpolated, joined_with_memory, neighbour_weights, spread
from lightning_app.memory.readers.bank import Candidates, MemoryBank, MemoryUpdate, Scope, own_ids
from lightning_app.memory.readers.base import Reader, ReaderOutput, Said, TokenContext, Writes
from lightning_app.memory.slots import Entries, joined, mapped


def readable_of(ids: Tensor, distances: Tensor, tokens: Tensor, readable: Tensor) -> Candidates:
    """Candidates, of which those must not be read that are not `readable` (B, T, C), or whose next token is unknown.

    Args:
        ids, tokens: broadcast to the distances (B, T, C).
    """
    tokens = tokens.expand_as(distances)
    readable = readable & (tokens >= 0)
    entries = Entries(tokens=tokens.masked_fill(~readable, -1))
    return Candidates(ids.expand_as(distances), distances.masked_fill(~readable, torch.inf), entries)


def found_statistics(candidates: Candidates) -> dict[str, Tensor]:
    """Share of the positions that found an entry, and their mean distance to the nearest."""
    distances = candidates.distances.detach()
    if not distances.shape[-1]:
        return {"found": distances.new_zeros(()), "hit_distance": distances.new_zeros(())}
    nearest = distances.amin(-1)
    found = nearest.isfinite()
    mean = nearest.where(found, 0.0).sum() / found.sum().clamp_min(1)
    return {"found": found.float().mean(), "hit_distance": mean}


def match_of(found: Candidates, scores: Tensor) -> Tensor:
    """(B, T, 3) largest weight of an entry, highest score, and log of all entries' sum of exp(score), the last two in
    tens; 0 where nothing was found. How alike the best are says more than their weights, which sum to 1 in any case."""
    largest = found.weights.detach().amax(-1, keepdim=True)
    best = scores.detach().masked_fill(~found.found, -torch.inf).amax(-1, keepdim=True)
    match = torch.cat([largest, best / 10, (best - largest.log()) / 10], dim=-1)
    return match.where(largest > 0, 0.0)


def retrieved(bank: MemoryBank, states: Tensor, context: TokenContext) -> Candidates:
    """The entries nearest to each of the states (B, T, D)."""
    ids, distances = bank.search(states.detach(), context.rows, context.entries)
    return readable_of(ids, distances, bank.tokens(ids, context.rows), ids >= 0)


def all_stored(bank: MemoryBank, states: Tensor, context: TokenContext) -> Candidates:
    """All entries of each row's memory, at a distance of -h.h_i; a gradient reaches the states alone."""
    own = bank.scope == "document"
    shared = bank.scope == "shared"
    rows = [slice(None)] if shared else [slice(b, b + 1) for b in range(len(states))]
    each = [
        _all_of(bank, int(context.rows[0 if shared else b]), states[rows[b]], context, rows[b], own_document_only=own)
        for b in range(len(rows))
    ]
    most = max(part.distances.shape[-1] for part in each)
    return joined([_padded(part, most) for part in each])


def _padded(candidates: Candidates, count: int) -> Candidates:
    """With as many as `count`; those that are added must not be read."""
    missing = (0, count - candidates.distances.shape[-1])
    padded = mapped(lambda column: F.pad(column, missing, value=-1), candidates)
    return replace(padded, distances=F.pad(candidates.distances, missing, value=torch.inf))


def _all_of(
    bank: MemoryBank, row: int, states: Tensor, context: TokenContext, rows: slice, *, own_document_only: bool
) -> Candidates:
    memory = bank.of(row)
    ids = memory.ids()
    known = memory.payload(ids)
    at = context.entries[rows][..., None]  # (b, T, 1)
    own = (known.documents == at.documents) & (at.documents != -1)
    readable = ~(own & (known.positions >= at.positions))
    readable = readable & own if own_document_only else readable
    return readable_of(ids, -(states @ memory.get_all_embeddings().T), known.tokens, readable)


def earlier_in_block(
    states: Tensor, context: TokenContext, *, queries: Tensor | None = None, own_document_only: bool = False
) -> Candidates:
    """Earlier positions of each position's own block, at a distance of -q.h_i; gradients reach both sides.

    Args:
        queries: q, (B, T, D); None: the states.
    """
    readable = context.earlier(by_segment=False, own_document_only=own_document_only)
    own = own_ids(torch.arange(states.shape[1], device=states.device))
    distances = -((states if queries is None else queries) @ states.mT)
    return readable_of(own, distances, context.entries.tokens[:, None, :], readable)


def other_rows(states: Tensor, context: TokenContext) -> Candidates:
    """Positions of the batch's other rows, at a distance of -h.h_i, but none of the own document from there on.

    They are not entries: -1.
    """
    B, T, D = states.shape
    flat = states.reshape(B * T, D)
    at, others = context.entries[..., None], mapped(torch.flatten, context.entries)  # (B, T, 1), (B T,)
    own = (others.documents == at.documents) & (at.documents != -1)  # (B, T, B T)
    later = own & (others.positions >= at.positions)
    row = torch.arange(B, device=states.device)
    same_row = row[:, None, None] == row.repeat_interleave(T)
    none = context.ids.new_full((B * T,), -1)
    return readable_of(none, -(states @ flat.T), others.tokens, ~later & ~same_row)


class DistributionReader(Reader):
    """What all share: entries are last states (B, T, D), and what is found changes the logits."""

    @abstractmethod
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)

    def build_layers(self, width: int, vocab_size: int) -> None:
        if self.memory_dim != width:
            raise InputError(
                f"memory_dim is {self.memory_dim}, but {type(self).__name__} stores states of width {width}: "
                "leave memory_dim out"
            )

    @abstractmethod
    def neighbours(self, states: Tensor, context: TokenContext) -> Candidates:
        """What each of the states (B, T, D), in float32, may read."""

    @property
    def metric(self) -> Metric:
        """The metric of the distances of `neighbours`."""
        return "inner_product"

    @property
    def reads_all(self) -> bool:
        """Whether each position reads all entries of its memory, not the nearest ones."""
        return False

    def distinct(self, found: Candidates, context: TokenContext) -> Tensor:
        """See `MemoryBank.distinct`; 1 where all are read."""
        if self.reads_all:
            return found.distances.new_ones(())
        return self.bank.distinct(found.ids.masked_fill(~found.found, -1), context.rows)

    def statistics(self, found: Candidates, context: TokenContext) -> dict[str, Tensor]:
        return {**found_statistics(found), "distinct": self.distinct(found, context)}

    def update(self, states: Tensor, context: TokenContext) -> MemoryUpdate | None:
        """Every state with a next token is stored."""
        if not self.writes_now():
            return None
        written = context.new & (context.entries.tokens >= 0)
        return context.update_of(states.float(), written, span_length=self.bank.shared.span_length)


class InterpolatedReader(DistributionReader):
    """What was found makes a distribution, which is mixed in: lam p + (1 - lam) p_model."""

    mixes = True
    features = 3  # see `match_of`

    @abstractmethod
    def scores(self, found: Candidates, context: TokenContext) -> Tensor:
        """(B, T, C) whose softmax over what may be read are the weights of the entries."""

    def weighed(self, states: Tensor, context: TokenContext) -> tuple[Candidates, Tensor]:
        """What was found, with its weights, which sum to 1, and `match_of` it."""
        found = self.neighbours(states, context)
        scores = self.scores(found, context)
        found = replace(found, weights=neighbour_weights(-scores, found.found, temperature=1.0))
        return found, match_of(found, scores)

    @abstractmethod
    def share_of_all(self, log_p: Tensor, states: Tensor, found: Candidates, match: Tensor) -> Tensor:
        """`Said.lam`, from what `weighed` gives."""

    def says(self, log_p: Tensor, states: Tensor, context: TokenContext) -> tuple[Said, ReaderOutput]:
        found, match = self.weighed(states, context)
        p = spread(found.weights, found.entries.tokens, vocab_size=log_p.shape[-1])
        said = Said(p, self.share_of_all(log_p, states, found, match), match, found)
        return said, ReaderOutput(statistics=self.statistics(found, context), update=self.update(states, context))

    def at_logits(self, logits: Tensor, states: Tensor, context: TokenContext) -> tuple[Tensor, ReaderOutput]:
        """With log-probabilities in float32, in evaluation: training does not read."""
        if self.training:
            return logits, ReaderOutput(update=self.update(states, context))
        with torch.autocast(states.device.type, enabled=False):
            log_p = logits.float().log_softmax(-1)
            said, output = self.says(log_p, states.float(), context)
            mixed = interpolated(log_p, said.p, lam=said.lam)
        return mixed, replace(output, reads=said.reads(said.lam))


class KNNReader(InterpolatedReader):
    """kNN-LM (Khandelwal et al. 2020, arXiv:1911.00172, eq. 2 and 3): lam p_knn + (1 - lam) p_model.

    Args:
        lam: weight of the neighbours' distribution, from 0 to 1 (the paper's 0.25); tuned on validation.
        temperature: of the distances; tuned likewise. The paper has 1; states after a LayerNorm lie some D apart in l2.
        writes: see `Reader`.
        kwargs: see `Reader` and `AssociativeMemory`; `num_search_results` is k (the paper's is 1024).
    """

    lam: Tensor
    temperature: Tensor

    def __init__(self, lam: float = 0.25, temperature: float = 10.0, writes: Writes = "never", **kwargs: Any):
        super().__init__(writes=writes, **kwargs)
        self.register_buffer("lam", torch.zeros(()))
        self.register_buffer("temperature", torch.ones(()))
        self.tune(lam=lam, temperature=temperature)

    def tune(self, *, lam: float, temperature: float) -> None:
        """Set both; they are saved with the memory."""
        _check(lam=lam, temperature=temperature)
        self.lam.fill_(lam)
        self.temperature.fill_(temperature)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "lam": float(self.lam), "temperature": float(self.temperature)}

    def neighbours(self, states: Tensor, context: TokenContext) -> Candidates:
        return retrieved(self.bank, states, context)

    @property
    def metric(self) -> Metric:
        return self.bank.shared.metric

    def scores(self, found: Candidates, context: TokenContext) -> Tensor:
        return -found.distances / self.temperature

    def share_of_all(self, log_p: Tensor, states: Tensor, found: Candidates, match: Tensor) -> Tensor:
        return self.lam


class CacheReader(InterpolatedReader):
    """Continuous cache (Grave et al. 2016, arXiv:1612.04426, eq. 2 and 3): p_cache = softmax(theta h.h_i), mixed in.

    It reads all entries of the row's memory, whose size is that of the cache, and what its own block has seen.

    Args:
        lam: weight of the cache's distribution, from 0 to 1; tuned on validation.
        theta: flatness of the cache's distribution; tuned likewise. States after a LayerNorm have h.h of some D.
        memory_size: states that are kept (the paper's 2000).
        kwargs: see `Reader` and `AssociativeMemory`.
    """

    lam: Tensor
    theta: Tensor

    def __init__(
        self,
        lam: float = 0.1,
        theta: float = 0.1,
        memory_size: int = 2000,
        scope: Scope = "stream",
        writes: Writes = "evaluation",
        **kwargs: Any,
    ):
        super().__init__(scope=scope, writes=writes, memory_size=memory_size, **kwargs)
        self.register_buffer("lam", torch.zeros(()))
        self.register_buffer("theta", torch.ones(()))
        self.tune(lam=lam, theta=theta)

    def tune(self, *, lam: float, theta: float) -> None:
        """Set both; they are saved with the memory."""
        _check(lam=lam, theta=theta)
        self.lam.fill_(lam)
        self.theta.fill_(theta)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "lam": float(self.lam), "theta": float(self.theta)}

    reads_all = True

    def neighbours(self, states: Tensor, context: TokenContext) -> Candidates:
        own = self.scope == "document"
        parts = [all_stored(self.bank, states, context), earlier_in_block(states, context, own_document_only=own)]
        return joined(parts, dim=-1)

    def scores(self, found: Candidates, context: TokenContext) -> Tensor:
        return -found.distances * self.theta

    def share_of_all(self, log_p: Tensor, states: Tensor, found: Candidates, match: Tensor) -> Tensor:
        return self.lam


class TrimeReader(DistributionReader):
    """TRIME (Zhong et al. 2022, arXiv:2205.12674, eq. 4): p(w) ~ exp(logit_w) + a sum of exp(sim / T) over w's entries.

    sim = h.h_i / sqrt(D). Training reads its own block and the batch's other rows, with gradients to both sides, and
    the memory, whose entries are constants; evaluation reads its own block and the memory. Of a memory with up to
    `num_search_results` entries all are read, of a larger one the nearest.

    Args:
        temperature: T, above 0, at first: it is learned, and may be tuned on validation.
        weight: a, likewise. The paper has both fixed, a at 1; but a test's memory may have more entries than a batch.
        batch: whether training reads the batch's other rows.
        metric: `inner_product` only: the entries found are those with the highest sim.
        kwargs: see `Reader` and `AssociativeMemory`.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        weight: float = 1.0,
        batch: bool = True,
        metric: Metric = "inner_product",
        **kwargs: Any,
    ):
        super().__init__(metric=metric, **kwargs)
        if metric != "inner_product":
            raise InputError(f"metric is {metric!r}; TrimeReader searches by 'inner_product'")
        self.batch = batch
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.log_weight = nn.Parameter(torch.zeros(()))
        self.tune(temperature=temperature, weight=weight)

    @torch.no_grad()
    def tune(self, *, temperature: float, weight: float) -> None:
        """Set both; they are saved with the memory."""
        _check(temperature=temperature, weight=weight)
        self.log_temperature.fill_(math.log(temperature))
        self.log_weight.fill_(math.log(weight))

    @property
    def temperature(self) -> float:
        return self.log_temperature.exp().item()

    @property
    def weight(self) -> float:
        return self.log_weight.exp().item()

    def config(self) -> dict[str, Any]:
        return {**super().config(), "temperature": self.temperature, "weight": self.weight, "batch": self.batch}

    def neighbours(self, states: Tensor, context: TokenContext) -> Candidates:
        parts = [earlier_in_block(states, context, own_document_only=self.scope == "document")]
        if self.training and self.batch and len(states) > 1:
            parts.append(other_rows(states, context))
        if self.bank.size():
            parts.append(self._stored(states, context))
        return joined(parts, dim=-1)

    @property
    def reads_all(self) -> bool:
        return max(memory.size() for memory in self.bank.active) <= self.bank.shared.num_search_results

    def _stored(self, states: Tensor, context: TokenContext) -> Candidates:
        if self.reads_all:
            return all_stored(self.bank, states, context)
        ids, _ = self.bank.search(states.detach(), context.rows, context.entries)
        vectors = self.bank.vectors(ids, context.rows)  # (B, T, k, D); again a product, for the query's gradient
        products = (vectors @ states[..., None])[..., 0]
        return readable_of(ids, -products, self.bank.tokens(ids, context.rows), ids >= 0)

    def at_logits(self, logits: Tensor, states: Tensor, context: TokenContext) -> tuple[Tensor, ReaderOutput]:
        """With log-probabilities that are not normalised, in float32."""
        with torch.autocast(states.device.type, enabled=False):
            found = self.neighbours(states.float(), context)
            scores = self._scores(found)
            changed = joined_with_memory(logits.float(), scores, found.entries.tokens)

        def reads() -> Candidates:
            return replace(found, weights=(scores - changed.logsumexp(-1, keepdim=True)).exp())

        statistics, update = self.statistics(found, context), self.update(states, context)
        return changed, ReaderOutput(statistics=statistics, update=update, reads=reads)

    def _scores(self, found: Candidates) -> Tensor:
        """(B, T, C) logits of the entries."""
        scale = math.sqrt(self.bank.shared.memory_dim) * self.log_temperature.exp()
        scores = self.log_weight - found.distances.where(found.found, 0.0) / scale  # inf / scale has no gradient
        return scores.masked_fill(~found.found, -torch.inf)


def _check(**options: float) -> None:
    for name, value in options.items():
        if name == "lam" and not 0 <= value <= 1:
            raise InputError(f"lam is {value}; it must lie between 0 and 1")
        if name != "lam" and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; it must be above 0")
