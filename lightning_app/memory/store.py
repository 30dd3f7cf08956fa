"""An associative memory: vectors with stable ids and a payload, found by nearness.

All state is buffers of fixed sizes (so checkpoints, `deepcopy` and `.to` are right); whatever is derived from them is a
cache. Shapes: M slots, N entries, D width, S span.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.memory.index import SlotIndex
from lightning_app.memory.mapped import MappedVectors
from lightning_app.memory.options import COMPETING, MemoryOptions
from lightning_app.memory.persistence import check_state, keeping_types
from lightning_app.memory.search import SlotSearch, origin_of
from lightning_app.memory.slots import (
    UNKNOWN,
    Entries,
    Rows,
    Slots,
    blank_columns,
    check_vectors,
    checked_ids,
    clear_rows,
    new_rows,
    payload_columns,
    read_entries,
    rows_of,
    stored_vectors,
    write_rows,
)

COUNTERS = ("next_id", "clock", "draws")


class AssociativeMemory(nn.Module):
    """At most `memory_size` vectors of `memory_dim`, searched by distance.

    Ids are given in ascending order and never again, not even after `reset`; removing or evicting renumbers nothing.
    A full memory evicts before it adds: the entries that were there before the new ones, and those of `add`'s own
    batch only where the batch alone exceeds `memory_size` (its first ones; their ids no longer exist), or where
    `eviction` lets the new ones compete with the old.

    Args:
        options: see `MemoryOptions`.
    """

    vectors: Tensor
    slot_ids: Tensor
    tokens: Tensor
    documents: Tensor
    positions: Tensor
    spans: Tensor
    written: Tensor
    used: Tensor
    uses: Tensor
    strengths: Tensor
    next_id: Tensor
    clock: Tensor
    draws: Tensor

    def __init__(
        self, memory_size: int = MemoryOptions.memory_size, memory_dim: int = MemoryOptions.memory_dim, **options: Any
    ):
        super().__init__()
        self.options = MemoryOptions(memory_size, memory_dim, **options)
        self.memory_size, self.memory_dim = memory_size, memory_dim
        self.span_length, self.metric = self.options.span_length, self.options.metric
        self.num_search_results = self.options.num_search_results
        self._slots: Slots | None = None  # read anew from the buffers where it is None
        self._index = None if self.options.index_type == "flat" else SlotIndex(self.options)
        self._mapped: MappedVectors | None = None
        self._add_buffers()

    def _add_buffers(self) -> None:
        options = self.options
        if options.path is not None:
            shape = (options.memory_size, options.memory_dim)
            self._mapped = MappedVectors(shape, dtype=options.storage, path=options.path)
            self.register_buffer("vectors", self._mapped.tensor)
        for name, column in blank_columns(options).items():
            self.register_buffer(name, column)
        for name in COUNTERS:
            self.register_buffer(name, torch.zeros((), dtype=torch.long))

    def config(self) -> dict[str, Any]:
        """The arguments of `__init__`, in plain types."""
        return asdict(self.options)

    # Which entries there are

    @property
    def device(self) -> torch.device:
        return self.vectors.device

    @property
    def slots(self) -> Slots:
        """Which ids lie in which slots."""
        if self._slots is None:
            self._slots = Slots.read(self.slot_ids)
        return self._slots

    def _tensor(self, numbers: Rows) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)

    def size(self) -> int:
        return len(self.slots)

    def __len__(self) -> int:
        return self.size()

    def __bool__(self) -> bool:
        """Truthiness means existence, not emptiness."""
        return True

    def ids(self) -> Tensor:
        """(size,) int64, ascending."""
        return self._tensor(self.slots.ids.copy())

    # Writing

    @torch.no_grad()
    def add(self, vectors: Tensor, payload: Entries = UNKNOWN) -> Tensor:
        """Store vectors (N, D) -> their ids (N,), ascending; evicts what the capacity asks for.

        Args:
            payload: tokens, documents, positions (N,) and spans (N, S) as far as they are known, and strengths (N,)
                where `eviction` goes by a score; no more is read.
        """
        rows = stored_vectors(vectors, self.vectors)
        given = self._given(payload, count=len(rows))
        first = int(self.next_id)
        ids = torch.arange(first, first + len(rows), device=self.device)
        self.next_id += len(rows)
        new = new_rows(rows, given, ids=ids, clock=self.clock, span_length=self.span_length)
        new["strengths"] = self._strengths(new["strengths"], payload, first=first)
        kept = self._admitted(new["strengths"], ids)
        self._put({name: column[kept] for name, column in new.items()}, ids=ids[kept].cpu().numpy())
        return ids

    def _strengths(self, ones: Tensor, payload: Entries, *, first: int) -> Tensor:
        """(N,) of new entries, of which `first` is the first id: a draw is the same on all ranks and after a resume."""
        if self.options.eviction == "random":
            drawn = np.random.default_rng([self.options.seed, first]).random(len(ones))
            return torch.from_numpy(drawn).to(ones)
        if self.options.eviction not in COMPETING or not payload.strengths.dim():
            return ones
        return payload.strengths.to(ones)

    def _admitted(self, strengths: Tensor, ids: Tensor) -> Tensor | slice:
        """Which of the new entries (N,) find a place."""
        excess = len(self) + len(strengths) - self.memory_size
        if self.options.eviction not in COMPETING:
            return slice(max(0, len(strengths) - self.memory_size), None)
        if excess <= 0:
            return slice(None)
        old = slice(0, len(self))
        all_of_them = torch.cat([self._scores(self.strengths[old], self.slot_ids[old]), self._scores(strengths, ids)])
        stay = torch.ones_like(all_of_them, dtype=torch.bool)
        stay[all_of_them.argsort(stable=True)[:excess]] = False  # of equal ones the old go first
        return stay[len(self) :]

    def _scores(self, strengths: Tensor, ids: Tensor) -> Tensor:
        """(N,) float64, by which entries compete: all fade alike, so a later one is worth more from the start."""
        if self.options.eviction == "random":
            return strengths.double()
        return strengths.double() + self.options.fading / self.memory_size * ids

    def _put(self, rows: dict[str, Tensor], *, ids: Rows) -> None:
        """Write new entries into the free slots, then over those that have to go; nothing moves."""
        excess = max(0, len(self) + len(ids) - self.memory_size)
        gone = self.slots.victims(excess, self._worth() if excess else None)
        slots, targets = self.slots.filled(ids, gone)
        self._write(targets, rows)
        self._slots = slots

    def _worth(self) -> np.ndarray | None:
        """(M,) worth of the entry in each slot: the least is evicted first. None: the oldest is."""
        if self.options.eviction == "oldest":
            return None
        if self.options.eviction in COMPETING:
            return self._scores(self.strengths, self.slot_ids).cpu().numpy()
        recency = self.options.eviction == "least_recently_used"
        return (self.used if recency else (1 + self.uses) * self.strengths).cpu().numpy()

    def _write(self, slots: Rows, rows: dict[str, Tensor]) -> None:
        write_rows(self._buffers, self._tensor(slots), rows)
        self._changed(slots)

    def _changed(self, slots: Rows | slice) -> None:
        if self._index is not None:
            self._index.mark(slots)
        self._release()

    def _release(self) -> None:
        if self._mapped is not None:
            self._mapped.release()

    @torch.no_grad()
    def update(self, ids: Tensor, vectors: Tensor, payload: Entries = UNKNOWN) -> None:
        """Replace vectors (N, D), and what a payload gives, of entries (N,); their age, uses and strength stay."""
        places, rows = self.slots.places(ids), stored_vectors(vectors, self.vectors)
        if len(rows) != len(places):
            raise InputError(f"{len(rows)} vectors for {len(places)} ids: give one for each")
        given = self._given(payload, count=len(places))
        self._write(self.slots.slots[places], {"vectors": rows, **given})

    def _given(self, payload: Entries, *, count: int) -> dict[str, Tensor]:
        return payload_columns(payload, count=count, span_length=self.span_length, device=self.device)

    @torch.no_grad()
    def remove(self, ids: Tensor) -> None:
        """Remove entries (N,)."""
        self._remove(self.slots.places(ids))

    def _remove(self, places: Rows) -> None:
        """Remove the entries at these places in the ascending order of ids; freed slots become blank."""
        size = len(self)
        slots, sources, gaps = self.slots.emptied(places)
        self._write(gaps, rows_of(self._buffers, self._tensor(sources)))
        free = slice(size - len(places), size)
        clear_rows(self._buffers, free)
        self._changed(free)
        self._slots = slots

    @torch.no_grad()
    def reset(self) -> None:
        """Remove everything; the counters (ids, clock, draws of `forget_randomly`) go on."""
        self._remove(np.arange(len(self)))

    # Reading

    @torch.no_grad()
    def search(
        self, queries: Tensor, k: int | None = None, *, origin: Entries = UNKNOWN, own_document_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The k entries nearest to each query (..., D), nearest first -> ids, distances (..., k), int64 and float32.

        Where there are fewer than k, the id is -1 and the distance inf. Changes nothing.

        Args:
            k: None: `num_search_results`.
            origin: `documents` and `positions` (...) of the queries. Entries of a query's own document at its position
                or later stay hidden.
            own_document_only: hide the entries of all other documents as well.
        """
        k = self.num_search_results if k is None else k
        if not 1 <= k <= self.memory_size:
            raise InputError(f"k is {k}, but memory_size {self.memory_size}: ask for 1 result up to as many as fit")
        check_vectors(queries, width=self.memory_dim)
        queries_QD = queries.detach().reshape(-1, self.memory_dim).to(self.device, torch.float32).contiguous()
        shape, only = tuple(queries.shape[:-1]), own_document_only
        origin = origin_of(origin, shape=shape, width=self.memory_dim, own_document_only=only, device=self.device)
        distances, slots = self._slot_search().nearest(
            queries_QD, min(k, len(self)), origin=origin, own_document_only=only
        )
        ids = torch.where(slots < 0, -1, self.slot_ids[slots])
        missing = (0, k - slots.shape[1])
        ids = nn.functional.pad(ids, missing, value=-1).view(*shape, k)
        distances = nn.functional.pad(distances, missing, value=torch.inf).view(*shape, k)
        return ids.to(queries.device), distances.to(queries.device)

    def _slot_search(self) -> SlotSearch:
        n, release = len(self), None if self._mapped is None else self._mapped.release
        entries = Entries(vectors=self.vectors[:n], documents=self.documents[:n], positions=self.positions[:n])
        return SlotSearch(entries, self.metric, self._index, release)

    def _slots_of(self, ids: Tensor) -> Tensor:
        """(...) ids -> (...) slots; -1 stays -1, an unknown id is an `InputError`."""
        return self._tensor(self.slots.of(ids)).view(ids.shape)

    def __getitem__(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) float32 of ids (...); zeros for -1."""
        slots = self._slots_of(ids)
        return self.vectors[slots.clamp(min=0)].float() * (slots >= 0)[..., None]

    def payload(self, ids: Tensor) -> Entries:
        """All columns but vectors of the entries with these ids (...), blank for -1."""
        return read_entries(self._buffers, self._slots_of(ids))

    def get_all_embeddings(self) -> Tensor:
        """(size, D) float32, in ascending order of ids."""
        return self.vectors[self._tensor(self.slots.slots)].float()

    # Use and forgetting

    @torch.no_grad()
    def touch(self, ids: Tensor) -> None:
        """Count a use of entries (...), once for each time an id is given; -1 and ids that are gone count nothing."""
        places, found = self.slots.find(checked_ids(ids))
        slots = self._tensor(self.slots.slots[places[found]])
        self.uses.index_add_(0, slots, torch.ones_like(slots))
        self.used[slots] = self.clock

    @torch.no_grad()
    def tick(self) -> None:
        """Advance the clock by one training step."""
        self.clock += 1

    @torch.no_grad()
    def forget_randomly(self) -> int:
        """Remove each entry with probability `forgetfulness_factor` -> how many went.

        The draw depends on the seed and on how many there were before, so all ranks and a resumed run draw the same.
        """
        draw = np.random.default_rng([self.options.seed, int(self.draws)]).random(len(self))
        self.draws += 1
        gone = np.flatnonzero(draw < self.options.forgetfulness_factor)
        self._remove(gone)
        return len(gone)

    # State

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        check_state(state_dict, self._buffers, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self._mapped is not None and self.vectors is not self._mapped.tensor:  # load_state_dict(assign=True)
            self._mapped.copy_from(self.vectors)
            self.vectors = self._mapped.tensor
        self.forget_caches()

    def forget_caches(self) -> None:
        """To be called after the buffers were changed from outside."""
        self._slots = None
        if self._index is not None:
            self._index.mark_all()
        self._release()

    def __getstate__(self) -> dict[str, Any]:
        """State for `deepcopy` and pickle, without mapped vectors: `MappedVectors` copies those."""
        state = {**self.__dict__, "_slots": None}
        if self._mapped is not None:
            state["_buffers"] = {**self._buffers, "vectors": None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._mapped is not None:
            self.vectors = self._mapped.tensor

    def _apply(self, fn: Any, recurse: bool = True) -> AssociativeMemory:
        """Mapped vectors stay where they lie: such a memory searches on the CPU and answers on the queries' device."""
        if self._mapped is not None:
            return self
        self.forget_caches()
        return super()._apply(keeping_types(fn), recurse)
