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
from lightning_app.memory.kinds import Metric
from lightning_app.memory.slots import UNKNOWN, Entries


@dataclass(frozen=True)
class SlotSearch:
    """Search in the slots that hold entries.

    Attributes:
        entries: N, with `vectors`, `documents` and `positions`.
        index: None: every search is exact.
        release: called after each block of vectors that was read.
    """

    entries: Entries
    metric: Metric
    index: SlotIndex | None = None
    release: Release | None = None

    def nearest(
        self, queries_QD: Tensor, k: int, *, origin: Entries = UNKNOWN, own_document_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """-> distances (Q, k) float32 and slots (Q, k), nearest first; inf and -1 where there is none.

        Args:
            k: N at most.
            origin: `documents` and `positions` (Q,) of the queries: entries of a query's own document at its position
                or later stay hidden.
            own_document_only: hide the entries of all other documents as well.
        """
        hides = _hides(origin)
        slots = None if own_document_only else self._by_index(queries_QD, k, hides=hides)
        if slots is None:
            return self._exact(queries_QD, k, origin=origin, own_document_only=own_document_only)
        if hides:
            slots = slots.masked_fill(self._hidden(origin, slots, own_document_only=False), -1)
        found = distances_to(queries_QD, self.entries.vectors, slots, metric=self.metric, release=self.release)
        distances, slots = as_results(*first(found, slots, k))
        short = (slots[:, -1] < 0).nonzero()[:, 0]  # the index, or what it found and may be seen, has fewer than k
        if len(short):
            distances[short], slots[short] = self._exact(
                queries_QD[short], k, origin=origin[short], own_document_only=False
            )
        return distances, slots

    def _by_index(self, queries_QD: Tensor, k: int, *, hides: bool) -> Tensor | None:
        """Slots (Q, K >= k) by the index, more than k where some may turn out to be hidden; None: search exactly."""
        vectors = self.entries.vectors
        if k == 0 or self.index is None or vectors.device.type != "cpu":
            return None
        found = self.index.candidates(queries_QD, vectors, k=min(2 * k + 8 if hides else k, len(vectors)))
        if self.release is not None:
            self.release()
        return found

    def _exact(self, queries_QD: Tensor, k: int, *, origin: Entries, own_document_only: bool) -> tuple[Tensor, Tensor]:
        """`nearest` among all entries, or among those of the queries' documents."""
        rows, hidden = None, None
        if _hides(origin):
            hidden = partial(self._hidden_of_some, origin, own_document_only=own_document_only)
        if own_document_only:
            rows = torch.isin(self.entries.documents, origin.documents).nonzero()[:, 0]
        return nearest(
            queries_QD,
            self.entries.vectors,
            k=k,
            metric=self.metric,
            rows=rows,
            hidden=hidden,
            release=self.release,
            use_faiss=not own_document_only,  # which hides nearly all
        )

    def _hidden_of_some(self, origin: Entries, queries: Tensor, slots: Tensor, *, own_document_only: bool) -> Tensor:
        return self._hidden(origin[queries], slots, own_document_only=own_document_only)

    def _hidden(self, origin: Entries, slots: Tensor, *, own_document_only: bool) -> Tensor:
        """(Q, K) bool, for slots (K,) that are the same for all queries or (Q, K) that are not."""
        documents, positions = origin.documents[:, None], origin.positions[:, None]
        own = (self.entries.documents[slots] == documents) & (documents != -1)
        later = own & (self.entries.positions[slots] >= positions)
        return later | ~own if own_document_only else later


def _hides(origin: Entries) -> bool:
    """Whether the origin may hide entries from a query; an unknown document hides none."""
    return origin.documents.dim() > 0


def origin_of(
    origin: Entries, *, shape: tuple[int, ...], width: int, own_document_only: bool, device: torch.device
) -> Entries:
    """`documents` and `positions` (Q,) on the device, of queries with this shape (without their width)."""
    if own_document_only and not _hides(origin):
        raise InputError("own_document_only is True, but origin has no documents: say where the queries come from")
    if not _hides(origin):
        return UNKNOWN
    for column in (origin.documents, origin.positions):
        if tuple(column.shape) != shape:
            shapes = f"{tuple(column.shape)}, but the queries are {(*shape, width)}"
            raise InputError(f"documents or positions of the origin are {shapes}: give {shape}")
    return Entries(documents=origin.documents.reshape(-1).to(device), positions=origin.positions.reshape(-1).to(device))
