"""What the sections of a page hold: charts, tables, samples, numbers in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lightning_app.reports.figures import Chart
from lightning_app.reports.html import html, part
from lightning_app.reports.record import finite


@dataclass(frozen=True)
class Grid:
    """Charts side by side as far as there is room; `why` stands below the title of each."""

    charts: Sequence[Chart]
    why: Sequence[str] = ()
    wide: bool = False


@dataclass(frozen=True)
class Fold:
    """Parts below a line that opens and closes them."""

    summary: str
    parts: Sequence[Part]
    opened: bool = False


Part = str | Chart | Grid | Fold  # a str is text, unless it is Markup: see `html`


def charts_of(parts: Iterable[Part]) -> list[Chart]:
    """The charts among some parts, in their order."""
    return [chart for one in parts for chart in _charts(one)]


def _charts(one: Part) -> Sequence[Chart]:
    if isinstance(one, Fold):
        return charts_of(one.parts)
    return [one] if isinstance(one, Chart) else one.charts if isinstance(one, Grid) else []


def html_of(parts: Iterable[Part]) -> Markup:
    """Their elements; a chart's is empty until the page's script draws it."""
    return Markup("\n").join(_part(one) for one in parts)


def _part(one: Part) -> str:
    if isinstance(one, Chart):
        return part("figure", one)
    if isinstance(one, Fold):
        return part("fold", one.summary, html_of(one.parts), one.opened)
    if isinstance(one, str):
        return one
    why = [*one.why, *[""] * len(one.charts)]
    return part("grid", [part("figure", *both) for both in zip(one.charts, why, strict=False)], one.wide)


def not_logged(names: Sequence[str]) -> str:
    return part("not_logged", names)


def note(text: str) -> Markup:
    """What has to be known to read what stands near."""
    return html('<p class="note">{}</p>', text)


def html_table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: Sequence[int] = (),
    sortable: bool = False,
) -> str:
    """The first cell of a row names it. Columns of `texts` are aligned to the left; a click on a head sorts."""
    return part("table", caption, heads, rows, texts, sortable)


# Numbers


def number(value: Any, spec: str = "{:.4f}") -> str:
    """A number; a word where there is none."""
    number = finite(value)
    return Markup('<span class="missing-cell">not logged</span>') if number is None else spec.format(number)


def percent(value: float | None, *, better: int = 0) -> str:
    """A relative change; coloured where lower (-1) or higher (1) is better."""
    if value is None:
        return number(None)
    kind = "" if not better or abs(value) < 5e-4 else "good" if value * better > 0 else "bad"
    text = f"{100 * value:+.1f}\u00a0%".replace("-", "\u2212")
    return html('<span class="{}">{}</span>', kind, text) if kind else text


def si(value: float, unit: str = "") -> str:
    """1,556,160 is 1.56 M."""
    for power, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.3g} {sign}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def plain(value: Any) -> str:
    """A value of the log in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if value is None:
        return "\u2013"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ("; " if any(isinstance(one, dict | list) for one in value) else ", ").join(map(plain, value))
    return str(value)


def samples_of(prompt: str, texts: Sequence[tuple[str, str]], *, opened: bool) -> Fold:
    """What was written for a prompt, each text under its stage; the prompt that it begins with is set apart."""
    begins = [(stage, prompt if text.startswith(prompt) else "", text) for stage, text in texts]
    cards = [(stage, begin, text[len(begin) :]) for stage, begin, text in begins]
    return Fold(html("Prompt: <bdi>{}</bdi>", prompt or "(no prompt)"), [part("samples", cards)], opened)
