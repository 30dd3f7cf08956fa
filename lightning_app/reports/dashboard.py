"""dashboard.html: a run's page, drawn from its log alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from lightning_app.reports.events import Closed, Data, Ended, Failed, Started
from lightning_app.reports.page import Section, draw_page, write_page
from lightning_app.reports.parts import Part, html_table, plain
from lightning_app.reports.plasticity import sections as plasticity
from lightning_app.reports.plasticity.events import PlasticityStarted
from lightning_app.reports.record import Record
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
    return draw_page(SECTIONS, records, title=title, single_file=single_file)


def _run(records: Sequence[Record]) -> list[Part]:
    rows = [
        [escape(one.name), f"{one.step:,}", escape(name), plain(value)]
        for one in records
        if isinstance(one, PlasticityStarted | Started | Data | Ended | Failed | Closed)
        for name, value in one.content().items()
    ]
    names = ("event", "step", "field", "value")
    note = f'<p class="note">{len(records):,} records, {last_step(records):,} optimizer steps.</p>'
    return [note, html_table("Settings and outcome", names, rows, texts=(0, 2, 3))] if rows else []


SECTIONS: tuple[Section[Sequence[Record]], ...] = (
    *plasticity.SECTIONS,
    Section("run", "Run", ("started",), _run),
)
