"""The whole of a plasticity run on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_app.plasticity.report.chart_styles import MARKS, PHASES, SHOWN, Marked, scores
from lightning_app.plasticity.report.events import (
    Analysis,
    Pruning,
    Regrowth,
    Stabilised,
)
from lightning_app.plasticity.report.facts import (
    Phase,
    evaluations,
    heads_of,
    living,
    phases,
)
from lightning_app.reports.figures import Chart, Trace, dots, label, lines
from lightning_app.reports.record import Record
from lightning_app.reports.series import last_step, series

ROWS: tuple[tuple[str, dict[str, str], str, Trace, int], ...] = (  # of the timeline
    # title, series with their colours, key of an evaluation, axis, pixels
    ("nats per token", {"train/ce": "@train", "val/ce": "@val"}, "ce", {"nticks": 6}, 210),
    (
        "perplexity, logarithmic",
        {"val/ppl": "@val"},
        "ppl",
        {"type": "log", "tickvals": [d * 10**e for e in range(7) for d in (1, 2, 5)]},
        120,
    ),
    ("share of heads dead", {"plasticity/sparsity": "@pruning"}, "sparsity", {"tickformat": ".0%"}, 95),
)

TITLE = 32  # pixels above a row


def timeline(records: Sequence[Record]) -> Chart:
    """Phases and events above loss, perplexity and sparsity, over optimizer steps. A row without data is left out."""
    lanes, ticks = _lanes(records)
    found = [(row, _curves(records, row[1], row[2])) for row in ROWS]
    drawn = [(row, traces) for row, traces in found if traces]
    height = 18 * len(ticks) + sum(TITLE + row[-1] for row, _ in drawn) or TITLE
    top = 1 - 18 * len(ticks) / height if drawn else 0.0
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "optimizer steps"}}}
    data: list[Trace] = []
    titles, edge = [], top
    for i, ((title, _, _, axis, pixels), traces) in enumerate(drawn):
        y, upper = f"y{i + 1}" if i else "y", edge - TITLE / height
        edge = max(0, upper - pixels / height)
        data += [trace | {"yaxis": y, "showlegend": i == 0} for trace in traces]
        layout[f"yaxis{y[1:]}"] = {"domain": [edge, upper], "anchor": "x"} | axis
        layout["xaxis"]["anchor"] = y
        titles.append(_above(title, upper))
    if ticks:
        layout["yaxis4"] = {"domain": [top, 1], "tickvals": list(range(len(ticks))), "ticktext": ticks, "anchor": "x"}
        layout["yaxis4"] |= {
            "range": [len(ticks) - 0.4, -0.8],
            "showgrid": False,
            "fixedrange": True,
            "zeroline": False,
        }
    shapes = _bands(records, max(0, top - TITLE / height))
    layout |= {"annotations": titles, "shapes": shapes, "barmode": "overlay", "hovermode": "closest"}
    layout["uniformtext"] = {"mode": "hide", "minsize": 9}
    names = [trace["name"] for trace in data]
    missing = [name for row in ROWS for name in row[1] if name not in names]
    missing += [] if phases(records) else ["phase_transition"]
    words = f"Loss, perplexity and sparsity over {last_step(records):,} steps, in {len(phases(records))} phases."
    title = "Phases, loss, perplexity, sparsity"
    return Chart("timeline", title, words, [*data, *lanes], layout, height + 80, missing)


def _curves(records: Sequence[Record], names: dict[str, str], key: str) -> list[Trace]:
    """Series as lines, and the evaluations' numbers as diamonds in the colours of their stages."""
    data = []
    for name, colour in names.items():
        steps, values = (key == "sparsity" and _heads_dead(records)) or series(records, name)
        style: Trace = {"line": {"shape": "hv"}} if key == "sparsity" else {}
        if name.startswith("val/"):
            style = {"mode": "lines+markers", "marker": {"size": 4, "color": colour}}
        data += [lines(name, steps, values, colour, **style)] if values else []
    found = [one for one in evaluations(records) if getattr(one, key) is not None]
    return [*data, scores(found, key, symbol="diamond-open")] if found else data


