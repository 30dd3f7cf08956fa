"""What a memory keeps of its entries: columns with one row per slot, and which entry lies in which slot.

Entries fill the slots 0 .. N - 1 without a gap, in any order. A place is a number in the ascending order of ids; that
part is NumPy, which is several times faster than torch in it. Shapes: M slots, N entries, D width, S span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.memory.options import MemoryOptions

Rows = np.ndarray[Any, np.dtype[np.int64]]
C = TypeVar("C")
PAYLOAD = ("tokens", "documents", "positions", "spans")  # columns that a writer gives besides the vectors
BLANK: dict[str, Any] = {
    "vectors": 0,
    "slot_ids": -1,
    **dict.fromkeys(PAYLOAD, -1),
    **dict.fromkeys(("written", "used", "uses", "strengths"), 0),
}  # the columns of a memory, and what a free slot holds
_MINUS_ONE, _ZERO = torch.tensor(-1), torch.tensor(0)


@dataclass(frozen=True, eq=False)
class Entries:
    """Columns of entries (...): what a memory keeps of them, or what is asked to be kept.

    A column that is not given has no dimensions: its one value holds for all entries.

    Attributes:
        tokens: (...) int64, id of the token that followed; -1: unknown.
        documents: (...) int64, content key of the document; -1: unknown, and equal to none.
        positions: (...) int64, in the document; -1: unknown.
        spans: (..., S) token ids that show the entry as text, padded with -1 on the left.
        vectors: (..., D).
        ages: (...) int64, training steps since it was added.
        uses: (...) int64, how often it was touched.
        strengths: (...) float32, 1 when added, or what `eviction` goes by.
    """

    tokens: Tensor = _MINUS_ONE
    documents: Tensor = _MINUS_ONE
    positions: Tensor = _MINUS_ONE
    spans: Tensor = _MINUS_ONE
    vectors: Tensor = _ZERO
    ages: Tensor = _ZERO
    uses: Tensor = _ZERO
    strengths: Tensor = _ZERO

    def __getitem__(self, chosen: Any) -> Entries:
        """The entries at an index, which applies to the leading dimensions (...) of each given column."""
        return mapped(lambda column: column[chosen], self)


UNKNOWN = Entries()


def mapped(change: Callable[..., Tensor], *several: C) -> C:
    """Apply `change` to each column of `Entries`, `Candidates` or `MemoryUpdate`; of several, to those of one name.

    A column that is not given (no dimensions) stays as it is.
    """

    def column(name: str) -> Any:
        values = [getattr(one, name) for one in several]
        if is_dataclass(values[0]):
            return mapped(change, *values)
        return change(*values) if values[0].dim() else values[0]

    return type(several[0])(**{field.name: column(field.name) for field in fields(several[0])})  # type: ignore[arg-type]


def joined(parts: Sequence[C], *, dim: int = 0) -> C:
    """Concatenate parts column by column along `dim`."""
    return mapped(lambda *columns: torch.cat(columns, dim=dim), *parts)


# Buffers


def blank_columns(options: MemoryOptions) -> dict[str, Tensor]:
    """All columns of M free slots; without the vectors where a file holds them."""
    M = options.memory_size
    shapes = {"vectors": (M, options.memory_dim), "spans": (M, options.span_length)}
    dtypes = {"vectors": options.storage, "spans": torch.int32, "strengths": torch.float32}
    return {
        name: torch.full(shapes.get(name, (M,)), blank, dtype=dtypes.get(name, torch.long))
        for name, blank in BLANK.items()
        if name != "vectors" or options.path is None
    }


def new_rows(
    vectors: Tensor, payload: Mapping[str, Tensor], *, ids: Tensor, clock: Tensor, span_length: int
) -> dict[str, Tensor]:
    """All columns of N entries that are added now; what the payload does not give is -1."""
    now, unknown = clock.expand(len(ids)), torch.full_like(ids, -1)
    known = {**dict.fromkeys(PAYLOAD, unknown), "spans": unknown[:, None].expand(-1, span_length), **payload}
    used = {"written": now, "used": now, "uses": 0 * now, "strengths": torch.ones_like(now).float()}
    return {"vectors": vectors, "slot_ids": ids, **known, **used}


def write_rows(buffers: Mapping[str, Any], slots: Tensor, columns: Mapping[str, Tensor]) -> None:
    """Put rows (N, ...) of some columns into slots (N,)."""
    for name, column in columns.items():
        buffers[name].index_copy_(0, slots, column.to(buffers[name].dtype))


def rows_of(buffers: Mapping[str, Any], slots: Tensor) -> dict[str, Tensor]:
    """A copy of all columns of slots (N,)."""
    return {name: buffers[name][slots] for name in BLANK}


def clear_rows(buffers: Mapping[str, Any], slots: slice) -> None:
    """Make slots as those that were never used."""
    for name, blank in BLANK.items():
        buffers[name][slots] = blank


def read_entries(buffers: Mapping[str, Any], slots: Tensor) -> Entries:
    """What is known of slots (...), -1: none."""
    columns = {name: _column(buffers, name, slots) for name in (*PAYLOAD, "uses", "strengths")}
    ages = torch.where(slots < 0, 0, buffers["clock"] - buffers["written"][slots])
    return Entries(**columns, ages=ages)


def _column(buffers: Mapping[str, Any], name: str, slots: Tensor) -> Tensor:
    values: Tensor = buffers[name][slots]
    missing = (slots < 0).view(*slots.shape, *[1] * (values.dim() - slots.dim()))
    return values.masked_fill(missing, BLANK[name])


def check_vectors(vectors: Tensor, *, width: int) -> None:
    """Refuses those of another width, of whole numbers, or with NaN or infinite values."""
    if vectors.shape[-1:] != (width,):
        raise InputError(f"vectors have the shape {tuple(vectors.shape)}, but memory_dim is {width}")
    if not vectors.is_floating_point():
        raise InputError(f"vectors are {vectors.dtype}: give floating point numbers")
    if not all_finite(vectors):
        wrong = vectors[~vectors.isfinite()]
        raise InputError(f"{len(wrong)} of {vectors.numel()} values of the vectors are not finite ({float(wrong[0])})")


def stored_vectors(vectors: Tensor, like: Tensor) -> Tensor:
    """(N, D) in the type and on the device of the stored ones (M, D)."""
    if vectors.dim() != 2:
        raise InputError(f"vectors have the shape {tuple(vectors.shape)}: give (N, {like.shape[1]})")
    check_vectors(vectors, width=like.shape[1])
    rows = vectors.detach().to(like.device, like.dtype)
    if rows.dtype == torch.float16 and not all_finite(rows):
        raise InputError(f"a value of {float(vectors.abs().max()):.6g} does not fit float16 (65504): use float32")
    return rows


def all_finite(values: Tensor) -> bool:
    """A finite sum shows it 20 times faster; a sum may overflow, so look again before saying no."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def payload_columns(payload: Entries, *, count: int, span_length: int, device: torch.device) -> dict[str, Tensor]:
    """The given columns of `PAYLOAD`: (count,), and spans (count, S).

    Raises:
        InputError: a column of another shape, or of floats.
    """
    columns = {}
    for name in PAYLOAD:
        column, shape = getattr(payload, name), (count, span_length) if name == "spans" else (count,)
        if not column.dim() and column == BLANK[name]:
            continue
        if tuple(column.shape) != shape or column.is_floating_point():
            raise InputError(f"{name} are {column.dtype} {tuple(column.shape)}: give int64 {shape}")
        columns[name] = column.to(device)
    return columns


