"""An associative memory: vectors with stable ids and a payload, found by nearness.

All state is buffers of fixed sizes (so checkpoints, `deepcopy` and `.to` are right); whatever is derived from them is a
cache. Entries fill the slots 0 .. size - 1 without a gap, in any order. Shapes: M slots, N entries, D width, S span.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.memory.exact_search import as_results, distances_to, first, nearest
from lightning_app.memory.index import IndexOptions, SlotIndex
from lightning_app.memory.mapped import MappedVectors
from lightning_app.memory.nearness import Metric

IndexType = Literal["flat", "ivf", "ivfpq", "hnsw"]
Eviction = Literal["oldest", "least_recently_used", "least_useful"]
Storage = Literal["float32", "float16"]
Rows = np.ndarray[Any, np.dtype[np.int64]]
STORAGE = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Origin:
    """Where queries come from: `documents` (...) int64 content keys (-1: unknown, equal to none), `positions` (...)."""

    documents: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Payload:
    """What a writer knows of N entries besides their vectors; None: unknown, which reads as -1."""

    tokens: Tensor | None = None  # (N,) id of the next token
    documents: Tensor | None = None  # (N,) content key of the document
    positions: Tensor | None = None  # (N,) in the document
    spans: Tensor | None = None  # (N, S) token ids that show the entry as text, padded with -1 on the left


@dataclass(frozen=True)
class Entries:
    """What the memory knows of entries besides their vectors; -1 (ages, uses, strengths: 0) for the id -1."""

    tokens: Tensor  # (...) int64
    documents: Tensor  # (...) int64
    positions: Tensor  # (...) int64
    spans: Tensor  # (..., S) int32
    ages: Tensor  # (...) int64, ticks since it was added
    uses: Tensor  # (...) int64, how often it was touched
    strengths: Tensor  # (...) float32, 1 when added


BLANK: dict[str, Any] = {
    "vectors": 0,
    "slot_ids": -1,
    **dict.fromkeys((field.name for field in fields(Payload)), -1),
    **dict.fromkeys(("written", "used", "uses", "strengths"), 0),
}  # the buffers with one row per slot, and what a free slot holds
COUNTERS = ("next_id", "clock", "draws")


class AssociativeMemory(nn.Module):
    """At most `memory_size` vectors of `memory_dim`, searched by distance.

    Ids are given in ascending order and never again, not even after `reset`; removing or evicting renumbers nothing.
    A full memory evicts before it adds: the entries that were there before the new ones, and those of `add`'s own
    batch only where the batch alone exceeds `memory_size` (its first ones; their ids no longer exist).

    Args:
        index_type: `flat` is exact. The others search exactly until there are enough vectors to train on, and wherever
            the index yields fewer than k entries that a query may see. On a GPU every search is exact.
        num_clusters, nprobe: lists of `ivf` and `ivfpq`, and how many of them a query looks into.
        pq_m, pq_bits: codes of `ivfpq` per vector, and bits per code.
        m, ef_construction, ef_search: `hnsw` (Malkov and Yashunin 2016, arXiv:1603.09320).
        num_search_results: k of a search that gives none.
        forgetfulness_factor: probability of each entry to go in one `forget_randomly`.
        metric: distances are |q - x|^2 (`l2`), -q.x (`inner_product`), 1 - cos(q, x) (`cosine`; 1 for a zero vector).
        eviction: `oldest`: smallest id. `least_recently_used`: last added or touched at the earliest tick.
            `least_useful`: smallest (1 + uses) x strength. Equal ones: smallest id.
        dtype: of the stored vectors; searches compute in float32.
        span_length: S, tokens of text that go with each entry.
        path: a file that holds the vectors instead of RAM (an index of another type than `flat` has copies in RAM).
        seed: of `forget_randomly`.
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
        self,
        memory_size: int = 10_000,
        memory_dim: int = 768,
        *,
        index_type: IndexType = "flat",
        num_clusters: int = 1024,
        nprobe: int = 8,
        pq_m: int = 8,
        pq_bits: int = 8,
        m: int = 32,
        ef_construction: int = 100,
        ef_search: int = 64,
        num_search_results: int = 5,
        forgetfulness_factor: float = 0.001,
        metric: Metric = "l2",
        eviction: Eviction = "oldest",
        dtype: Storage = "float32",
        span_length: int = 0,
        path: str | None = None,
        seed: int = 0,
    ):
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_options(**options)
        self._options = options
        self.memory_size, self.memory_dim, self.span_length = memory_size, memory_dim, span_length
        self.index_type, self.metric, self.eviction, self.seed = index_type, metric, eviction, seed
        self.num_search_results, self.forgetfulness_factor = num_search_results, forgetfulness_factor
        self._order: tuple[Rows, Rows] | None = None
        self._index = self._new_index()
        self._mapped: MappedVectors | None = None
        self._add_buffers()

    def _add_buffers(self) -> None:
        shapes = {"vectors": (self.memory_size, self.memory_dim), "spans": (self.memory_size, self.span_length)}
        dtypes = {"vectors": STORAGE[self._options["dtype"]], "spans": torch.int32, "strengths": torch.float32}
        if self._options["path"] is not None:
            self._mapped = MappedVectors(shapes["vectors"], dtype=dtypes["vectors"], path=self._options["path"])
            self.register_buffer("vectors", self._mapped.tensor)
        for name in [name for name in BLANK if name not in self._buffers]:
            shape, dtype = shapes.get(name, (self.memory_size,)), dtypes.get(name, torch.long)
            self.register_buffer(name, torch.full(shape, BLANK[name], dtype=dtype))
        for name in COUNTERS:
            self.register_buffer(name, torch.zeros((), dtype=torch.long))

    def _new_index(self) -> SlotIndex | None:
        if self.index_type == "flat":
            return None
        return SlotIndex(IndexOptions(**{field.name: self._options[field.name] for field in fields(IndexOptions)}))

    def config(self) -> dict[str, Any]:
        """The arguments of `__init__`, in plain types."""
        return dict(self._options)

    # Which entries there are

    @property
    def device(self) -> torch.device:
        return self.vectors.device

    def _entries(self) -> tuple[Rows, Rows]:
        """Ids (size,) in ascending order, and their slots (size,). NumPy: several times faster than torch in this."""
        if self._order is None:
            self._order = in_order(self.slot_ids)
        return self._order

    def _tensor(self, numbers: Rows) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)

    def size(self) -> int:
        return len(self._entries()[0])

    def __len__(self) -> int:
        return self.size()

    def __bool__(self) -> bool:
        """An empty memory is no missing one."""
        return True

    def ids(self) -> Tensor:
        """(size,) int64, ascending."""
        return self._tensor(self._entries()[0].copy())

    def _find(self, ids_N: Rows) -> tuple[Rows, np.ndarray]:
        """Places of ids in ascending order (N,), and which of them exist (N,) bool."""
        known = self._entries()[0]
        places = np.searchsorted(known, ids_N).clip(max=len(known) - 1)
        return places, known[places] == ids_N if len(known) else np.zeros(len(ids_N), dtype=bool)

    def _slots_of(self, ids: Tensor) -> Tensor:
        """(...) ids -> (...) slots; -1 stays -1, an unknown id is an `InputError`."""
        numbers = checked_ids(ids)
        places, found = self._find(numbers)
        missing = ~found & (numbers != -1)
        if missing.any():
            raise self._unknown(numbers[missing])
        slots = np.full_like(numbers, -1)
        slots[found] = self._entries()[1][places[found]]
        return self._tensor(slots).view(ids.shape)

    def _unknown(self, ids: Rows) -> InputError:
        known = self._entries()[0]
        there = f"{len(known)} entries, ids {known[0]} to {known[-1]}" if len(known) else "no entries"
        return InputError(f"no entry has the id {ids[0]} ({len(ids)} such ids): the memory holds {there}")

    def _places_of_distinct(self, ids: Tensor) -> Rows:
        """(N,) distinct ids that exist -> their places in ascending order of ids (N,)."""
        if ids.dim() != 1:
            raise InputError(f"ids have the shape {tuple(ids.shape)}: give (N,)")
        numbers = checked_ids(ids)
        values, counts = np.unique(numbers, return_counts=True)
        if (counts > 1).any():
            raise InputError(f"the id {values[counts > 1][0]} is given {counts.max()} times: give each id once")
        places, found = self._find(numbers)
        if not found.all():
            raise self._unknown(numbers[~found])
        return places

    # Writing

    @torch.no_grad()
    def add(self, vectors: Tensor, payload: Payload | None = None) -> Tensor:
        """Store vectors (N, D) -> their ids (N,), ascending; evicts what the capacity asks for."""
        rows = self._checked_rows(vectors)
        columns = self._checked_payload(payload or Payload(), count=len(rows))
        first = int(self.next_id)
        ids = torch.arange(first, first + len(rows), device=self.device)
        self.next_id += len(rows)
        kept = slice(max(0, len(rows) - self.memory_size), None)
        clock = self.clock.expand(len(rows))
        columns |= {"written": clock, "used": clock, "uses": 0 * clock, "strengths": torch.ones_like(clock).float()}
        columns |= {"vectors": rows, "slot_ids": ids}
        self._put({name: column[kept] for name, column in columns.items()}, ids=ids[kept].cpu().numpy())
        return ids

    def _put(self, columns: dict[str, Tensor], *, ids: Rows) -> None:
        """Write new entries into the free slots, then over those that have to go; nothing moves."""
        known, slots = self._entries()
        excess = max(0, len(known) + len(ids) - self.memory_size)
        gone = self._victims(excess)
        free = np.arange(len(known), len(known) + len(ids) - excess)
        targets = np.concatenate((free, slots[gone]))
        self._write(targets, columns)
        known, slots = np.delete(known, gone), np.delete(slots, gone)
        self._order = np.concatenate((known, ids)), np.concatenate((slots, targets))

    def _write(self, slots: Rows, columns: dict[str, Tensor]) -> None:
        targets = self._tensor(slots)
        for name, column in columns.items():
            buffer = getattr(self, name)
            buffer.index_copy_(0, targets, column.to(buffer.dtype))
        self._rows_changed(slots)

    def _rows_changed(self, slots: Rows | slice) -> None:
        if self._index is not None:
            self._index.mark(slots)
        self._release()

    @property
    def _released_by(self) -> Callable[[], None] | None:
        return None if self._mapped is None else self._mapped.release

    def _release(self) -> None:
        if self._mapped is not None:
            self._mapped.release()

    def _victims(self, count: int) -> Rows:
        """The places (count,) of the entries that go first."""
        slots = self._entries()[1]
        if count in (0, len(slots)) or self.eviction == "oldest":
            return np.arange(count)
        worth = self.used if self.eviction == "least_recently_used" else (1 + self.uses) * self.strengths
        values = worth.cpu().numpy()[slots]
        limit = np.partition(values, count - 1)[count - 1]
        below, equal = np.flatnonzero(values < limit), np.flatnonzero(values == limit)
        return np.concatenate((below, equal[: count - len(below)]))

    @torch.no_grad()
    def update(self, ids: Tensor, vectors: Tensor, payload: Payload | None = None) -> None:
        """Replace vectors (N, D), and what a payload gives, of entries (N,); their age, uses and strength stay."""
        places = self._places_of_distinct(ids)
        columns = {"vectors": self._checked_rows(vectors)}
        if len(columns["vectors"]) != len(places):
            raise InputError(f"{len(columns['vectors'])} vectors for {len(places)} ids: give one for each")
        if payload is not None:
            given = {field.name for field in fields(payload) if getattr(payload, field.name) is not None}
            checked = self._checked_payload(payload, count=len(places))
            columns |= {name: column for name, column in checked.items() if name in given}
        self._write(self._entries()[1][places], columns)

    @torch.no_grad()
    def remove(self, ids: Tensor) -> None:
        """Remove entries (N,)."""
        self._remove(self._places_of_distinct(ids))

    def _remove(self, places: Rows) -> None:
        """Entries of the last slots move into the gaps; what becomes free is blank."""
        ids, slots = self._entries()
        size = len(ids) - len(places)
        gaps = np.sort(slots[places])
        gaps = gaps[gaps < size]
        ids, slots = np.delete(ids, places), np.delete(slots, places)
        moved = np.flatnonzero(slots >= size)
        sources = self._tensor(slots[moved])
        self._write(gaps, {name: getattr(self, name)[sources] for name in BLANK})
        for name, blank in BLANK.items():
            getattr(self, name)[size : size + len(places)] = blank
        self._rows_changed(slice(size, size + len(places)))
        slots[moved] = gaps
        self._order = ids, slots

    @torch.no_grad()
    def reset(self) -> None:
        """Remove everything; the counters (ids, clock, draws of `forget_randomly`) go on."""
        self._remove(np.arange(len(self)))

    def _checked_rows(self, vectors: Tensor) -> Tensor:
        """(N, D) in the type they are stored in."""
        if vectors.dim() != 2:
            raise InputError(f"vectors have the shape {tuple(vectors.shape)}: give (N, {self.memory_dim})")
        self._check_width_and_values(vectors)
        rows = vectors.detach().to(self.device, self.vectors.dtype)
        if rows.dtype == torch.float16 and not all_finite(rows):
            raise InputError(f"a value of {float(vectors.abs().max()):.6g} does not fit float16 (65504): use float32")
        return rows

    def _check_width_and_values(self, vectors: Tensor) -> None:
        if vectors.shape[-1:] != (self.memory_dim,):
            raise InputError(f"vectors have the shape {tuple(vectors.shape)}, but memory_dim is {self.memory_dim}")
        if not vectors.is_floating_point():
            raise InputError(f"vectors are {vectors.dtype}: give floating point numbers")
        if not all_finite(vectors):
            wrong = vectors[~vectors.isfinite()]
            raise InputError(
                f"{len(wrong)} of {vectors.numel()} values of the vectors are not finite ({float(wrong[0])})"
            )

    def _checked_payload(self, payload: Payload, *, count: int) -> dict[str, Tensor]:
        """Columns (count,), spans (count, S)."""
        shapes = {"spans": (count, self.span_length)}
        columns = {}
        for field in fields(payload):
            column, shape = getattr(payload, field.name), shapes.get(field.name, (count,))
            if column is None:
                column = torch.full(shape, -1)
            if tuple(column.shape) != shape or column.is_floating_point():
                raise InputError(f"{field.name} are {column.dtype} {tuple(column.shape)}: give int64 {shape}")
            columns[field.name] = column.to(self.device)
        return columns

    # Reading

    @torch.no_grad()
    def search(
        self, queries: Tensor, k: int | None = None, *, origin: Origin | None = None, own_document_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The k entries nearest to each query (..., D), nearest first -> ids, distances (..., k), int64 and float32.

        Where there are fewer than k, the id is -1 and the distance inf. Changes nothing.

        Args:
            k: None: `num_search_results`.
            origin: of the queries, (...) each. Entries of a query's own document at its position or later stay hidden.
            own_document_only: hide the entries of all other documents as well.
        """
        k = self.num_search_results if k is None else k
        if not 1 <= k <= self.memory_size:
            raise InputError(f"k is {k}, but memory_size {self.memory_size}: ask for 1 result up to as many as fit")
        self._check_width_and_values(queries)
        queries_QD = queries.detach().reshape(-1, self.memory_dim).to(self.device, torch.float32).contiguous()
        own = self._checked_origin(origin, queries=queries, own_document_only=own_document_only)
        distances, slots = self._search(queries_QD, min(k, len(self)), origin=own, own_document_only=own_document_only)
        ids = torch.where(slots < 0, -1, self.slot_ids[slots])
        missing = (0, k - slots.shape[1])
        ids, distances = (
            nn.functional.pad(ids, missing, value=-1),
            nn.functional.pad(distances, missing, value=torch.inf),
        )
        shape = (*queries.shape[:-1], k)
        return ids.view(shape).to(queries.device), distances.view(shape).to(queries.device)

    def _checked_origin(self, origin: Origin | None, *, queries: Tensor, own_document_only: bool) -> Origin | None:
        """(Q,) each."""
        if origin is None:
            if own_document_only:
                raise InputError("own_document_only is True, but origin is None: say where the queries come from")
            return None
        columns = (origin.documents, origin.positions)
        for column in columns:
            if column.shape != queries.shape[:-1]:
                shapes = f"{tuple(column.shape)}, but the queries are {tuple(queries.shape)}"
                raise InputError(f"documents or positions of the origin are {shapes}: give {tuple(queries.shape[:-1])}")
        return Origin(*(column.reshape(-1).to(self.device) for column in columns))

    def _search(
        self, queries_QD: Tensor, k: int, *, origin: Origin | None, own_document_only: bool
    ) -> tuple[Tensor, Tensor]:
        """Distances (Q, k) and slots (Q, k), -1 where there is none."""
        slots = None if own_document_only else self._candidates(queries_QD, k, masked=origin is not None)
        if slots is None:
            return self._exact(queries_QD, k, origin=origin, own_document_only=own_document_only)
        if origin is not None:
            slots = slots.masked_fill(self._hidden(origin, slots, own_document_only=False), -1)
        found = distances_to(queries_QD, self.vectors, slots, metric=self.metric, release=self._released_by)
        distances, slots = as_results(*first(found, slots, k))
        short = (slots[:, -1] < 0).nonzero()[:, 0]  # the index, or what it found and may be seen, has fewer than k
        if len(short):
            part = None if origin is None else Origin(origin.documents[short], origin.positions[short])
            distances[short], slots[short] = self._exact(queries_QD[short], k, origin=part, own_document_only=False)
        return distances, slots

    def _candidates(self, queries_QD: Tensor, k: int, *, masked: bool) -> Tensor | None:
        """Slots (Q, K >= k) by the index, more than k where some may turn out to be hidden; None: search exactly."""
        if k == 0 or self._index is None or self.device.type != "cpu":
            return None
        fetched = min(2 * k + 8 if masked else k, len(self))
        found = self._index.candidates(queries_QD, self.vectors[: len(self)], k=fetched)
        self._release()
        return found

    def _exact(
        self, queries_QD: Tensor, k: int, *, origin: Origin | None, own_document_only: bool
    ) -> tuple[Tensor, Tensor]:
        """`_search` among all entries, or among those of the queries' documents."""
        stored, rows, hidden = self.vectors[: len(self)], None, None
        if origin is not None:
            hidden = partial(self._hidden_of_some, origin, own_document_only=own_document_only)
            rows = (
                torch.isin(self.documents[: len(self)], origin.documents).nonzero()[:, 0] if own_document_only else None
            )
        return nearest(
            queries_QD,
            stored,
            k=k,
            metric=self.metric,
            rows=rows,
            hidden=hidden,
            release=self._released_by,
            use_faiss=not own_document_only,  # which hides nearly all
        )

    def _hidden_of_some(self, origin: Origin, queries: Tensor, slots: Tensor, *, own_document_only: bool) -> Tensor:
        some = Origin(origin.documents[queries], origin.positions[queries])
        return self._hidden(some, slots, own_document_only=own_document_only)

    def _hidden(self, origin: Origin, slots: Tensor, *, own_document_only: bool) -> Tensor:
        """(Q, N) bool, for slots (N,) that are the same for all queries or (Q, N) that are not."""
        documents, positions = origin.documents[:, None], origin.positions[:, None]
        own = (self.documents[slots] == documents) & (documents != -1)
        later = own & (self.positions[slots] >= positions)
        return later | ~own if own_document_only else later

    def __getitem__(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) float32 of ids (...); zeros for -1."""
        slots = self._slots_of(ids)
        return self.vectors[slots.clamp(min=0)].float() * (slots >= 0)[..., None]

    def payload(self, ids: Tensor) -> Entries:
        """What is known of the entries ids (...) besides their vectors."""
        slots = self._slots_of(ids)
        columns = {name: self._column(name, slots) for name in [field.name for field in fields(Payload)]}
        ages = torch.where(slots < 0, 0, self.clock - self.written[slots])
        return Entries(
            **columns, ages=ages, uses=self._column("uses", slots), strengths=self._column("strengths", slots)
        )

    def _column(self, name: str, slots: Tensor) -> Tensor:
        values: Tensor = getattr(self, name)[slots]
        missing = (slots < 0).view(*slots.shape, *[1] * (values.dim() - slots.dim()))
        return values.masked_fill(missing, BLANK[name])

    def get_all_embeddings(self) -> Tensor:
        """(size, D) float32, in ascending order of ids."""
        return self.vectors[self._tensor(self._entries()[1])].float()

    # Use, age, forgetting

    @torch.no_grad()
    def touch(self, ids: Tensor) -> None:
        """Count a use of entries (...), once for each time an id is given; -1 and ids that are gone count nothing."""
        places, found = self._find(checked_ids(ids))
        slots = self._tensor(self._entries()[1][places[found]])
        self.uses.index_add_(0, slots, torch.ones_like(slots))
        self.used[slots] = self.clock

    @torch.no_grad()
    def tick(self) -> None:
        """One training step has passed."""
        self.clock += 1

    @torch.no_grad()
    def age_memory(self, decay: float = 0.999) -> None:
        """Multiply all strengths by `decay`."""
        if not 0 <= decay <= 1:
            raise InputError(f"decay is {decay}: give a number from 0 to 1")
        self.strengths *= decay

    @torch.no_grad()
    def forget_randomly(self) -> int:
        """Remove each entry with probability `forgetfulness_factor` -> how many went.

        The draw depends on the seed and on how many there were before, so all ranks and a resumed run draw the same.
        """
        draw = np.random.default_rng([self.seed, int(self.draws)]).random(len(self))
        self.draws += 1
        gone = np.flatnonzero(draw < self.forgetfulness_factor)
        self._remove(gone)
        return len(gone)

    @torch.no_grad()
    def garbage_collect(self, threshold: float = 1e-6) -> int:
        """Remove the entries with a strength below `threshold` -> how many went."""
        gone = np.flatnonzero(self.strengths.cpu().numpy()[self._entries()[1]] < threshold)
        self._remove(gone)
        return len(gone)

    # State

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in BLANK:
            found, wanted = state_dict.get(prefix + name), getattr(self, name)
            if found is not None and found.shape != wanted.shape:
                shapes = f"{tuple(found.shape)} in the checkpoint and {tuple(wanted.shape)} here"
                raise InputError(
                    f"{prefix}{name} is {shapes}: memory_size, memory_dim and span_length must be the same"
                )
        in_order(state_dict.get(prefix + "slot_ids", self.slot_ids))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self._mapped is not None and self.vectors is not self._mapped.tensor:  # load_state_dict(assign=True)
            self._mapped.copy_from(self.vectors)
            self.vectors = self._mapped.tensor
        self._forget_caches()

    def _forget_caches(self) -> None:
        self._order = None
        if self._index is not None:
            self._index.mark_all()
        self._release()

    def __getstate__(self) -> dict[str, Any]:
        """For `deepcopy` and pickle; mapped vectors copy themselves."""
        state = {**self.__dict__, "_order": None}
        if self._mapped is not None:
            state["_buffers"] = {**self._buffers, "vectors": None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._mapped is not None:
            self.vectors = self._mapped.tensor

    def _apply(self, fn: Any, recurse: bool = True) -> AssociativeMemory:
        """Moves between devices; `.half()` and the like leave all types as they are, and mapped vectors stay where
        they lie: such a memory searches on the CPU and answers on the queries' device."""
        if self._mapped is not None:
            return self

        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self._forget_caches()
        return super()._apply(move, recurse)


def in_order(slot_ids_M: Tensor) -> tuple[Rows, Rows]:
    """Ids (N,) in ascending order, and their slots (N,), which must be the first N."""
    ids = slot_ids_M.cpu().numpy()
    slots = ids.argsort(kind="stable")[(ids < 0).sum() :]
    if len(slots) and (slots.max() >= len(slots) or (np.diff(ids[slots]) == 0).any()):
        raise InputError(f"the checkpoint's slot_ids are damaged: gaps or equal ids in {len(slots)} entries")
    return ids[slots], slots


def all_finite(values: Tensor) -> bool:
    """A finite sum shows it 20 times faster; a sum may overflow, so look again before saying no."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def checked_ids(ids: Tensor) -> Rows:
    """(...) -> (N,)."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"ids are {ids.dtype}: give int64")
    return ids.reshape(-1).cpu().numpy().astype(np.int64)


def check_options(**options: Any) -> None:
    """Contradictions are an `InputError` with both values."""
    for name, literal in {"index_type": IndexType, "metric": Metric, "eviction": Eviction, "dtype": Storage}.items():
        if options[name] not in get_args(literal):
            raise InputError(f"{name} is {options[name]!r}: choose one of {', '.join(get_args(literal))}")
    least = {"memory_size": 1, "memory_dim": 1, "num_search_results": 1, "span_length": 0, "seed": 0}
    least |= dict.fromkeys(("num_clusters", "nprobe", "pq_m", "pq_bits", "ef_construction", "ef_search"), 1) | {"m": 2}
    for name, minimum in least.items():
        if options[name] < minimum:
            raise InputError(f"{name} is {options[name]}: give at least {minimum}")
    if not 0 <= options["forgetfulness_factor"] < 1:
        raise InputError(f"forgetfulness_factor is {options['forgetfulness_factor']}: give a number from 0 to below 1")
    if options["index_type"] in ("ivf", "ivfpq"):
        _check_clusters(**options)


def _check_clusters(
    *,
    memory_size: int,
    memory_dim: int,
    index_type: str,
    num_clusters: int,
    nprobe: int,
    pq_m: int,
    pq_bits: int,
    **_: Any,
) -> None:
    if num_clusters > memory_size:
        raise InputError(f"num_clusters {num_clusters} is more than memory_size {memory_size}: lower it, or use flat")
    if nprobe > num_clusters:
        raise InputError(f"nprobe {nprobe} is more than num_clusters {num_clusters}: lower it")
    if index_type == "ivfpq" and memory_dim % pq_m:
        raise InputError(f"pq_m {pq_m} does not divide memory_dim {memory_dim}: choose a divisor")
    if index_type == "ivfpq" and (pq_bits > 12 or 2**pq_bits > memory_size):
        limit = f"12, and for memory_size {memory_size} at most {memory_size.bit_length() - 1}"
        raise InputError(f"pq_bits is {pq_bits}: give at most {limit}")
