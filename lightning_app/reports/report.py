"""`python main.py report RUN_DIR`: the dashboard of a run, drawn again from its log."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_app.errors import InputError
from lightning_app.reports.dashboard import write_dashboard
from lightning_app.reports.run_folder import RunFolder


def report(folder: RunFolder, *, output: Path | None = None, single_file: bool = False) -> Path:
    """Write the page of a run to `output` (`dashboard.html` in its folder) and return where it is.

    Raises:
        InputError: there is no such folder, no log in it or nothing in the log; or the page cannot be written.
    """
    records, page = folder.known_records(), output or folder.dashboard
    if page.is_dir():
        raise InputError(
            f"output is {page}, a folder: give the name of the page in it, such as {RunFolder(page).dashboard}"
        )
    return write_dashboard(records, page, title=folder.title, single_file=single_file)


def say_damage(folder: RunFolder) -> None:
    """On stderr, where lines of a run's log are left out."""
    if found := folder.damage():
        print(f"warning: {folder.log_file}: {found}", file=sys.stderr)
