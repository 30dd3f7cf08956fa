"""Sections on the heads of a plasticity run: what was measured of each, which died, which came back."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lightning_app.plasticity.report import heads
from lightning_app.plasticity.report.events import Analysis, Pruning, Regrowth
from lightning_app.plasticity.report.facts import (
    heads_of,
    pruned_heads,
)
from lightning_app.reports.html import html
from lightning_app.reports.page import Section
from lightning_app.reports.parts import Grid, Part, html_table, not_logged, note, number, plain
from lightning_app.reports.record import Record
from lightning_app.reports.series import events

SIGNS = (Markup('<p class="why">Dot: alive. Triangle: died and was regrown. Filled: dead.</p>'), "")


def _analyses(records: Sequence[Record]) -> list[Part]:
    if not events(records, Analysis):
        return []
    parts: list[Part] = [
        note(
            "Layers and heads count from 0. \u2715: dead. \u2013: alive, but not measured. "
            "One scale for all cycles of a measure; what lies far above has its darkest colour."
        )
    ]
    for name, unit in (("entropy", "nats"), ("gradient", ""), ("importance", "")):
        maps = heads.analysis_maps(records, name)
        parts += [
            html("<h3>{}{}{}</h3>", name.capitalize(), unit and ", ", unit),
            Grid(maps) if maps else not_logged([name]),
        ]
    return parts


def _gradients(records: Sequence[Record]) -> list[Part]:
    maps = heads.over_time("gradient", "Gradient at each analysis", events(records, Analysis), "gradient")
    return [Grid(maps, wide=True)] if maps else []


def _chosen(records: Sequence[Record]) -> list[Part]:
    taken = pruned_heads(records)
    rows = [
        [
            "?" if one.cycle is None else f"{one.cycle}",
            f"{one.step:,}",
            f"{one.head[0]}",
            f"{one.head[1]}",
            number(one.score, "{:.5g}"),
            one.reason or number(None),
            one.fate,
        ]
        for one in taken
    ]
    names = ["cycle", "step", "layer", "head", "score", "why it was chosen", "came back?"]
    table = html_table("Pruned heads", names, rows, texts=(5, 6)) if rows else not_logged(["pruning_event (heads)"])
    neurons = [one for one in events(records, Pruning) if one.target == "neurons"]
    rows = [
        [
            plain(one.cycle),
            f"{one.step:,}",
            _per_layer(one.removed),
            _per_layer(one.widths),
            one.reason or number(None),
        ]
        for one in neurons
    ]
    names = ["cycle", "step", "removed by layer", "left by layer", "why"]
    return [table, html_table("Pruned neurons", names, rows, texts=(2, 3, 4)) if rows else ""]


def _per_layer(counts: Sequence[int] | None) -> str:
    return ", ".join(f"{count:,}" for count in counts) if counts else number(None)


def _alive(records: Sequence[Record]) -> list[Part]:
    found = heads.heads_alive(records)
    back = [
        [
            plain(one.cycle),
            f"{one.step:,}",
            ", ".join(f"{layer}.{head}" for layer, head in heads_of(one)),
            Markup(", ").join(number(score, "{:.5g}") for score in one.scores or []) or number(None),
            plain(one.how or ""),
            one.reason or number(None),
        ]
        for one in events(records, Regrowth)
    ]
    names = ("cycle", "step", "heads", "scores", "how", "why")
    table = html_table("Regrown heads (layer.head)", names, back, texts=(2, 4, 5)) if back else ""
    return [Grid(found, SIGNS, wide=True), table] if found else [table]


def _controller(records: Sequence[Record]) -> list[Part]:
    found = heads.controller(records)
    return [Grid(found, wide=True)] if found else []


ANALYSES = Section("analyses", "Head analysis", ("analysis",), _analyses)
GRADIENTS = Section("gradients", "Gradients over time", ("gradient",), _gradients)
CHOSEN = Section("chosen", "Heads chosen", (), _chosen)
ALIVE = Section("alive", "Heads alive", ("plasticity_started", "plasticity/active_heads"), _alive)
GATES = Section("gates", "Controller", ("controller_update", "controller/mean_gate"), _controller)
