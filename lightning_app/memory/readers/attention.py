"""AttentionReader: attention over stored vectors, after the backbone.

Shapes: B batch, T positions, S segments, D width, M memory_dim, k results, C = k + T candidates (what the
memory returned to a position, then the positions of its own block).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_app.errors import InputError
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

LARGEST_SCALE = 100  # beyond it fp32 cannot tell a state that reads nothing from one that divides by zero


class AttentionReader(LearnedReader):
    """Attention over stored vectors, added to the last states before the output matrix.

    A state h reads sum_j w_j exp(s_j) m_j / (sum_j w_j exp(s_j) + exp(null)) with s_j = scale cos(q(h), m_j), over what
    the memory returns to q(h) and what earlier segments of the block would store; w_j is the store decision (hard
    forward, its probability backward) times what deletions left of entry j. `null` lets a state read nothing. With
    `next_token` m_j + fc_next(e_j) is read, where e_j is the embedding of the token that followed entry j.

    Args:
        scale: at first; it is learned, up to 100.
        start: factor of what is added, at first: 0 leaves a pretrained model as it is until the reader has learned.
        retrieval_weight: of -log of the attention on entries with the same next token, the mean over the positions that
            can read one. How many these are only the forward knows: accumulated batches count alike.
        kwargs: see `LearnedReader`. The memory's metric is cosine.
    """

    def __init__(self, scale: float = 10.0, retrieval_weight: float = 0.0, start: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs, metric="cosine")
        for name, value, right in (
            ("scale", scale, 0 < scale <= LARGEST_SCALE),
            ("retrieval_weight", retrieval_weight, retrieval_weight >= 0),
            ("start", start, 0 <= start <= 1),
        ):
            if not right:
                raise InputError(
                    f"{name} is {value}; scale lies in (0, {LARGEST_SCALE}], retrieval_weight from 0 on, "
                    "start from 0 to 1"
                )
        self.scale, self.retrieval_weight, self.start = scale, retrieval_weight, start

    def config(self) -> dict[str, Any]:
        own = {"scale": self.scale, "retrieval_weight": self.retrieval_weight, "start": self.start}
        config = {**super().config(), **own}
        config.pop("metric")
        return config

    def build_layers(self, width: int, vocab_size: int) -> None:
        super().build_layers(width, vocab_size)
        assert self.memory_dim is not None
        self.fc_query = nn.Linear(width, self.memory_dim)
        self.fc_read = nn.Linear(self.memory_dim, width, bias=False)
        self._start_as_attention_over_states()
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.scale)))
        self.null = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def _start_as_attention_over_states(self) -> None:
        """Query, key and value are the same rotation at first."""
        self._start_in_one_space(self.fc_query)
        self.fc_read.weight.copy_(self.start * self.fc_query.weight.t())

    def queries(self, vectors: Tensor) -> Tensor:
        return F.normalize(self.fc_query(vectors).float(), dim=-1)

    def at_states(self, states: Tensor, context: TokenContext) -> tuple[Tensor, ReaderOutput]:
        queries, decisions = self.queries(states), self._decided(states)
        with torch.autocast(states.device.type, enabled=False):
            read, output = self._read(queries, decisions, context)
        return states + self.fc_read(read.to(states.dtype)), output

    def _read(self, queries: Tensor, decisions: Decisions, context: TokenContext) -> tuple[Tensor, ReaderOutput]:
        """(B, T, M) unit queries -> (B, T, M) what they read."""
        found = self._search(queries, context)
        visible = torch.cat(
            [found.ids >= 0, context.earlier(by_segment=True, own_document_only=self.scope == "document")], dim=-1
        )
        scale = self.log_scale.exp().clamp_max(LARGEST_SCALE)
        match = cosines(queries, found.entries.vectors, decisions.vectors)  # (B, T, C)
        scores = scale * match
        stored = torch.cat([visible[..., : self.results], visible[..., self.results :] & decisions.stored[:, None]], -1)
        deletions = self._deletions(scores, stored, decisions, found)
        left, left_at_end = self._left(deletions, found, context)
        store = straight_through(decisions.store, decisions.stored)[:, None].expand_as(visible[..., self.results :])
        weights = torch.cat([torch.ones_like(match[..., : self.results]), store], dim=-1) * left * visible
        highest = torch.maximum(scores.masked_fill(~visible, -math.inf).amax(-1, keepdim=True), self.null).detach()
        mass = weights * (scores - highest).masked_fill(~visible, 0).exp()
        total = mass.sum(-1, keepdim=True) + (self.null - highest).exp()
        total = total.clamp_min(1e-30)  # the highest may be of an entry that is not stored
        k = self.results
        read = ((mass[..., None, :k] @ found.entries.vectors)[..., 0, :] + mass[..., k:] @ decisions.vectors) / total
        if self.next_token:
            own = context.entries.tokens[:, None].expand(-1, mass.shape[1], -1)
            followed = self._mean_follower(mass / total, torch.cat([found.entries.tokens, own], dim=-1), context)
            read = read + self._turned(followed)
        gate = (mass.sum(-1) / total[..., 0])[context.new]
        terms = {}
        if self.retrieval_weight > 0:
            terms["retrieval"] = (self.retrieval_weight, self._retrieval(scores, stored, found.ids, context))
        statistics = {"read_gate": gate.mean() if len(gate) else gate.new_zeros(())}
        output = self._output(
            context,
            decisions,
            found,
            deletions,
            left=left_at_end,
            terms=terms,
            statistics=statistics,
            reads=lambda: Candidates(_candidate_ids(found.ids), 1 - match, weights=mass / total),
        )
        return read, output

    def _mean_follower(self, weights: Tensor, tokens: Tensor, context: TokenContext) -> Tensor:
        """(B, T, C) weights of candidates, and the tokens that followed them -> (B, T, D) mean of their embeddings."""
        distinct, where = tokens.unique(return_inverse=True)
        of_tokens = weights.new_zeros(*weights.shape[:2], len(distinct)).scatter_add(-1, where, weights)
        return of_tokens @ self._followers(distinct, context)

    def _retrieval(self, scores: Tensor, visible: Tensor, ids: Tensor, context: TokenContext) -> Tensor:
        """-log of the softmax's mass on candidates with the same next token, where there are some.

        Args:
            scores, visible: (B, T, C).
        """
        tokens = self.bank.tokens(ids, context.rows)
        own = context.entries.tokens[:, None].expand(-1, scores.shape[1], -1)
        next_ids = context.entries.tokens[..., None]
        match = visible & (torch.cat([tokens, own], dim=-1) == next_ids) & (next_ids >= 0)
        some = match.any(-1)
        if not some.any():
            return self._mean(scores.sum() * 0, 0)
        scores, match, visible = scores[some], match[some], visible[some]
        all_mass = scores.masked_fill(~visible, -math.inf).logsumexp(-1)
        return self._mean((all_mass - scores.masked_fill(~match, -math.inf).logsumexp(-1)).mean(), some.sum())

    def _deletions(self, scores: Tensor, stored: Tensor, decisions: Decisions, found: Candidates) -> Deletions:
        """Each position may delete its k best candidates."""
        with torch.no_grad():
            best, chosen = scores.masked_fill(~stored, -math.inf).topk(self.results, dim=-1)
        squared = squared_distances(decisions.deletable, found.entries.vectors, decisions.vectors).gather(-1, chosen)
        there = best.isfinite() & torch.tensor(self.deletion, device=best.device)
        return self._delete(decisions, (squared + 1e-12).sqrt(), chosen, there)

    def _left(self, deletions: Deletions, found: Candidates, context: TokenContext) -> tuple[Tensor, Tensor]:
        """What is left of each candidate when a position reads it (B, T, C), and of own ones at the end (B, T)."""
        B, T, k = found.ids.shape
        numbers, n = entry_numbers(found.ids)
        left = alive(
            deletions.strength,
            numbers.gather(-1, deletions.chosen),
            context.segments,
            n_entries=n,
            decided=deletions.decided if self.hard else None,
        )  # (B, S + 1, n)
        where = context.segments[None, :, None] * n + numbers
        return left.flatten(1).gather(1, where.flatten(1)).view(B, T, k + T), left[:, -1, n - T :]


def _candidate_ids(ids: Tensor) -> Tensor:
    """(B, T, k) ids -> (B, T, C) of all candidates."""
    own = own_ids(torch.arange(ids.shape[1], device=ids.device))
    return torch.cat([ids, own.expand(*ids.shape[:2], -1)], dim=-1)
