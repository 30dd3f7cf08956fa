"""The categories of an ART network: a table for the terminal, and a page on which one sees whether they mean something.

Pure: what is known of the categories in, text out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_app.reports.html import rendered, source
from lightning_app.reports.tables import format_columns, one_line

COLUMNS = ("id", "inputs", "share", "age", "unused", "nearest", "alike", "typical texts")
MEANING = {
    "id": "Given in the order of birth; it stays the category's own",
    "inputs": "Inputs that went to the category",
    "share": "The same, of all inputs so far",
    "age": "Inputs since the category opened, of whichever category",
    "unused": "Inputs since its last one",
    "nearest": "The other category whose prototype is most alike",
    "alike": "How much alike the two are; 1: the same",
    "typical texts": "The beginnings (or ends) of the texts that match the prototype best, best first",
}
EMPTY = "no category yet: one opens at an optimizer step, once the network has seen enough inputs"


@dataclass(frozen=True)
class Category:
    """What a category is known by.

    Attributes:
        id: given in the order of birth.
        inputs: that it has had.
        share: of all inputs, from 0 to 1.
        age: inputs since it opened.
        unused: inputs since its last one; 0: that was the newest.
        nearest: id of the other category that is most alike, and how much; None: there is no other.
        texts: typical ones, the best match first.
    """

    id: int
    inputs: int
    share: float
    age: int
    unused: int
    nearest: tuple[int, float] | None
    texts: Sequence[str]


@dataclass(frozen=True)
class Network:
    """The categories of one network, in the order in which they are shown.

    Attributes:
        name: of its loss term.
        vigilance: the match from which on an input is known.
        seen: inputs so far.
    """

    name: str
    vigilance: float
    seen: int
    categories: Sequence[Category]

    def summary(self) -> str:
        """In one line."""
        n, inputs = len(self.categories), f"{self.seen:,} input{'s' * (self.seen != 1)}"
        if not n:
            return f"{EMPTY} ({inputs} so far)"
        once = sum(category.inputs == 1 for category in self.categories)
        kinds = f"{n:,} categor{'y' if n == 1 else 'ies'} after {inputs}"
        return f"{kinds}, {once:,} of them with one input; vigilance {self.vigilance:.3f}"


def _cells(category: Category) -> list[str]:
    """All columns but the texts."""
    nearest, alike = category.nearest or (None, None)
    return [
        f"{category.id}",
        f"{category.inputs:,}",
        f"{category.share:.1%}",
        f"{category.age:,}",
        f"{category.unused:,}",
        "-" if nearest is None else f"{nearest}",
        "-" if alike is None else f"{alike:.3f}",
    ]


# For the terminal


def format_categories(network: Network, *, limit: int, width: int | None = None) -> str:
    """The first `limit` categories, a typical text a line; lines are cut at `width` characters."""
    title = f"{network.name}: {network.summary()}"
    rows = []
    for category in network.categories[:limit]:
        first, *others = [one_line(text) for text in category.texts] or [""]
        rows += [[*_cells(category), first], *([""] * (len(COLUMNS) - 1) + [text] for text in others)]
    lines = [title, "-" * len(title), *(format_columns(COLUMNS, rows, left=(len(COLUMNS) - 1,)) if rows else [])]
    if (left := len(network.categories) - limit) > 0:
        lines.append(f"... and {left:,} more: --limit {len(network.categories)} shows all")
    return "\n".join(line if width is None or len(line) <= width else line[: width - 1] + "…" for line in lines)


# For the browser


def draw_page(networks: Sequence[Network], *, title: str) -> str:
    """One HTML file that needs nothing else: a section for each network, sorted by a click on a column's head."""
    page = rendered(
        "categories.html",
        title=title,
        style=source("theme.css") + source("categories.css"),
        script=source("categories.js"),
        meaning=MEANING,
        networks=[(network, [_row(category, network) for category in network.categories]) for network in networks],
    )
    return str(page)


def _row(category: Category, network: Network) -> dict[str, Any]:
    """A category for the template; a cell has its column, the number that it is sorted by, and its text."""
    nearest, alike = category.nearest or (-1, -2.0)  # none: at the end
    numbers = (category.id, category.inputs, category.share, category.age, category.unused, nearest, alike)
    return {
        "id": category.id,
        "nearest": nearest if category.nearest else None,
        "bar": f"{100 * category.inputs / max(one.inputs for one in network.categories):.1f}",
        "cells": list(zip(COLUMNS, map(repr, numbers), _cells(category), strict=False)),
        "texts": [one_line(text, line_end=" ↵ ") for text in category.texts],
    }
