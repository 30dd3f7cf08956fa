"""Several runs on one page and in one table, from their logs, options and samples alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from lightning_app.reports.beside import NOTE
from lightning_app.reports.compare.charts import (
    Curves,
    colour,
    curves,
    dash,
    for_script,
    missing_on,
    reached,
)
from lightning_app.reports.compare.tables import (
    ABSENT_WORD,
    Table,
    change,
    costs,
    legend,
    nothing_measured,
    peers,
    results,
)
from lightning_app.reports.groups import BASE, NO_CHANCE, Group, baseline_of, cautions, groups_of, living, ranked
from lightning_app.reports.html import html, rendered, source
from lightning_app.reports.page import Section, draw_page, embedded, write_page
from lightning_app.reports.parts import Fold, Grid, Part, html_table, note, plain, samples_of
from lightning_app.reports.runs import ABSENT, AXES, Run, changes_result, differing

FILE_NAME = "compare.html"
LONGEST = 4_000  # characters of a sample that are shown
OPEN_PROMPTS = 3  # further ones are folded


def write_comparison(
    runs: Sequence[Run], path: Path, *, axis: str = "steps", single_file: bool = False, baseline: str | None = None
) -> Path:
    """Write the page to `path`; see `draw_comparison`.

    Raises:
        InputError: the folder cannot be written.
    """
    return write_page(
        draw_comparison(runs, axis=axis, single_file=single_file, baseline=baseline), path, single_file=single_file
    )


def draw_comparison(
    runs: Sequence[Run], *, axis: str = "steps", single_file: bool = False, baseline: str | None = None
) -> str:
    """The page.

    Args:
        runs: at least one.
        axis: that of the curves at first: one of `AXES` that a run's log has.
        single_file: plotly's script (5 MB) is part of the page; otherwise `plotly.min.js` has to lie beside it.
        baseline: label of the run that others are compared with at first; None: the first one.

    Raises:
        InputError: there is no such baseline.
    """
    main, others = curves(runs, axis)
    alive = living(runs)
    groups = ranked(groups_of(alive))
    subject = Comparison(runs, groups, baseline_of(groups, alive, baseline), main, others, axis)
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs compared"
    found = for_script([*main, *others], runs) | {"changes": [[change(one, base) for one in groups] for base in groups]}
    data = html("\nconst compared = {};\n", embedded(found))
    style, script = source("compare.css"), data + source("compare.js")
    return draw_page(SECTIONS, subject, title=title, single_file=single_file, style=style, script=script)


@dataclass(frozen=True)
class Comparison:
    """What the page is about: runs, those of them that belong together, the best first, and their curves on an axis."""

    runs: Sequence[Run]
    groups: Sequence[Group]
    baseline: Group
    main: Sequence[Curves]
    others: Sequence[Curves]
    axis: str


# The page


def _html(table: Table, caption: str, runs: Sequence[Run], groups: Sequence[Group]) -> str:
    heads, rows = table
    cells = [[_name(group, runs), *map(_cell, row[1:])] for group, row in zip(groups, rows, strict=True)]
    return html_table(caption, heads, cells, texts=(0,), sortable=len(groups) > 1)


def _name(group: Group, runs: Sequence[Run]) -> str:
    """With the colours of its runs' curves."""
    swatches = Markup("").join(_swatch(runs.index(run)) for run in group.runs)
    return html("{} {}", swatches, _breakable(group.label))


def _swatch(number: int) -> Markup:
    border = {"dash": "dashed", "dot": "dotted", "dashdot": "double"}.get(dash(number), "solid")
    return html('<i class="swatch" style="--of:var(--{});--dash:{}"></i>', colour(number)[1:], border)


def _breakable(text: str) -> Markup:
    """Lines may break behind what separates the parts of a path or an option."""
    return escape(text).replace("/", Markup("/<wbr>")).replace(".", Markup(".<wbr>"))


def _cell(text: str) -> str:
    """An interval stands below its value."""
    if text in (ABSENT_WORD, NO_CHANCE):
        return html('<span class="missing-cell">{}</span>', text)
    value, bracket, ends = text.partition(" [")
    return html("{} <small>[{}</small>", value, ends) if bracket else text


def _results(of: Comparison) -> list[Part]:
    runs, groups = of.runs, of.groups
    warnings = [html('<p class="caution">{}</p>', caution) for caution in cautions(living(runs))]
    chart = reached(groups, runs)
    table = _html(results(groups, of.baseline), "At the best validation of each run", runs, groups)
    dead = nothing_measured(runs)
    said = [_baselines(of), *warnings, table, note(dead) if dead else "", _legend(of)]
    return [_lead(groups), *said, chart if chart.data else "", _peers(of)]


def _legend(of: Comparison) -> str:
    """With the name of the baseline in an element of its own, which the switch changes."""
    before, name, after = legend(of.groups, of.baseline).partition(f"against {of.baseline.label}, ")
    marked = html('against <span id="against">{}</span>, ', of.baseline.label) if name else ""
    return note(html("{}{}{}", before, marked, after))


def _baselines(of: Comparison) -> str:
    """A switch for what the changes are measured against."""
    names = [group.label for group in of.groups]
    chosen = of.groups.index(of.baseline)
    return rendered("baselines.html", names=names, chosen=chosen) if len(names) > 1 else ""


def _peers(of: Comparison) -> str:
    table, caption = peers(of.groups), "Bits per byte of the validation text, frozen and adapting"
    return _html(table, caption, of.runs, of.groups) + NOTE if table[1] else ""


