"""Plain tables for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def format_table(rows: Sequence[tuple[str, str]], *, title: str) -> str:
    """Two columns under a title; further lines of a value are indented below its first."""
    width = max(len(name) for name, _ in rows)
    lines = [title, "-" * len(title)]
    for name, value in rows:
        first, *rest = value.splitlines() or [""]
        lines.append(f"{name:<{width}}  {first}")
        lines += [" " * (width + 2) + line for line in rest]
    return "\n".join(lines)


def format_columns(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> list[str]:
    """Lines of a table with a head; columns are aligned to the right, but for the `left` ones."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if i in left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    ]


def one_line(text: str, *, line_end: str = "\\n") -> str:
    """The text with a sign for each line's end, and what cannot be printed (a terminal would obey it) escaped."""
    lines = text.replace("\r\n", "\n").split("\n")
    return line_end.join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines)
