"""Tables of a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join([line(head), line(["---"] * len(head)), *(line(row) for row in rows)])


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
