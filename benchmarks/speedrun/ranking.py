"""Who is first, and whether that is more than chance."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.speedrun.plan import Entry
from benchmarks.speedrun.results import FROZEN, Result, Results

RECORD = 3.09  # standard errors: one chance in a thousand, one-sided
SEEDS = 5  # that a standard error needs, to be one


@dataclass(frozen=True)
class Figure:
    """Bits per byte of some seeds.

    Attributes:
        error: standard error of the mean; 0 where nothing is drawn, None where there is one seed.
    """

    mean: float
    n: int
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float], *, chance: bool = True) -> Figure:
        if not chance:
            return cls(values[0], len(values), 0.0)
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.fmean(values), len(values), error)


@dataclass(frozen=True)
class Standing:
    """A contestant in a table.

    Attributes:
        figures: by budget; what has no budget stands under each.
    """

    contestant: str
    results: list[Result]
    figures: dict[float, Figure]

    def figure(self, budgets: Sequence[float]) -> Figure | None:
        """That of the largest budget that it has."""
        return next((self.figures[budget] for budget in reversed(budgets) if budget in self.figures), None)


def chosen(results: Results, entry: Entry, text: str, budget: float, threads: int) -> int:
    """The trial with the fewest bits per byte of the held-out text; the recipe before there is one."""
    found = results.of(FROZEN, contestant=entry.name, text=text, seed=0, threads=threads)
    options = [entry.options(trial) for trial in range(len(entry.trials))]
    tried = {
        options.index(r.key.options): r.heldout_bpb
        for r in found
        if r.heldout_bpb is not None
        and r.key.options in options
        and r.key.budget in (0, budget)
        and r.key.sha256 == found[-1].key.sha256
    }
    return min(tried, key=lambda trial: tried[trial]) if tried else 0


def standings(results: Results, table: str, text: str, budgets: Sequence[float]) -> list[Standing]:
    """Those with a figure of the test text: ranked at the largest budget that has been run, behind them those that were
    not run there."""
    by_contestant: dict[str, list[Result]] = defaultdict(list)
    for result in results.of(table, text=text):
        if result.test_bpb is not None:
            by_contestant[result.key.contestant].append(result)
    latest = {name: _of_last_recipe(own) for name, own in by_contestant.items()}
    found = [Standing(name, own, _figures(own, budgets)) for name, own in latest.items()]
    run = {result.key.budget for own in by_contestant.values() for result in own}
    ranked = [budget for budget in budgets if budget in run] or list(budgets)
    return sorted((one for one in found if set(ranked) & set(one.figures)), key=lambda one: _place(one, ranked))


def _of_last_recipe(results: Sequence[Result]) -> list[Result]:
    """Those of what was scored last at each budget, in their order: an earlier recipe was chosen before all trials were
    run, an earlier text was another one."""
    last = {result.key.budget: replace(result.key, seed=0) for result in results}
    return [result for result in results if replace(result.key, seed=0) == last[result.key.budget]]


def _place(standing: Standing, budgets: Sequence[float]) -> tuple[int, float]:
    last = max(i for i, budget in enumerate(budgets) if budget in standing.figures)
    return -last, standing.figures[budgets[last]].mean


def _figures(results: Sequence[Result], budgets: Sequence[float]) -> dict[float, Figure]:
    """The figure at each budget that was run."""
    found = {}
    for budget in budgets:
        own = [r for r in results if r.key.budget in (0, budget) and r.test_bpb is not None]
        if own:
            values = [r.test_bpb for r in own if r.test_bpb is not None]
            found[budget] = Figure.of(values, chance=own[0].key.budget != 0)
    return found


def errors_apart(first: Figure, second: Figure) -> float | None:
    """How many standard errors lie between two means; None where one has a single seed."""
    if first.error is None or second.error is None:
        return None
    both = math.hypot(first.error, second.error)
    return math.inf if both == 0 else (second.mean - first.mean) / both


def verdict(first: Figure, second: Figure) -> str:
    """Whether being first is established."""
    apart = errors_apart(first, second)
    fewest = min((one.n for one in (first, second) if one.error != 0), default=SEEDS)
    if apart is None or fewest < SEEDS:
        return f"not established: {RECORD} standard errors of {SEEDS} seeds are asked for, and one has {fewest}"
    said = "no chance in either" if math.isinf(apart) else f"{apart:.1f} standard errors, {RECORD} are asked for"
    return f"{'established' if apart >= RECORD else 'not established'}: {said}"
