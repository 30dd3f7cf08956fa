"""A section of a page is written in place of the one that is there."""

from __future__ import annotations

import re
from pathlib import Path


def put(path: Path, heading: str, text: str, *, before: str | None = None) -> None:
    """Write a section, heading included: where it is, else before another heading, else at the end.

    Args:
        heading: of the second level, such as `## Results`.
        before: another one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    start = _at(page, heading)
    if start < 0:
        start = _at(page, before) if before else -1
        start = len(page) if start < 0 else start
        end = start
    else:
        following = re.compile(r"^## ", re.MULTILINE).search(page, start + len(heading))
        end = following.start() if following else len(page)
    above, rest = page[:start].rstrip(), page[end:]
    above = f"{above}\n\n" if above else ""
    path.write_text(f"{above}{text.rstrip()}\n{chr(10) if rest else ''}{rest}", encoding="utf-8")


def _at(page: str, heading: str) -> int:
    """Where its line begins; below 0: nowhere."""
    found = re.search(rf"^{re.escape(heading)}$", page, re.MULTILINE)
    return found.start() if found else -1
