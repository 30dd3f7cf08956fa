"""The charts of a plasticity run, as plain dicts in plotly's format: building plotly's own objects takes seconds.

A colour is "@" and the name of a CSS variable of the page, which its script looks up, so that charts follow the theme.
Text of the log goes through `label`: plotly obeys some tags in its texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from lightning_app.reports.plasticity.facts import (
    Living,
    Matrix,
    Phase,
    Record,
    deaths,
    evaluations,
    events,
    finite,
    heads_of,
    last_step,
    living,
    phases,
    series,
    step_of,
)

Trace = dict[str, Any]
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
MARKS = {  # events that get a vertical line: what they are called, their colour and sign
    "stabilised": ("stabilised", "@warmup", "diamond"),
    "analysis": ("analysed", "@analysis", "circle"),
    "pruning_event": ("pruned", "@pruning", "triangle-down"),
    "regrowth_event": ("regrown", "@regrowth", "triangle-up"),
    "rollback": ("rolled back", "@rollback", "x"),
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


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Attributes:
        id: of its element.
        title: above it.
        label: what it shows in words, for those who do not see it.
        data, layout: as plotly has them.
        height: in pixels.
        missing: names of the series that were not logged.
    """

    id: str
    title: str
    label: str
    data: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 300
    missing: Sequence[str] = ()


def label(text: object) -> str:
    """Text of the log in a chart: shown, not obeyed."""
    return escape(str(text))


