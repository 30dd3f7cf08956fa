"""What a run's log says of its plasticity: phases, heads that lived and died, what each cycle cost and won back.

Pure: records in, facts out. What was not logged is None or an empty list, never a guess.
Letters of a shape: L layers, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
Matrix = list[list[float | None]]  # L x H
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


def finite(value: Any) -> float | int | None:
    """The number, or None for whatever is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else None


def change(before: float | None, after: float | None) -> float | None:
    """(after - before) / before; None where one is missing."""
    return None if not before or after is None else after / before - 1


def events(records: Sequence[Record], *names: str) -> list[Record]:
    """The events of these names in order."""
    return [r for r in records if r.get("event") in names]


def step_of(record: Record) -> int:
    return int(finite(record.get("step")) or 0)


def last_step(records: Sequence[Record]) -> int:
    return max(map(step_of, records), default=0)


def series(records: Sequence[Record], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one number among the logged steps, where it is finite."""
    found = [(step_of(r), value) for r in records if "event" not in r and (value := finite(r.get(name))) is not None]
    return [step for step, _ in found], [value for _, value in found]


def phases(records: Sequence[Record]) -> list[Phase]:
    """In order; the last one ends with the log."""
    found = events(records, "phase_transition")
    ends = [*map(step_of, found[1:]), last_step(records)]
    return [
        Phase(str(r.get("phase")), int(r.get("cycle") or 0), step_of(r), end, str(r.get("reason") or ""))
        for r, end in zip(found, ends, strict=False)
        if r.get("phase") != "done"
    ]


def standing(records: Sequence[Record]) -> list[Record]:
    """The records without what a rollback undid: all from its cycle's first pruning on."""
    kept: list[Record] = []
    for record in records:
        if record.get("event") == "rollback":
            ours = (i for i, r in enumerate(kept) if r.get("event") == "pruning_event" and _same_cycle(r, record))
            kept = kept[: next(ours, len(kept))]
        kept.append(record)
    return kept


def _same_cycle(one: Record, other: Record) -> bool:
    return one.get("cycle") == other.get("cycle")


def living(records: Sequence[Record]) -> list[Living]:
    """Which heads are alive, at the start of plasticity and after each event that says so."""
    found: list[Living] = []
    for r in events(records, "plasticity_started", "analysis", "pruning_event", "regrowth_event", "rollback"):
        alive = r.get("alive")
        if alive is None and r["event"] == "plasticity_started" and not found and r.get("shape"):
            layers, heads = r["shape"]
            alive = [[1] * heads for _ in range(layers)]
        if alive is not None:
            found.append(Living(step_of(r), r.get("cycle"), [[int(bool(x)) for x in row] for row in alive]))
    return found


def heads_of(record: Record) -> list[Head]:
    return [(int(layer), int(head)) for layer, head in record.get("heads") or []]


def pruned_heads(records: Sequence[Record]) -> list[PrunedHead]:
    """One for each head of each pruning event, in order."""
    found = []
    for i, r in enumerate(records):
        if r.get("event") != "pruning_event":
            continue
        heads = heads_of(r)
        scores = [*(r.get("scores") or []), *[None] * len(heads)]
        own, of_all = r.get("reasons") or [], str(r.get("reason") or "")
        reasons = [*(f"{one}; {of_all}" if of_all else str(one) for one in own), *[of_all] * len(heads)]
        for head, score, reason in zip(heads, scores, reasons, strict=False):
            fate = _fate(head, records[i + 1 :])
            found.append(PrunedHead(r.get("cycle"), step_of(r), head, finite(score), reason, fate))
    return found


def _fate(head: Head, later: Sequence[Record]) -> str:
    """What became of a head that was pruned just before these records."""
    layer, number = head
    for r in later:
        where = f"cycle {r.get('cycle', '?')}, step {step_of(r):,}"
        if r.get("event") == "regrowth_event" and head in heads_of(r):
            how = {"undo": "its old weights", "new": "new weights"}.get(r.get("how", ""), str(r.get("how") or ""))
            return f"regrown in {where}" + (f" with {how}" if how else "")
        if r.get("event") == "rollback" and (r.get("alive") or [[]])[layer : layer + 1]:
            if r["alive"][layer][number]:
                return f"rolled back in {where}"
        elif r.get("event") == "pruning_event" and head in heads_of(r):
            break
    return "no"


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


def evaluations(records: Sequence[Record]) -> list[Record]:
    """Those with a cross-entropy."""
    return [r for r in events(records, "evaluation") if finite(r.get("ce")) is not None]


def unpruned(records: Sequence[Record]) -> Record | None:
    """The last evaluation before the first pruning: the fairest of the run's own with which to compare what is left."""
    found: Record | None = None
    for r in records:
        if r.get("event") == "pruning_event":
            return found
        found = r if r.get("event") == "evaluation" and finite(r.get("ce")) is not None else found
    return None


def cycles(records: Sequence[Record]) -> list[Cycle]:
    """One for each cycle that was evaluated, in order; of each stage the last evaluation counts."""
    found: dict[int, dict[str, float]] = {}
    for r in evaluations(records):
        if r.get("stage") != "baseline":
            found.setdefault(int(r.get("cycle") or 0), {})[str(r.get("stage"))] = r["ce"]
    undone = {r.get("cycle") for r in events(records, "rollback")}
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


def baseline_and_now(records: Sequence[Record], event: str) -> tuple[Record | None, Record | None]:
    """Of "evaluation" or "cost": the one of stage "baseline", and the last one that no rollback undid."""
    found = events(standing(records), event)
    baseline = next((r for r in found if r.get("stage") == "baseline"), None)
    now = next((r for r in reversed(found) if r.get("stage") != "baseline"), None)
    return baseline, now
