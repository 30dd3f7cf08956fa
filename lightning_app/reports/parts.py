"""What the sections of a page hold: charts, tables, samples, numbers in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lightning_app.reports.figures import Chart
from lightning_app.reports.record import finite


@dataclass(frozen=True)
class Grid:
    """Charts side by side as far as there is room; `why` is HTML below the title of each."""

    charts: Sequence[Chart]
    why: Sequence[str] = ()
    wide: bool = False


Part = str | Chart | Grid


def charts_of(parts: Iterable[Part]) -> list[Chart]:
    """The charts among some parts, in their order."""
    both = [[part] if isinstance(part, Chart) else part.charts if isinstance(part, Grid) else [] for part in parts]
    return [chart for some in both for chart in some]


def html_of(parts: Iterable[Part]) -> str:
    """Their elements; a chart's is empty until the page's script draws it."""
    return "\n".join(_part(part) for part in parts)


def _part(part: Part) -> str:
    if isinstance(part, Chart):
        return _figure(part)
    if isinstance(part, str):
        return part
    why = [*part.why, *[""] * len(part.charts)]
    figures = "".join(_figure(chart, reason) for chart, reason in zip(part.charts, why, strict=False))
    return f'<div class="grid{" wide" * part.wide}">{figures}</div>'


def _figure(chart: Chart, why: str = "") -> str:
    place = (
        f'<div class="chart" id="{chart.id}" role="img" aria-label="{escape(chart.label)}" '
        f'style="min-height:{chart.height}px"></div>'
        if chart.data
        else ""
    )
    return f"<figure><figcaption>{escape(chart.title)}</figcaption>{why}{not_logged(chart.missing)}{place}</figure>"


def not_logged(names: Sequence[str]) -> str:
    return f'<p class="missing">not logged: {escape(", ".join(names))}</p>' if names else ""


def html_table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Sequence[int] = ()) -> str:
    """Rows of HTML; the first cell of a row names it. Columns of `texts` are aligned to the left."""

    def mark(i: int) -> str:
        return ' class="text"' if i in texts else ""

    top = "".join(f'<th scope="col"{mark(i)}>{head}</th>' for i, head in enumerate(heads))
    body = "\n".join(
        f'<tr><th scope="row"{mark(0)}>{row[0]}</th>'
        + "".join(f"<td{mark(i)}>{cell}</td>" for i, cell in enumerate(row[1:], start=1))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


# Numbers


def number(value: Any, spec: str = "{:.4f}") -> str:
    """A number; a word where there is none."""
    number = finite(value)
    return '<span class="missing-cell">not logged</span>' if number is None else spec.format(number)


def percent(value: float | None, *, better: int = 0) -> str:
    """A relative change; coloured where lower (-1) or higher (1) is better."""
    if value is None:
        return number(None)
    kind = "" if not better or abs(value) < 5e-4 else "good" if value * better > 0 else "bad"
    text = f"{100 * value:+.1f}\u00a0%".replace("-", "\u2212")
    return f'<span class="{kind}">{text}</span>' if kind else text


def si(value: float, unit: str = "") -> str:
    """1,556,160 is 1.56 M."""
    for power, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.3g} {sign}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def plain(value: Any) -> str:
    """A value of the log as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def sample_card(stage: str, prompt: str, text: str) -> str:
    """One text of one stage; the prompt that it begins with is set apart."""
    begin = prompt if text.startswith(prompt) else ""
    shown = f"<strong>{escape(begin)}</strong>{escape(text[len(begin) :])}" if begin else escape(text)
    return f'<article><h4>{escape(stage)}</h4><p dir="auto">{shown}</p></article>'
