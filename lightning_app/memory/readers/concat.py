"""ConcatReader: stored vectors beside the input of the backbone.

Shapes: B batch, T positions, S segments, L positions of a segment, E = positions of earlier segments, D width, M
memory_dim, k results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.memory.kinds import Metric
from lightning_app.memory.readers.attention import LARGEST_SCALE
from lightning_app.memory.readers.bank import Candidates, own_ids
from lightning_app.memory.readers.base import ReaderOutput, TokenContext
from lightning_app.memory.readers.learned import Deletions, LearnedReader
from lightning_app.memory.readers.writer import (
    Decisions,
    alive,
    cosines,
    entry_numbers,
    squared_distances,
    straight_through,
)
from lightning_app.memory.slots import Entries, joined
from lightning_app.models.backbone import HiddenStates

SCALE = 10.0  # of cosines at first; it is learned
LITTLE = 0.1  # of the length of an embedding has what is added to it at first
BY_POSITION = ("strength", "decided", "chosen")  # of Deletions, (B, T, k) each


class ConcatReader(LearnedReader):
    """The k nearest stored vectors, each weighted by the softmax of their scores, beside the input of the backbone.

    The input x of the backbone is fc([embedding, w_1 v_1, ..., w_k v_k]). The nearest entry comes first, and zeros
    stand where there is none. Here v_j = m_j + fc_next(e_j): m_j is the stored vector, and e_j the embedding of the
    token that followed it. The weights are w = softmax(scale cos(q, m_j)). The memory is searched once for all
    positions. With `segment_length` the segments then run one after the other, and a later one finds what earlier ones
    would store too.

    Args:
        metric: `cosine`: query and entry are one rotation at first, and the angle between them counts. With `l2` or
            `inner_product` it is as it was: embeddings are searched for among states, where all of them find the
            entries nearest to the origin, w = softmax(-scale |q - m_j|^2 / M), and the next token is not read.
        kwargs: see `LearnedReader`.

    Raises:
        InputError: entries are to be kept by the model's nats, which are not known yet where the input is read.
    """

    reads_input = True

    def __init__(self, metric: Metric = "cosine", **kwargs: Any):
        super().__init__(metric=metric, next_token=metric == "cosine", **kwargs)
        if self.wants_nats:
            raise InputError("eviction is 'least_surprising', which ConcatReader cannot: it reads before the model")

    def config(self) -> dict[str, Any]:
        config = super().config()
        config.pop("next_token")
        return config

    def build_layers(self, width: int, vocab_size: int) -> None:
        super().build_layers(width, vocab_size)
        assert self.memory_dim is not None
        self.fc_query = self._query_layer(width, self.memory_dim)
        self.fc = nn.Linear(width + self.results * self.memory_dim, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE if self.next_token else 1)))
        with torch.no_grad():  # at first the input passes unchanged, with a little of what was found
            nn.init.normal_(self.fc.weight, std=0.02 / math.sqrt(self.results))
            if self.next_token:  # turned back into the space of states, which is that of embeddings where both are tied
                self.fc.weight[:, width:] = self.writer.fc_storable_vector.weight.t().repeat(1, self.results)
            self.fc.weight[:, :width] = torch.eye(width)
            nn.init.zeros_(self.fc.bias)

    def _query_layer(self, width: int, memory_dim: int) -> nn.Module:
        if self.next_token:
            rotation = nn.Linear(width, memory_dim)
            self._start_in_one_space(rotation)
            return rotation
        return nn.Identity() if width == memory_dim else nn.Linear(width, memory_dim, bias=False)

    @property
    def metric(self) -> Metric:
        """Within a block distances are cosine or l2, however the memory is searched."""
        return "cosine" if self.next_token else "l2"

    def queries(self, vectors: Tensor) -> Tensor:
        queries = self.fc_query(vectors).float()
        return F.normalize(queries, dim=-1) if self.next_token else queries

    def around(
        self,
        embeddings: Tensor,
        context: TokenContext,
        hidden: Callable[[Tensor], HiddenStates],
        *,
        memory_input: Tensor | None = None,
    ) -> tuple[HiddenStates, ReaderOutput]:
        queries = self.queries(embeddings if memory_input is None else memory_input)
        found = self._search(queries, context)
        block, columns_of = _Block(context, found, self.results), _columns(context.segments)
        read: list[Candidates] = []
        for columns in columns_of:
            results, nearest, chosen = self._results(queries[:, columns], block, columns)
            states = hidden(self._joined(embeddings[:, columns], results))
            read.append(nearest)
            decisions = self._decided(states.last)
            block.add(states, decisions)
            with torch.autocast(embeddings.device.type, enabled=False):
                block.delete(self._deletions(decisions, nearest, chosen), hard=self.hard)
        output = self._output(
            context,
            block.decisions,
            found,
            block.deletions,
            left=block.left[:, -context.ids.shape[1] :],
            terms={},
            statistics={},
            reads=lambda: joined(read, dim=1),
        )
        return block.states, output

    def _joined(self, embeddings: Tensor, results: Tensor) -> Tensor:
        """(B, L, D) and (B, L, k M) -> (B, L, D). What was found is as long as a state, some 50 times as long as a new
        embedding: unless it is made shorter, each step of the optimizer changes the input by more than the token."""
        if self.next_token:
            lengths = embeddings.detach().float().norm(dim=-1, keepdim=True)
            results = LITTLE * lengths / math.sqrt(embeddings.shape[-1]) * results
        return cast(Tensor, self.fc(torch.cat([embeddings, results.to(embeddings.dtype)], dim=-1)))

    def _results(self, queries: Tensor, block: _Block, columns: slice) -> tuple[Tensor, Candidates, Tensor]:
        """(B, L, M) queries of a segment -> what they read.

        Returns: weighted vectors (B, L, k M) of the k best candidates; these candidates; their numbers (B, L, k).
        """
        with torch.autocast(queries.device.type, enabled=False):
            found, own, store, visible = block.candidates(columns, own_document_only=self.scope == "document")
            distances, scale = self._distances(queries, found, own)
            with torch.no_grad():
                unseen = ~(visible & (store > 0.5))
                best, chosen = distances.masked_fill(unseen, math.inf).topk(self.results, -1, largest=False)
            there = best.isfinite()
            distances = distances.gather(-1, chosen)
            scores = (-scale * distances).masked_fill(~there, -math.inf)
            mass = (scores - scores.amax(-1, keepdim=True).clamp_min(-1e30)).exp() * store.gather(-1, chosen)
            weights = mass / mass.sum(-1, keepdim=True).clamp_min(1e-6)
            vectors, ids = _chosen_of(found, own, chosen), block.ids_of(columns, chosen).where(there, -1)
            nearest = Candidates(ids, distances, Entries(vectors=vectors), weights)
            if self.next_token:
                vectors = vectors + self._turned(self._followers(block.tokens_of(columns, chosen), block.context))
            return (weights[..., None] * vectors).flatten(-2), nearest, chosen

    def _distances(self, queries: Tensor, found: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, k + E) from the queries to all candidates, and by how much a score falls with them."""
        if not self.next_token:
            return squared_distances(queries, found, own), self.log_scale.exp() / queries.shape[-1]
        return 1 - cosines(queries, found, own), self.log_scale.exp().clamp_max(LARGEST_SCALE)

    def _deletions(self, decisions: Decisions, nearest: Candidates, chosen: Tensor) -> Deletions:
        distances = (decisions.deletable[..., None, :] - nearest.entries.vectors).square().sum(-1)
        allowed = (nearest.ids != -1) & torch.tensor(self.deletion, device=distances.device)
        return self._delete(decisions, (distances + 1e-12).sqrt(), chosen, allowed)


