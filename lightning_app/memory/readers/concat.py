"""ConcatReader: stored vectors beside the input of the backbone.

Shapes: B batch, T positions, S segments, L positions of a segment, E = positions of earlier segments, D width, M
memory_dim, k results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from lightning_app.memory.readers.base import ReaderOutput, Reads, TokenContext, own_entries
from lightning_app.memory.readers.learned import Deletions, Found, LearnedReader
from lightning_app.memory.readers.writer import Decisions, alive, entry_numbers, squared_distances, straight_through
from lightning_app.models.backbone import HiddenStates

BY_POSITION = ("strength", "decided", "chosen")  # of Deletions, (B, T, k) each
BY_READ = ("entries", "distances", "weights")  # of Reads


class ConcatReader(LearnedReader):
    """The k nearest stored vectors, each weighted by the softmax of their scores, beside the input of the backbone.

    x = fc([embedding, w_1 m_1, ..., w_k m_k]), nearest first, zeros where there is no entry. The memory is searched
    once for all positions; with `segment_length` the segments then run one after the other, and a later one finds what
    earlier ones would store too.

    Args:
        kwargs: see `LearnedReader`.
    """

    reads_input = True

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)

    def build_layers(self, width: int, vocab_size: int) -> None:
        super().build_layers(width, vocab_size)
        assert self.memory_dim is not None
        same = width == self.memory_dim
        self.fc_query = nn.Identity() if same else nn.Linear(width, self.memory_dim, bias=False)
        self.fc = nn.Linear(width + self.results * self.memory_dim, width)
        self.log_scale = nn.Parameter(torch.zeros(()))
        with torch.no_grad():  # at first the input passes unchanged, with a little of what was found
            nn.init.normal_(self.fc.weight, std=0.02 / math.sqrt(self.results))
            self.fc.weight[:, :width] = torch.eye(width)
            nn.init.zeros_(self.fc.bias)

    def queries(self, vectors: Tensor) -> Tensor:
        return self.fc_query(vectors).float()

    def around(
        self,
        embeddings: Tensor,
        passage: TokenContext,
        hidden: Callable[[Tensor], HiddenStates],
        *,
        memory_input: Tensor | None = None,
    ) -> tuple[HiddenStates, ReaderOutput]:
        queries = self.queries(embeddings if memory_input is None else memory_input)
        found = self._search(queries, passage)
        block, columns_of = _Block(passage, found, self.results), _columns(passage.segments)
        read: list[_Nearest] = []
        for columns in columns_of:
            results, nearest = self._results(queries[:, columns], block, columns)
            states = hidden(self.fc(torch.cat([embeddings[:, columns], results.to(embeddings.dtype)], dim=-1)))
            read.append(nearest)
            decisions = self.writer(states.last)
            block.add(states, decisions)
            with torch.autocast(embeddings.device.type, enabled=False):
                block.delete(self._deletions(decisions, nearest), hard=self.hard)
        reading = self._reading(
            passage,
            block.decisions,
            found,
            block.deletions,
            left=block.left[:, -passage.ids.shape[1] :],
            terms={},
            statistics={},
            reads=lambda: _joined(read, [found.ids[:, columns] for columns in columns_of]),
        )
        return block.states, reading

    def _results(self, queries: Tensor, block: _Block, columns: slice) -> tuple[Tensor, _Nearest]:
        """(B, L, M) queries -> (B, L, k M) weighted results, and what they are."""
        with torch.autocast(queries.device.type, enabled=False):
            vectors, store, visible = block.candidates(columns, own_document_only=self.scope == "document")
            k, M = self.results, queries.shape[-1]
            squared = squared_distances(queries, vectors.found, vectors.own)
            with torch.no_grad():
                best, chosen = squared.masked_fill(~(visible & (store > 0.5)), math.inf).topk(k, -1, largest=False)
            there = best.isfinite()
            scores = (-self.log_scale.exp() / M * squared.gather(-1, chosen)).masked_fill(~there, -math.inf)
            mass = (scores - scores.amax(-1, keepdim=True).clamp_min(-1e30)).exp() * store.gather(-1, chosen)
            weights = mass / mass.sum(-1, keepdim=True).clamp_min(1e-6)
            nearest = _Nearest(chosen, there, vectors.at(chosen), squared.gather(-1, chosen), weights)
            return (weights[..., None] * nearest.vectors).flatten(-2), nearest

    def _deletions(self, decisions: Decisions, nearest: _Nearest) -> Deletions:
        distances = (decisions.deletable[..., None, :] - nearest.vectors).square().sum(-1)
        allowed = nearest.there & torch.tensor(self.deletion, device=distances.device)
        return self._delete(decisions, (distances + 1e-12).sqrt(), nearest.chosen, allowed)


@dataclass(frozen=True)
class _Nearest:
    """The k best candidates of L positions: their numbers and whether there is one (B, L, k), (B, L, k, M), squared
    distances and weights (B, L, k)."""

    chosen: Tensor
    there: Tensor
    vectors: Tensor
    squared: Tensor
    weights: Tensor

    def reads(self, ids: Tensor) -> Reads:
        """(B, L, k) ids of what was found."""
        k = ids.shape[-1]
        entries = torch.where(
            self.chosen < k, ids.gather(-1, self.chosen.clamp_max(k - 1)), own_entries(self.chosen - k)
        )
        return Reads(entries.where(self.there, -1), self.squared, self.weights, "l2")


def _joined(read: Sequence[_Nearest], ids: Sequence[Tensor]) -> Reads:
    """What all segments read, of each the ids (B, L, k) that were found."""
    each = [nearest.reads(found) for nearest, found in zip(read, ids, strict=True)]
    columns = {name: torch.cat([getattr(one, name) for one in each], dim=1) for name in BY_READ}
    return Reads(**columns, metric="l2")


@dataclass(frozen=True)
class _Vectors:
    """Candidates of L positions: (B, L, k, M) found, (B, E, M) own block so far."""

    found: Tensor
    own: Tensor

    def at(self, chosen: Tensor) -> Tensor:
        """(B, L, k) numbers of candidates -> (B, L, k, M)."""
        B, L, k = chosen.shape
        M = self.found.shape[-1]
        kept = self.found.gather(2, chosen.clamp_max(k - 1)[..., None].expand(B, L, k, M))
        if not self.own.shape[1]:
            return kept
        where = (chosen - k).clamp_min(0).reshape(B, L * k, 1).expand(B, L * k, M)
        own = self.own.gather(1, where).view(B, L, k, M)
        return torch.where((chosen < k)[..., None], kept, own)


class _Block:
    """What the segments of a block have written so far, while `ConcatReader` goes through them."""

    def __init__(self, passage: TokenContext, found: Found, results: int):
        self.passage, self.found, self.results = passage, found, results
        self.numbers, n = entry_numbers(found.ids)
        self.left = found.vectors.new_ones(len(found.ids), n)
        self._states: list[HiddenStates] = []
        self._decisions: list[Decisions] = []
        self._deletions: list[Deletions] = []

    def candidates(self, columns: slice, *, own_document_only: bool = False) -> tuple[_Vectors, Tensor, Tensor]:
        """Vectors, how much of each is stored and left, and which are visible, the latter two (B, L, k + E).

        E = columns.start: the positions of earlier segments.
        """
        B, L, E = len(self.left), columns.stop - columns.start, columns.start
        own = self.found.vectors.new_zeros(B, 0, self.found.vectors.shape[-1])
        own = torch.cat([own, *(d.vectors for d in self._decisions)], dim=1)[:, :E]
        p = torch.cat([own.new_zeros(B, 0), *(d.store for d in self._decisions)], dim=1)[:, :E]
        store = torch.cat([own.new_ones(B, self.results), straight_through(p, p > 0.5)], dim=1)
        left = self.left[:, None].expand(B, L, -1).gather(-1, self.numbers[:, columns, : self.results + E])
        earlier = self.passage.earlier(by_segment=True, own_document_only=own_document_only)
        visible = torch.cat([self.found.ids[:, columns] >= 0, earlier[:, columns, :E]], dim=-1)
        return _Vectors(self.found.vectors[:, columns], own), store[:, None] * left, visible

    def add(self, states: HiddenStates, decisions: Decisions) -> None:
        """The next segment."""
        self._states.append(states)
        self._decisions.append(decisions)

    def delete(self, deletions: Deletions, *, hard: bool) -> None:
        """Weaken what the last segment deletes."""
        start = sum(d.strength.shape[1] for d in self._deletions)
        L = deletions.strength.shape[1]
        numbers = self.numbers[:, start : start + L].gather(-1, deletions.chosen)
        one = torch.zeros(L, dtype=torch.int64, device=numbers.device)
        decided = deletions.decided if hard else None
        left = alive(deletions.strength, numbers, one, n_entries=self.left.shape[1], decided=decided)
        self.left = self.left * left[:, 1]
        self._deletions.append(deletions)

    @property
    def states(self) -> HiddenStates:
        layers = {i: torch.cat([s.layers[i] for s in self._states], dim=1) for i in self._states[0].layers}
        return HiddenStates(torch.cat([s.last for s in self._states], dim=1), layers)

    @property
    def decisions(self) -> Decisions:
        names = [field.name for field in fields(Decisions)]
        return Decisions(*(torch.cat([getattr(d, name) for d in self._decisions], dim=1) for name in names))

    @property
    def deletions(self) -> Deletions:
        by_position = {name: torch.cat([getattr(d, name) for d in self._deletions], dim=1) for name in BY_POSITION}
        return Deletions(**by_position, distances=torch.cat([d.distances for d in self._deletions]))


def _columns(segments: Tensor) -> list[slice]:
    """The positions of each segment."""
    ends = torch.cat([segments.diff().nonzero()[:, 0] + 1, segments.new_tensor([len(segments)])]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
