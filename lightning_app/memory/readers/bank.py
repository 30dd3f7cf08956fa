"""MemoryBank: the memories of a reader, one for all rows or one per row; what a search in them gives, and what a step
asks them to change.

Shapes: B batch, T positions, C candidates, M memory_dim, N entries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.memory.slots import UNKNOWN, Entries
from lightning_app.memory.store import AssociativeMemory

Scope = Literal["shared", "stream", "document"]
ROWS = 2**32  # more than any batch has
OWN = -2  # of `Candidates.ids`: position j of the own block is OWN - j


@dataclass(frozen=True, eq=False)
class Candidates:
    """Entries that each position may read, as a search gives them.

    Attributes:
        ids: (B, T, C) of a stored entry; OWN - j: what position j of the own block would store; -1: none.
        distances: (B, T, C) in the metric; inf where an entry must not be read.
        entries: (B, T, C), with the columns that the reader needs; 0 and -1 where there is none.
        weights: (B, T, C) share of it in all that the position read, where nothing may have a share, too; of readers
            that change the logits: the probability that it gives to its next token. 0 where it was not read.
    """

    ids: Tensor
    distances: Tensor
    entries: Entries = UNKNOWN
    weights: Tensor = UNKNOWN.strengths

    @property
    def found(self) -> Tensor:
        """(B, T, C) bool: whether there is an entry that may be read."""
        return self.distances.isfinite()


def own_ids(positions: Tensor) -> Tensor:
    """`Candidates.ids` of positions of the own block."""
    return OWN - positions


@dataclass(frozen=True, eq=False)
class MemoryUpdate:
    """What a step asks a bank to do: N entries to add, and entries to remove or to count as used.

    Attributes:
        rows: (N,) stream of each entry.
        entries: (N,), with vectors and what is known of them.
        removed, used: (n, 2) stream and id.
    """

    rows: Tensor
    entries: Entries
    removed: Tensor
    used: Tensor

    def of_batch(self, i: int) -> MemoryUpdate:
        """The same with row numbers that no other batch of the step has: several batches write to one shared memory."""
        first = self.rows.new_tensor([i * ROWS, 0])  # (n, 2): row and id
        return MemoryUpdate(self.rows + first[0], self.entries, self.removed + first, self.used + first)


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
        self._copies: list[AssociativeMemory] | None = None  # not registered, so not saved

    @property
    def active(self) -> Sequence[AssociativeMemory]:
        """The memories that are read and written now: a copy within an evaluation."""
        return self.memories if self._copies is None else self._copies

    def begin_evaluation(self) -> None:
        """From here on reads and writes use a copy of the memories."""
        self._copies = [copy.deepcopy(memory) for memory in self.memories]

    def end_evaluation(self) -> None:
        """Drop the copy: nothing that was written since `begin_evaluation` remains."""
        self._copies = None

    @property
    def in_evaluation(self) -> bool:
        return self._copies is not None

    @contextmanager
    def outside_evaluation(self) -> Iterator[None]:
        """Within this context reads and writes use the memories themselves; the copy stays for later."""
        copies, self._copies = self._copies, None
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

    def search(self, queries: Tensor, rows: Tensor, origin: Entries, k: int | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, M) queries -> ids and distances, (B, T, k); one search for all, or one per row's memory.

        A query does not see entries at or behind its own position in its own document (`origin`, (B, T)), and in the
        scope `document` none of other documents.
        """
        own = self.scope == "document"
        if self.size() == 0:
            shape = (*queries.shape[:-1], self.shared.num_search_results if k is None else k)
            ids = torch.full(shape, -1, dtype=torch.int64, device=queries.device)
            return ids, torch.full(shape, torch.inf, dtype=torch.float32, device=queries.device)
        if self.scope == "shared":
            return self.shared.search(queries, k, origin=origin)
        found = [
            self.of(row).search(queries[b], k, origin=origin[b], own_document_only=own)
            for b, row in enumerate(rows.tolist())
        ]
        return torch.stack([ids for ids, _ in found]), torch.stack([distances for _, distances in found])

    def distinct(self, ids: Tensor, rows: Tensor) -> Tensor:
        """How many different entries a search gave (B, T, k), as a share of what it could have: of all entries, or of
        its results where these are fewer. 1 where nothing was found."""
        own = [*zip(map(self.of, rows.tolist()), ids, strict=True)]
        searched = [(self.shared, ids)] if self.scope == "shared" else own
        found = [(memory, some[some >= 0]) for memory, some in searched]
        different = sum(_different(some) for _, some in found)
        most = sum(min(memory.size(), len(some)) for memory, some in found)
        return torch.tensor(different / most if most else 1.0, device=ids.device)

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

    def next_ids(self, rows: Tensor) -> Tensor:
        """(B,) the id that the next entry of each row's memory will get."""
        if self.scope == "shared" or not self.size():
            return self.shared.next_id.expand(len(rows))
        return torch.stack([self.of(row).next_id for row in rows.tolist()])

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
    def write(self, update: MemoryUpdate, *, training: bool) -> dict[str, int]:
        """Remove entries, count uses, add entries; in training also forget some -> numbers of entries, by name."""
        counts = {"writes": 0, "deletions": 0, "evictions": 0, "forgotten": 0}
        rows = {
            int(row) for column in (update.rows, update.removed[:, 0], update.used[:, 0]) for row in column.unique()
        }
        for row in sorted(rows):
            memory = self.of(row)
            counts["deletions"] += _remove(memory, _ids_of(update.removed, row))
            memory.touch(_ids_of(update.used, row))
            new = update.entries[update.rows == row]
            counts["writes"] += len(new.vectors)
            if self.scope == "document" and len(new.vectors):
                new = _of_last_document(memory, new)  # before they could compete for places
            before = memory.size() + len(new.vectors)
            memory.add(new.vectors, new)
            counts["evictions"] += before - memory.size()
        for memory in self.active if training else ():
            memory.tick()
            counts["forgotten"] += memory.forget_randomly()
        return counts


class NoBank(nn.Module):
    """In the place of a bank, of a reader that keeps nothing."""

    memories: Sequence[AssociativeMemory] = ()
    in_evaluation = False

    def size(self) -> int:
        return 0

    def begin_evaluation(self) -> None:
        """Nothing is copied."""

    end_evaluation = begin_evaluation

    @contextmanager
    def outside_evaluation(self) -> Iterator[None]:
        yield


def _different(ids: Tensor) -> int:
    """How many different ids (n,) there are. They lie close together: to sort many takes longer."""
    if not len(ids):
        return 0
    seen = torch.zeros(int(ids.max() - ids.min()) + 1, dtype=torch.bool, device=ids.device)
    seen[ids - ids.min()] = True
    return int(seen.sum())


def _ids_of(pairs: Tensor, row: int) -> Tensor:
    return pairs[pairs[:, 0] == row, 1].unique()


def _remove(memory: AssociativeMemory, ids: Tensor) -> int:
    there = ids[torch.isin(ids, memory.ids())]
    if len(there):
        memory.remove(there)
    return len(there)


def _of_last_document(memory: AssociativeMemory, new: Entries) -> Entries:
    """The new entries of the last one's document; the memory loses what it has of others."""
    document = new.documents[-1]
    ids = memory.ids()
    others = ids[memory.payload(ids).documents != document]
    if len(others):
        memory.remove(others)
    return new[new.documents == document]
