"""What a run's log says of its plasticity: phases, heads that lived and died, what each cycle cost and won back.

Pure: records in, facts out. What was not logged is None or an empty list, never a guess.
Letters of a shape: L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lightning_app.plasticity.report.events import (
    Analysis,
    Evaluation,
    Matrix,
    PhaseTransition,
    PlasticityStarted,
    Pruning,
    Regrowth,
    Rollback,
)
from lightning_app.reports.events import Cost
from lightning_app.reports.record import Record
from lightning_app.reports.series import change, events, last_step

Head = tuple[int, int]  # layer and head, both from 0


@dataclass(frozen=True)
class Phase:
    """One phase from `start` to `end`, in optimizer steps done; both are equal where it took none."""

    name: str
    cycle: int
    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Living:
    """Which heads are alive from `step` on; `alive` is L x H of 0 and 1."""

    step: int
    cycle: int | None
    alive: list[list[int]]

    @property
    def count(self) -> int:
        return sum(map(sum, self.alive))


@dataclass(frozen=True)
class PrunedHead:
    """A head that a pruning event took, and what became of it: "pruned", or how and when it came back."""

    cycle: int | None
    step: int
    head: Head
    score: float | None
    reason: str
    fate: str


@dataclass(frozen=True)
class Cycle:
    """Cross-entropy of one cycle's evaluations in nats per token, None where there was none."""

    cycle: int
    before: float | None
    pruned: float | None
    regrown: float | None
    recovered: float | None
    rolled_back: bool

    @property
    def impact(self) -> float | None:
        """Relative change by the pruning (and the regrowth, where there was one)."""
        return change(self.before, self.pruned if self.regrown is None else self.regrown)

    @property
    def left(self) -> float | None:
        """Relative change that is left after fine-tuning."""
        return change(self.before, self.recovered)


def phases(records: Sequence[Record]) -> list[Phase]:
    """In order; the last one ends with the log."""
    found = events(records, PhaseTransition)
    ends = [*(one.step for one in found[1:]), last_step(records)]
    return [
        Phase(str(one.phase), one.cycle or 0, one.step, end, one.reason or "")
        for one, end in zip(found, ends, strict=False)
        if one.phase != "done"
    ]


def standing(records: Sequence[Record]) -> list[Record]:
    """The records without what a rollback undid: all from its cycle's first pruning on."""
    kept: list[Record] = []
    for record in records:
        if isinstance(record, Rollback):
            ours = (i for i, r in enumerate(kept) if isinstance(r, Pruning) and r.cycle == record.cycle)
            kept = kept[: next(ours, len(kept))]
        kept.append(record)
    return kept


def living(records: Sequence[Record]) -> list[Living]:
    """Which heads are alive, at the start of plasticity and after each event that says so."""
    found: list[Living] = []
    for r in records:
        if isinstance(r, PlasticityStarted) and not found and r.shape and len(r.shape) == 2:
            layers, heads = r.shape
            found.append(Living(r.step, None, [[1] * heads for _ in range(layers)]))
        elif isinstance(r, Analysis | Pruning | Regrowth | Rollback) and r.alive is not None:
            found.append(Living(r.step, r.cycle, [[int(bool(x)) for x in row] for row in r.alive]))
    return found


def heads_of(record: Pruning | Regrowth) -> list[Head]:
    return [(one[0], one[1]) for one in record.heads or [] if len(one) == 2]


def pruned_heads(records: Sequence[Record]) -> list[PrunedHead]:
    """One for each head of each pruning event, in order."""
    found = []
    for i, r in enumerate(records):
        if not isinstance(r, Pruning):
            continue
        heads = heads_of(r)
        scores = [*(r.scores or []), *[None] * len(heads)]
        of_all = r.reason or ""
        reasons = [*(f"{one}; {of_all}" if of_all else one for one in r.reasons or []), *[of_all] * len(heads)]
        for head, score, reason in zip(heads, scores, reasons, strict=False):
            found.append(PrunedHead(r.cycle, r.step, head, score, reason, _fate(head, records[i + 1 :])))
    return found


def _fate(head: Head, later: Sequence[Record]) -> str:
    """What became of a head that was pruned just before these records."""
    layer, number = head
    for r in later:
        if isinstance(r, Regrowth) and head in heads_of(r):
            how = {"undo": "its old weights", "new": "new weights"}.get(r.how or "", r.how)
            return f"regrown in {_where(r)}" + (f" with {how}" if how else "")
        if isinstance(r, Rollback) and (r.alive or [[]])[layer : layer + 1]:
            if r.alive and r.alive[layer][number]:
                return f"rolled back in {_where(r)}"
        elif isinstance(r, Pruning) and head in heads_of(r):
            break
    return "no"


def _where(r: Regrowth | Rollback) -> str:
    return f"cycle {'?' if r.cycle is None else r.cycle}, step {r.step:,}"


def deaths(records: Sequence[Record]) -> tuple[Matrix, Matrix]:
    """L x H: the cycle and the step in which each head that is dead at the end died; None for the living."""
    history = living(records)
    if not history:
        return [], []
    cycles: Matrix = [[None] * len(row) for row in history[0].alive]
    steps: Matrix = [[None] * len(row) for row in history[0].alive]
    for now in history:
        for layer, row in enumerate(now.alive):
            for head, alive in enumerate(row):
                if alive:
                    cycles[layer][head] = steps[layer][head] = None
                elif steps[layer][head] is None:
                    cycles[layer][head], steps[layer][head] = now.cycle or 0, now.step
    return cycles, steps


def evaluations(records: Sequence[Record]) -> list[Evaluation]:
    """The evaluations that have a cross-entropy."""
    return [one for one in events(records, Evaluation) if one.ce is not None]


def unpruned(records: Sequence[Record]) -> Evaluation | None:
    """The last evaluation before the first pruning: the fairest of the run's own with which to compare what is left."""
    first = next((i for i, r in enumerate(records) if isinstance(r, Pruning)), None)
    before = evaluations(records[:first]) if first is not None else []
    return before[-1] if before else None


def cycles(records: Sequence[Record]) -> list[Cycle]:
    """One for each cycle that was evaluated, in order; of each stage the last evaluation counts."""
    found: dict[int, dict[str, float]] = {}
    for one in events(records, Evaluation):
        if one.stage != "baseline" and one.ce is not None:
            found.setdefault(one.cycle or 0, {})[str(one.stage)] = one.ce
    undone = {one.cycle for one in events(records, Rollback)}
    return [
        Cycle(
            cycle,
            before=ce.get("before"),
            pruned=ce.get("pruned"),
            regrown=ce.get("regrown"),
            recovered=ce.get("recovered"),
            rolled_back=cycle in undone,
        )
        for cycle, ce in sorted(found.items())
    ]


Staged = TypeVar("Staged", Evaluation, Cost)


def baseline_and_now(records: Sequence[Record], kind: type[Staged]) -> tuple[Staged | None, Staged | None]:
    """The event of stage "baseline" of a kind (evaluations or costs), and the last one that no rollback undid."""
    found = events(standing(records), kind)
    baseline = next((one for one in found if one.stage == "baseline"), None)
    now = next((one for one in reversed(found) if one.stage != "baseline"), None)
    return baseline, now
