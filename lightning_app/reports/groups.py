"""What is compared: single runs, or runs that differ in nothing but their seed as one.

Whether their numbers compare at all is said in `cautions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_app.errors import InputError
from lightning_app.reports.intervals import (
    MEASURES,
    Estimate,
    change,
    change_over_seeds,
    over_passages,
    over_seeds,
    scored,
)
from lightning_app.reports.runs import PLACES, SEEDS, Run, differing

EVALUATION = (  # options by which a measure of the same text differs
    "data.block_size",
    "data.val.stride",
    "data.val.max_samples",
    "data.order",
    "data.respect_documents",
    "trainer.limit_val_batches",
)
BASE = "val/bpb"  # in which runs are compared
NO_CHANCE = "nothing"  # what a single run without passages has intervals over


@dataclass(frozen=True)
class Group:
    """One line of the table: a run, or several that differ in their seed alone.

    Attributes:
        label: what it is called.
        runs: at least one.
    """

    label: str
    runs: Sequence[Run]

    def estimate(self, name: str) -> Estimate | None:
        """A measure at the best validation: over seeds where there are several, else over passages of the text."""
        values = self.values(name)
        if not values:
            return None
        if len(values) > 1:
            return over_seeds(values)
        sums = self.passages
        if name not in MEASURES or sums is None:
            return Estimate(values[0])
        found = over_passages(sums, name)
        return Estimate(values[0], found.low, found.high)

    def values(self, name: str) -> list[float]:
        """A measure at the best validation of each run that has it."""
        return [value for run in self.runs if (value := run.measure(name)) is not None]

    @property
    def passages(self) -> np.ndarray | None:
        """(P, S) sums of the passages, mean over the runs; None where one has none."""
        found = [sums for run in self.runs if (sums := run.passages) is not None]
        if len(found) < len(self.runs) or len({sums.shape for sums in found}) != 1:
            return None
        mean: np.ndarray = np.mean(found, axis=0)
        return mean

    @property
    def chance(self) -> str:
        """What its intervals are over."""
        if len(self.runs) > 1:
            return f"{len(self.runs)} seeds"
        found = self.estimate(BASE) or self.estimate("val/ce")
        if found is None or found.low is None:
            return NO_CHANCE
        return f"{len(scored(self.passages))} passages" if self.passages is not None else NO_CHANCE

    def mean(self, values: Sequence[float | None]) -> float | None:
        """The mean of one number per run, where all have it."""
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Runs in their order; those that differ in their seed alone together, where the first of them stands.

    A seed that was run twice is not a further draw, so such runs stay apart.
    """
    groups: list[list[Run]] = []
    for run in runs:
        ours = [g for g in groups if _alike(g[0], run) and run.seed not in [one.seed for one in g]]
        if ours and run.best:
            ours[0].append(run)
        else:
            groups.append([run])
    return [Group(_label(group), group) for group in groups]


def ranked(groups: Sequence[Group]) -> list[Group]:
    """The lowest bits per byte first; last those that have none, by nats per token."""
    found = [[group.estimate(name) for name in (BASE, "val/ce")] for group in groups]
    keys = [[one.value if one else float("inf") for one in both] for both in found]
    return [group for _, group in sorted(zip(keys, groups, strict=True), key=lambda pair: pair[0])]


def living(runs: Sequence[Run]) -> list[Run]:
    """The runs that have measured something; all, where none has."""
    return [run for run in runs if run.best] or list(runs)


def baseline_of(groups: Sequence[Group], runs: Sequence[Run], name: str | None = None) -> Group:
    """The group of the run of this name, without one of the first run.

    Raises:
        InputError: no run that has measured something is called so.
    """
    found = [group for group in groups for run in group.runs if name in (run.label, group.label)]
    if name is not None and not found:
        names = ", ".join(run.label for group in groups for run in group.runs)
        raise InputError(f"baseline is {name!r}, which is none of the runs that were measured: choose one of {names}")
    return found[0] if found else next(group for group in groups if runs[0] in group.runs)


def _alike(one: Run, other: Run) -> bool:
    ignored = (*SEEDS, *PLACES)
    same = all(key in ignored for key in differing([one, other]))
    return bool(one.config) and bool(other.config) and one.best is not None and same


def _label(group: Sequence[Run]) -> str:
    first, name = group[0].label, group[0].label.partition("/")[0]
    if len(group) == 1:
        return first
    if all(run.label.partition("/")[0] == name for run in group):
        return f"{name}, {len(group)} seeds"
    return f"{first} and {len(group) - 1} more seed{'s' * (len(group) > 2)}"


def against(group: Group, base: Group) -> Estimate | None:
    """Per cent more bits per byte than the base; with an interval over seeds where both have several, else over
    passages where both have those of the same text."""
    mine, theirs = group.estimate(BASE), base.estimate(BASE)
    if mine is None or theirs is None or same_text(group.runs[0], base.runs[0]) is False:
        return None
    if min(len(group.values(BASE)), len(base.values(BASE))) > 1:
        return change_over_seeds(group.values(BASE), base.values(BASE))
    value = 100 * (mine.value / theirs.value - 1)
    a, b = group.passages, base.passages
    if a is None or b is None or a.shape != b.shape or not same_text(group.runs[0], base.runs[0]):
        return Estimate(value)
    found = change(a, b, BASE)
    return Estimate(value, found.low, found.high)


def same_text(one: Run, other: Run) -> bool | None:
    """Whether two runs validated on the same text; None where a log does not say."""
    a, b = one.text, other.text
    if a is None or b is None:
        return None
    if a.text and b.text:
        return a.text == b.text
    return (a.documents, a.words, a.bytes) == (b.documents, b.words, b.bytes)


def same_tokens(one: Run, other: Run) -> bool | None:
    """Whether nats per token of two runs on the same text compare; None where a log does not say."""
    a, b = one.text, other.text
    return None if a is None or b is None else a.tokens == b.tokens


def cautions(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know before comparing numbers; plain text."""
    first, said = runs[0], []
    if other := [run.label for run in runs if same_text(first, run) is False]:
        said.append(
            f"The validation text is not the same: {', '.join(other)} validated on another one than {first.label}. "
            "Measures on different texts do not compare, and no change is given for them."
        )
    elif [run for run in runs if same_tokens(first, run) is False]:
        said.append(
            "The tokenizers differ, so nats per token, perplexity and accuracy do not compare: a token is not the same "
            "amount of text. Compare bits per byte."
        )
    if len(runs) > 1 and (unknown := [run.label for run in runs if run.text is None]):
        said.append(
            f"Not in the log of {', '.join(unknown)}: which text it validated on. Whether it is the same is unknown."
        )
    options = differing([run for run in runs if run.config])
    if found := [
        f"{key} ({', '.join(map(str, dict.fromkeys(map(str, options[key]))))})" for key in EVALUATION if key in options
    ]:
        said.append(
            f"The text is evaluated in different ways: {'; '.join(found)}. A token has more or less text before it."
        )
    adapting = [run.label for run in runs if run.adapts]
    if adapting and len(adapting) < len(runs):
        said.append(
            f"Learned from the validation text while it was measured: {', '.join(adapting)}. The others stayed as they "
            "were, which is another task."
        )
    if going := [f"{run.label} ({run.state}, step {run.steps:,})" for run in runs if run.state != "ended"]:
        said.append(f"Not ended: {', '.join(going)}. Its numbers are those so far.")
    if without := [run.label for run in runs if run.best is None]:
        said.append(f"No validation in the log of {', '.join(without)}.")
    return said
