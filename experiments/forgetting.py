"""What arms have forgotten where they have learned as much.

Shapes: P points of a training, S seeds, D documents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments import store
from experiments.arms import ARMS, NOVELTY, PLAIN
from experiments.levels import crossing, level_of
from experiments.statistics import Interval, change, half_width

MOSTLY = 0.5  # share of the new texts that must be novel before anything is said of the novelty terms
Records = list[store.Record]


@dataclass(frozen=True)
class Continual:
    """Results on the texts to score, by arm: with equal steps, or with equal CPU seconds."""

    by_arm: dict[str, Records]

    @classmethod
    def of(cls, folder: Path, part: str = "steps") -> Continual:
        """Of the arms that something may be said of."""
        by_arm: dict[str, Records] = defaultdict(list)
        records = store.records(folder)
        for record in records:
            if record["trial"] is None and (record["part"] == part or record["arm"] == PLAIN):
                by_arm[record["arm"]].append(record)
        told = [arm for arm in ARMS if by_arm[arm] and arm not in untold(records)]
        return cls({arm: sorted(by_arm[arm], key=lambda r: int(r["seed"])) for arm in told})

    def level(self, seed: int) -> float:
        """Bits per byte of the second domain that arms are compared at."""
        plain = next(record for record in self.by_arm[PLAIN] if record["seed"] == seed)
        return level_of(plain["second"])

    def forgotten(self, arm: str, beside: str | None = None) -> np.ndarray | None:
        """(S, D) nats of the first domain's documents at the level, less those before.

        Of the seeds that another arm has too. None where a seed never learns as much, or there are no results.
        """
        seeds = {record["seed"] for record in self.by_arm.get(beside or arm, [])}
        mine = [record for record in self.by_arm.get(arm, []) if record["seed"] in seeds]
        found = [_at(record, self.level(record["seed"])) for record in mine]
        there = [one for one in found if one is not None]
        return np.stack(there) if found and len(there) == len(found) else None

    def scale(self) -> float:
        """Nats of the first domain that make one bit per byte."""
        return float(np.sum(self.by_arm[PLAIN][0]["scale"]))

    def less(self, arm: str, base: str) -> Interval | None:
        """Per cent that an arm forgets less than another, where both have learned as much."""
        mine, others = self.forgotten(arm, base), self.forgotten(base, arm)
        if mine is None or others is None or mine.shape != others.shape:
            return None
        return -change(mine, others)

    def mean(self, arm: str, what: str) -> np.ndarray:
        return np.mean([record[what] for record in self.by_arm[arm]], axis=0)

    def ends(self, arm: str, what: str) -> list[float]:
        return [float(record[what][-1]) for record in self.by_arm[arm]]


def novel_shares(records: Sequence[store.Record]) -> dict[str, float]:
    """Of each arm with a novelty term: the share of the new texts that were novel, with equal steps."""
    scored = [r for r in records if r["trial"] is None and r["part"] == "steps"]
    each = {arm: [r["novel"] for r in scored if r["arm"] == arm] for arm in NOVELTY}
    return {arm: float(np.mean(shares)) for arm, shares in each.items() if shares}


def untold(records: Sequence[store.Record]) -> list[str]:
    """Arms of which nothing is said, as most of the new texts counted as known: their terms were mostly off."""
    return [arm for arm, share in novel_shares(records).items() if NOVELTY[arm] != "constant" and share < MOSTLY]


def _at(record: store.Record, level: float) -> np.ndarray | None:
    found = crossing(record["second"], level)
    if found is None:
        return None
    i, share = found
    nats = np.asarray(record["nats"])  # (P, D)
    return (1 - share) * nats[i] + share * nats[i + 1] - nats[0]


def with_spread(values: Sequence[float]) -> str:
    """Mean ± half of the 95 % interval of a few seeds."""
    return f"{np.mean(values):.3f}" + (f" ± {half_width(values):.3f}" if len(values) > 1 else "")
