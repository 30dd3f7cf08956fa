"""Which rule sees that a loss has stopped falling? Simulated curves, each rule asked after every step; no training.

`replayed` asks the rules about the losses of real trainings, which have no known plateau: when each fires, and what the
loss still gained afterwards.

    python -m experiments.stabilization      (15 seconds; prints the tables of docs/plasticity.md)

A curve falls by a fixed slope and then stays level, from a step that is drawn for each curve. Its noise is white, or
correlated from step to step, with the same standard deviation. Shapes: C curves, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import lfilter

from experiments.tables import table
from lightning_app.plasticity.stabilization import FLAT, THRESHOLD, WINDOW, curvature, since_lowest, slope_t

CURVES, STEPS = 400, 1000
SLOPE, NOISE = 0.005, 0.1  # nats per step, nats
AROUND = 20  # losses that are averaged at a step of a real training
PLATEAU = (200, 800)  # where it may begin
WITHIN = 60  # steps
NOISES = {"white": 0.0, "AR(1), 0.3": 0.3}  # correlation of neighbouring steps
Rule = Callable[
    [np.ndarray], np.ndarray
]  # losses (C, S) -> (C, S), whether it says "stable" when asked after that step


def slope_rule(window: int = WINDOW, threshold: float = THRESHOLD) -> Rule:
    """`plasticity.stabilization.slope_rule` of all curves and steps at once."""
    return lambda losses_CS: _over_windows(losses_CS, window, lambda windows: slope_t(windows) > -threshold)


def quadratic_rule(patience: int = 20, window: int = 5) -> Rule:
    """`plasticity.stabilization.quadratic_rule` from step `patience` on, of all curves and steps at once."""

    def stable(windows: np.ndarray) -> np.ndarray:
        flat = np.abs(curvature(windows[..., -window:])) < FLAT
        return flat & (since_lowest(windows, patience) >= patience // 2)

    return lambda losses_CS: _over_windows(losses_CS, patience, stable)


def _over_windows(losses_CS: np.ndarray, window: int, stable: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    found = np.zeros(losses_CS.shape, dtype=bool)
    if losses_CS.shape[1] < window:
        return found
    for row, losses_S in zip(found, losses_CS, strict=True):  # one by one: all windows at once take 200 MB
        row[window - 1 :] = stable(sliding_window_view(losses_S, window))
    return found


def noise(shape: tuple[int, int], *, correlation: float, generator: np.random.Generator) -> np.ndarray:
    """(C, S) of standard deviation NOISE, stationary from the first step on."""
    white = generator.standard_normal(shape)
    white[:, 1:] *= math.sqrt(1 - correlation**2)
    return NOISE * np.asarray(lfilter([1.0], [1.0, -correlation], white))


@dataclass(frozen=True)
class Outcome:
    """Shares of the curves, by their first "stable": before the plateau, or within WITHIN steps from its beginning."""

    false_alarms: float
    detected: float
    median_delay: float  # steps from the beginning of the plateau, of the curves without a false alarm


def simulate(
    rule: Rule, *, correlation: float, slope: float = SLOPE, curves: int = CURVES, steps: int = STEPS, seed: int = 0
) -> Outcome:
    generator = np.random.default_rng(seed)
    begins_C = generator.integers(PLATEAU[0], PLATEAU[1] + 1, size=curves)
    falling_CS = slope * np.maximum(begins_C[:, None] - np.arange(steps), 0)
    losses_CS = falling_CS + noise((curves, steps), correlation=correlation, generator=generator)
    delay_C = first(rule(losses_CS)) - begins_C
    detected_C = (delay_C >= 0) & (delay_C < WITHIN)
    late_C = delay_C[delay_C >= 0]
    median = float(np.median(late_C)) if len(late_C) else math.nan
    return Outcome(float((delay_C < 0).mean()), float(detected_C.mean()), median)


def first(stable_CS: np.ndarray) -> np.ndarray:
    """(C,) the first step in which a rule says "stable"; the number of steps where it never does."""
    return np.where(stable_CS.any(1), stable_CS.argmax(1), stable_CS.shape[1])


def smallest_slope(rule: Rule, *, correlation: float, false_alarms: float = 0.05, seed: int = 0) -> float:
    """The least fall per step, of 2^(-k / 4) times 4 SLOPE, that at most so many curves have taken for a plateau."""
    told = math.nan
    for k in range(24):
        slope = 4 * SLOPE * 2 ** (-k / 4)
        if simulate(rule, correlation=correlation, slope=slope, seed=seed).false_alarms > false_alarms:
            break
        told = slope
    return told


def exponential(rule: Rule, *, correlation: float, seed: int = 0) -> np.ndarray:
    """(C,) the step of the first "stable" on curves 2 + 2 exp(-t / 100)."""
    noise_CS = noise((CURVES, STEPS), correlation=correlation, generator=np.random.default_rng(seed))
    return first(rule(2 + to_come(np.arange(STEPS)) + noise_CS))


def to_come(step: np.ndarray | float) -> np.ndarray:
    """How far such a curve still falls, in nats."""
    return 2 * np.exp(-np.asarray(step) / 100)


RULES: dict[str, Rule] = {
    "quadratic (patience 20, window 5)": quadratic_rule(),
    **{
        f"slope, window {window}, threshold {threshold:g}": slope_rule(window, threshold)
        for window, threshold in ((30, 2.0), (60, 2.0), (70, 2.0), (70, 3.0), (70, 4.0), (140, 3.0))
    },
}


# Real trainings


@dataclass(frozen=True)
class Replay:
    """What a rule says of a training.

    Attributes:
        step: of the first "stable"; None: never.
        gained: nats per token that the loss falls from there to the end, both as means over AROUND steps.
        whole: nats that it falls from the first AROUND steps to the last.
    """

    step: int | None
    gained: float
    whole: float


def replayed(losses: Sequence[float], rule: Rule) -> Replay:
    """A rule asked after each step of a training."""
    losses_S = np.asarray(losses, dtype=np.float64)
    step, n = int(first(rule(losses_S[None]))[0]), min(AROUND, len(losses_S))
    end = losses_S[-n:].mean()
    whole = float(losses_S[:n].mean() - end)
    if step == len(losses_S):
        return Replay(None, 0.0, whole)
    return Replay(step + 1, float(losses_S[max(0, step - n + 1) : step + 1].mean() - end), whole)


def trainings(logs: Mapping[str, Iterable[Sequence[float]]]) -> str:
    """A table of all rules on some trainings, by what they are called."""
    heads = ["training", "steps", "rule", "it fires", "at step", "the loss still gains, nats", "of all that it gains"]
    rows = []
    for name, some in logs.items():
        curves = list(some)
        for title, rule in RULES.items():
            steps = str(max(len(losses) for losses in curves))
            rows.append([name, steps, title, *_replayed_cells([replayed(losses, rule) for losses in curves])])
    return table(heads, rows)


def _replayed_cells(found: Sequence[Replay]) -> list[str]:
    fired = [one for one in found if one.step is not None]
    share = f"{len(fired)} of {len(found)}"
    if not fired:
        return [share, "-", "-", "-"]
    steps, gained = [one.step for one in fired if one.step], [one.gained for one in fired]
    of_all = np.mean(gained) / np.mean([one.whole for one in fired])
    return [
        share,
        f"{np.median(steps):.0f} ({min(steps)} to {max(steps)})",
        f"{np.mean(gained):.2f} ({min(gained):.2f} to {max(gained):.2f})",
        f"{100 * of_all:.0f} %",
    ]


def main() -> None:
    print("\n\n".join([plateaus(), falls()]))


def plateaus() -> str:
    rows = []
    for name, rule in RULES.items():
        outcomes = [simulate(rule, correlation=correlation) for correlation in NOISES.values()]
        rows.append([name, *(cell for outcome in outcomes for cell in _cells(outcome))])
    heads = [f"{noise}: {what}" for noise in NOISES for what in ("false alarm", "in time", "delay, steps")]
    return table(["rule", *heads], rows)


def _cells(outcome: Outcome) -> list[str]:
    delay = "-" if math.isnan(outcome.median_delay) else f"{outcome.median_delay:.0f}"
    return [f"{100 * outcome.false_alarms:.1f} %", f"{100 * outcome.detected:.1f} %", delay]


def falls() -> str:
    rows = []
    for name, rule in RULES.items():
        cells = []
        for correlation in NOISES.values():
            least = smallest_slope(rule, correlation=correlation)
            early, median, late = np.percentile(exponential(rule, correlation=correlation), [5, 50, 95])
            cells += [
                "none" if math.isnan(least) else f"{least:.4f}",
                f"{median:.0f} ({early:.0f} to {late:.0f})",
                f"{to_come(median):.2f}",
            ]
        rows.append([name, *cells])
    whats = ("smallest slope", "exponential: step (5 to 95 %)", "nats to come")
    return table(["rule", *(f"{noise}: {what}" for noise in NOISES for what in whats)], rows)


if __name__ == "__main__":
    main()