def lines(name: str, x: Sequence[Any], y: Sequence[Any], colour: str, **more: Any) -> Trace:
    trace = {"type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), "line": {"color": colour}}
    trace["line"] |= more.pop("line", {})
    return trace | more


def dots(name: str, x: Sequence[Any], y: Sequence[Any], colour: str, **more: Any) -> Trace:
    marker = {"color": colour, "size": 7} | more.pop("marker", {})
    return {"type": "scatter", "mode": "markers", "name": name, "x": list(x), "y": list(y), "marker": marker} | more


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
    found = [r for r in evaluations(records) if finite(r.get(key)) is not None]
    return [*data, _scores(found, key, symbol="diamond-open")] if found else data


def stage_of(record: Record) -> str:
    """The stage of an evaluation, with its cycle."""
    cycle = record.get("cycle")
    return label(record.get("stage")) + (f", cycle {cycle}" if cycle else "")


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
    for event, (name, colour, symbol) in MARKS.items():
        marks = events(records, event)
        if not marks:
            continue
        text = [label(_what(r)) for r in marks]
        steps, lane = [step_of(r) for r in marks], [len(ticks)] * len(marks)
        lanes.append(dots(name, steps, lane, colour, text=text, marker={"symbol": symbol, "size": 8}))
        lanes[-1]["hovertemplate"] = "step %{x}: %{text}<extra></extra>"
        ticks.append(name)
    return [trace | {"yaxis": "y4", "showlegend": False} for trace in lanes], ticks


def _phase_name(phase: Phase) -> str:
    return SHOWN.get(phase.name, phase.name) + (f" {phase.cycle}" if phase.cycle else "")


def _what(record: Record) -> str:
    """An event in a few words."""
    words = {
        "stabilised": lambda r: "stable" if r.get("stable", True) else "not stable: waited long enough",
        "analysis": lambda r: f"analysed, {r.get('strategy', 'strategy not logged')}",
        "pruning_event": lambda r: _pruned(r),
        "regrowth_event": lambda r: f"{len(heads_of(r))} heads regrown",
        "rollback": lambda r: str(r.get("reason") or "rolled back"),
    }[record["event"]](record)
    return f"cycle {record['cycle']}: {words}" if record.get("cycle") else words


def _pruned(record: Record) -> str:
    if record.get("target") == "neurons":
        return f"{sum(record.get('removed') or []):,} neurons pruned"
    heads = heads_of(record)
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
        {"type": "line", "x0": step_of(r), "x1": step_of(r), "y1": 1, "line": {"color": MARKS[r["event"]][1]}} | below
        for r in events(records, *MARKS)
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
    for i, r in enumerate(events(records, "stabilised")):
        losses = [finite(loss) for loss in r.get("losses") or []]
        colour = "@warmup" if r.get("stable", True) else "@rollback"
        count = len(losses)
        style = {"mode": "lines+markers", "marker": {"size": 4, "color": colour}}
        layout = {"xaxis": {"title": {"text": "loss of the window"}}, "showlegend": False}
        words = f"{count} losses of the window before step {step_of(r)}"
        title = f"Cycle {r.get('cycle', '?')}, step {step_of(r):,}"
        trace = lines("window", range(1, count + 1), losses, colour, **style)
        charts.append(
            Chart(f"stable-{i}", title, words, [trace] if count else [], layout, 190, _not([("losses", count)]))
        )
    return charts


def _not(found: Sequence[tuple[str, Any]]) -> list[str]:
    """Names of those that are empty."""
    return [name for name, value in found if not value]


def analysis_maps(records: Sequence[Record], name: str) -> list[Chart]:
    """One heatmap per analysis that has this matrix, all on one scale."""
    found = [(i, r) for i, r in enumerate(events(records, "analysis")) if r.get(name)]
    values = [v for _, r in found for row in r[name] for x in row if (v := finite(x)) is not None]
    scale = {"zmin": min(values), "zmax": max(values)} if values else {}
    charts = []
    for i, r in found:
        dead = [[not alive for alive in row] for row in r.get("alive") or []]
        title = f"Cycle {r.get('cycle', '?')}, step {step_of(r):,}"
        charts.append(heatmap(f"{name}-{i}", title, r[name], dead, name=name, **scale))
    return charts


def heatmap(id: str, title: str, matrix: Matrix, dead: Sequence[Sequence[bool]], *, name: str, **scale: Any) -> Chart:
    """Layers x heads. A dead head has a cross, one that was not measured a dash."""
    z = [[finite(x) for x in row] for row in matrix]
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


def over_time(id: str, title: str, found: Sequence[Record], name: str) -> list[Chart]:
    """A matrix per event as two charts: mean and range over heads, and a row for each head."""
    found = [r for r in found if r.get(name)]
    if not found:
        return []
    every = -(-len(found) // COLUMNS)
    found = found[::-1][::every][::-1]  # the last one always stays
    title += f", one in {every}" if every > 1 else ""
    steps = [step_of(r) for r in found]
    flat = [[finite(x) for row in r[name] for x in row] for r in found]
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
    names = [f"{layer}.{head}" for layer, row in enumerate(found[0][name]) for head in range(len(row))]
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
        inside = [r for r in evaluations(records) if phase.start <= step_of(r) <= phase.end]
        inside = [r for r in inside if r.get("stage") in ("pruned", "regrown", "finetuning", "recovered")]
        if inside:
            data.append(_scores(inside))
        title = f"Cycle {phase.cycle}: steps {phase.start:,} to {phase.end:,}"
        layout = {"xaxis": {"title": {"text": "optimizer steps"}}, "yaxis": {"title": {"text": "nats per token"}}}
        words = f"Training and validation loss in the fine-tuning of cycle {phase.cycle}"
        charts.append(Chart(f"finetuning-{i}", title, words, data, layout, 270, missing))
    return charts


def _scores(found: Sequence[Record], key: str = "ce", *, symbol: str = "diamond") -> Trace:
    """Evaluations on the seeded sample, coloured by stage."""
    marker = {"color": [STAGES.get(str(r.get("stage")), "@ink") for r in found], "symbol": symbol, "size": 8}
    trace = dots(f"evaluation/{key}", [step_of(r) for r in found], [r[key] for r in found], "@ink", marker=marker)
    return trace | {"text": [stage_of(r) for r in found], "hovertemplate": "%{text}: %{y}<extra></extra>"}


def impact(records: Sequence[Record]) -> Chart:
    """Cross-entropy on the seeded sample from one stage to the next, and the baseline's level."""
    found = evaluations(records)
    data = []
    if found:
        x = [step_of(r) for r in found]
        data = [lines("from stage to stage", x, [r["ce"] for r in found], "@soft", showlegend=False, hoverinfo="skip")]
        data[0]["line"] |= {"width": 1, "dash": "dot"}
    for stage, colour in STAGES.items():
        ours = [r for r in found if r.get("stage") == stage]
        if ours:
            marker = {
                "size": 10 if stage not in ("warmup", "finetuning") else 5,
                "symbol": "diamond" if stage == "baseline" else "circle",
            }
            trace = dots(
                SHOWN.get(stage, stage), [step_of(r) for r in ours], [r["ce"] for r in ours], colour, marker=marker
            )
            data.append(trace | {"text": [stage_of(r) for r in ours], "hovertemplate": "%{text}: %{y}<extra></extra>"})
    shapes = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": r["ce"], "y1": r["ce"], "layer": "below"}
        | {"line": {"color": "@soft", "width": 1, "dash": "dash"}}
        for r in found
        if r.get("stage") == "baseline"
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
    again = {head for r in events(records, "regrowth_event") for head in heads_of(r)}
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
    found = events(records, "cost")
    base = next((r for r in found if r.get("stage") == "baseline"), None)
    stages = [label(r.get("stage")) for r in found]
    charts = []
    if base:
        names = (("parameters", "@accent"), ("flops_per_token", "@regrowth"), ("latency_ms", "@val"))
        data = []
        for name, colour in names:
            if known := finite(base.get(name)):
                y = [None if (v := finite(r.get(name))) is None else v / known for r in found]
                data.append(lines(name, stages, y, colour, mode="lines+markers"))
                if name == "latency_ms":
                    data[-1] |= _spread(found, known)
        missing = [name for name, _ in names if not finite(base.get(name))]
        layout = {"yaxis": {"tickformat": ".0%", "rangemode": "tozero"}, "xaxis": {"type": "category"}}
        words = "Parameters, FLOPs per token and latency at each stage as shares of the baseline's."
        charts.append(Chart("costs", "Shares of the baseline", words, data, layout, 300, missing))
    data = [
        lines(name, [label(r.get("stage")) for r in found if finite(r.get(name)) is not None], y, colour, **style)
        for name, colour, style in (
            ("measured", "@val", {"mode": "lines+markers"}),
            ("ceiling", "@soft", {"mode": "lines+markers", "line": {"dash": "dash"}}),
        )
        if (y := [r[name] for r in found if finite(r.get(name)) is not None])
    ]
    if found:
        missing = [name for name in ("measured", "ceiling") if name not in [trace["name"] for trace in data]]
        words = "How much faster than the baseline a forward was, and how much the FLOPs allow, at each stage."
        layout = {"xaxis": {"type": "category"}, "yaxis": {"rangemode": "tozero"}}
        charts.append(Chart("ceiling", "Speed-up: measured, and what FLOPs allow", words, data, layout, 300, missing))
    return charts


def _spread(found: Sequence[Record], base: float) -> Trace:
    """Error bars of the latency, where its spread was logged."""
    above, below = [], []
    for r in found:
        low, high = r.get("latency_spread") or [r.get("latency_ms")] * 2
        above.append((high - r["latency_ms"]) / base if finite(r.get("latency_ms")) else 0)
        below.append((r["latency_ms"] - low) / base if finite(r.get("latency_ms")) else 0)
    return {"error_y": {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}}


def rates(records: Sequence[Record]) -> list[Chart]:
    """The scheduler's learning rate, and those of the groups where they were set."""
    data = [lines("lr", *logged, "@train")] if (logged := series(records, "lr"))[0] else []
    groups: dict[str, list[tuple[int, float]]] = {}
    for r in events(records, "learning_rates"):
        for group in r.get("groups") or []:
            if (lr := finite(group.get("lr"))) is not None:
                groups.setdefault(str(group.get("name")), []).append((step_of(r), lr))
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
    found = events(records, "controller_update")
    charts = []
    for name in ("gates", "entropy", "gradient"):
        charts += over_time(f"controller-{name}", f"Controller: {name}", found, name)
    steps, values = series(records, "controller/mean_gate")
    if values:
        layout = {"xaxis": {"title": {"text": "optimizer steps"}}, "yaxis": {"range": [0, 1.05]}}
        trace = lines("controller/mean_gate", steps, values, "@accent")
        charts.insert(0, Chart("mean-gate", "Mean gate", "The mean gate over time.", [trace], layout, 240))
    return charts
