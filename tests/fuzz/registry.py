"""Kinds of cases, what may come of one, and how it is found out."""

from __future__ import annotations

import logging
import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from lightning_app.errors import InputError

SAME = "same"  # nothing differs
REFUSED = "refused"  # an InputError: one line for the user
WORD = "word"  # something was said, and what was read may differ
OTHER = "other value"  # something else was read, which is valid: only where a kind allows it
ACCEPTED = "accepted"  # odd input that means something, and did what it means
SILENT = "SILENT"  # something else was read, and nobody said so
TRACEBACK = "TRACEBACK"  # an exception that is not for users
UNCLEAR = "UNCLEAR"  # refused, but not in the form that users or clients are promised
FAILURES = (SILENT, TRACEBACK, UNCLEAR)

# Not only Exception: a Rust library's panic is none.
NOT_OURS = (KeyboardInterrupt, SystemExit)


@dataclass(frozen=True)
class Outcome:
    """What came of a case; `note` says what was done, for a failure also what went wrong."""

    name: str
    note: str = ""


Case = Callable[[random.Random], Outcome]
Kind = Callable[[Path], Case | AbstractContextManager[Case]]  # the latter where something has to be ended
KINDS: dict[str, Kind] = {}
SHARES: dict[str, float] = {}  # of all cases, of kinds whose cases are slow


def kind(name: str, *, share: float | None = None) -> Callable[[Kind], Kind]:
    """Registers a kind of cases; those without a `share` divide what is left evenly."""

    def add(make: Kind) -> Kind:
        assert name not in KINDS
        KINDS[name] = make
        if share is not None:
            SHARES[name] = share
        return make

    return add


def numbers(n: int, kinds: Sequence[str]) -> dict[str, int]:
    """How many of `n` cases each kind gets."""
    even = [name for name in kinds if name not in SHARES]
    if not even:
        return _evenly(n, kinds)
    slow = {name: round(n * SHARES[name]) for name in kinds if name in SHARES}
    found = slow | _evenly(n - sum(slow.values()), even)
    return {name: found[name] for name in kinds}


def _evenly(n: int, kinds: Sequence[str]) -> dict[str, int]:
    return {name: n // len(kinds) + (i < n % len(kinds)) for i, name in enumerate(kinds)}


def judged(read: Callable[[], Any], expected: Any, *, note: str, other_is_valid: bool = False) -> Outcome:
    """What comes of reading something that may be damaged, where `expected` is what was written."""
    try:
        with words() as said:
            found = read()
    except InputError as error:
        return Outcome(REFUSED, f"{note}: {error}")
    except NOT_OURS:
        raise
    except BaseException:
        return Outcome(TRACEBACK, f"{note}\n{traceback.format_exc()}")
    if said:
        return Outcome(WORD, f"{note}: {said[0]}")
    if found == expected:
        return Outcome(SAME, note)
    return Outcome(OTHER if other_is_valid else SILENT, note)


class _Keeps(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(level=logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


@contextmanager
def words() -> Iterator[list[str]]:
    """The warnings of a block, of Python, of our log, and those that a command prints."""
    said: list[str] = []
    printed = StringIO()
    ours, handler = logging.getLogger("lightning_app"), _Keeps(said)
    ours.addHandler(handler)
    propagates, ours.propagate = ours.propagate, False  # 10,000 of them
    try:
        with warnings.catch_warnings(record=True) as warned, redirect_stderr(printed):
            warnings.simplefilter("always")
            yield said
        said.extend(str(warning.message) for warning in warned)
        said.extend(line for line in printed.getvalue().splitlines() if line.startswith("warning: "))
    finally:
        ours.removeHandler(handler)
        ours.propagate = propagates
