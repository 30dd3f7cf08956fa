"""The texts: each has a part to train on, one to choose by, and one to score."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from experiments.texts import TITLE
from lightning_app.errors import InputError
from lightning_app.io import write_atomic

ROOT = Path(__file__).parent.parent.parent
ARTICLES, WIKITEXT, SHAKESPEARE = "articles", "wikitext-2", "tiny-shakespeare"
SET_ASIDE = 2  # of the training articles, the last ones by name


@dataclass(frozen=True)
class Text:
    """A text in three files."""

    name: str
    train: Path
    heldout: Path
    test: Path

    @property
    def sha256(self) -> str:
        """Of all three."""
        parts = (path.read_bytes() for path in (self.train, self.heldout, self.test))
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    @classmethod
    def given(cls, name: str, train: str, heldout: str, test: str) -> Text:
        """Of a user's files.

        Raises:
            InputError: one is not there, not UTF-8, or empty.
        """
        for path in (train, heldout, test):
            try:
                empty = not Path(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot read the text {path} ({error}): give a file in UTF-8") from error
            if empty:
                raise InputError(f"the text {path} is empty")
        return cls(name, *(Path(path).absolute() for path in (train, heldout, test)))


def known_texts(work: Path, shared: Path) -> dict[str, Text]:
    """Those that are there, written into `work`, the one of the trials first."""
    parts = {}
    if (folder := shared / "wikitext-2").is_dir():
        parts[WIKITEXT] = (_read(folder / "valid.txt"), *halves(_read(folder / "test.txt")))
    if (path := shared / "tinyshakespeare" / "input.txt").is_file():
        parts[SHAKESPEARE] = shares(_read(path))
    parts[ARTICLES] = _articles(ROOT / "data" / "articles")
    return {name: _written(work / "texts" / name, name, three) for name, three in parts.items()}


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")  # with its line ends


def _articles(folder: Path) -> tuple[str, str, str]:
    train, test = ([_read(path) for path in sorted((folder / part).glob("*.txt"))] for part in ("train", "val"))
    return "".join(train[:-SET_ASIDE]), "".join(train[-SET_ASIDE:]), "".join(test)


def halves(text: str) -> tuple[str, str]:
    """Two parts, cut before the title of an article that is nearest to the middle."""
    starts = [match.start() for match in TITLE.finditer(text)][1:]
    cut = min(starts, key=lambda start: abs(start - len(text) / 2))
    return text[:cut], text[cut:]


def shares(text: str) -> tuple[str, str, str]:
    """90, 5 and 5 per cent."""
    first, second = len(text) * 90 // 100, len(text) * 95 // 100
    return text[:first], text[first:second], text[second:]


def _written(folder: Path, name: str, parts: tuple[str, str, str]) -> Text:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder.absolute() / f"{part}.txt" for part in ("train", "heldout", "test")]
    for path, part in zip(paths, parts, strict=True):
        if not path.is_file() or path.read_bytes() != part.encode():  # another process may be reading it
            write_atomic(path, part.encode())
    return Text(name, *paths)
