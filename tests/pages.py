"""README.md and docs/ as tests read them: their blocks, and the commands in these."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"[Ss]ave (?:it )?as `([\w.]+)`|\bas `([\w.]+\.yaml)`|[Aa]ppend to `([\w.]+)`")
HEADED = re.compile(r"# ([\w.]+\.(?:yaml|py))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        file: what the page says to save it as; None where it says nothing.
        appends: whether it goes behind what that file has.
    """

    page: str
    language: str
    code: str
    file: str | None
    appends: bool

    @property
    def name(self) -> str:
        """The page and the block's first line."""
        return f"{self.page}: {self.code.strip().splitlines()[0].split('  #')[0].strip()}"


def pages() -> list[Path]:
    docs = ROOT / "docs"
    return [ROOT / "README.md", *sorted(docs.glob("*.md")), *sorted((docs / "how-to").glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in their order."""
    text, found, end = page.read_text(encoding="utf-8"), [], 0
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        before = text[end : match.start()].strip().splitlines()
        end = match.end()
        said = NAMED.search(before[-1]) if before else None
        if said is None and len(before) > 1 and before[-2]:
            said = NAMED.search(before[-2])
        headed = HEADED.match(match[2])
        file = headed[1] if headed else next((name for name in said.groups() if name), None) if said else None
        found.append(
            Block(str(page.relative_to(ROOT)), match[1], match[2], file, bool(said and said[3] and not headed))
        )
    return found


def shell(block: Block) -> str:
    """What a terminal is given of it: of a notebook's cells the lines with `!`; nothing of another language."""
    if block.language == "bash":
        return block.code
    if block.language == "console":
        lines = [line[2:] for line in block.code.splitlines() if line.startswith("$ ")]
    else:
        lines = [line[1:] for line in block.code.splitlines() if block.language == "text" and line.startswith("!")]
    return "\n".join(lines)


def commands(code: str) -> list[list[str]]:
    """The words behind `python main.py`, of each such command of a shell's code."""
    joined = code.replace("\\\n", " ")
    found = [re.split(r"\s(?:&&|\||&)\s|;(?:\s|$)", tail)[0] for tail in re.findall(r"main\.py (.*)", joined)]
    return [shlex.split(words, comments=True) for words in found]