def _chosen_of(found: Tensor, own: Tensor, chosen: Tensor) -> Tensor:
    """(B, L, k, M) found, (B, E, M) own block, (B, L, k) numbers of candidates -> (B, L, k, M)."""
    B, L, k, M = found.shape
    of_memory = found.gather(2, chosen.clamp_max(k - 1)[..., None].expand(B, L, k, M))
    if not own.shape[1]:
        return of_memory
    where = (chosen - k).clamp_min(0).reshape(B, L * k, 1).expand(B, L * k, M)
    return torch.where((chosen < k)[..., None], of_memory, own.gather(1, where).view(B, L, k, M))


class _Block:
    """What the segments of a block have written so far, while `ConcatReader` goes through them."""

    def __init__(self, context: TokenContext, found: Candidates, results: int):
        self.context, self.found, self.results = context, found, results
        self.numbers, n = entry_numbers(found.ids)
        self.left = found.entries.vectors.new_ones(len(found.ids), n)
        self._states: list[HiddenStates] = []
        self._decisions: list[Decisions] = []
        self._deletions: list[Deletions] = []

    def candidates(self, columns: slice, *, own_document_only: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the L positions of a segment may read, of the memory and of the E positions of earlier segments.

        Returns: vectors of the memory (B, L, k, M) and of the own block (B, E, M); how much of each is stored and left,
        and which are visible, (B, L, k + E) both.
        """
        B, L, E = len(self.left), columns.stop - columns.start, columns.start
        found = self.found.entries.vectors[:, columns]
        own = found.new_zeros(B, 0, found.shape[-1])
        own = torch.cat([own, *(d.vectors for d in self._decisions)], dim=1)[:, :E]
        p = torch.cat([own.new_zeros(B, 0), *(d.store for d in self._decisions)], dim=1)[:, :E]
        store = torch.cat([own.new_ones(B, self.results), straight_through(p, p > 0.5)], dim=1)
        left = self.left[:, None].expand(B, L, -1).gather(-1, self.numbers[:, columns, : self.results + E])
        earlier = self.context.earlier(by_segment=True, own_document_only=own_document_only)
        visible = torch.cat([self.found.ids[:, columns] >= 0, earlier[:, columns, :E]], dim=-1)
        return found, own, store[:, None] * left, visible

    def ids_of(self, columns: slice, chosen: Tensor) -> Tensor:
        """`Candidates.ids` of a segment's candidates with these numbers (B, L, k)."""
        k = self.results
        stored = self.found.ids[:, columns].gather(-1, chosen.clamp_max(k - 1))
        return torch.where(chosen < k, stored, own_ids(chosen - k))

    def tokens_of(self, columns: slice, chosen: Tensor) -> Tensor:
        """(B, L, k) token that followed each of a segment's candidates with these numbers."""
        found, own = self.found.entries.tokens[:, columns], self.context.entries.tokens[:, : columns.start]
        return _chosen_of(found[..., None], own[..., None], chosen)[..., 0]

    def add(self, states: HiddenStates, decisions: Decisions) -> None:
        """Append a segment's states and decisions."""
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
    """(T,) number of each position's segment -> the positions of each segment."""
    ends = torch.cat([segments.diff().nonzero()[:, 0] + 1, segments.new_tensor([len(segments)])]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
