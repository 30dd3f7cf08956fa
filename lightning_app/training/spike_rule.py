"""Spikes: numbers far above those of the steps before."""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

import math
from collections.abc import Sequence

WINDOW = 128  # steps that are looked back on
ENOUGH = 32  # of them: before, a deviation says little
LEAST = 1e-6  # of the mean: a smaller deviation is rounding


def is_spike(value: float, before: Sequence[float], *, deviations: float) -> bool:
    """Whether `value` lies more than so many standard deviations above the mean of the numbers before it.

    False while there are fewer than `ENOUGH` of them; a number that is not finite is a spike once there are.
    """
    if len(before) < ENOUGH:
        return False
    return not value <= limit(before, deviations=deviations)


def limit(before: Sequence[float], *, deviations: float) -> float:
    """The largest number that is not a spike, by the last `WINDOW` numbers."""
    last = before[-WINDOW:]
    mean = math.fsum(last) / len(last)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in last) / len(last))
    return mean + deviations * max(deviation, LEAST * abs(mean))
