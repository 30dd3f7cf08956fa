"""Curves of several runs on an axis that a reader of the page chooses: steps, tokens or time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_app.reports.figures import Chart, Trace, dots, label, lines
from lightning_app.reports.groups import BASE, Group
from lightning_app.reports.intervals import Estimate
from lightning_app.reports.runs import AXES, Run

COLOURS = 8  # of runs; later ones have them again, with another dash
DASHES = ("solid", "dash", "dot", "dashdot")
POINTS = 1_000  # of a curve; of more, one in so many is drawn, and the last
MAIN = {  # series that are shown at once
    "val/bpb": "Validation, bits per byte",
    "val/ce": "Validation, nats per token",
    "train/ce": "Training, nats per token",
    "val/acc": "Validation, accuracy",
    "tokens_per_s": "Tokens per second",
    "lr": "Learning rate",
}
HIDDEN = ("tokens", "train_flops", "val/loss", "val/ppl")  # an axis, a total, and what others show
UNITS = ((2 * 3600, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))


@dataclass(frozen=True)
class Curves:
    """A chart on the first axis, and where its traces' points lie on each.

    Attributes:
        axes: x of each trace by axis; empty for a run that is not on it.
    """

    chart: Chart
    axes: Mapping[str, list[list[float]]]


def colour(number: int) -> str:
    """The colour of the run of this number, counted from 0."""
    return f"@run-{'abcdefgh'[number % COLOURS]}"


def dash(number: int) -> str:
    return DASHES[number // COLOURS % len(DASHES)]


def missing_on(runs: Sequence[Run], axis: str) -> list[str]:
    """Labels of the runs that cannot be drawn on an axis."""
    return [run.label for run in runs if not any(run.series(name, axis) for name in run.numbers)]


def unit_of_time(runs: Sequence[Run]) -> tuple[float, str]:
    """Seconds in the unit, and its name."""
    longest = max((run.seconds or 0.0 for run in runs), default=0.0)
    return next((seconds, name) for least, seconds, name in UNITS if longest >= least)


def titles(runs: Sequence[Run]) -> dict[str, str]:
    return {"steps": "optimizer steps", "tokens": "tokens", "time": f"{unit_of_time(runs)[1]} of the run"}


def curves(runs: Sequence[Run], axis: str) -> tuple[list[Curves], list[Curves]]:
    """The curves that are shown at once, and the others."""
    names = dict.fromkeys(name for run in runs for name in run.numbers if name not in HIDDEN)
    main = [name for name in MAIN if name in names]
    drawn = {
        name: _curves(runs, name, axis, id=f"curve-{i}") for i, name in enumerate([*main, *sorted(names - MAIN.keys())])
    }
    found = {name: one for name, one in drawn.items() if one.chart.data}
    return [found[n] for n in main if n in found], [one for n, one in found.items() if n not in MAIN]


def _curves(runs: Sequence[Run], name: str, axis: str, *, id: str) -> Curves:
    scale, _ = unit_of_time(runs)
    data: list[Trace] = []
    axes: dict[str, list[list[float]]] = {one: [] for one in AXES}
    for number, run in enumerate(runs):
        if y := run.values(name):
            kept = _thinned(len(y))
            data.append(_line(number, run, [y[i] for i in kept], validation=name.startswith("val/")))
            for one in AXES:
                x = run.series(name, one) or []
                x = [value / scale for value in x] if one == "time" else x
                axes[one].append([round(x[i], 6) for i in kept] if x else [])
    for trace, x in zip(data, axes[axis], strict=True):
        trace["x"] = x
    without = [run.label for run in runs if not run.values(name)]
    title = MAIN.get(name, name)
    words = f"{title}, of {', '.join(run.label for run in runs if run.values(name))}."
    layout = {"xaxis": {"title": {"text": titles(runs)[axis]}}, "showlegend": False}
    return Curves(Chart(id, title, words, data, layout, 280, without), axes)


def _thinned(n: int) -> list[int]:
    every = -(-n // POINTS) or 1
    return list(range(n))[::-1][::every][::-1]  # the last one always stays


def _line(number: int, run: Run, y: Sequence[float], *, validation: bool) -> Trace:
    style: dict[str, Any] = (
        {"mode": "lines+markers", "marker": {"size": 4, "color": colour(number)}} if validation else {}
    )
    return lines(label(run.label), [], y, colour(number), line={"dash": dash(number)}, meta=number, **style)


def for_script(found: Sequence[Curves], runs: Sequence[Run]) -> dict[str, Any]:
    """What the page's script needs to change the axis."""
    return {"titles": titles(runs), "axes": {one.chart.id: one.axes for one in found}}


def reached(groups: Sequence[Group], runs: Sequence[Run]) -> Chart:
    """Bits per byte of each group with its interval, the first one on top."""
    found = [(i, group.label, one) for i, group in enumerate(groups) if (one := group.estimate(BASE))]
    data = [_dot(i, name, one, colour(runs.index(groups[i].runs[0]))) for i, name, one in found]
    names = [label(_short(name)) for _, name, _ in found]
    layout = {
        "xaxis": {"title": {"text": "bits per byte"}},
        "yaxis": {"tickvals": [i for i, _, _ in found], "ticktext": names, "autorange": "reversed", "zeroline": False},
        "showlegend": False,
        "hovermode": "closest",
    }
    words = "; ".join(f"{name}: {one.value:.4f}" for _, name, one in found)
    title = f"Bits per byte{', with 95 % intervals' if any(one.low for _, _, one in found) else ''}"
    return Chart("reached", title, f"{words}.", data, layout, 90 + 34 * len(found))


def _dot(number: int, name: str, one: Estimate, colour: str) -> Trace:
    trace = dots(label(name), [one.value], [number], colour, marker={"size": 10})
    if one.low is not None and one.high is not None:
        above, below = [one.high - one.value], [one.value - one.low]
        trace["error_x"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        trace["error_x"] |= {"thickness": 1.5, "color": colour}
    return trace


def _short(name: str, at_most: int = 28) -> str:
    return name if len(name) <= at_most else f"\u2026{name[1 - at_most :]}"
