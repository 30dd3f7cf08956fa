"""What each split holds, as numbers and as a table."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Counts:
    """One split. End-of-text ids count as tokens; `truncated` are pairs that are longer than block_size."""

    split: str
    documents: int
    words: int
    bytes: int
    tokens: int
    windows: int
    truncated: int


def table(rows: Sequence[Counts]) -> str:
    """One line per split under the names of the columns."""
    cells = [[field.name for field in fields(Counts)]]
    cells += [[f"{value:,}" if isinstance(value, int) else value for value in astuple(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.rjust(width) for c, width in zip(line, widths, strict=True)) for line in cells)
