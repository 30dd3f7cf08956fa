"""Has the loss stopped falling? Rules over the losses so far, the newest last, in nats.

Shapes: ... any number of curves or moments, W losses of each.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_app.errors import InputError


@dataclass(frozen=True)
class Verdict:
    """What a rule found.

    Attributes:
        statistic: what was compared: the t value of the slope, or the curvature in nats per step^2; NaN if too early.
        window: how many of the last losses the statistic is of.
        reason: in words, for a log.
    """

    stable: bool
    statistic: float
    window: int
    reason: str


StabilityRule = Literal["slope", "quadratic"]
WINDOW, THRESHOLD = 70, 3.0  # of slope_rule, chosen by `python -m experiments.stabilization`
FLAT = 0.01  # nats per step^2: the curvature of quadratic_rule


def judged(losses: Sequence[float], *, rule: StabilityRule, window: int | None = None) -> Verdict:
    """What a rule, named by an option, says of the losses so far.

    Args:
        window: losses that the rule looks at; None: the rule's own.

    Raises:
        InputError: a window that the rule cannot work with.
    """
    if rule == "slope":
        return slope_rule(losses, window=WINDOW if window is None else window)
    patience = window or 20
    return quadratic_rule(losses, min_steps=patience, patience=patience)


def slope_rule(losses: Sequence[float], *, window: int = WINDOW, threshold: float = THRESHOLD) -> Verdict:
    """Stable when the last `window` losses do not fall significantly: the t value of their slope is above -threshold.

    A loss that rises is stable too. The defaults are for a rule that is asked after every step. A fall that the noise
    of a window hides is taken for a plateau: less than about (threshold + 3) x noise x sqrt(12 / window^3) nats per
    step, more where noise is correlated. A longer window sees slower falls, and answers later. The error of the slope
    takes noise as independent: one corrected by the correlation of so few residuals gave more false alarms.

    Raises:
        InputError: a window of fewer than 3 losses.
    """
    if window < 3:
        raise InputError(f"window is {window}; a slope and its error need at least 3 losses")
    if len(losses) < window:
        return Verdict(False, math.nan, window, f"{len(losses)} losses so far, {window} are needed")
    last = np.asarray(losses[-window:], dtype=np.float64)
    if not np.isfinite(last).all():
        return Verdict(False, math.nan, window, f"of the last {window} losses some are not finite")
    t = float(slope_t(last))
    stable = t > -threshold
    said = "do not fall" if stable else "still fall"
    return Verdict(stable, t, window, f"the last {window} losses {said}: t = {t:.2f}, limit {-threshold:g}")


def slope_t(losses_W: np.ndarray) -> np.ndarray:
    """(..., W) -> (...) t value of the least-squares slope over the last axis, noise taken as independent.

    Losses that lie on a line have no noise: then it is 0 for a level one, else infinite.
    """
    W = losses_W.shape[-1]
    x = np.arange(W) - (W - 1) / 2
    centred = losses_W - losses_W.mean(-1, keepdims=True)
    square = x @ x
    slope = centred @ x / square
    noise = np.maximum((centred**2).sum(-1) - slope**2 * square, 0) / (W - 2)
    error = np.sqrt(noise / square)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(slope == 0, 0.0, slope / error)


def quadratic_rule(losses: Sequence[float], *, min_steps: int = 0, patience: int = 20, window: int = 5) -> Verdict:
    """Stable when a parabola through the last `window` losses is flat and the lowest of the last `patience` is old.

    Flat is a leading coefficient |a| < 0.01; old is patience - argmin - 1 >= patience // 2. Noise around any line,
    level or not, is like that now and then, so asked after every step it answers too early almost surely. While there
    are fewer than `patience` losses, argmin counts from the first. For comparison: `slope_rule` is the better one.

    Raises:
        InputError: a window of fewer than 3 losses, or a patience of none.
    """
    if window < 3 or patience < 1:
        raise InputError(f"window is {window}, patience {patience}; at least 3 losses and 1 are needed")
    if len(losses) < max(min_steps, 3):
        return Verdict(False, math.nan, window, f"{len(losses)} losses so far, {max(min_steps, 3)} are needed")
    last = np.asarray(losses[-max(patience, window) :], dtype=np.float64)
    if not np.isfinite(last).all():
        return Verdict(False, math.nan, window, f"of the last {len(last)} losses some are not finite")
    a = float(curvature(last[-window:]))
    ago = int(since_lowest(last[-patience:], patience))
    stable = abs(a) < FLAT and ago >= patience // 2
    reason = f"curvature {a:.4f}, limit {FLAT}; lowest loss {ago} steps ago, needed {patience // 2}"
    return Verdict(stable, a, window, reason)


def curvature(losses_W: np.ndarray) -> np.ndarray:
    """(..., W) -> (...) leading coefficient of the parabola fitted to the last axis."""
    x = np.arange(losses_W.shape[-1], dtype=np.float64)
    return np.asarray(losses_W @ np.linalg.pinv(np.vander(x, 3))[0])


def since_lowest(losses_W: np.ndarray, patience: int) -> np.ndarray:
    """(..., W) -> (...) steps from the lowest loss, the first one of equals, to the end of `patience` steps."""
    return np.asarray(patience - losses_W.argmin(-1) - 1)