# Slots


@dataclass(frozen=True, eq=False)
class Slots:
    """The ids (N,) that there are, ascending, and the slot (N,) of each. A change gives another `Slots`."""

    ids: Rows
    slots: Rows

    @classmethod
    def read(cls, slot_ids_M: Tensor) -> Slots:
        """Find the slots of all entries from the id in each slot (M,), -1 where it is free.

        Raises:
            InputError: an id stands twice, or a free slot lies before one that is taken.
        """
        ids = slot_ids_M.cpu().numpy()
        slots = ids.argsort(kind="stable")[(ids < 0).sum() :]
        if len(slots) and (slots.max() >= len(slots) or (np.diff(ids[slots]) == 0).any()):
            raise InputError(f"the checkpoint's slot_ids are damaged: gaps or equal ids in {len(slots)} entries")
        return cls(ids[slots], slots)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids_N: Rows) -> tuple[Rows, np.ndarray]:
        """The places of ids (N,), and which of them exist (N,) bool."""
        places = np.searchsorted(self.ids, ids_N).clip(max=len(self.ids) - 1)
        return places, self.ids[places] == ids_N if len(self.ids) else np.zeros(len(ids_N), dtype=bool)

    def of(self, ids: Tensor) -> Rows:
        """The slots (n,) of ids (...); -1 stays -1.

        Raises:
            InputError: an id that there is not.
        """
        numbers = checked_ids(ids)
        places, found = self.find(numbers)
        missing = ~found & (numbers != -1)
        if missing.any():
            raise self._unknown(numbers[missing])
        slots = np.full_like(numbers, -1)
        slots[found] = self.slots[places[found]]
        return slots

    def places(self, ids: Tensor) -> Rows:
        """The places (N,) of distinct ids (N,).

        Raises:
            InputError: an id that there is not, or one given twice.
        """
        if ids.dim() != 1:
            raise InputError(f"ids have the shape {tuple(ids.shape)}: give (N,)")
        numbers = checked_ids(ids)
        values, counts = np.unique(numbers, return_counts=True)
        if (counts > 1).any():
            raise InputError(f"the id {values[counts > 1][0]} is given {counts.max()} times: give each id once")
        places, found = self.find(numbers)
        if not found.all():
            raise self._unknown(numbers[~found])
        return places

    def _unknown(self, ids: Rows) -> InputError:
        there = f"{len(self)} entries, ids {self.ids[0]} to {self.ids[-1]}" if len(self) else "no entries"
        return InputError(f"no entry has the id {ids[0]} ({len(ids)} such ids): the memory holds {there}")

    def victims(self, count: int, worth_M: np.ndarray | None = None) -> Rows:
        """The places (count,) of the entries to evict: the least worth first, of equal ones the smallest id.

        Args:
            worth_M: by slot; None: all are worth the same.
        """
        if worth_M is None or count in (0, len(self)):
            return np.arange(count)
        values = worth_M[self.slots]
        limit = np.partition(values, count - 1)[count - 1]
        below, equal = np.flatnonzero(values < limit), np.flatnonzero(values == limit)
        return np.concatenate((below, equal[: count - len(below)]))

    def filled(self, new_ids: Rows, gone: Rows) -> tuple[Slots, Rows]:
        """New ids (n,), above all others, go into free slots, then into those of the entries at the places `gone`.

        Returns: the slots from then on, and the slots (n,) of the new ids.
        """
        free = np.arange(len(self), len(self) + len(new_ids) - len(gone))
        targets = np.concatenate((free, self.slots[gone]))
        ids = np.concatenate((np.delete(self.ids, gone), new_ids))
        return Slots(ids, np.concatenate((np.delete(self.slots, gone), targets))), targets

    def emptied(self, places: Rows) -> tuple[Slots, Rows, Rows]:
        """Without the entries at these places: those of the last slots move into the gaps.

        Returns: the slots from then on, and which slots (n,) move into which (n,).
        """
        size = len(self) - len(places)
        gaps = np.sort(self.slots[places])
        gaps = gaps[gaps < size]
        ids, slots = np.delete(self.ids, places), np.delete(self.slots, places)
        moved = np.flatnonzero(slots >= size)
        sources = slots[moved]
        slots[moved] = gaps
        return Slots(ids, slots), sources, gaps


def checked_ids(ids: Tensor) -> Rows:
    """(...) int tensor -> (n,) int64 array; an `InputError` for floats and bools."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"ids are {ids.dtype}: give int64")
    return ids.reshape(-1).cpu().numpy().astype(np.int64)
