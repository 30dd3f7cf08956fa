"""A checkpoint that is overwritten is kept as the previous one, such as last-previous.ckpt."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_app.io import temporary_name
from lightning_app.reports.run_folder import previous


def put_in_place(temporary: Path, target: Path, *, keep: bool) -> None:
    """Rename a whole file to `target`; what was there becomes the previous checkpoint, or goes.

    There is a file at `target` all the time, but on file systems without hard links: a kill between the two renames
    leaves the previous checkpoint alone there, which `find_checkpoint` then takes.
    """
    if keep and target.is_file():
        second = temporary_name(previous(target))
        try:
            os.link(target, second)
            os.replace(second, previous(target))
        except OSError:
            os.replace(target, previous(target))
    os.replace(temporary, target)
