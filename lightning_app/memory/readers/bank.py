"""MemoryBank: the memories of a reader, one for all rows or one per row, and the changes that a step asks for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.memory.columns import Payload
from lightning_app.memory.search import Origin
from lightning_app.memory.store import AssociativeMemory

Scope = Literal["shared", "stream", "document"]
ROWS = 2**32  # more than any batch has


@dataclass(frozen=True)
class MemoryUpdate:
    """What a step asks a bank to do: N entries to add, and entries to remove or to count as used.

    Attributes:
        rows: (N,) stream of each entry.
        vectors: (N, M).
        tokens, documents, positions: (N,) see `Payload`.
        spans: (N, S) see `Payload`.
        removed, used: (n, 2) stream and id.
    """

    rows: Tensor
    vectors: Tensor
    tokens: Tensor
    documents: Tensor
    positions: Tensor
    spans: Tensor
    removed: Tensor | None = None
    used: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All of them, by name; those that are None as empty ones."""
        none = self.rows.new_zeros(0, 2)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: none if value is None else value for name, value in values.items()}

    def of_batch(self, i: int) -> MemoryUpdate:
        """With rows that no other batch of the step has, for a memory that all of them share."""
        all_of, first = self.tensors(), self.rows.new_tensor([i * ROWS, 0])
        return MemoryUpdate(
            **{**all_of, "rows": self.rows + first[0]}
            | {name: all_of[name] + first for name in ("removed", "used")}  # (n, 2): row and id
        )

    @classmethod
    def joined(cls, parts: Sequence[MemoryUpdate]) -> MemoryUpdate:
        """One after the other."""
        each = [part.tensors() for part in parts]
        return cls(**{name: torch.cat([tensors[name] for tensors in each]) for name in each[0]})


class MemoryBank(nn.Module):
    """One or several associative memories of the same options.

    Args:
        make: a new memory.
        scope: see `Reader`.
        streams: how many there are unless the scope is `shared`.
    """

    def __init__(self, make: Callable[[], AssociativeMemory], scope: Scope, streams: int):
        super().__init__()
        if streams < 1:
            raise InputError(f"streams is {streams}; it must be at least 1: batch size x ranks")
        self.scope = scope
        self.memories = cast(
            Sequence[AssociativeMemory], nn.ModuleList(make() for _ in range(1 if scope == "shared" else streams))
        )
        self._copies: list[Sequence[AssociativeMemory]] = []  # in a list, so that no checkpoint sees it

    @property
    def active(self) -> Sequence[AssociativeMemory]:
        """Those that are read and written now: a copy within an evaluation."""
        return self._copies[0] if self._copies else self.memories

    def begin_evaluation(self) -> None:
        """From here on reads and writes go to a copy."""
        self._copies = [copy.deepcopy(self.memories)]

    def end_evaluation(self) -> None:
        """Forget the copy."""
        self._copies = []

    @property
    def in_evaluation(self) -> bool:
        return bool(self._copies)

    @contextmanager
    def outside_evaluation(self) -> Iterator[None]:
        """For as long as this lasts, reads and writes go to the memory itself, whatever the copy holds by now."""
        copies, self._copies = self._copies, []
        try:
            yield
        finally:
            self._copies = copies

    @property
    def shared(self) -> AssociativeMemory:
        """The memory of all rows; where each row has its own, the first."""
        return self.active[0]

    def size(self) -> int:
        return sum(memory.size() for memory in self.active)

    def search(self, queries: Tensor, rows: Tensor, origin: Origin, k: int | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, M) queries -> ids and distances, (B, T, k); one search for all, or one per row's memory.

        A query does not see entries at or behind its own position in its own document, and in the scope `document`
        none of other documents.
        """
        own = self.scope == "document"
        if self.size() == 0:
            shape = (*queries.shape[:-1], self.shared.num_search_results if k is None else k)
            ids = torch.full(shape, -1, dtype=torch.int64, device=queries.device)
            return ids, torch.full(shape, torch.inf, device=queries.device)
        if self.scope == "shared":
            return self.shared.search(queries, k, origin=origin)
        found = [
            self.of(row).search(
                queries[b], k, origin=Origin(origin.documents[b], origin.positions[b]), own_document_only=own
            )
            for b, row in enumerate(rows.tolist())
        ]
        return torch.stack([ids for ids, _ in found]), torch.stack([distances for _, distances in found])

    def vectors(self, ids: Tensor, rows: Tensor) -> Tensor:
        """(B, ...) ids -> (B, ..., M) stored vectors; 0 where the id is -1."""
        if self.scope == "shared" or not self.size():
            return self.shared[ids]
        return torch.stack([self.of(row)[ids[b]] for b, row in enumerate(rows.tolist())])

    def tokens(self, ids: Tensor, rows: Tensor) -> Tensor:
        """(B, ...) ids -> (B, ...) the token that followed each entry; -1 where the id is."""
        if self.scope == "shared" or not self.size():
            return self.shared.payload(ids).tokens
        return torch.stack([self.of(row).payload(ids[b]).tokens for b, row in enumerate(rows.tolist())])

    def of(self, row: int) -> AssociativeMemory:
        """The memory of a stream."""
        if self.scope == "shared":
            return self.shared
        if row >= len(self.active):
            raise InputError(
                f"row {row} has no memory: streams is {len(self.active)}; it must be batch size x ranks at least"
            )
        return self.active[row]

    @torch.no_grad()
    def carry_out(self, effects: MemoryUpdate, *, training: bool) -> dict[str, int]:
        """Remove, count uses, write, and in training forget; returns how many entries of each kind it were."""
        counts = {"writes": 0, "deletions": 0, "evictions": 0, "forgotten": 0}
        all_of = effects.tensors()
        rows = {int(row) for name in ("rows", "removed", "used") for row in _first_column(all_of[name])}
        for row in sorted(rows):
            memory = self.of(row)
            counts["deletions"] += _remove(memory, _ids_of(all_of["removed"], row))
            memory.touch(_ids_of(all_of["used"], row))
            mine = effects.rows == row
            n, before = int(mine.sum()), memory.size()
            payload = Payload(
                effects.tokens[mine], effects.documents[mine], effects.positions[mine], effects.spans[mine]
            )
            memory.add(effects.vectors[mine], payload)
            counts["writes"] += n
            counts["evictions"] += before + n - memory.size()
            if self.scope == "document" and n:
                _keep_document(memory, int(effects.documents[mine][-1]))
        for memory in self.active if training else ():
            memory.tick()
            counts["forgotten"] += memory.forget_randomly()
        return counts


def _first_column(tensor: Tensor) -> Iterable[int]:
    return (tensor if tensor.dim() == 1 else tensor[:, 0]).unique().tolist()


def _ids_of(pairs: Tensor, row: int) -> Tensor:
    return pairs[pairs[:, 0] == row, 1].unique()


def _remove(memory: AssociativeMemory, ids: Tensor) -> int:
    there = ids[torch.isin(ids, memory.ids())]
    if len(there):
        memory.remove(there)
    return len(there)


def _keep_document(memory: AssociativeMemory, document: int) -> None:
    ids = memory.ids()
    others = ids[memory.payload(ids).documents != document]
    if len(others):
        memory.remove(others)
