"""Search among the entries of a memory that each query may see: by the index first, exactly where that falls short.

Shapes: Q queries, N slots, D width, K results.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.memory.exact_search import Release, as_results, distances_to, first, nearest
from lightning_app.memory.index import SlotIndex
from lightning_app.memory.nearness import Metric


@dataclass(frozen=True)
class Origin:
    """Where queries come from: `documents` (...) int64 content keys (-1: unknown, equal to none), `positions` (...)."""

    documents: Tensor
    positions: Tensor

    def __getitem__(self, queries: Tensor) -> Origin:
        return Origin(self.documents[queries], self.positions[queries])


@dataclass(frozen=True)
class SearchedSlots:
    """The slots that hold entries: vectors (N, D), documents and positions (N,), and what helps to search them.

    Attributes:
        index: None: every search is exact.
        release: called after each block of vectors that was read.
    """

    vectors: Tensor
    documents: Tensor
    positions: Tensor
    metric: Metric
    index: SlotIndex | None = None
    release: Release | None = None

    def nearest(
        self, queries_QD: Tensor, k: int, *, origin: Origin | None = None, own_document_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """-> distances (Q, k) float32 and slots (Q, k), nearest first; inf and -1 where there is none.

        Args:
            k: N at most.
            origin: of the queries, (Q,) each: entries of their own document at their position or later stay hidden.
            own_document_only: hide the entries of all other documents as well.
        """
        slots = None if own_document_only else self._candidates(queries_QD, k, masked=origin is not None)
        if slots is None:
            return self._exact(queries_QD, k, origin=origin, own_document_only=own_document_only)
        if origin is not None:
            slots = slots.masked_fill(self._hidden(origin, slots, own_document_only=False), -1)
        found = distances_to(queries_QD, self.vectors, slots, metric=self.metric, release=self.release)
        distances, slots = as_results(*first(found, slots, k))
        short = (slots[:, -1] < 0).nonzero()[:, 0]  # the index, or what it found and may be seen, has fewer than k
        if len(short):
            part = None if origin is None else origin[short]
            distances[short], slots[short] = self._exact(queries_QD[short], k, origin=part, own_document_only=False)
        return distances, slots

    def _candidates(self, queries_QD: Tensor, k: int, *, masked: bool) -> Tensor | None:
        """Slots (Q, K >= k) by the index, more than k where some may turn out to be hidden; None: search exactly."""
        if k == 0 or self.index is None or self.vectors.device.type != "cpu":
            return None
        found = self.index.candidates(queries_QD, self.vectors, k=min(2 * k + 8 if masked else k, len(self.vectors)))
        if self.release is not None:
            self.release()
        return found

    def _exact(
        self, queries_QD: Tensor, k: int, *, origin: Origin | None, own_document_only: bool
    ) -> tuple[Tensor, Tensor]:
        """`nearest` among all entries, or among those of the queries' documents."""
        rows, hidden = None, None
        if origin is not None:
            hidden = partial(self._hidden_of_some, origin, own_document_only=own_document_only)
            rows = torch.isin(self.documents, origin.documents).nonzero()[:, 0] if own_document_only else None
        return nearest(
            queries_QD,
            self.vectors,
            k=k,
            metric=self.metric,
            rows=rows,
            hidden=hidden,
            release=self.release,
            use_faiss=not own_document_only,  # which hides nearly all
        )

    def _hidden_of_some(self, origin: Origin, queries: Tensor, slots: Tensor, *, own_document_only: bool) -> Tensor:
        return self._hidden(origin[queries], slots, own_document_only=own_document_only)

    def _hidden(self, origin: Origin, slots: Tensor, *, own_document_only: bool) -> Tensor:
        """(Q, K) bool, for slots (K,) that are the same for all queries or (Q, K) that are not."""
        documents, positions = origin.documents[:, None], origin.positions[:, None]
        own = (self.documents[slots] == documents) & (documents != -1)
        later = own & (self.positions[slots] >= positions)
        return later | ~own if own_document_only else later


def checked_origin(
    origin: Origin | None, *, shape: tuple[int, ...], width: int, own_document_only: bool, device: torch.device
) -> Origin | None:
    """(Q,) each, on the device.

    Args:
        shape: of the queries, without their width.
    """
    if origin is None:
        if own_document_only:
            raise InputError("own_document_only is True, but origin is None: say where the queries come from")
        return None
    for column in (origin.documents, origin.positions):
        if tuple(column.shape) != shape:
            shapes = f"{tuple(column.shape)}, but the queries are {(*shape, width)}"
            raise InputError(f"documents or positions of the origin are {shapes}: give {shape}")
    return Origin(origin.documents.reshape(-1).to(device), origin.positions.reshape(-1).to(device))
