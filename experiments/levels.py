"""Arms are compared where they have learned the second domain equally well: points of a training, and between them."""

from __future__ import annotations

from itertools import pairwise

from experiments.arms import PLAIN, Trial, trials
from experiments.store import Record

WITHIN = 1.01  # the level: so many times the bits per byte of the second domain that plain fine-tuning ends at
REFERENCE = Trial(1e-3)  # of plain: its end sets the level on validation, where trials are compared


def crossing(second: list[float], level: float) -> tuple[int, float] | None:
    """Point before, and share of the way to the next one, where bits per byte come down to a level; None: never."""
    for i, (before, after) in enumerate(pairwise(second)):
        if after <= level < before:
            return i, (before - level) / (before - after)
    return None


def at_level(record: Record, level: float) -> float | None:
    """Bits per byte of the first domain where the second has come down to a level."""
    found = crossing(record["second"], level)
    if found is None:
        return None
    i, share = found
    return (1 - share) * float(record["first"][i]) + share * float(record["first"][i + 1])


def best_trial(arm: str, records: list[Record]) -> int:
    """The trial that forgets least where it has learned as much as all must; if none has, the one that learned most."""
    tried = {(r["arm"], r["trial"]): r for r in records if r["trial"] is not None}
    level = WITHIN * tried[PLAIN, trials(PLAIN).index(REFERENCE)]["second"][-1]
    mine = {trial: record for (name, trial), record in tried.items() if name == arm}
    reached = {trial: first for trial, record in mine.items() if (first := at_level(record, level)) is not None}
    if reached:
        return min(reached, key=lambda trial: reached[trial])
    return min(mine, key=lambda trial: float(mine[trial]["second"][-1]))
