"""Maps of heads: each number that is drawn is one of the log."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_app.plasticity.report import heads
from tests.plasticity.report.reading import logged, of, trace, without
from tests.reports.conftest import Log, typed


@pytest.mark.parametrize("name", ["entropy", "gradient", "importance"])
def test_maps_hold_the_matrices_and_mark_the_dead(log: Log, name: str):
    found = heads.analysis_maps(typed(log), name)
    assert [trace(c, name)["z"] for c in found] == [r[name] for r in of(log, "analysis")]
    assert len({(c.data[0]["zmin"], c.data[0]["zmax"]) for c in found}) == 1
    assert [one["name"] for one in found[0].data] == [name]
    crosses = trace(found[1], "dead")
    assert set(zip(crosses["y"], crosses["x"], strict=True)) == {(1, 0), (0, 0)}  # layer, head
    assert heads.analysis_maps(typed(without(log, name)), name) == []


def test_a_head_that_was_not_measured_is_not_called_dead():
    analysis = {"event": "analysis", "step": 1, "cycle": 1, "alive": [[1, 1, 0]], "entropy": [[0.5, None, None]]}
    (chart,) = heads.analysis_maps(typed([analysis]), "entropy")
    assert (trace(chart, "not measured")["x"], trace(chart, "dead")["x"]) == ([1], [2])


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([*range(1, 20), 500.0], (1, 1 + 2 * 18)),  # one head of 20 is worth more than all others
        ([*range(1, 21)], (1, 20)),
        ([3.0, 3.0, 3.0], (3, 3)),
    ],
)
def test_one_head_far_above_leaves_colours_to_the_others(values: list[float], ends: tuple[float, float]):
    analysis = {"event": "analysis", "step": 1, "cycle": 1, "alive": [[1] * len(values)], "importance": [values]}
    (chart,) = heads.analysis_maps(typed([analysis]), "importance")
    assert (chart.data[0]["zmin"], chart.data[0]["zmax"]) == ends
    assert chart.data[0]["z"] == [values]


def test_gradients_over_time(log: Log):
    found = of(log, "analysis")
    mean, each = heads.over_time("g", "Gradient", typed(found), "gradient")
    assert trace(each, "gradient")["z"] == [
        [r["gradient"][layer][head] for r in found] for layer in range(4) for head in range(3)
    ]
    assert each.data[0]["y"][:4] == ["0.0", "0.1", "0.2", "1.0"]
    values = [[x for row in r["gradient"] for x in row if x is not None] for r in found]
    assert trace(mean, "mean over heads")["y"] == [sum(row) / len(row) for row in values]
    assert trace(mean, "lowest")["y"] == [min(row) for row in values]
    assert trace(mean, "lowest to highest")["y"] == [max(row) for row in values]


def test_of_many_updates_some_are_shown_and_the_last_always():
    many = [{"event": "controller_update", "step": i, "gates": [[i / 500]]} for i in range(1, 501)]
    mean, each = heads.over_time("g", "Gates", typed(many), "gates")
    assert len(each.data[0]["x"]) == 167
    assert trace(mean, "mean over heads")["x"][-1] == 500
    assert "one in 3" in each.title


def test_when_heads_died_and_how_many_live(log: Log):
    died, count = heads.heads_alive(typed(log))
    none = None
    assert died.data[0]["z"] == [[1, 2, none], [none] * 3, [2, none, none], [none] * 3]
    assert died.data[0]["customdata"][0] == [350, 750, none]
    assert (trace(died, "regrown")["y"], trace(died, "regrown")["x"]) == ([1], [0])
    assert len(trace(died, "alive")["x"]) == 8
    assert trace(count, "heads alive (events)")["y"] == [12, 12, 10, 10, 8, 9, 9, 7, 9, 9]
    one = trace(count, "plasticity/active_heads")
    assert (one["x"], one["y"]) == logged(log, "plasticity/active_heads")
    assert heads.heads_alive(typed(without(log, "plasticity/active_heads")))[1].missing == ["plasticity/active_heads"]


def test_gates_of_the_controller(log: Log):
    found = heads.controller(typed([*log, {"step": 1401, "controller/mean_gate": 0.25}]))
    ids: Sequence[str] = [c.id for c in found]
    assert ids[:3] == ["mean-gate", "controller-gates-mean", "controller-gates-heads"]
    assert found[0].data[0]["y"] == [0.25]
    updates = of(log, "controller_update")
    assert found[2].data[0]["z"][4] == [r["gates"][1][1] for r in updates]
    assert heads.controller(typed(without(log, "controller_update"))) == []
