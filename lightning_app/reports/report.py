"""`python main.py report RUN_DIR`: the dashboard of a run, drawn again from its log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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


def command(argv: Sequence[str]) -> None:
    """Parse the arguments, draw the page and say where it is."""
    args = _parser().parse_args(argv)
    folder = RunFolder(Path(args.run_dir))
    page = report(folder, output=Path(args.output) if args.output else None, single_file=args.single_file)
    say_damage(folder)
    print(f"page: {page}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="main.py report", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the folder of a run: the one with log.jsonl")
    parser.add_argument(
        "--single_file", action="store_true", help="plotly's script (5 MB) is part of the page, not beside it"
    )
    parser.add_argument("--output", help="where the page is written; dashboard.html in RUN_DIR without it")
    return parser
