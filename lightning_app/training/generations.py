"""Two generations of a checkpoint that is overwritten: last.ckpt, and last-previous.ckpt, which it was before."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_app.io import temporary_name

PREVIOUS = "-previous"


def previous(path: Path) -> Path:
    """Where the generation before that at `path` lies."""
    return path.with_name(f"{path.stem}{PREVIOUS}{path.suffix}")


def generations(path: Path) -> list[Path]:
    """Those that there are, the newest first."""
    return [file for file in (path, previous(path)) if file.exists()]


def put_in_place(temporary: Path, target: Path, *, keep: bool) -> None:
    """Rename a whole file to `target`; what was there becomes the previous generation, or goes.

    There is a file at `target` all the time, but on file systems without hard links: a kill between the two renames
    leaves the previous generation alone there, which `find_checkpoint` then takes.
    """
    if keep and target.is_file():
        second = temporary_name(previous(target))
        try:
            os.link(target, second)
            os.replace(second, previous(target))
        except OSError:
            os.replace(target, previous(target))
    os.replace(temporary, target)
