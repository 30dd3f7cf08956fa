"""The timeline: each number that is drawn is one of the log."""

from __future__ import annotations

import pytest

from lightning_app.plasticity.report import timeline
from tests.plasticity.report.reading import logged, of, trace, without
from tests.reports.conftest import Log, typed


@pytest.mark.parametrize("name", ["train/ce", "val/ce", "val/ppl"])
def test_the_timeline_holds_the_logged_series(log: Log, name: str):
    one = trace(timeline.timeline(typed(log)), name)
    assert (one["x"], one["y"]) == logged(log, name)
    assert timeline.timeline(typed(log)).missing == []
    cut = timeline.timeline(typed(without(log, name)))
    assert cut.missing == [name]
    assert name not in [one["name"] for one in cut.data]


def test_heads_die_and_come_back_at_the_steps_of_their_events(log: Log):
    one = trace(timeline.timeline(typed(log)), "plasticity/sparsity")
    changes = {x for x, y, before in zip(one["x"][1:], one["y"][1:], one["y"], strict=False) if y != before}
    events = {r["step"] for name in ("pruning_event", "regrowth_event", "rollback") for r in of(log, name)}
    assert changes
    assert changes <= events


@pytest.mark.parametrize("key", ["ce", "ppl", "sparsity"])
def test_the_timeline_holds_the_evaluations(log: Log, key: str):
    one = trace(timeline.timeline(typed(log)), f"evaluation/{key}")
    assert one["x"] == [r["step"] for r in of(log, "evaluation")]
    assert one["y"] == [r[key] for r in of(log, "evaluation")]
    assert one["text"][:3] == ["baseline", "before, cycle 1", "pruned, cycle 1"]


def test_phases_are_coloured_and_named(log: Log):
    chart = timeline.timeline(typed(log))
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
    chart = timeline.timeline(typed(log))
    marks = [(s["x0"], s["line"]["color"]) for s in chart.layout["shapes"] if s["type"] == "line"]
    assert {(750, "@pruning"), (750, "@regrowth"), (1400, "@rollback"), (350, "@warmup")} <= set(marks)
    assert len(marks) == 3 + 3 + 3 + 1 + 1
    assert chart.layout["yaxis4"]["ticktext"] == ["phase", "stabilised", "analysed", "pruned", "regrown", "rolled back"]
    assert trace(chart, "pruned")["text"][0] == "cycle 1: 2 heads pruned (1.0, 0.0)"
    assert trace(chart, "stabilised")["text"][1] == "cycle 2: not stable: waited long enough"


def test_a_log_without_phases_has_curves_alone(log: Log):
    plain = [r for r in log if "event" not in r]
    chart = timeline.timeline(typed(plain))
    assert [one["name"] for one in chart.data] == ["train/ce", "val/ce", "val/ppl", "plasticity/sparsity"]
    assert chart.missing == ["phase_transition"]
    assert [one["yaxis"] for one in chart.data] == ["y", "y", "y2", "y3"]
    assert timeline.timeline([]).data == []
    assert "yaxis4" not in chart.layout
