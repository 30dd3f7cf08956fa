"""LearnedReader: base of the readers whose model learns what to store and what to delete.

Within a block later segments read, inside the graph, what earlier ones would store: so cross-entropy trains the four
layers of the writer. After the step the hard decisions go to the memory.

Shapes: B batch, T positions, S segments, L positions of a segment, D width, M memory_dim, k results, C = k + T
candidates (what the memory returned to a position, then the positions of its own block).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.memory.options import AdvancedMemory
from lightning_app.memory.readers.bank import Candidates, MemoryUpdate
from lightning_app.memory.readers.base import Reader, ReaderOutput, TokenContext
from lightning_app.memory.readers.writer import Decisions, Writer
from lightning_app.memory.slots import UNKNOWN, Entries
from lightning_app.models.weighing import Over
from lightning_app.training.distributed import mean_over_ranks

MOST_DISTANCES = 2**24  # that torch takes a quantile of
LEAST_SHARE = 1 / 16  # of a block that is stored in training without a price
GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, fill the interval evenly


class DeletionThreshold(nn.Module):
    """A running quantile of the distances between what positions would delete and what they found.

    Args:
        quantile: of the distances of a step.
        momentum: of the old value.
    """

    value: Tensor

    def __init__(self, quantile: float, momentum: float = 0.99):
        super().__init__()
        if not 0 < quantile < 1:
            raise InputError(f"delete_quantile is {quantile}; it must lie in (0, 1)")
        self.quantile, self.momentum = quantile, momentum
        self.register_buffer("value", torch.tensor(float("inf")))  # at first the decision alone counts

    def nearness(self, distances: Tensor, *, softness: float = 0.1) -> Tensor:
        """In (0, 1): over 0.5 where a distance lies under the threshold."""
        if torch.isinf(self.value):
            return torch.ones_like(distances)
        return torch.sigmoid((self.value - distances) / (softness * self.value).clamp_min(1e-6))

    def of(self, distances: Tensor) -> Tensor:
        """The quantile of distances (n,); the present value where n is 0."""
        if not len(distances):
            return self.value.detach().clone()
        every = -(-len(distances) // MOST_DISTANCES)
        return distances.detach()[::every].quantile(self.quantile)

    def follow(self, quantile: Tensor) -> None:
        """Move the running value towards the quantile of one step; an infinite one changes nothing."""
        if torch.isfinite(quantile):
            old = quantile if torch.isinf(self.value) else self.value
            self.value.copy_(self.momentum * old + (1 - self.momentum) * quantile)


@dataclass(frozen=True)
class Deletions:
    """Deletions that the positions of a block ask for.

    Attributes:
        strength: (B, T, k) in [0, 1): how much of the candidate goes while deletions are soft.
        decided: (B, T, k) bool: whether it goes once they are hard.
        chosen: (B, T, k) the candidate (0 to C - 1) that each speaks of.
        distances: (n,) L2, of those that speak of a candidate that there is.
    """

    strength: Tensor
    decided: Tensor
    chosen: Tensor
    distances: Tensor


@dataclass(frozen=True, kw_only=True)
class AdvancedReader(AdvancedMemory):
    """What few runs change of a reader that learns what to store.

    Args:
        store_free_steps: steps in which storing costs nothing: with a cost from the start the memory closes before
            the model has learned to read. With a hard budget: in which everything is stored.
        store_rise_steps: steps in which the cost then rises.
        budget_weight: of (mean store probability - target_rate)^2. The mean of accumulated batches is known only after
            their forwards: their step has the mean of these squares over the tokens, which one large batch has not.
        hard_deletion_after: steps with deletions that only weaken within the block; then they are all or nothing, and
            remove from the memory.
        delete_quantile: of recent distances: how near a result must be to what is to be deleted.

    Raises:
        InputError: one is negative.
    """

    store_free_steps: int = 300
    store_rise_steps: int = 200
    budget_weight: float = 1.0
    hard_deletion_after: int = 500
    delete_quantile: float = 0.5

    def __post_init__(self) -> None:
        for name in ("store_free_steps", "store_rise_steps", "budget_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0")


class LearnedReader(Reader):
    """Base of AttentionReader and ConcatReader: the writer, its loss terms, and the memory update.

    Args:
        store_cost: weight of the mean store probability in the loss, once it has risen: the price of an entry. None:
            nothing has a price and nothing is decided; every new token is stored, and `memory_size` is the budget: what
            stays is decided by `advanced.eviction`. With `lowest_score` training stores, after `store_free_steps`, a
            share of each block, another one in each step, so that scores are learned for small and large budgets.
        next_token: an entry also carries the token that followed, and is read with its embedding.
        target_rate: share of the positions to be stored; None: whatever pays.
        deletion: whether the model may delete.
        advanced: see `AdvancedReader`.
        kwargs: see `Reader`.
    """

    by_segment = True
    scores_entries = True
    advanced_type = AdvancedReader
    advanced: AdvancedReader
    means_over: Mapping[str, Over] = {"store": "targets", "budget": "targets"}

    steps: Tensor

    @abstractmethod
    def __init__(
        self,
        store_cost: float | None = 0.1,
        target_rate: float | None = None,
        deletion: bool = True,
        next_token: bool = False,
        advanced: AdvancedReader = AdvancedReader(),
        **kwargs: Any,
    ):
        super().__init__(advanced=advanced, **kwargs)
        if store_cost is not None and not 0 <= store_cost < math.inf:
            raise InputError(f"store_cost is {store_cost}; it must be at least 0, or null: no price, a hard budget")
        if store_cost is None and target_rate is not None:
            raise InputError(f"target_rate is {target_rate} and store_cost null, with which every token is stored")
        if target_rate is not None and not 0 <= target_rate <= 1:
            raise InputError(f"target_rate is {target_rate}; it must lie in [0, 1]")
        self.store_cost, self.target_rate, self.deletion = store_cost, target_rate, deletion
        self.next_token = next_token
        self.threshold = DeletionThreshold(self.advanced.delete_quantile)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def config(self) -> dict[str, Any]:
        own = {"store_cost": self.store_cost, "target_rate": self.target_rate, "deletion": self.deletion}
        return {**super().config(), **own, "next_token": self.next_token}

    def build_layers(self, width: int, vocab_size: int) -> None:
        assert self.memory_dim is not None
        self.results, most = self.bank.shared.num_search_results, self.bank.shared.memory_size
        if self.results > most:
            raise InputError(f"num_search_results is {self.results} and memory_size {most}: give at most as many")
        self.span_length = self.bank.shared.span_length
        self.writer = Writer(width, self.memory_dim, self.results)
        if self.next_token:
            self.fc_next = nn.Linear(width, self.memory_dim, bias=False)

    def follow_step(self, distances: Tensor | None) -> None:
        self.steps += 1
        if distances is not None:
            self.threshold.follow(self.threshold.of(distances))

    @property
    def hard(self) -> bool:
        """Whether `hard_deletion_after` steps have passed, so that deletions are all or nothing."""
        return int(self.steps) >= self.advanced.hard_deletion_after

    @torch.no_grad()
    def _start_in_one_space(self, *layers: nn.Linear) -> None:
        """These layers, like what is stored, what is to be deleted and next tokens, are one rotation at first, so that
        similar states find each other from the start, and what looks like one's own entry is what one would delete."""
        rotation = nn.init.orthogonal_(self.writer.fc_storable_vector.weight)
        for layer in (*layers, self.writer.fc_deletable_vector, *([self.fc_next] if self.next_token else [])):
            layer.weight.copy_(rotation)
        for layer in (*layers, self.writer.fc_storable_vector, self.writer.fc_deletable_vector):
            nn.init.zeros_(layer.bias)

    def _followers(self, tokens: Tensor, context: TokenContext) -> Tensor:
        """(...) tokens that followed entries -> (..., D) their embeddings, as long as a normalised state; 0 for -1."""
        assert context.embed is not None
        embedded = F.normalize(context.embed(tokens.clamp_min(0)).float(), dim=-1)
        return embedded * ((tokens >= 0).to(embedded) * embedded.shape[-1] ** 0.5)[..., None]

    def _turned(self, followers: Tensor) -> Tensor:
        """(..., D) embeddings of next tokens -> (..., M) as they are read, in fp32 whatever the layers are in."""
        turned: Tensor = self.fc_next(followers.to(self.fc_next.weight.dtype))
        return turned.float()

    def _decided(self, states: Tensor) -> Decisions:
        """What the states (B, T, D) offer; with a hard budget all of it, or in training a share that scores best."""
        decisions = self.writer(states)
        if self.store_cost is not None:
            return decisions
        taught = self.advanced.eviction == "lowest_score" and int(self.steps) >= self.advanced.store_free_steps
        if self.training and taught:
            return decisions.best_stored(LEAST_SHARE ** ((int(self.steps) * GOLDEN) % 1))
        return decisions.all_stored()

    @torch.no_grad()
    def _search(self, queries: Tensor, context: TokenContext) -> Candidates:
        """The k nearest entries of (B, T, M) queries, with their vectors in fp32, without a graph."""
        ids, distances = self.bank.search(queries.detach().float(), context.rows, context.entries)
        tokens = self.bank.tokens(ids, context.rows) if self.next_token else UNKNOWN.tokens
        return Candidates(ids, distances, Entries(tokens, vectors=self.bank.vectors(ids, context.rows).float()))

    def _delete(self, decisions: Decisions, distances: Tensor, chosen: Tensor, there: Tensor) -> Deletions:
        """(B, T, k) L2 distances to the chosen candidates; `there` where there is one."""
        nearness = self.threshold.nearness(distances)
        decided = (decisions.delete > 0) & (nearness > 0.5) & there
        return Deletions(decisions.delete.sigmoid() * nearness * there, decided, chosen, distances[there])

    def _mean(self, mean: Tensor, n: int | Tensor) -> Tensor:
        """In training the mean over all ranks, from this rank's mean over its `n` values."""
        return mean_over_ranks(mean, n) if self.training else mean

    def _terms(self, decisions: Decisions, context: TokenContext) -> dict[str, tuple[float, Tensor]]:
        real = context.new.float()
        mean = self._mean((decisions.store * real).sum() / real.sum().clamp_min(1), real.sum())
        unused = decisions.vectors.sum() + decisions.delete.sum() + decisions.deletable.sum() + decisions.score.sum()
        mean = mean + 0 * unused  # DDP wants each layer in the graph, also where nothing has been read yet
        free, rise = self.advanced.store_free_steps, self.advanced.store_rise_steps
        risen = (int(self.steps) - free) / max(1, rise)
        terms = {"store": ((self.store_cost or 0.0) * min(1.0, max(0.0, risen)), mean)}
        if self.target_rate is not None:
            terms["budget"] = (self.advanced.budget_weight, (mean - self.target_rate).square())
        return terms

    def _output(
        self,
        context: TokenContext,
        decisions: Decisions,
        found: Candidates,
        deletions: Deletions,
        *,
        left: Tensor,
        terms: dict[str, tuple[float, Tensor]],
        statistics: dict[str, Tensor],
        reads: Callable[[], Candidates],
    ) -> ReaderOutput:
        """The output for a block; `left` (B, T) is the share of each own position that is not deleted at its end."""
        hits = found.distances[..., 0][found.ids[..., 0] >= 0]
        statistics = statistics | {
            "hit_distance": hits.mean() if len(hits) else found.distances.new_zeros(()),
            "distinct": self.bank.distinct(found.ids, context.rows),
            "store_rate": _share(decisions.stored, context.new),
            "delete_rate": _share(deletions.decided.any(-1), context.new),
        }
        update = self._update(context, decisions, found, deletions, left) if self.writes_now() else None
        distances = deletions.distances.detach() if self.deletion else None
        return ReaderOutput(self._terms(decisions, context) | terms, _detached(statistics), update, reads, distances)

    def _update(
        self, context: TokenContext, decisions: Decisions, found: Candidates, deletions: Deletions, left: Tensor
    ) -> MemoryUpdate:
        hard = self.hard and self.deletion
        chosen = context.new & decisions.stored
        if hard:
            chosen = chosen & (left > 0.5)
        gone = deletions.decided & (deletions.chosen < self.results) & context.new[..., None] & hard
        ids = found.ids.gather(-1, deletions.chosen.clamp_max(self.results - 1))
        return replace(
            context.update_of(
                decisions.vectors,
                chosen,
                span_length=self.span_length,
                scores=decisions.score if self.advanced.eviction == "lowest_score" else None,
            ),
            removed=_with_rows(ids, gone, context.rows),
            used=_with_rows(found.ids, (found.ids >= 0) & context.new[..., None], context.rows),
        )


def _share(chosen: Tensor, of: Tensor) -> Tensor:
    return (chosen & of).sum() / of.sum().clamp_min(1)


def _with_rows(ids: Tensor, chosen: Tensor, rows: Tensor) -> Tensor:
    """(B, T, k) ids -> (n, 2) row and id of the chosen ones."""
    row = rows[:, None, None].expand_as(ids)
    return torch.stack([row[chosen], ids[chosen]], dim=-1)


def _detached(statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in statistics.items()}
