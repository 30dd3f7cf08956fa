"""Phases of plasticity as data: the order, the steps of each, what ends early, and plans that make no sense."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_app.errors import InputError
from lightning_app.plasticity.phases import LASTING, Plan, Position, next_move

PLAN = Plan(cycles=2, training_steps=3, warmup_steps=2, finetuning_steps=4)


def walk(
    plan: Plan, *, stable_after: int = 10**9, recovers: int = 10**9, most: int = 200
) -> list[tuple[str, int, int]]:
    """(phase, cycle, optimizer step at which it begins) of a whole run; at most so many cycles recover."""
    at, found, step = Position(), [("training", 0, 0)], 0
    while step <= 200:
        while move := next_move(plan, at, stable=at.steps >= stable_after, recovered=at.cycle <= recovers):
            at = move.to
            assert move.reason
            found.append((at.phase, at.cycle, step))
        at, step = replace(at, steps=at.steps + 1), step + 1
    return found


def test_the_whole_order_and_its_steps():
    cycle = ["warmup", "analysis", "pruning", "finetuning", "evaluation"]
    assert walk(PLAN) == [
        ("training", 0, 0),
        *zip(cycle, [1] * 5, [3, 5, 5, 5, 9], strict=True),
        *zip(cycle, [2] * 5, [9, 11, 11, 11, 15], strict=True),
        ("done", 2, 15),
    ]
    assert PLAN.most_steps == 15


def test_regrowth_follows_pruning():
    phases = [phase for phase, _, _ in walk(replace(PLAN, cycles=1, regrows=True))]
    assert phases == ["training", "warmup", "analysis", "pruning", "regrowth", "finetuning", "evaluation", "done"]


def test_without_training_and_warmup_it_begins_at_once():
    found = walk(Plan(1, 0, 0, 1))
    assert [step for _, _, step in found] == [0, 0, 0, 0, 0, 1, 1]


def test_a_warmup_ends_when_the_loss_is_stable_or_at_its_limit():
    plan = replace(PLAN, warmup_steps=50, until_stable=True)
    assert ("analysis", 1, 10) in walk(plan, stable_after=7)
    assert ("analysis", 1, 53) in walk(plan)
    assert ("analysis", 1, 53) in walk(replace(plan, until_stable=False), stable_after=7)
    at = Position("warmup", 1, 7)
    assert "stable" in next_move(plan, at, stable=True).reason  # type: ignore[union-attr]
    assert "not stable within 50" in next_move(plan, replace(at, steps=50)).reason  # type: ignore[union-attr]
    assert next_move(plan, Position("finetuning", 1, 1), stable=True) is None


def test_automatic_ends_after_a_cycle_that_did_not_recover():
    automatic = replace(PLAN, automatic=True, cycles=5)
    assert walk(automatic, recovers=2)[-1] == ("done", 3, 3 + 3 * 6)
    assert walk(automatic)[-1][:2] == ("done", 5)
    assert walk(replace(automatic, automatic=False), recovers=0)[-1][:2] == ("done", 5)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 5), st.integers(1, 5), st.booleans())
def test_it_always_ends_within_its_steps(cycles: int, training: int, warmup: int, finetuning: int, regrows: bool):
    plan = Plan(cycles, training, warmup, finetuning, regrows=regrows)
    found = walk(plan)
    assert found[-1] == ("done", cycles, plan.most_steps)
    assert [c for _, c, _ in found] == sorted(c for _, c, _ in found)
    assert next_move(plan, Position("done", cycles, 10**6)) is None
    assert all(plan.steps_of(phase) == 0 for phase, _, _ in found if phase not in LASTING)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cycles": 0}, "cycles is 0; it must be at least 1"),
        ({"training_steps": -1}, "training_steps is -1"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"finetuning_steps": -1}, "finetuning_steps is -1"),
        ({"finetuning_steps": 0}, "finetuning_steps is 0; to recover"),
        ({"until_stable": True, "warmup_steps": 0}, "a loss may never be stable"),
    ],
)
def test_plans_that_make_no_sense(change: dict, words: str):
    with pytest.raises(InputError, match=words):
        replace(PLAN, **change)
