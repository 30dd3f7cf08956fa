"""What was measured of the heads of a plasticity run, and when each died."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_app.plasticity.report.chart_styles import when
from lightning_app.plasticity.report.events import (
    Analysis,
    ControllerUpdate,
    Regrowth,
)
from lightning_app.plasticity.report.facts import (
    Living,
    Matrix,
    deaths,
    heads_of,
    living,
)
from lightning_app.reports.figures import Chart, Trace, dots, lines
from lightning_app.reports.record import Record
from lightning_app.reports.series import events, last_step, series

COLUMNS = 200  # of a heatmap over time; of more, one in so many is shown

LOW_TO_HIGH = [[0, "@low"], [0.5, "@middle"], [1, "@high"]]


def analysis_maps(records: Sequence[Record], name: str) -> list[Chart]:
    """One heatmap per analysis that has this matrix, all on one scale."""
    found = [(i, one, matrix) for i, one in enumerate(events(records, Analysis)) if (matrix := getattr(one, name))]
    scale = _scale([x for _, _, matrix in found for row in matrix for x in row if x is not None])
    charts = []
    for i, one, matrix in found:
        dead = [[not alive for alive in row] for row in one.alive or []]
        charts.append(heatmap(f"{name}-{i}", when(one), matrix, dead, name=name, **scale))
    return charts


def _scale(values: Sequence[float]) -> dict[str, float]:
    """From the least to the most, but for a few values that lie so far above that all others would look alike."""
    if not values:
        return {}
    low, high = min(values), sorted(values)[int(0.95 * (len(values) - 1))]
    return {"zmin": low, "zmax": min(max(values), low + 2 * (high - low)) if high > low else max(values)}


def heatmap(id: str, title: str, z: Matrix, dead: Sequence[Sequence[bool]], *, name: str, **scale: Any) -> Chart:
    """Layers x heads. A dead head has a cross, one that was not measured a dash."""
    trace: Trace = {"type": "heatmap", "name": name, "z": z, "colorscale": LOW_TO_HIGH, "xgap": 1, "ygap": 1} | scale
    trace |= {"hovertemplate": f"layer %{{y}}, head %{{x}}: {name} %{{z}}<extra></extra>", "colorbar": _bar()}
    crosses = [(h, la) for la, row in enumerate(dead) for h, gone in enumerate(row) if gone]
    gaps = [(h, la) for la, row in enumerate(z) for h, x in enumerate(row) if x is None and (h, la) not in crosses]
    data = [trace, *_signs(crosses, "dead", "x-thin"), *_signs(gaps, "not measured", "line-ew")]
    words = f"{title}: {name} of {sum(map(len, z))} heads, {len(crosses)} of them dead."
    return Chart(id, title, words, data, _of_heads(z), 90 + max(100, min(26 * len(z), 420)))


def _signs(places: Sequence[tuple[int, int]], name: str, symbol: str) -> list[Trace]:
    """Signs on cells (head, layer); none where there are no cells."""
    marker = {"symbol": symbol, "size": 9, "line": {"width": 1.5, "color": "@soft"}}
    trace = dots(name, [h for h, _ in places], [la for _, la in places], "@soft", marker=marker, showlegend=False)
    trace["hovertemplate"] = f"layer %{{y}}, head %{{x}}: {name}<extra></extra>"
    return [trace] if places else []


def _of_heads(matrix: Matrix) -> dict[str, Any]:
    layers, heads = len(matrix), max(map(len, matrix), default=0)
    whole = {"showgrid": False, "zeroline": False, "tickformat": "d"}
    x = {"title": {"text": "head"}, "dtick": -(-heads // 8) or 1, "range": [-0.5, heads - 0.5]}
    y = {"title": {"text": "layer"}, "dtick": -(-layers // 12) or 1, "range": [layers - 0.5, -0.5]}
    return {
        "xaxis": whole | x,
        "yaxis": whole | y,
        "hovermode": "closest",
        "plot_bgcolor": "@line",
    }


def _bar() -> dict[str, Any]:
    return {"thickness": 10, "len": 1, "outlinewidth": 0, "tickfont": {"size": 10}, "nticks": 4}


def over_time(id: str, title: str, seen: Sequence[Analysis] | Sequence[ControllerUpdate], name: str) -> list[Chart]:
    """A matrix per event as two charts: mean and range over heads, and a row for each head."""
    found: list[tuple[int, Matrix]] = [(one.step, matrix) for one in seen if (matrix := getattr(one, name))]
    if not found:
        return []
    every = -(-len(found) // COLUMNS)
    found = found[::-1][::every][::-1]  # the last one always stays
    title += f", one in {every}" if every > 1 else ""
    steps = [step for step, _ in found]
    flat = [[x for row in matrix for x in row] for _, matrix in found]
    known = [(s, [x for x in row if x is not None]) for s, row in zip(steps, flat, strict=True)]
    known = [(s, row) for s, row in known if row]
    x = [s for s, _ in known]
    band = {"mode": "lines", "line": {"width": 0}, "showlegend": False}
    curves = [
        lines("lowest", x, [min(row) for _, row in known], "@accent", **band),
        lines("lowest to highest", x, [max(row) for _, row in known], "@accent", **band, fill="tonexty"),
        lines("mean over heads", x, [sum(row) / len(row) for _, row in known], "@accent", mode="lines+markers"),
    ]
    curves[1] |= {"fillcolor": "@band", "showlegend": True}
    axis = {"xaxis": {"title": {"text": "optimizer steps"}}}
    names = [f"{layer}.{head}" for layer, row in enumerate(found[0][1]) for head in range(len(row))]
    rows = [list(row) for row in zip(*flat, strict=True)]
    by_head: Trace = {"type": "heatmap", "name": name, "x": [f"{s:,}" for s in steps], "y": names, "z": rows}
    by_head |= {"colorscale": LOW_TO_HIGH, "colorbar": _bar(), "ygap": 1 if len(names) <= 60 else 0}
    by_head |= _scale([x for _, row in known for x in row])
    by_head["hovertemplate"] = f"head %{{y}}, step %{{x}}: {name} %{{z}}<extra></extra>"
    layout = {
        "xaxis": {"title": {"text": "optimizer steps"}, "type": "category", "nticks": 6, "showgrid": False},
        "yaxis": {"type": "category", "autorange": "reversed", "title": {"text": "layer.head"}, "showgrid": False},
        "plot_bgcolor": "@line",
    }
    words = f"{title}, at {len(found)} times, {len(names)} heads"
    return [
        Chart(f"{id}-mean", f"{title}: mean and range", f"{words}: mean and range.", curves, axis, 280),
        Chart(f"{id}-heads", f"{title}: head by head", f"{words}.", [by_head], layout, min(480, 140 + 12 * len(names))),
    ]


def heads_alive(records: Sequence[Record]) -> list[Chart]:
    """The map of when each head died, and their number over time."""
    history = living(records)
    died, steps = deaths(records)
    charts = [_death_map(died, steps, records)] if history else []
    data = []
    if history:
        x, y = [one.step for one in history], [one.count for one in history]
        x, y = [*x, max(last_step(records), x[-1])], [*y, y[-1]]
        data.append(lines("heads alive (events)", x, y, "@accent", mode="lines+markers", line={"shape": "hv"}))
    for name, colour in (("plasticity/active_heads", "@val"), ("controller/active_heads", "@regrowth")):
        logged = series(records, name)
        if logged[0]:
            data.append(lines(name, *logged, colour, line={"shape": "hv", "dash": "dot"}))
    if data:
        layout = {"xaxis": {"title": {"text": "optimizer steps"}}, "yaxis": {"rangemode": "tozero"}}
        words = _counts(history)
        missing = [] if series(records, "plasticity/active_heads")[0] else ["plasticity/active_heads"]
        charts.append(Chart("alive-count", "How many heads are alive", words, data, layout, 300, missing))
    return charts


def _counts(history: Sequence[Living]) -> str:
    return f"From {history[0].count} to {history[-1].count} heads alive." if history else "Heads alive over time."


def _death_map(died: Matrix, steps: Matrix, records: Sequence[Record]) -> Chart:
    """Coloured by the cycle in which a head died for good; a ring where one came back."""
    trace: Trace = {"type": "heatmap", "name": "died in cycle", "z": died, "xgap": 2, "ygap": 2, "showscale": False}
    trace |= {"text": [["" if c is None else f"{c}" for c in row] for row in died], "texttemplate": "%{text}"}
    trace |= {"customdata": steps, "colorscale": [[0, "@early"], [1, "@late"]], "textfont": {"color": "@on-phase"}}
    trace["hovertemplate"] = "layer %{y}, head %{x}: died in cycle %{z}, step %{customdata}<extra></extra>"
    alive = [(h, la) for la, row in enumerate(died) for h, cycle in enumerate(row) if cycle is None]
    again = {head for one in events(records, Regrowth) for head in heads_of(one)}
    back = [(h, la) for h, la in alive if (la, h) in again]
    data = [trace, *_signs([place for place in alive if place not in back], "alive", "circle")]
    data += _signs(back, "regrown", "triangle-up")
    for signs, colour in zip(data[1:], ("@finetuning", "@regrowth"), strict=False):
        signs["marker"] = {"symbol": signs["marker"]["symbol"], "size": 9, "color": colour}
    dead = sum(cycle is not None for row in died for cycle in row)
    words = f"{dead} of {sum(map(len, died))} heads dead; the number in a cell is the cycle in which the head died."
    height = 90 + max(100, min(28 * len(died), 420))
    layout = _of_heads(died) | {"plot_bgcolor": "@card"}
    return Chart("alive-map", "When each head died (the number: in which cycle)", words, data, layout, height)


def controller(records: Sequence[Record]) -> list[Chart]:
    """Gates, and what the controller saw, over its updates."""
    found = events(records, ControllerUpdate)
    charts = []
    for name in ("gates", "entropy", "gradient"):
        charts += over_time(f"controller-{name}", f"Controller: {name}", found, name)
    steps, values = series(records, "controller/mean_gate")
    if values:
        layout = {"xaxis": {"title": {"text": "optimizer steps"}}, "yaxis": {"range": [0, 1.05]}}
        trace = lines("controller/mean_gate", steps, values, "@accent")
        charts.insert(0, Chart("mean-gate", "Mean gate", "The mean gate over time.", [trace], layout, 240))
    return charts
