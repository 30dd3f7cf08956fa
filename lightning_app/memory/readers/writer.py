"""The layers by which a model learns what to store and what to delete, and what they decide within a block.

Shapes: B batch, T positions, S segments, k results, C = k + T candidates: what the memory returned to a position, then
the positions of its own block. M memory_dim, U distinct entries that the memory returned to the block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def straight_through(p: Tensor, hard: Tensor) -> Tensor:
    """`hard` forward, the gradient of `p` backward (Bengio et al. 2013, arXiv:1308.3432, section 4)."""
    return hard.to(p.dtype) + p - p.detach()


@dataclass(frozen=True)
class Decisions:
    """What each position of a block offers and asks for.

    Attributes:
        vectors: (B, T, M) what it would store.
        score: (B, T) logit of storing it.
        store: (B, T) probability of storing it.
        delete: (B, T, k) logit of deleting each of its k best candidates.
        deletable: (B, T, M) what a vector to be deleted looks like.
    """

    vectors: Tensor
    score: Tensor
    store: Tensor
    delete: Tensor
    deletable: Tensor

    @property
    def stored(self) -> Tensor:
        """(B, T) bool."""
        return self.store > 0.5

    def all_stored(self) -> Decisions:
        """The same, but for the decision: everything is stored."""
        return replace(self, store=torch.ones_like(self.store))

    def best_stored(self, share: float) -> Decisions:
        """The same, but each row stores the `share` of its positions with the highest scores; scores get the gradient.

        So positions compete: a score that rises above that of the last one that is stored takes its place.
        """
        limit = self.score.detach().quantile(1 - share, dim=1, keepdim=True)
        return replace(self, store=(self.score - limit).sigmoid())


class Writer(nn.Module):
    """Four linear layers on the last states, all of which cross-entropy alone can train.

    Args:
        width: D of the states.
        memory_dim: M.
        results: k.
        open_bias: of the store decision at first: above 0 the memory is open, which learning needs to get started.
        delete_bias: of the delete decisions at first: low, as all positions together would delete what a model has to
            learn to read.
    """

    def __init__(self, width: int, memory_dim: int, results: int, *, open_bias: float = 1.0, delete_bias: float = -4.5):
        super().__init__()
        self.fc_storable_vector = nn.Linear(width, memory_dim)
        self.fc_store_decision = nn.Linear(width, 1)
        self.fc_delete_decision = nn.Linear(width, results)
        self.fc_deletable_vector = nn.Linear(width, memory_dim)
        nn.init.constant_(self.fc_store_decision.bias, open_bias)
        nn.init.constant_(self.fc_delete_decision.bias, delete_bias)

    def forward(self, states: Tensor) -> Decisions:
        """(B, T, D) -> what they offer, in fp32."""
        vectors = self.fc_storable_vector(states).float()
        score = self.fc_store_decision(states)[..., 0].float()
        return Decisions(
            vectors,
            score,
            score.sigmoid(),
            self.fc_delete_decision(states).float(),
            self.fc_deletable_vector(states).float(),
        )


def squared_distances(queries: Tensor, found: Tensor, own: Tensor) -> Tensor:
    """(B, T, M) queries, (B, T, k, M) found, (B, T, M) own block -> (B, T, k + T) squared L2 distances."""
    q2 = queries.square().sum(-1, keepdim=True)
    to_found = q2 + found.square().sum(-1) - 2 * (found @ queries[..., None])[..., 0]
    to_own = q2 + own.square().sum(-1)[:, None] - 2 * queries @ own.mT
    return torch.cat([to_found, to_own], dim=-1).clamp_min(0)


def cosines(queries: Tensor, found: Tensor, own: Tensor) -> Tensor:
    """(B, T, M) unit queries, (B, T, k, M) found, (B, E, M) own block -> (B, T, k + E) cosines."""
    to_found = (F.normalize(found, dim=-1) @ queries[..., None])[..., 0]
    return torch.cat([to_found, queries @ F.normalize(own, dim=-1).mT], dim=-1)


def entry_numbers(ids: Tensor) -> tuple[Tensor, int]:
    """Number the entries that a block deals with: (B, T, k) ids -> (B, T, k + T) and how many there are in all.

    The same entry has the same number in all positions of a row; its own block's positions come last.
    """
    B, T, _ = ids.shape
    distinct, numbers = ids.unique(return_inverse=True)
    own = len(distinct) + torch.arange(T, device=ids.device)
    return torch.cat([numbers, own.expand(B, T, T)], dim=-1), len(distinct) + T


def alive(delete: Tensor, chosen: Tensor, segments: Tensor, *, n_entries: int, decided: Tensor | None = None) -> Tensor:
    """How much of each entry is left at the start of each segment, and at the end.

    An entry that positions t of earlier segments delete with d_t has prod(1 - d_t) left. With `decided` it
    is gone once some position has decided so, and the gradient is that of the product.

    Args:
        delete: (B, T, k) d in [0, 1).
        chosen: (B, T, k) number of the entry that each speaks of.
        segments: (T,) from 0 to S - 1.
        decided: (B, T, k) bool; None: deletions are soft.

    Returns: (B, S + 1, n_entries).
    """
    B, T, k = delete.shape
    S = int(segments[-1]) + 1
    where = (segments[None, :, None] * n_entries + chosen).reshape(B, T * k)

    def left(d: Tensor) -> Tensor:
        log_left = torch.log1p(-d.clamp_max(1 - 1e-4)).reshape(B, T * k)
        by_segment = delete.new_zeros(B, S * n_entries).scatter_add(1, where, log_left).view(B, S, n_entries)
        return F.pad(by_segment.cumsum(1), (0, 0, 1, 0)).exp()

    soft = left(delete)
    if decided is None:
        return soft
    return straight_through(soft, left(decided.float()) > 0.5)
