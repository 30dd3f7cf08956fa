"""dashboard.html: a run's page, drawn from its log alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_app.plugins import IDEAS, Idea, here, load
from lightning_app.reports.beside import tables
from lightning_app.reports.html import html
from lightning_app.reports.page import Section, draw_page, write_page
from lightning_app.reports.parts import Part, html_table, note, plain
from lightning_app.reports.record import Event, Record
from lightning_app.reports.series import last_step


def write_dashboard(records: Sequence[Record], path: Path, *, title: str, single_file: bool = False) -> Path:
    """Write the page to `path`, and plotly's script beside it where it is not there; returns the page's path.

    Raises:
        InputError: the folder cannot be written.
    """
    return write_page(draw_dashboard(records, title=title, single_file=single_file), path, single_file=single_file)


def draw_dashboard(records: Sequence[Record], *, title: str, single_file: bool = False) -> str:
    """The page of a run's records; whatever was not logged is named as missing.

    Args:
        records: in the order of the log.
        title: of the page.
        single_file: plotly's script (5 MB) is part of the page; otherwise `plotly.min.js` has to lie beside it.
    """
    return draw_page(sections(), records, title=title, single_file=single_file)


def _run(records: Sequence[Record]) -> list[Part]:
    rows = [
        [one.name, f"{one.step:,}", name, plain(value)]
        for one in records
        if isinstance(one, Event) and one.is_of_the_whole
        for name, value in one.content().items()
    ]
    names = ("event", "step", "field", "value")
    count = note(f"{len(records):,} records, {last_step(records):,} optimizer steps.")
    gone = [html('<p class="bad">Not drawn: {}.</p>', idea.missing) for idea in _wanted(records) if not idea.is_here]
    whole = html_table("Settings and outcome", names, rows, texts=(0, 2, 3))
    return [*gone, count, *tables(records), whole] if rows or gone else []


def _wanted(records: Sequence[Record]) -> list[Idea]:
    """The ideas whose sections these records call for."""
    logged = {one.name for one in records if isinstance(one, Event)}
    return [idea for idea in IDEAS if logged & {*idea.shown_by}]


def calls_for_page(records: Sequence[Record]) -> bool:
    """Whether there is more to draw than the loss."""
    return bool(_wanted(records))


RUN: Section[Sequence[Record]] = Section("run", "Run", ("started",), _run)


def sections() -> list[Section[Sequence[Record]]]:
    """The sections of the ideas that are here, then that of every run."""
    return [*(section for idea in here() if idea.sections for section in load(idea.sections)), RUN]
