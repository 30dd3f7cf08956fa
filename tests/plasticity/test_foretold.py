"""How often each part of a cycle is still to come."""

from __future__ import annotations

import pytest

from lightning_app.plasticity.foretold import entered
from lightning_app.plasticity.phases import Plan, Position

CYCLE = {"warmup": 1, "analysis": 1, "pruning": 1, "finetuning": 1, "evaluation": 1}


@pytest.mark.parametrize(
    ("at", "steps", "phases", "evaluations"),
    [
        (Position("training", 0, 3), 6, {}, 0),
        (Position("training", 0, 3), 7, {"warmup": 1}, 0),
        (Position("training", 0, 3), 7 + 4, {"warmup": 1, "analysis": 1, "pruning": 1, "finetuning": 1}, 2),
        (Position("training", 0, 3), 7 + 4 + 6, {**CYCLE, "warmup": 2}, 5),
        (Position("training", 0, 3), 1000, {**dict.fromkeys(CYCLE, 2), "done": 1}, 10),
        (Position("finetuning", 2, 1), 1000, {"evaluation": 1, "done": 1}, 3),
        (Position("done", 2, 1), 1000, {}, 0),
    ],
)
def test_what_is_to_come(at: Position, steps: int, phases: dict[str, int], evaluations: int):
    plan = Plan(cycles=2, training_steps=10, warmup_steps=4, finetuning_steps=6)
    assert entered(plan, at, steps=steps, eval_freq=2) == (phases, evaluations)


def test_a_cycle_with_regrowth():
    plan = Plan(cycles=1, training_steps=0, warmup_steps=1, finetuning_steps=1, regrows=True)
    found, _ = entered(plan, Position("warmup", 1), steps=9, eval_freq=5)
    assert list(found) == ["analysis", "pruning", "regrowth", "finetuning", "evaluation", "done"]
