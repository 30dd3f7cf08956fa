"""Arms are compared where they have learned the second domain equally well, and so are the trials of an arm.

An arm's trials are a walk: from its first one to a neighbour that forgets less, until the best lies between others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from experiments.arms import ARMS, EWC_ARM, PLAIN
from experiments.store import Record

WITHIN, SHARE = 1.01, 0.9
LEVEL = (
    f"where an arm has come to {WITHIN} times the bits per byte of the second domain that plain fine-tuning ends at "
    f"or (if that is lower) to where {SHARE:.0%} of what it learns are learned"
)
STEP = {"strength": 10**0.5, "lr": 2.0}  # factors to the neighbours
WIDENED = 14  # trials of EWC at most
SETTINGS = [WITHIN, SHARE, STEP, WIDENED]


@dataclass(frozen=True)
class Trial:
    """How an arm is trained: the learning rate, and how strong what it adds is (0: nothing to choose)."""

    lr: float
    strength: float = 0.0

    def moved(self, axis: str, factor: float) -> Trial:
        values = asdict(self)
        return Trial(**values | {axis: float(f"{values[axis] * factor:.3g}")})


def first_trial(arm: str) -> Trial:
    return Trial(ARMS[arm].lr, ARMS[arm].strength)


def level_of(second: Sequence[float]) -> float:
    """See `LEVEL`, of plain fine-tuning's points: always below the first one where it learns anything."""
    return min(WITHIN * second[-1], second[-1] + (1 - SHARE) * (second[0] - second[-1]))


def crossing(second: Sequence[float], level: float) -> tuple[int, float] | None:
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


def of_trial(record: Record) -> Trial:
    return Trial(record["lr"], record["strength"])


def tried(arm: str, records: Sequence[Record]) -> dict[Trial, tuple[float, float]]:
    """What an arm's trials came to, in their order; the lower the better: first those that have learned as much as
    all must, by what they forgot until then, and then the others, by what they learned."""
    trials = [record for record in records if record["trial"] is not None]
    mine = sorted((r for r in trials if r["arm"] == arm), key=lambda r: int(r["trial"]))
    return {of_trial(record): _worth(record, tuning_level(trials)) for record in mine}


def tuning_level(trials: Sequence[Record]) -> float:
    """Set by the end of plain fine-tuning's first trial."""
    reference = next(record for record in trials if record["arm"] == PLAIN and record["trial"] == 0)
    return level_of(reference["second"])


def _worth(record: Record, level: float) -> tuple[float, float]:
    there = at_level(record, level)
    return (1.0, float(record["second"][-1])) if there is None else (0.0, there)


def best(found: Mapping[Trial, tuple[float, float]]) -> Trial:
    return min(found, key=lambda trial: found[trial])


def inside(found: Mapping[Trial, tuple[float, float]]) -> bool:
    """Whether the best trial lies between others on each axis."""
    middle = asdict(best(found))
    axes = [axis for axis in STEP if middle[axis]]
    return all(
        any(asdict(trial)[axis] < middle[axis] for trial in found)
        and any(asdict(trial)[axis] > middle[axis] for trial in found)
        for axis in axes
    )


def next_trial(
    arm: str, found: Mapping[Trial, tuple[float, float]], *, start: Trial, at_most: int, widen: bool
) -> Trial | None:
    """The neighbour of the best trial so far to try now; None: there were enough.

    Args:
        start: the first one.
        at_most: trials, the same of all arms; EWC may have more until its best lies inside.
        widen: whether it may.
    """
    if not found:
        return start
    more = widen and arm == EWC_ARM and len(found) < WIDENED and not inside(found)
    if len(found) >= at_most and not more:
        return None
    return next(trial for trial in _around(best(found)) if trial not in found)


def _around(middle: Trial) -> Iterator[Trial]:
    """Its neighbours, and then nearer ones."""
    for power in (1.0, 0.5, 0.25, 0.125):
        for axis, factor in STEP.items():
            if asdict(middle)[axis]:
                yield middle.moved(axis, factor**power)
                yield middle.moved(axis, factor**-power)
