"""The phases of a run with neural plasticity, as data, and a pure look-up of what comes next.

training, then for each cycle: warmup, analysis, pruning, (regrowth), finetuning, evaluation; at last done.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_app.errors import InputError

Phase = Literal["training", "warmup", "analysis", "pruning", "regrowth", "finetuning", "evaluation", "done"]
LASTING: tuple[Phase, ...] = ("training", "warmup", "finetuning")  # the others happen between two steps


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        cycles: at most.
        training_steps: optimizer steps before the first cycle.
        warmup_steps: of each cycle, before its analysis; with `until_stable` the most of them.
        finetuning_steps: of each cycle, after its pruning.
        until_stable: a warmup ends as soon as the loss is stable.
        regrows: whether a cycle has a phase of regrowth.
        automatic: no further cycle after one that has not recovered.

    Raises:
        InputError: a count below 0, no cycle, or no step at all in a cycle.
    """

    cycles: int
    training_steps: int
    warmup_steps: int
    finetuning_steps: int
    until_stable: bool = False
    regrows: bool = False
    automatic: bool = False

    def __post_init__(self) -> None:
        for name in ("training_steps", "warmup_steps", "finetuning_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.cycles < 1:
            raise InputError(f"cycles is {self.cycles}; it must be at least 1")
        if self.finetuning_steps < 1:
            raise InputError(f"finetuning_steps is {self.finetuning_steps}; to recover it must be at least 1")
        if self.until_stable and self.warmup_steps < 1:
            raise InputError(
                f"warmup lasts until the loss is stable, and for at most warmup_steps, which is {self.warmup_steps}: "
                "give a limit, as a loss may never be stable"
            )

    @property
    def most_steps(self) -> int:
        """Optimizer steps until it is done, at most."""
        return self.training_steps + self.cycles * (self.warmup_steps + self.finetuning_steps)

    def steps_of(self, phase: Phase) -> int:
        """How long a phase lasts, at most."""
        return {
            "training": self.training_steps,
            "warmup": self.warmup_steps,
            "finetuning": self.finetuning_steps,
        }.get(phase, 0)


@dataclass(frozen=True)
class Position:
    """Where a run is: in which phase of which cycle (counted from 1; 0 before the first), and for how many steps."""

    phase: Phase = "training"
    cycle: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Move:
    """A transition, and why."""

    to: Position
    reason: str


def next_move(plan: Plan, at: Position, *, stable: bool = False, recovered: bool = True) -> Move | None:
    """Where to go from here, or None: the phase goes on.

    Args:
        stable: the loss of this phase is stable.
        recovered: the loss is back within the tolerance; asked for at the end of an evaluation.
    """
    planned = plan.steps_of(at.phase)
    early = at.phase == "warmup" and plan.until_stable and stable
    if at.phase == "done" or (at.phase in LASTING and at.steps < planned and not early):
        return None
    why = "it is done"
    if early:
        why = "the loss is stable"
    elif at.phase == "warmup" and plan.until_stable:
        why = f"the loss was not stable within {planned} steps"
    elif at.phase in LASTING:
        why = f"{planned} steps are done"
    if at.phase == "evaluation":
        if plan.automatic and not recovered:
            return Move(Position("done", at.cycle), "the loss did not recover: no further cycle")
        if at.cycle == plan.cycles:
            return Move(Position("done", at.cycle), f"all {plan.cycles} cycles are done")
    following: dict[Phase, Phase] = {
        "training": "warmup",
        "warmup": "analysis",
        "analysis": "pruning",
        "pruning": "regrowth" if plan.regrows else "finetuning",
        "regrowth": "finetuning",
        "finetuning": "evaluation",
        "evaluation": "warmup",
    }
    to = following[at.phase]
    return Move(Position(to, at.cycle + (to == "warmup")), why)
