"""What is asked of a run's records, whatever kind of run it was: events by kind, numbers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard, TypeVar

from lightning_app.reports.record import Event, Numbers, Record

E = TypeVar("E", bound=Event)


def events(records: Sequence[Record], kind: type[E]) -> list[E]:
    """The events of one kind, in order."""
    return [record for record in records if isinstance(record, kind)]


def is_of_fit(record: Record) -> TypeGuard[Numbers]:
    """Whether it holds numbers of a step; not what `validate` and `test` have measured later."""
    return isinstance(record, Numbers) and record.of == "fit"


def numbers(records: Sequence[Record]) -> list[Numbers]:
    """What was logged at steps."""
    return [record for record in records if is_of_fit(record)]


def series(records: Sequence[Record], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one number, where it was logged and finite."""
    found = [(r.step, value) for r in numbers(records) if (value := r.values.get(name)) is not None]
    return [step for step, _ in found], [value for _, value in found]


def last_step(records: Sequence[Record]) -> int:
    return max((record.step for record in records), default=0)


def change(before: float | None, after: float | None) -> float | None:
    """(after - before) / before; None where one is missing."""
    return None if not before or after is None else after / before - 1


def best_validation(records: Sequence[Record]) -> Numbers | None:
    """The numbers with the lowest `val/ce` of the model as it is now; None before its first validation.

    What a model reached before heads were removed from it does not count for what is left.
    """
    changed = max((i for i, r in enumerate(records) if isinstance(r, Event) and r.changes_model), default=-1)
    found = [(ce, r) for r in numbers(records[changed + 1 :]) if (ce := r.values.get("val/ce")) is not None]
    return min(found, key=lambda one: one[0], default=(0.0, None))[1]
