"""Schedules as pure look-ups: a step in, a number out."""
# Pure mathematics: see tests/test_layering.py.

import math


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int | None, min_ratio: float) -> float:
    """The factor of the learning rate in optimizer step `step` (counted from 0).

    Rises by 1 / warmup_steps per step from 1 / warmup_steps in step 0 to 1, then follows half a cosine down to
    `min_ratio` in step `total_steps`, and stays there. Without `total_steps` it stays at 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if total_steps is None:
        return 1.0
    if step >= total_steps:
        return min_ratio
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear_warmup(step: int, *, warmup_steps: int) -> float:
    """The factor of a weight in step `step` (counted from 0): from 0 up to 1 in `warmup_steps` steps; 1 without any."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0
