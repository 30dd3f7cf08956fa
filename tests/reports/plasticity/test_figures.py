"""Each number that is drawn is one of the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lightning_app.reports.figures import Chart
from lightning_app.reports.plasticity import figures
from tests.reports.conftest import typed

Log = list[dict[str, Any]]
Simulate = Callable[..., Log]


@pytest.fixture
def log(simulate: Simulate) -> Log:
    return simulate(regrowth=True, rollback=True, controller=True)


def trace(chart: Chart, name: str) -> dict[str, Any]:
    (found,) = [one for one in chart.data if one["name"] == name]
    return found


def of(log: Log, event: str) -> Log:
    found = [r for r in log if r.get("event") == event]
    assert found, f"the log has no {event}"
    return found


def logged(log: Log, name: str) -> tuple[list[int], list[float]]:
    found = [r for r in log if "event" not in r and name in r]
    assert len(found) > 10
    return [r["step"] for r in found], [r[name] for r in found]


def without(log: Log, *names: str) -> Log:
    """The log as it would be if these events and fields had never been written."""
    return [{k: v for k, v in r.items() if k not in names} for r in log if r.get("event") not in names]


@pytest.mark.parametrize("name", ["train/ce", "val/ce", "val/ppl", "plasticity/sparsity"])
def test_the_timeline_holds_the_logged_series(log: Log, name: str):
    one = trace(figures.timeline(typed(log)), name)
    assert (one["x"], one["y"]) == logged(log, name)
    assert figures.timeline(typed(log)).missing == []
    cut = figures.timeline(typed(without(log, name)))
    assert cut.missing == [name]
    assert name not in [one["name"] for one in cut.data]


@pytest.mark.parametrize("key", ["ce", "ppl", "sparsity"])
def test_the_timeline_holds_the_evaluations(log: Log, key: str):
    one = trace(figures.timeline(typed(log)), f"evaluation/{key}")
    assert one["x"] == [r["step"] for r in of(log, "evaluation")]
    assert one["y"] == [r[key] for r in of(log, "evaluation")]
    assert one["text"][:3] == ["baseline", "before, cycle 1", "pruned, cycle 1"]


def test_phases_are_coloured_and_named(log: Log):
    chart = figures.timeline(typed(log))
    strip = trace(chart, "phases")
    spans = list(zip(strip["text"], strip["base"], strip["x"], strip["marker"]["color"], strict=True))
    assert spans[:3] == [
        ("training", 0, 200, "@training"),
        ("warmup 1", 200, 150, "@warmup"),
        ("fine-tuning 1", 350, 250, "@finetuning"),
    ]
    bands = [(s["x0"], s["x1"], s["fillcolor"]) for s in chart.layout["shapes"] if s["type"] == "rect"]
    assert bands[:2] == [(0, 200, "@training"), (200, 350, "@warmup")]
    assert len(bands) == len(spans) == 7


def test_events_are_vertical_lines_and_marks_in_lanes(log: Log):
    chart = figures.timeline(typed(log))
    marks = [(s["x0"], s["line"]["color"]) for s in chart.layout["shapes"] if s["type"] == "line"]
    assert {(750, "@pruning"), (750, "@regrowth"), (1400, "@rollback"), (350, "@warmup")} <= set(marks)
    assert len(marks) == 3 + 3 + 3 + 1 + 1
    assert chart.layout["yaxis4"]["ticktext"] == ["phase", "stabilised", "analysed", "pruned", "regrown", "rolled back"]
    assert trace(chart, "pruned")["text"][0] == "cycle 1: 2 heads pruned (1.0, 0.0)"
    assert trace(chart, "stabilised")["text"][1] == "cycle 2: not stable: waited long enough"


def test_a_log_without_phases_has_curves_alone(log: Log):
    plain = [r for r in log if "event" not in r]
    chart = figures.timeline(typed(plain))
    assert [one["name"] for one in chart.data] == ["train/ce", "val/ce", "val/ppl", "plasticity/sparsity"]
    assert chart.missing == ["phase_transition"]
    assert [one["yaxis"] for one in chart.data] == ["y", "y", "y2", "y3"]
    assert figures.timeline([]).data == []
    assert "yaxis4" not in chart.layout


def test_windows_of_the_stabilisations(log: Log):
    found = figures.stabilisations(typed(log))
    assert [c.data[0]["y"] for c in found] == [r["losses"] for r in of(log, "stabilised")]
    assert [c.data[0]["line"]["color"] for c in found] == ["@warmup", "@rollback", "@warmup"]  # the second timed out
    assert [(c.data, c.missing) for c in figures.stabilisations(typed(without(log, "losses")))] == [
        ([], ["losses"])
    ] * 3


@pytest.mark.parametrize("name", ["entropy", "gradient", "importance"])
def test_maps_hold_the_matrices_and_mark_the_dead(log: Log, name: str):
    found = figures.analysis_maps(typed(log), name)
    assert [trace(c, name)["z"] for c in found] == [r[name] for r in of(log, "analysis")]
    assert len({(c.data[0]["zmin"], c.data[0]["zmax"]) for c in found}) == 1
    assert [one["name"] for one in found[0].data] == [name]
    crosses = trace(found[1], "dead")
    assert set(zip(crosses["y"], crosses["x"], strict=True)) == {(1, 0), (0, 0)}  # layer, head
    assert figures.analysis_maps(typed(without(log, name)), name) == []


def test_a_head_that_was_not_measured_is_not_called_dead():
    analysis = {"event": "analysis", "step": 1, "cycle": 1, "alive": [[1, 1, 0]], "entropy": [[0.5, None, None]]}
    (chart,) = figures.analysis_maps(typed([analysis]), "entropy")
    assert (trace(chart, "not measured")["x"], trace(chart, "dead")["x"]) == ([1], [2])


def test_gradients_over_time(log: Log):
    found = of(log, "analysis")
    mean, heads = figures.over_time("g", "Gradient", typed(found), "gradient")
    assert trace(heads, "gradient")["z"] == [
        [r["gradient"][layer][head] for r in found] for layer in range(4) for head in range(3)
    ]
    assert heads.data[0]["y"][:4] == ["0.0", "0.1", "0.2", "1.0"]
    values = [[x for row in r["gradient"] for x in row if x is not None] for r in found]
    assert trace(mean, "mean over heads")["y"] == [sum(row) / len(row) for row in values]
    assert trace(mean, "lowest")["y"] == [min(row) for row in values]
    assert trace(mean, "lowest to highest")["y"] == [max(row) for row in values]


def test_of_many_updates_some_are_shown_and_the_last_always():
    many = [{"event": "controller_update", "step": i, "gates": [[i / 500]]} for i in range(1, 501)]
    mean, heads = figures.over_time("g", "Gates", typed(many), "gates")
    assert len(heads.data[0]["x"]) == 167
    assert trace(mean, "mean over heads")["x"][-1] == 500
    assert "one in 3" in heads.title


def test_finetunings_hold_their_own_steps_alone(log: Log):
    found = figures.finetunings(typed(log))
    assert [c.title for c in found] == [
        "Cycle 1: steps 350 to 600",
        "Cycle 2: steps 750 to 1,000",
        "Cycle 3: steps 1,150 to 1,400",
    ]
    for name in ("train/ce", "val/ce"):
        steps, values = logged(log, name)
        inside = [(step, value) for step, value in zip(steps, values, strict=True) if 750 < step <= 1000]
        one = trace(found[1], name)
        assert list(zip(one["x"], one["y"], strict=True)) == inside
        assert len(inside) == 25
    assert [c.missing for c in figures.finetunings(typed(without(log, "val/ce")))] == [["val/ce"]] * 3


def test_impact_holds_every_evaluation_by_its_stage(log: Log):
    chart = figures.impact(typed(log))
    for stage in ("baseline", "before", "pruned", "regrown", "recovered"):
        one, found = trace(chart, stage), [r for r in of(log, "evaluation") if r["stage"] == stage]
        assert (one["x"], one["y"]) == ([r["step"] for r in found], [r["ce"] for r in found])
    (line,) = chart.layout["shapes"]
    assert line["y0"] == line["y1"] == of(log, "evaluation")[0]["ce"]


def test_when_heads_died_and_how_many_live(log: Log):
    died, count = figures.heads_alive(typed(log))
    none = None
    assert died.data[0]["z"] == [[1, 2, none], [none] * 3, [2, none, none], [none] * 3]
    assert died.data[0]["customdata"][0] == [350, 750, none]
    assert (trace(died, "regrown")["y"], trace(died, "regrown")["x"]) == ([1], [0])
    assert len(trace(died, "alive")["x"]) == 8
    assert trace(count, "heads alive (events)")["y"] == [12, 12, 10, 10, 8, 9, 9, 7, 9, 9]
    one = trace(count, "plasticity/active_heads")
    assert (one["x"], one["y"]) == logged(log, "plasticity/active_heads")
    assert figures.heads_alive(typed(without(log, "plasticity/active_heads")))[1].missing == ["plasticity/active_heads"]


def test_costs_are_shares_of_the_baseline(log: Log):
    shares, ratio = figures.costs(typed(log))
    found = of(log, "cost")
    assert len(found) == 3
    for name in ("parameters", "flops_per_token", "latency_ms"):
        assert trace(shares, name)["y"] == [r[name] / found[0][name] for r in found]
    error = trace(shares, "latency_ms")["error_y"]
    assert error["array"] == [(r["latency_spread"][1] - r["latency_ms"]) / found[0]["latency_ms"] for r in found]
    for name in ("measured", "ceiling"):
        assert trace(ratio, name)["y"] == [r[name] for r in found[1:]]
    assert figures.costs(typed(without(log, "ceiling")))[1].missing == ["ceiling"]
    assert figures.costs(typed(without(log, "latency_ms")))[0].missing == ["latency_ms"]


def test_rates_of_the_scheduler_and_of_groups(log: Log):
    (chart,) = figures.rates(typed(log))
    assert (trace(chart, "lr")["x"], trace(chart, "lr")["y"]) == logged(log, "lr")
    assert (trace(chart, "layer 1")["x"], trace(chart, "layer 1")["y"]) == ([350, 750, 1150], [6e-4] * 3)
    (cut,) = figures.rates(typed(without(log, "learning_rates")))
    assert cut.missing == ["learning_rates"]
    assert figures.rates(typed(without(log, "learning_rates", "lr"))) == []


def test_gates_of_the_controller(log: Log):
    found = figures.controller(typed([*log, {"step": 1401, "controller/mean_gate": 0.25}]))
    ids: Sequence[str] = [c.id for c in found]
    assert ids[:3] == ["mean-gate", "controller-gates-mean", "controller-gates-heads"]
    assert found[0].data[0]["y"] == [0.25]
    updates = of(log, "controller_update")
    assert found[2].data[0]["z"][4] == [r["gates"][1][1] for r in updates]
    assert figures.controller(typed(without(log, "controller_update"))) == []


def test_text_of_the_log_is_shown_and_not_obeyed_by_plotly():
    bold = "<b>x</b>"
    log: Log = [
        {"event": "learning_rates", "step": 1, "groups": [{"name": bold, "lr": 1.0}]},
        {"event": "cost", "step": 1, "stage": "baseline", "parameters": 5},
        {"event": "cost", "step": 2, "stage": bold, "parameters": 4},
    ]
    assert figures.rates(typed(log))[0].data[0]["name"] == "&lt;b&gt;x&lt;/b&gt;"
    assert figures.costs(typed(log))[0].data[0]["x"] == ["baseline", "&lt;b&gt;x&lt;/b&gt;"]
