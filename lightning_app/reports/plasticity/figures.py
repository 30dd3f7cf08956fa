"""The charts of a plasticity run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_app.reports.figures import Chart, Trace, dots, label, lines
from lightning_app.reports.plasticity.events import (
    Analysis,
    ControllerUpdate,
    Cost,
    Evaluation,
    LearningRates,
    Pruning,
    Regrowth,
    Rollback,
    Stabilised,
)
from lightning_app.reports.plasticity.facts import (
    Living,
    Matrix,
    Phase,
    deaths,
    evaluations,
    heads_of,
    living,
    phases,
)
from lightning_app.reports.record import Record, finite
from lightning_app.reports.series import events, last_step, series

PHASES = {  # name of a phase, and the colour that it has everywhere
    "training": "@training",
    "warmup": "@warmup",
    "analysis": "@analysis",
    "pruning": "@pruning",
    "regrowth": "@regrowth",
    "finetuning": "@finetuning",
    "evaluation": "@analysis",
}
SHOWN = {"finetuning": "fine-tuning"}  # other names are shown as they are
Marked = Stabilised | Analysis | Pruning | Regrowth | Rollback
MARKS: dict[type[Marked], tuple[str, str, str]] = {  # with a vertical line: what they are called, their colour and sign
    Stabilised: ("stabilised", "@warmup", "diamond"),
    Analysis: ("analysed", "@analysis", "circle"),
    Pruning: ("pruned", "@pruning", "triangle-down"),
    Regrowth: ("regrown", "@regrowth", "triangle-up"),
    Rollback: ("rolled back", "@rollback", "x"),
}
STAGES = {  # of an evaluation
    "baseline": "@ink",
    "warmup": "@warmup",
    "before": "@analysis",
    "pruned": "@pruning",
    "regrown": "@regrowth",
    "finetuning": "@finetuning",
    "recovered": "@finetuning",
}
COLUMNS = 200  # of a heatmap over time; of more, one in so many is shown
LOW_TO_HIGH = [[0, "@low"], [0.5, "@middle"], [1, "@high"]]


# The whole run


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
    ("share of units dead", {"plasticity/sparsity": "@pruning"}, "sparsity", {"tickformat": ".0%"}, 95),
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
        steps, values = series(records, name)
        style: Trace = {"line": {"shape": "hv"}} if key == "sparsity" else {}
        if name.startswith("val/"):
            style = {"mode": "lines+markers", "marker": {"size": 4, "color": colour}}
        data += [lines(name, steps, values, colour, **style)] if values else []
    found = [one for one in evaluations(records) if getattr(one, key) is not None]
    return [*data, _scores(found, key, symbol="diamond-open")] if found else data


def stage_of(one: Evaluation) -> str:
    """The stage of an evaluation, with its cycle."""
    return label(one.stage) + (f", cycle {one.cycle}" if one.cycle else "")


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


# Cycles


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
        title = _when(r)
        trace = lines("window", range(1, count + 1), losses, colour, **style)
        charts.append(
            Chart(f"stable-{i}", title, words, [trace] if count else [], layout, 190, _not([("losses", count)]))
        )
    return charts


def _when(one: Stabilised | Analysis) -> str:
    return f"Cycle {'?' if one.cycle is None else one.cycle}, step {one.step:,}"


def _not(found: Sequence[tuple[str, Any]]) -> list[str]:
    """Names of those that are empty."""
    return [name for name, value in found if not value]


def analysis_maps(records: Sequence[Record], name: str) -> list[Chart]:
    """One heatmap per analysis that has this matrix, all on one scale."""
    found = [(i, one, matrix) for i, one in enumerate(events(records, Analysis)) if (matrix := getattr(one, name))]
    values = [x for _, _, matrix in found for row in matrix for x in row if x is not None]
    scale = {"zmin": min(values), "zmax": max(values)} if values else {}
    charts = []
    for i, one, matrix in found:
        dead = [[not alive for alive in row] for row in one.alive or []]
        charts.append(heatmap(f"{name}-{i}", _when(one), matrix, dead, name=name, **scale))
    return charts


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
            data.append(_scores(inside))
        title = f"Cycle {phase.cycle}: steps {phase.start:,} to {phase.end:,}"
        layout = {"xaxis": {"title": {"text": "optimizer steps"}}, "yaxis": {"title": {"text": "nats per token"}}}
        words = f"Training and validation loss in the fine-tuning of cycle {phase.cycle}"
        charts.append(Chart(f"finetuning-{i}", title, words, data, layout, 270, missing))
    return charts


def _scores(found: Sequence[Evaluation], key: str = "ce", *, symbol: str = "diamond") -> Trace:
    """Evaluations on the seeded sample, coloured by stage."""
    marker = {"color": [STAGES.get(str(one.stage), "@ink") for one in found], "symbol": symbol, "size": 8}
    x, y = [one.step for one in found], [getattr(one, key) for one in found]
    trace = dots(f"evaluation/{key}", x, y, "@ink", marker=marker)
    return trace | {"text": [stage_of(r) for r in found], "hovertemplate": "%{text}: %{y}<extra></extra>"}


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


# Heads


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
        missing = _not([("plasticity/active_heads", series(records, "plasticity/active_heads")[0])])
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


# Costs, rates


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
            if (lr := finite(group.get("lr"))) is not None:
                groups.setdefault(str(group.get("name")), []).append((one.step, lr))
    colours = ("@val", "@regrowth", "@accent", "@finetuning", "@pruning", "@analysis")
    for i, (name, points) in enumerate(groups.items()):
        steps, values = zip(*points, strict=True)
        style = {"mode": "lines+markers", "line": {"shape": "hv"}}
        data.append(lines(label(name), steps, values, colours[i % len(colours)], **style))
    missing = _not([("lr", logged[0]), ("learning_rates", groups)])
    layout = {"xaxis": {"title": {"text": "optimizer steps"}}, "yaxis": {"exponentformat": "e", "rangemode": "tozero"}}
    words = f"Learning rate over time, and that of {len(groups)} groups of parameters."
    return [Chart("rates", "Learning rates", words, data, layout, 290, missing)] if data else []


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
