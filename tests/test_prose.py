"""No sentence of README.md and docs/ has more than 30 words (`python -m tests.test_prose` lists those that have)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, pages

MOST = 30
WRITTEN_BY_A_PROGRAM = {"docs/benchmarks.md", "docs/speedrun.md"}  # benchmarks/ has the sentences
EXEMPT = {"docs/log.md"}  # a log of what did not work, written at the time
LATER = {"docs/memory.md", "docs/art.md", "docs/plasticity.md", "docs/facts.md"}  # an experiment writes their sections
PAGES = [*pages(), ROOT / "CONTRIBUTING.md"]
CHECKED = [page for page in PAGES if str(page.relative_to(ROOT)) not in WRITTEN_BY_A_PROGRAM | EXEMPT | LATER]
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.DOTALL | re.MULTILINE)
ITEM = re.compile(r"^ *(?:[-*+]|\d+\.) |^#|^>|^\||^    \S")


def prose(text: str) -> list[str]:
    """Paragraphs, headings and items of lists, each in a line: no code, no table, no picture."""
    text = FENCE.sub("\n\n", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    found = [""]
    for line in text.splitlines():
        if not line.strip() or (line.lstrip().startswith(("|", "![", "[")) and not re.match(r" *\[[^\]]+\]\(", line)):
            found.append("")
        elif ITEM.match(line):
            found.append(line.strip())
        else:
            found[-1] += " " + line.strip()
    return [re.sub(r"^(?:[-*+>#]+|\d+\.) ", "", paragraph.strip()) for paragraph in found if paragraph.strip()]


def sentences(paragraph: str) -> list[str]:
    """Split at a full stop, a question mark or a semicolon's larger brother that a capital or a sign follows."""
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", paragraph)
    code: list[str] = []

    def put_away(found: re.Match[str]) -> str:
        code.append(found[0])
        return f"\x00{len(code) - 1}\x00"

    parts = re.split(r"(?<=[.?!])[\"')*_]*\s+(?=[A-Z\x00\"(*_0-9])", re.sub(r"`[^`]*`", put_away, plain))
    return [re.sub(r"\x00(\d+)\x00", lambda found: code[int(found[1])], part) for part in parts]


def words(sentence: str) -> int:
    """Code in backticks is one word."""
    return len([word for word in re.sub(r"`[^`]*`", "code", sentence).split() if re.search(r"\w", word)])


def too_long(page: Path) -> list[str]:
    every = [one for paragraph in prose(page.read_text(encoding="utf-8")) for one in sentences(paragraph)]
    return [f"{words(one)} words: {one}" for one in every if words(one) > MOST]


def test_words_are_counted_as_a_reader_does():
    text = "# A title\n\nOne `a b c` is\none word. Two (in brackets).\n\n- An item\n- of two. lines\n"
    text += "\n| a | b |\n\n```\ncode\n```\n"
    found = [sentences(paragraph) for paragraph in prose(text)]
    assert found == [["A title"], ["One `a b c` is one word.", "Two (in brackets)."], ["An item"], ["of two. lines"]]
    assert [words(one) for one in found[1]] == [5, 3]


@pytest.mark.parametrize("page", CHECKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_is_long(page: Path):
    assert too_long(page) == []


def test_the_pages_that_are_left_out_are_there():
    assert {str(page.relative_to(ROOT)) for page in PAGES} >= WRITTEN_BY_A_PROGRAM | EXEMPT | LATER
    assert len(CHECKED) > 30


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]) if sys.argv[1:] else PAGES:
        for line in too_long(page.resolve()):
            print(f"{page}: {line}")
