"""What a plasticity run costs at each stage, and at which rates it learns."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_app.plasticity.report.events import (
    LearningRates,
)
from lightning_app.reports.events import Cost
from lightning_app.reports.figures import Chart, Trace, label, lines
from lightning_app.reports.record import Record
from lightning_app.reports.series import events, series


def costs(records: Sequence[Record]) -> list[Chart]:
    """Parameters, FLOPs and latency as shares of the baseline's, and the speed-up measured below its ceiling."""
    found = events(records, Cost)
    base = next((one for one in found if one.stage == "baseline"), None)
    stages = [label(one.stage) for one in found]
    charts = []
    if base:
        names = (("parameters", "@accent"), ("flops_per_token", "@regrowth"), ("latency_ms", "@val"))
        data = []
        for name, colour in names:
            if known := getattr(base, name):
                y = [None if (value := getattr(one, name)) is None else value / known for one in found]
                data.append(lines(name, stages, y, colour, mode="lines+markers"))
                if name == "latency_ms":
                    data[-1] |= _spread(found, known)
        missing = [name for name, _ in names if not getattr(base, name)]
        layout = {"yaxis": {"tickformat": ".0%", "rangemode": "tozero"}, "xaxis": {"type": "category"}}
        words = "Parameters, FLOPs per token and latency at each stage as shares of the baseline's."
        charts.append(Chart("costs", "Shares of the baseline", words, data, layout, 300, missing))
    data = [
        lines(name, [label(one.stage) for one in found if getattr(one, name) is not None], y, colour, **style)
        for name, colour, style in (
            ("measured", "@val", {"mode": "lines+markers"}),
            ("ceiling", "@soft", {"mode": "lines+markers", "line": {"dash": "dash"}}),
        )
        if (y := [value for one in found if (value := getattr(one, name)) is not None])
    ]
    if found:
        missing = [name for name in ("measured", "ceiling") if name not in [trace["name"] for trace in data]]
        words = "How much faster than the baseline a forward was, and how much the FLOPs allow, at each stage."
        layout = {"xaxis": {"type": "category"}, "yaxis": {"rangemode": "tozero"}}
        charts.append(Chart("ceiling", "Speed-up: measured, and what FLOPs allow", words, data, layout, 300, missing))
    return charts


def _spread(found: Sequence[Cost], base: float) -> Trace:
    """Error bars of the latency, where its spread was logged."""
    above, below = [], []
    for one in found:
        latency = one.latency_ms or 0.0
        spread = one.latency_spread or [latency]
        above.append((max(spread) - latency) / base if latency else 0)
        below.append((latency - min(spread)) / base if latency else 0)
    return {"error_y": {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}}


def rates(records: Sequence[Record]) -> list[Chart]:
    """The scheduler's learning rate, and those of the groups where they were set."""
    data = [lines("lr", *logged, "@train")] if (logged := series(records, "lr"))[0] else []
    groups: dict[str, list[tuple[int, float]]] = {}
    for one in events(records, LearningRates):
        for group in one.groups or []:
            if group.lr is not None:
                groups.setdefault(str(group.name), []).append((one.step, group.lr))
    colours = ("@val", "@regrowth", "@accent", "@finetuning", "@pruning", "@analysis")
    for i, (name, points) in enumerate(groups.items()):
        steps, values = zip(*points, strict=True)
        style = {"mode": "lines+markers", "line": {"shape": "hv"}}
        data.append(lines(label(name), steps, values, colours[i % len(colours)], **style))
    missing = ["lr"] * (not logged[0]) + ["learning_rates"] * (not groups)
    layout = {"xaxis": {"title": {"text": "optimizer steps"}}, "yaxis": {"exponentformat": "e", "rangemode": "tozero"}}
    words = f"Learning rate over time, and that of {len(groups)} groups of parameters."
    return [Chart("rates", "Learning rates", words, data, layout, 290, missing)] if data else []
