"""Charts as plain dicts in plotly's format: building plotly's own objects takes seconds.

A colour is "@" and the name of a CSS variable of the page, which its script looks up, so that charts follow the theme.
Text of the log goes through `label`: plotly obeys some tags in its texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

Trace = dict[str, Any]


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