def _lead(groups: Sequence[Group]) -> str:
    found = [(one.value, group.label) for group in groups if (one := group.estimate(BASE))]
    if len(found) < 2:
        return ""
    value, best = min(found)
    return html('<p class="lead">Lowest bits per byte: <strong>{}</strong>, {:.4f}.</p>', best, value)


def _curves(of: Comparison) -> list[Part]:
    runs, main, others, axis = of.runs, of.main, of.others, of.axis
    if not main and not others:
        return [_missing("no numbers were logged at steps")]
    gone = {one: missing_on(runs, one) for one in AXES}
    whose = {one: "all runs" if len(names) == len(runs) else ", ".join(names) for one, names in gone.items() if names}
    said = [_missing(f"{one} {ABSENT_WORD}: {names}") for one, names in whose.items()]
    axes = [one for one in AXES if len(gone[one]) < len(runs)]
    parts: list[Part] = [_switches(runs, axes, axis), *said, Grid([one.chart for one in main], wide=True)]
    if others:
        parts.append(Fold("other series", [Grid([one.chart for one in others], wide=True)]))
    return parts


def _switches(runs: Sequence[Run], axes: Sequence[str], axis: str) -> str:
    """The axis, and which runs are shown."""
    shown = [(number, _swatch(number), run.label) for number, run in enumerate(runs)]
    return rendered("switches.html", axes=axes, axis=axis, runs=shown)


def _costs(of: Comparison) -> list[Part]:
    told = (
        "FLOPs: 6 for each weight of a matrix and 12 for each width and position of attention, per "
        "token of training. Tokens: of all processes, padding included. Tokens/s: the median. "
        "Time: validation included."
    )
    return [_html(costs(of.groups), "What it took", of.runs, of.groups), note(told)]


def _samples(of: Comparison) -> list[Part]:
    """One fold per prompt, with a card of each run."""
    runs = of.runs
    by_prompt: dict[str, list[tuple[Run, str]]] = {}
    for run in runs:
        for text in run.samples:
            prompt = next((p for p in run.prompts if text.startswith(p)), "")
            by_prompt.setdefault(prompt, []).append((run, text))
    parts: list[Part] = [
        _fold(prompt, found, opened=i < OPEN_PROMPTS) for i, (prompt, found) in enumerate(by_prompt.items())
    ]
    without = [run.label for run in runs if not run.samples]
    if without:
        parts.append(_missing(f"no samples in the folder of {', '.join(without)}"))
    return parts


def _fold(prompt: str, found: Sequence[tuple[Run, str]], *, opened: bool) -> Fold:
    cards = [(f"{run.label}, {run.samples_from}", text[:LONGEST]) for run, text in found]
    return samples_of(prompt, cards, opened=opened)


def _missing(text: str) -> str:
    return html('<p class="missing">{}</p>', text)


def _options(of: Comparison) -> list[Part]:
    runs = of.runs
    known = [run for run in runs if run.config]
    without = [run.label for run in runs if not run.config]
    parts: list[Part] = []
    if without:
        parts.append(_missing(f"no config.yaml in the folder of {', '.join(without)}"))
    if len(known) < 2:
        return [*parts, note("Options differ between two runs or more.")]
    found = {key: values for key, values in differing(known).items() if changes_result(key)}
    of_all = {key: values for key, values in found.items() if ABSENT not in values}
    of_some = {key: values for key, values in found.items() if ABSENT in values}
    total = len({key for run in known for key in run.options if changes_result(key)})
    parts.append(note(f"{len(of_all)} of {total} options that can change a result differ."))
    if of_all:
        parts.append(_values("Options that all have", of_all, known))
    if of_some:
        summary = f"{len(of_some)} options that not all have: those of other classes"
        parts.append(Fold(summary, [_values("Options that some have", of_some, known)]))
    return parts


def _values(caption: str, found: Mapping[str, Sequence[Any]], runs: Sequence[Run]) -> str:
    rows = [
        [_breakable(key.replace(".init_args", "")), *(_option(key, value) for value in values)]
        for key, values in found.items()
    ]
    heads = ["option", *(_breakable(run.label) for run in runs)]
    return html_table(caption, heads, rows, texts=tuple(range(len(runs) + 1)))


def _option(key: str, value: Any) -> str:
    if key.endswith("class_path") and isinstance(value, str):
        return html('<span title="{}">{}</span>', value, value.rpartition(".")[2])
    if value is ABSENT:
        return str(ABSENT)
    if isinstance(value, str | float):
        return plain(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _runs(of: Comparison) -> list[Part]:
    rows = [[_breakable(r.label), _breakable(r.folder), r.state, *_text(r)] for r in of.runs]
    heads = ["run", "folder", "state", "validation text"]
    return [html_table("Where they lie", heads, rows, texts=(0, 1, 2, 3))]


def _text(run: Run) -> list[str]:
    text = run.text
    if text is None:
        return [_cell(ABSENT_WORD)]
    counts = {"documents": text.documents, "bytes": text.bytes, "tokens": text.tokens}
    told = ", ".join(f"{n:,} {name}" for name, n in counts.items() if n is not None)
    return [f"{told}{', digest ' + text.text if text.text else ''}"]


SECTIONS = (
    Section("results", "Results", (), _results),
    Section("curves", "Curves", (), _curves),
    Section("costs", "Cost", (), _costs),
    Section("samples", "Samples", (), _samples),
    Section("options", "Options that differ", (), _options),
    Section("runs", "Runs", (), _runs),
)
