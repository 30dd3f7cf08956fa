"""A page as one file: its frame, its sections, and the script that draws the charts in the colours of the theme."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

from markupsafe import Markup

from lightning_app.io import write_atomic
from lightning_app.reports.figures import Chart
from lightning_app.reports.html import html, rendered, source
from lightning_app.reports.parts import Part, charts_of, html_of, not_logged

PLOTLY = "plotly.min.js"
S = TypeVar("S")  # what a page is about: a run's records, or several runs


@dataclass(frozen=True)
class Section(Generic[S]):
    """One part of a page, with a way to draw it. Whoever adds one adds it to a page's list.

    Attributes:
        id: of its element, and of the link to it.
        title: its heading.
        needs: events and series that it is drawn from: named as not logged where it draws nothing.
        draw: what it holds.
    """

    id: str
    title: str
    needs: Sequence[str]
    draw: Callable[[S], Sequence[Part]]

    def parts(self, subject: S) -> Sequence[Part]:
        return [part for part in self.draw(subject) if part] or [not_logged(self.needs)]


def write_page(page: str, path: Path, *, single_file: bool) -> Path:
    """Write the page to `path`, and plotly's script beside it where it is not there; returns the page's path.

    Raises:
        InputError: the folder cannot be written.
    """
    script = path.with_name(PLOTLY)
    if not single_file and not script.is_file():
        write_atomic(script, _plotly().encode())
    write_atomic(path, page.encode(errors="replace"))
    return path


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # half a second, only where the script has to be written

    return get_plotlyjs()


def draw_page(
    sections: Sequence[Section[S]], subject: S, *, title: str, single_file: bool, style: str = "", script: str = ""
) -> str:
    """The page of these sections.

    Args:
        subject: what they are drawn from.
        title: of the page.
        single_file: plotly's script (5 MB) is part of the page; otherwise `plotly.min.js` has to lie beside it.
        style: more of it, in CSS.
        script: more of it, which runs behind the page's own.
    """
    filled = [(section.id, section.title, section.parts(subject)) for section in sections]
    drawn = [chart for _, _, parts in filled for chart in charts_of(parts) if chart.data]
    plotly = Markup(f"<script>{_plotly()}</script>") if single_file else html('<script src="{}"></script>', PLOTLY)
    page = rendered(
        "page.html",
        title=title,
        style=source("theme.css") + source("page.css") + Markup(style),
        sections=[(id, name, html_of(parts)) for id, name, parts in filled],
        charts=embedded(_of_script(drawn)),
        plotly=plotly,
        script=source("page.js") + Markup(script),
    )
    return str(page)


def embedded(value: object) -> Markup:
    """A value as JSON that cannot end the script element that it stands in."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


def _of_script(drawn: Sequence[Chart]) -> list[dict[str, object]]:
    """What the page's script needs of the charts."""
    return [{name: x for name, x in asdict(c).items() if name in ("id", "data", "layout", "height")} for c in drawn]
