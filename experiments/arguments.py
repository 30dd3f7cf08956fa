"""The texts of an experiment, as arguments: what is learned, what is chosen on, what the figures are of."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_app.data.corpus import read_documents
from lightning_app.errors import InputError

ROOT = Path(__file__).parent.parent
ARTICLES = ROOT / "data" / "articles"
CODE = str(ROOT / "lightning_app" / "**" / "[a-z]*.py")
WORDS = ("train", "heldout", "test", "second")
FLAGS = ("quick",)


def add_texts(
    parser: argparse.ArgumentParser, *, second: str | None = None, default: str = "the articles in data/"
) -> None:
    """Options for the texts.

    Args:
        second: help for a text of another kind; None: the experiment has none.
        default: what is taken in the place of texts.
    """
    parser.add_argument("--train", "--first", help=f"text or folder to learn; without it {default}")
    parser.add_argument("--heldout", help="text of the same kind that everything is chosen on")
    parser.add_argument("--test", help="text of the same kind that is scored; without it the second half of HELDOUT")
    if second:
        parser.add_argument("--second", "--unseen", default=CODE, help=f"{second}; without it this project's source")


def add_seeds(parser: argparse.ArgumentParser, planned: Sequence[int]) -> None:
    parser.add_argument(
        "--seeds", type=int, nargs="+", help=f"without it those of the plan: {' '.join(map(str, planned))}"
    )


def take_texts(options: argparse.Namespace) -> argparse.Namespace:
    """The options with the articles where no text was given.

    Raises:
        InputError: a text to learn without one that is held out, or the other way round.
    """
    if options.train is None and options.heldout is None and options.test is None:
        options.train, options.heldout = str(ARTICLES / "train"), str(ARTICLES / "val")
    if options.train is None or options.heldout is None:
        raise InputError("--train and --heldout belong together (make: TRAIN and HELDOUT): give both, or neither")
    return options


def called(main: Callable[[], None]) -> None:
    """From a command line: a user's mistake is one line."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")


def command_of(target: str, options: argparse.Namespace) -> str:
    """What was called, without folders."""
    given = {word: getattr(options, word, None) for word in WORDS}
    texts = [f"{word.upper()}={name_of(path)}" for word, path in given.items() if path is not None]
    seeds = [f'SEEDS="{" ".join(map(str, options.seeds))}"'] if getattr(options, "seeds", None) else []
    flags = [f"ARGS=--{flag}" for flag in FLAGS if getattr(options, flag, False)]
    return " ".join(["make", target, *texts, *seeds, *flags])


def name_of(path: str) -> str:
    return Path(path).name


def told(plan: Mapping[str, Any]) -> tuple[str, str]:
    """What was chosen on and what was scored, in words."""
    heldout = name_of(plan["heldout"])
    if plan["test"] is None:
        return f"the first half of {heldout} (whole documents; no TEST was given)", f"its second half ({heldout})"
    return heldout, name_of(plan["test"])


def digests(paths: Sequence[str | None]) -> list[str]:
    """Of the content of each text that was given."""
    return [_digest(path) for path in paths if path is not None]


def _digest(path: str) -> str:
    text = "\0".join(f"{document.prompt or ''}{document.text}" for document in read_documents(path))
    return hashlib.sha256(text.encode()).hexdigest()