def _heads_dead(records: Sequence[Record]) -> tuple[list[int], list[float]] | None:
    """Steps and shares where heads died or came back, up to the last step; None where no event says so.

    The logged series has them later, at the next step that is logged.
    """
    found = living(records)
    total = sum(len(row) for row in found[0].alive) if found else 0
    if not total:
        return None
    points = [(one.step, 1 - one.count / total) for one in found]
    points.append((max(last_step(records), points[-1][0]), points[-1][1]))
    return [step for step, _ in points], [share for _, share in points]


def _above(text: str, y: float) -> dict[str, Any]:
    """A title on the left above a row of the timeline."""
    place = {"xref": "paper", "yref": "paper", "x": 0, "y": y, "xanchor": "left", "yanchor": "bottom"}
    return {"text": text, "showarrow": False, "font": {"size": 12, "color": "@soft"}} | place


def _lanes(records: Sequence[Record]) -> tuple[list[Trace], list[str]]:
    """The strip of phases, and a lane for each kind of event that happened."""
    found = [phase for phase in phases(records) if phase.end > phase.start]
    bars: Trace = {
        "type": "bar",
        "orientation": "h",
        "name": "phases",
        "base": [phase.start for phase in found],
        "x": [phase.end - phase.start for phase in found],
        "y": [0] * len(found),
        "width": 1.2,
        "text": [label(_phase_name(phase)) for phase in found],
        "customdata": [[phase.start, phase.end, label(phase.reason)] for phase in found],
        "hovertemplate": "%{text}: steps %{customdata[0]} to %{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        "marker": {"color": [PHASES.get(phase.name, "@analysis") for phase in found]},
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "insidetextfont": {"color": ["@ink" if phase.name == "training" else "@on-phase" for phase in found]},
    }
    lanes, ticks = ([bars], ["phase"]) if found else ([], [])
    for kind, (name, colour, symbol) in MARKS.items():
        marks = [r for r in _marked(records) if isinstance(r, kind)]
        if not marks:
            continue
        text = [label(_what(r)) for r in marks]
        steps, lane = [r.step for r in marks], [len(ticks)] * len(marks)
        lanes.append(dots(name, steps, lane, colour, text=text, marker={"symbol": symbol, "size": 8}))
        lanes[-1]["hovertemplate"] = "step %{x}: %{text}<extra></extra>"
        ticks.append(name)
    return [trace | {"yaxis": "y4", "showlegend": False} for trace in lanes], ticks


def _phase_name(phase: Phase) -> str:
    return SHOWN.get(phase.name, phase.name) + (f" {phase.cycle}" if phase.cycle else "")


def _marked(records: Sequence[Record]) -> list[Marked]:
    return [r for r in records if isinstance(r, Marked)]


def _what(one: Marked) -> str:
    """An event in a few words."""
    if isinstance(one, Stabilised):
        words = "not stable: waited long enough" if one.stable is False else "stable"
    elif isinstance(one, Analysis):
        words = f"analysed, {one.strategy or 'strategy not logged'}"
    elif isinstance(one, Pruning):
        words = _pruned(one)
    elif isinstance(one, Regrowth):
        words = f"{len(heads_of(one))} heads regrown"
    else:
        words = one.reason or "rolled back"
    return f"cycle {one.cycle}: {words}" if one.cycle else words


def _pruned(one: Pruning) -> str:
    if one.target == "neurons":
        return f"{sum(one.removed or []):,} neurons pruned"
    heads = heads_of(one)
    some = ", ".join(f"{layer}.{head}" for layer, head in heads[:8]) + (", …" if len(heads) > 8 else "")
    return f"{len(heads)} head{'s' * (len(heads) != 1)} pruned ({some})"


def _bands(records: Sequence[Record], top: float) -> list[dict[str, Any]]:
    """The phases behind the curves, and a vertical line at each event."""
    below: dict[str, Any] = {"yref": "paper", "y0": 0, "layer": "below"}
    bands: list[dict[str, Any]] = [
        {"type": "rect", "x0": p.start, "x1": p.end, "y1": top, "fillcolor": PHASES.get(p.name, "@analysis")} | below
        for p in phases(records)
        if p.end > p.start
    ]
    marks: list[dict[str, Any]] = [
        {"type": "line", "x0": r.step, "x1": r.step, "y1": 1, "line": {"color": MARKS[type(r)][1]}} | below
        for r in _marked(records)
    ]
    for band in bands:
        band |= {"opacity": 0.13, "line": {"width": 0}}
    for mark in marks:
        mark["line"] |= {"width": 1, "dash": "dot"}
    return bands + marks
