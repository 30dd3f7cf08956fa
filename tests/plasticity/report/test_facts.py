"""What is read from a log: phases, fates of heads, what a rollback undid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lightning_app.plasticity.report.events import Evaluation
from lightning_app.plasticity.report.facts import Cycle, baseline_and_now, cycles, deaths, living, phases, pruned_heads
from lightning_app.reports.events import Cost
from lightning_app.reports.record import finite
from lightning_app.reports.series import series
from tests.reports.conftest import typed

Log = list[dict[str, Any]]
Simulate = Callable[..., Log]


def event(name: str, step: int, **fields: Any) -> dict[str, Any]:
    return {"event": name, "step": step, **fields}


def test_a_phase_ends_where_the_next_begins_and_the_last_with_the_log(simulate: Simulate):
    found = phases(typed(simulate()))
    assert [(p.name, p.cycle, p.start, p.end) for p in found[:6]] == [
        ("training", 0, 0, 200),
        ("warmup", 1, 200, 350),
        ("analysis", 1, 350, 350),
        ("pruning", 1, 350, 350),
        ("finetuning", 1, 350, 600),
        ("warmup", 2, 600, 750),
    ]
    assert len(found) == 13  # "done" is none
    unfinished = [event("phase_transition", 3, phase="warmup", cycle=1), {"step": 9, "train/ce": 1.0}]
    assert [(p.start, p.end) for p in phases(typed(unfinished))] == [(3, 9)]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "1", True])
def test_what_is_no_finite_number_is_left_out(value: Any):
    assert finite(value) is None
    assert series(typed([{"step": 1, "lr": value}, {"step": 2, "lr": 0.5}, event("x", 3, lr=0.7)]), "lr") == (
        [2],
        [0.5],
    )


def test_living_heads_follow_the_events(simulate: Simulate):
    history = living(typed(simulate(regrowth=True, rollback=True)))
    assert [(one.step, one.count) for one in history] == [
        (0, 12),  # plasticity began
        (350, 12),  # analysed
        (350, 10),  # pruned
        (750, 10),
        (750, 8),
        (750, 9),  # regrown
        (1150, 9),
        (1150, 7),
        (1400, 9),  # rolled back
    ]


def test_without_a_start_nothing_is_said_of_the_heads_before_the_first_event():
    assert living(typed([event("pruning_event", 5, alive=[[1, 0]])]))[0].count == 1
    assert living(typed([{"step": 1, "train/ce": 2.0}])) == []


def test_a_head_died_when_it_died_last():
    alive = ([[0, 0, 1]], [[1, 0, 1]], [[0, 0, 1]])
    names = ("pruning_event", "regrowth_event", "pruning_event")
    log = [event("plasticity_started", 0, shape=[1, 3])]
    log += [
        event(name, 10 * i, cycle=i, alive=a) for i, (name, a) in enumerate(zip(names, alive, strict=True), start=1)
    ]
    assert deaths(typed(log)) == ([[3, 1, None]], [[30, 10, None]])


def test_fates_of_pruned_heads(simulate: Simulate):
    found = pruned_heads(typed(simulate(regrowth=True, rollback=True)))
    assert [(one.cycle, one.step, one.head, one.fate) for one in found] == [
        (1, 350, (1, 0), "regrown in cycle 2, step 750 with its old weights"),
        (1, 350, (0, 0), "no"),
        (2, 750, (2, 0), "no"),
        (2, 750, (0, 1), "no"),
        (3, 1150, (3, 0), "rolled back in cycle 3, step 1,400"),
        (3, 1150, (0, 2), "rolled back in cycle 3, step 1,400"),
    ]


def test_a_head_without_a_score_or_a_reason_has_none():
    (one,) = pruned_heads(typed([event("pruning_event", 5, heads=[[0, 1]])]))
    assert (one.score, one.reason, one.cycle) == (None, "", None)


def test_what_a_rollback_undid_is_not_the_model_of_now(simulate: Simulate):
    log = typed(simulate(rollback=True))
    base, now = baseline_and_now(log, Evaluation)
    assert base is not None
    assert now is not None
    assert (base.stage, base.step) == ("baseline", 200)
    assert (now.stage, now.cycle) == ("before", 3)
    assert baseline_and_now(log, Cost)[1].stage == "after cycle 2"  # type: ignore[union-attr]
    assert baseline_and_now(typed(simulate()), Evaluation)[1].stage == "recovered"  # type: ignore[union-attr]
    assert baseline_and_now([], Cost) == (None, None)


def test_impact_and_what_is_left_of_it():
    stages = {"before": 2.0, "pruned": 3.0, "recovered": 2.5}
    log = [event("evaluation", 1, cycle=1, stage=stage, ce=ce) for stage, ce in stages.items()]
    log += [event("evaluation", 2, cycle=2, stage="pruned", ce=3.0), event("rollback", 2, cycle=2)]
    first, second = cycles(typed(log))
    assert first == Cycle(1, 2.0, 3.0, None, 2.5, rolled_back=False)
    assert (first.impact, first.left) == (0.5, 0.25)
    assert (second.impact, second.left, second.rolled_back) == (None, None, True)
    assert Cycle(1, 2.0, 3.0, 2.2, None, False).impact == pytest.approx(0.1)
