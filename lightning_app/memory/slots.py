"""Which ids lie in which slots of a memory. NumPy: several times faster than torch in this.

Entries fill the slots 0 .. N - 1 without a gap, in any order. A place is a number in the ascending order of ids.
Shapes: M slots, N entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_app.errors import InputError

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Fill(NamedTuple):
    """What adding entries comes to: the slots from then on, and the slots (n,) that the new entries go to."""

    slots: Slots
    targets: Rows


class Removal(NamedTuple):
    """What removing entries comes to: the slots from then on, and which slots move where, so that no gap is left."""

    slots: Slots
    sources: Rows
    gaps: Rows


@dataclass(frozen=True, eq=False)
class Slots:
    """The ids (N,) that there are, ascending, and the slot (N,) of each. A change gives another `Slots`."""

    ids: Rows
    slots: Rows

    @classmethod
    def read(cls, slot_ids_M: Tensor) -> Slots:
        """From the id in each slot, -1 where it is free.

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

    def filled(self, new_ids: Rows, gone: Rows) -> Fill:
        """New ids, above all others, go into free slots, then into those of the entries at the places `gone`."""
        free = np.arange(len(self), len(self) + len(new_ids) - len(gone))
        targets = np.concatenate((free, self.slots[gone]))
        ids = np.concatenate((np.delete(self.ids, gone), new_ids))
        return Fill(Slots(ids, np.concatenate((np.delete(self.slots, gone), targets))), targets)

    def emptied(self, places: Rows) -> Removal:
        """Without the entries at these places: those of the last slots move into the gaps."""
        size = len(self) - len(places)
        gaps = np.sort(self.slots[places])
        gaps = gaps[gaps < size]
        ids, slots = np.delete(self.ids, places), np.delete(self.slots, places)
        moved = np.flatnonzero(slots >= size)
        sources = slots[moved]
        slots[moved] = gaps
        return Removal(Slots(ids, slots), sources, gaps)


def checked_ids(ids: Tensor) -> Rows:
    """(...) -> (n,)."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"ids are {ids.dtype}: give int64")
    return ids.reshape(-1).cpu().numpy().astype(np.int64)
