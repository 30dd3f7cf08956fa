"""Where a run's folder may lie: below runs_dir, and where something can be written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_app.errors import InputError, is_full

LONGEST = 255  # bytes of a file's name, on all file systems in use


def check_place(runs_dir: str, name: str, *, writes: bool) -> None:
    """Refuse a name that is none, that leads out of runs_dir, and a place where no folder can be made.

    Args:
        writes: whether a folder will be made.
    """
    shown = repr(name if len(name) <= 40 else f"{name[:40]}...")
    parts = Path(name).parts
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name):
        raise InputError(f"name is {shown}: it is a folder's name, without line ends and other control characters")
    if Path(name).is_absolute() or ".." in parts:
        raise InputError(f"name is {shown}, which leads out of runs_dir: set runs_dir for another place")
    if (longest := max((len(os.fsencode(part)) for part in parts), default=0)) > LONGEST:
        raise InputError(f"name is {shown}, of {longest} bytes: a folder's name has at most {LONGEST}")
    folder = Path(runs_dir) / name
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if writes and not there.is_dir():
        raise InputError(f"runs_dir is {runs_dir} and name {shown}, but {there} is a file: choose another place")
    if writes and not os.access(there, os.W_OK):
        raise InputError(f"no run can be written below {there}: set runs_dir to a folder that you may write to")


@contextmanager
def saying_when_full() -> Iterator[None]:
    """An InputError for a disk that is full, whoever writes."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        where = f" at {error.filename}" if error.filename else ""
        raise InputError(
            f"no space left on the disk{where} ({error.strerror}): make room, or set runs_dir (or data.cache_dir) to a "
            "folder on another disk"
        ) from error
