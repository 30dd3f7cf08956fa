"""Losses of a plasticity run, cycle by cycle."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_app.plasticity.report.chart_styles import SHOWN, STAGES, scores, stage_of, when
from lightning_app.plasticity.report.events import (
    Stabilised,
)
from lightning_app.plasticity.report.facts import (
    evaluations,
    phases,
)
from lightning_app.reports.figures import Chart, Trace, dots, lines
from lightning_app.reports.record import Record
from lightning_app.reports.series import events, series


def stabilisations(records: Sequence[Record]) -> list[Chart]:
    """The losses that each rule looked at when it fired."""
    charts = []
    for i, r in enumerate(events(records, Stabilised)):
        losses = r.losses or []
        colour = "@rollback" if r.stable is False else "@warmup"
        count = len(losses)
        style = {"mode": "lines+markers", "marker": {"size": 4, "color": colour}}
        layout = {"xaxis": {"title": {"text": "loss of the window"}}, "showlegend": False}
        words = f"{count} losses of the window before step {r.step}"
        title = when(r)
        trace = lines("window", range(1, count + 1), losses, colour, **style)
        charts.append(
            Chart(f"stable-{i}", title, words, [trace] if count else [], layout, 190, [] if count else ["losses"])
        )
    return charts


def finetunings(records: Sequence[Record]) -> list[Chart]:
    """Training and validation within each fine-tuning."""
    charts = []
    for i, phase in enumerate(p for p in phases(records) if p.name == "finetuning"):
        data: list[Trace] = []
        missing = []
        for name, colour in (("train/ce", "@train"), ("val/ce", "@val")):
            found = [p for p in zip(*series(records, name), strict=True) if phase.start < p[0] <= phase.end]
            if found:
                dotted = {"mode": "lines+markers", "marker": {"size": 5, "color": colour}}
                steps, values = zip(*found, strict=True)
                data.append(lines(name, steps, values, colour, **dotted if name == "val/ce" else {}))
            else:
                missing.append(name)
        inside = [one for one in evaluations(records) if phase.start <= one.step <= phase.end]
        inside = [one for one in inside if one.stage in ("pruned", "regrown", "finetuning", "recovered")]
        if inside:
            data.append(scores(inside))
        title = f"Cycle {phase.cycle}: steps {phase.start:,} to {phase.end:,}"
        layout = {"xaxis": {"title": {"text": "optimizer steps"}}, "yaxis": {"title": {"text": "nats per token"}}}
        words = f"Training and validation loss in the fine-tuning of cycle {phase.cycle}"
        charts.append(Chart(f"finetuning-{i}", title, words, data, layout, 270, missing))
    return charts


def impact(records: Sequence[Record]) -> Chart:
    """Cross-entropy on the seeded sample from one stage to the next, and the baseline's level."""
    found = evaluations(records)
    data = []
    if found:
        x, y = [one.step for one in found], [one.ce for one in found]
        data = [lines("from stage to stage", x, y, "@soft", showlegend=False, hoverinfo="skip")]
        data[0]["line"] |= {"width": 1, "dash": "dot"}
    for stage, colour in STAGES.items():
        ours = [one for one in found if one.stage == stage]
        if ours:
            marker = {
                "size": 10 if stage not in ("warmup", "finetuning") else 5,
                "symbol": "diamond" if stage == "baseline" else "circle",
            }
            x, y = [one.step for one in ours], [one.ce for one in ours]
            trace = dots(SHOWN.get(stage, stage), x, y, colour, marker=marker)
            data.append(trace | {"text": [stage_of(r) for r in ours], "hovertemplate": "%{text}: %{y}<extra></extra>"})
    shapes = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": one.ce, "y1": one.ce, "layer": "below"}
        | {"line": {"color": "@soft", "width": 1, "dash": "dash"}}
        for one in found
        if one.stage == "baseline"
    ]
    layout = {
        "xaxis": {"title": {"text": "optimizer steps"}},
        "yaxis": {"title": {"text": "nats per token, seeded sample"}},
        "shapes": shapes,
    }
    words = "Cross-entropy before and after each pruning and after each fine-tuning; dashed: the baseline."
    return Chart("impact", "Impact and recovery", words, data, layout, 330)
