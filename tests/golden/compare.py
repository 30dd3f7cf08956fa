"""What two golden results differ in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OF_LOSSES = 1e-6  # relative: 7e-8 were measured between AVX2 and AVX-512
OF_WEIGHTS = 1e-5  # and the gradient norm
OF_DISTANCES = 1e-3  # of a memory, in fp32: |q|^2 + |x|^2 - 2 q.x loses digits where x is near (6e-4 were measured)
NOISE = 1.0  # numbers below are compared absolutely, as if they were so large: 1 - cos of two equal vectors is rounding
WITHOUT_NOISE = ("lr", "tokens", "/loss", "/ce", "/ppl", "/bpb")  # ends of names: sums that do not cancel

Result = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """A number that is another one than it was.

    Attributes:
        where: such as "steps, step 7, train/ce".
        size: relative; infinite where there is nothing to compare with.
        limit: what is allowed.
    """

    where: str
    expected: Any
    found: Any
    size: float
    limit: float

    def __str__(self) -> str:
        return f"{self.where}: {self.expected} -> {self.found} (relative {self.size:.1e}, limit {self.limit:.0e})"


def differences(expected: Result, found: Result) -> list[Difference]:
    """Those beyond their limits, in the order of the run."""
    return [difference for difference in compared(expected, found) if difference.size > difference.limit]


def compared(expected: Result, found: Result, name: str = "") -> Iterator[Difference]:
    """Every number of `expected` against the one of `found`; what only `found` has is new and no difference."""
    for event in sorted(expected["events"].keys() | found["events"].keys()):
        pair = expected["events"].get(event, 0), found["events"].get(event, 0)
        yield Difference(f"{name}events, {event}", *pair, math.inf if pair[0] != pair[1] else 0.0, 0.0)
    for table in ("steps", "validations"):
        yield from _rows(expected[table], found[table], f"{name}{table}")
    yield from _weights(expected["weights"], found["weights"], f"{name}weights")
    if expected["machine"] == found["machine"]:
        pair = expected["checksum"], found["checksum"]
        yield Difference(f"{name}checksum of the weights", *pair, math.inf if pair[0] != pair[1] else 0.0, 0.0)
    if "resumed" in expected:
        yield from compared(expected["resumed"], found["resumed"], "resumed: ")


def _rows(expected: Result, found: Result, name: str) -> Iterator[Difference]:
    theirs = {row[0]: dict(zip(found["columns"], row, strict=True)) for row in found["rows"]}
    for row in expected["rows"]:
        step, other = row[0], theirs.get(row[0], {})
        for column, number in zip(expected["columns"][1:], row[1:], strict=True):
            noise = 0.0 if column.endswith(WITHOUT_NOISE) else NOISE
            yield _number(f"{name}, step {step}, {column}", number, other.get(column), _limit(column), noise)


def _limit(column: str) -> float:
    if column.endswith("hit_distance"):
        return OF_DISTANCES
    return OF_WEIGHTS if column == "grad_norm" else OF_LOSSES


def _weights(expected: list[float], found: list[float], name: str) -> Iterator[Difference]:
    if len(expected) != len(found):
        yield Difference(f"{name}, how many", len(expected), len(found), math.inf, 0.0)
        return
    for i, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        yield _number(f"{name}, sum of squares {i}", ours, theirs, OF_WEIGHTS, noise=1e-3)


def _number(where: str, expected: float | None, found: float | None, limit: float, noise: float = NOISE) -> Difference:
    if expected is None or found is None:
        size = 0.0 if expected is found else math.inf
    else:
        size = abs(expected - found) / max(abs(expected), abs(found), noise, 1e-30)
    return Difference(where, expected, found, size, limit)
