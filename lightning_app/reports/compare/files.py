"""The comparison for a paper: the first table as CSV or LaTeX, and the curves as a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from lightning_app.errors import InputError
from lightning_app.io import replacing, write_atomic
from lightning_app.reports.compare.charts import MAIN, titles, unit_of_time
from lightning_app.reports.compare.tables import MEASURED, results
from lightning_app.reports.groups import Group, against
from lightning_app.reports.intervals import Estimate
from lightning_app.reports.runs import Run

FIGURES = (".pdf", ".svg", ".png")
MARKED = 50  # points of a curve up to which each is marked
LINES = ("-", "--", ":", "-.")
LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u2212": "$-$", "\u2013": "--"}
    | {sign: rf"\{sign}" for sign in "&%$#_{}"}
)


def write_csv(groups: Sequence[Group], baseline: Group, path: Path) -> None:
    """Each measure with the ends of its interval, as plain numbers; empty where there is none."""
    names = [*(name for name, _, _ in MEASURED), "change_percent"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", *(f"{name}{end}" for name in names for end in ("", "_low", "_high")), "steps", "over"])
    for group in groups:
        found = [*(group.estimate(name) for name, _, _ in MEASURED), _change(group, baseline)]
        steps = " ".join(str(run.best.step) for run in group.runs if run.best)
        writer.writerow([group.label, *(x for one in found for x in _ends(one)), steps, group.chance])
    write_atomic(path, file.getvalue().encode())


def _change(group: Group, baseline: Group) -> Estimate | None:
    return None if group is baseline else against(group, baseline)


def _ends(one: Estimate | None) -> list[float | None]:
    return [None] * 3 if one is None else [one.value, one.low, one.high]


def write_latex(groups: Sequence[Group], baseline: Group, path: Path) -> None:
    """A tabular of the first table; it needs no package."""
    heads, rows = results(groups, baseline)
    lines = [" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in (heads, *rows)]
    body = [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\hline", lines[0], r"\hline", *lines[1:]]
    write_atomic(path, "\n".join([*body, r"\hline", r"\end{tabular}", ""]).encode())


def write_figure(runs: Sequence[Run], path: Path, *, axis: str) -> None:
    """The first of the main series that a run has, of all runs that have it.

    Raises:
        InputError: the name's ending is none of `FIGURES`, or no run has logged a series.
    """
    if path.suffix not in FIGURES:
        raise InputError(f"figure is {path}: its name must end in one of {', '.join(FIGURES)}")
    name = next((name for name in MAIN if any(run.values(name) and run.series(name, axis) for run in runs)), None)
    if name is None:
        raise InputError(f"figure is {path}, but no log of these runs has a curve over {axis}: leave it out")
    from matplotlib.figure import Figure  # a second of import, only where a figure is drawn

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    scale = unit_of_time(runs)[0] if axis == "time" else 1.0
    for number, run in enumerate(runs):
        if (y := run.values(name)) and (x := run.series(name, axis)):
            style = LINES[number // 10 % len(LINES)]
            label, marker = run.label.replace("$", r"\$"), "o" if len(y) <= MARKED else ""  # a single point has no line
            axes.plot([one / scale for one in x], y, style, label=label, linewidth=1.4, marker=marker, markersize=3)
    axes.set(xlabel=titles(runs)[axis], ylabel=MAIN[name])
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", fontsize="small")
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)
