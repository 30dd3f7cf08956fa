"""Losses cycle by cycle: each number that is drawn is one of the log."""

from __future__ import annotations

from lightning_app.plasticity.report import losses
from tests.plasticity.report.reading import logged, of, trace, without
from tests.reports.conftest import Log, typed


def test_windows_of_the_stabilisations(log: Log):
    found = losses.stabilisations(typed(log))
    assert [c.data[0]["y"] for c in found] == [r["losses"] for r in of(log, "stabilised")]
    assert [c.data[0]["line"]["color"] for c in found] == ["@warmup", "@rollback", "@warmup"]  # the second timed out
    assert [(c.data, c.missing) for c in losses.stabilisations(typed(without(log, "losses")))] == [([], ["losses"])] * 3


def test_finetunings_hold_their_own_steps_alone(log: Log):
    found = losses.finetunings(typed(log))
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
    assert [c.missing for c in losses.finetunings(typed(without(log, "val/ce")))] == [["val/ce"]] * 3


def test_impact_holds_every_evaluation_by_its_stage(log: Log):
    chart = losses.impact(typed(log))
    for stage in ("baseline", "before", "pruned", "regrown", "recovered"):
        one, found = trace(chart, stage), [r for r in of(log, "evaluation") if r["stage"] == stage]
        assert (one["x"], one["y"]) == ([r["step"] for r in found], [r["ce"] for r in found])
    (line,) = chart.layout["shapes"]
    assert line["y0"] == line["y1"] == of(log, "evaluation")[0]["ce"]
