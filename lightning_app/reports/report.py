"""`python main.py report RUN_DIR`: the dashboard of a run, drawn again from its log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_app.errors import InputError
from lightning_app.reports.dashboard import FILE_NAME, write_dashboard
from lightning_app.reports.log import FILE_NAME as LOG
from lightning_app.reports.log import damage, read_log


def report(folder: Path, *, output: Path | None = None, single_file: bool = False) -> Path:
    """Write the page of the run in `folder` to `output` (`dashboard.html` in it) and return where it is.

    Raises:
        InputError: there is no such folder, no log in it or nothing in the log; or the page cannot be written.
    """
    records = records_of(folder)
    page = output or folder / FILE_NAME
    if page.is_dir():
        raise InputError(f"output is {page}, a folder: give the name of the page in it, such as {page / FILE_NAME}")
    where = folder.resolve()
    return write_dashboard(
        records, page.parent, title=f"{where.parent.name}/{where.name}", single_file=single_file, name=page.name
    )


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The log of the run in `folder`.

    Raises:
        InputError: there is no such folder, no log in it or nothing in the log.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give that of a run, such as runs/article_gpt/version_0")
    if not (folder / LOG).is_file():
        below = sorted(str(path.parent) for path in folder.rglob(LOG))
        remedy = (
            f"those with one below it: {', '.join(below[-5:])}" if below else "a fit with the callback RunLog writes it"
        )
        raise InputError(f"{folder} has no {LOG}, from which the page is drawn; {remedy}")
    records = read_log(folder)
    if not records:
        why = damage(folder)
        raise InputError(
            f"{folder / LOG} holds no whole record, {why}: it is damaged, or not the log of a run"
            if why
            else f"{folder / LOG} holds no record yet: wait for the first step, or give the folder of another run"
        )
    return records


def say_damage(folder: Path) -> None:
    """On stderr, where lines of a run's log are left out."""
    if found := damage(folder):
        print(f"warning: {folder / LOG}: {found}", file=sys.stderr)


def command(argv: Sequence[str]) -> None:
    """Parse the arguments, draw the page and say where it is."""
    args = _parser().parse_args(argv)
    page = report(Path(args.run_dir), output=Path(args.output) if args.output else None, single_file=args.single_file)
    say_damage(Path(args.run_dir))
    print(f"page: {page}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="main.py report", description=__doc__, allow_abbrev=False)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the folder of a run: the one with log.jsonl")
    parser.add_argument(
        "--single_file", action="store_true", help="plotly's script (5 MB) is part of the page, not beside it"
    )
    parser.add_argument("--output", help="where the page is written; dashboard.html in RUN_DIR without it")
    return parser
