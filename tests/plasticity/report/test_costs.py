"""Costs and learning rates: each number that is drawn is one of the log."""

from __future__ import annotations

from lightning_app.plasticity.report import costs
from tests.plasticity.report.reading import logged, of, trace, without
from tests.reports.conftest import Log, typed


def test_costs_are_shares_of_the_baseline(log: Log):
    shares, ratio = costs.costs(typed(log))
    found = of(log, "cost")
    assert len(found) == 3
    for name in ("parameters", "flops_per_token", "latency_ms"):
        assert trace(shares, name)["y"] == [r[name] / found[0][name] for r in found]
    error = trace(shares, "latency_ms")["error_y"]
    assert error["array"] == [(r["latency_spread"][1] - r["latency_ms"]) / found[0]["latency_ms"] for r in found]
    for name in ("measured", "ceiling"):
        assert trace(ratio, name)["y"] == [r[name] for r in found[1:]]
    assert costs.costs(typed(without(log, "ceiling")))[1].missing == ["ceiling"]
    assert costs.costs(typed(without(log, "latency_ms")))[0].missing == ["latency_ms"]


def test_rates_of_the_scheduler_and_of_groups(log: Log):
    (chart,) = costs.rates(typed(log))
    assert (trace(chart, "lr")["x"], trace(chart, "lr")["y"]) == logged(log, "lr")
    assert (trace(chart, "layer 1")["x"], trace(chart, "layer 1")["y"]) == ([350, 750, 1150], [6e-4] * 3)
    (cut,) = costs.rates(typed(without(log, "learning_rates")))
    assert cut.missing == ["learning_rates"]
    assert costs.rates(typed(without(log, "learning_rates", "lr"))) == []


def test_text_of_the_log_is_shown_and_not_obeyed_by_plotly():
    bold = "<b>x</b>"
    log: Log = [
        {"event": "learning_rates", "step": 1, "groups": [{"name": bold, "lr": 1.0}]},
        {"event": "cost", "step": 1, "stage": "baseline", "parameters": 5},
        {"event": "cost", "step": 2, "stage": bold, "parameters": 4},
    ]
    assert costs.rates(typed(log))[0].data[0]["name"] == "&lt;b&gt;x&lt;/b&gt;"
    assert costs.costs(typed(log))[0].data[0]["x"] == ["baseline", "&lt;b&gt;x&lt;/b&gt;"]
