"""This project's own files at a commit: texts that every clone has, and that no model of before has seen."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_app.data.corpus import Document
from lightning_app.errors import InputError

ROOT = Path(__file__).parent.parent
COMMIT = "5c06773"
LEAST = 500  # bytes of a file that is learned, or held out
LEARNED = 0.7  # of the files


def docs(commit: str) -> list[Document]:
    return _at(commit, r"\.md$")


def source(commit: str) -> list[Document]:
    return _at(commit, r"^lightning_app/.*\.py$")


def _at(commit: str, pattern: str) -> list[Document]:
    """The files whose path the pattern finds."""
    names = [name for name in _git("ls-tree", "-r", "--name-only", commit).splitlines() if re.search(pattern, name)]
    return [Document(_git("show", f"{commit}:{name}"), name=name) for name in names]


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, encoding="utf-8", cwd=ROOT)
    if done.returncode:
        raise InputError(f"git {' '.join(words)} failed ({done.stderr.strip()}): the files come from a clone's history")
    return done.stdout


def write_halves(folder: Path, commit: str = COMMIT) -> tuple[str, str]:
    """The source as two folders below this one, to learn and to hold out, its files in an order drawn at random."""
    learned, heldout = (folder / f"source-{commit}-{part}" for part in ("train", "heldout"))
    if not heldout.is_dir():
        files = [document for document in source(commit) if len(document.text.encode()) >= LEAST]
        drawn = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
        cut = round(LEARNED * len(drawn))
        write(learned, drawn[:cut], numbered=True)
        write(heldout, drawn[cut:], numbered=True)
    return str(learned), str(heldout)


def write(folder: Path, documents: Sequence[Document], *, numbered: bool = False) -> None:
    """One file each, as a folder of texts is read.

    Args:
        numbered: read in this order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i, document in enumerate(documents):
        name = re.sub(r"[^\w.#-]", "-", document.name)
        (folder / (f"{i:04}-{name}.txt" if numbered else f"{name}.txt")).write_text(document.text, encoding="utf-8")
