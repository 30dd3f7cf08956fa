"""Results of an experiment: one JSON object a line, kept as they come, so that an interrupted run goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

RESULTS = "results.jsonl"
Record = dict[str, Any]
Job = TypeVar("Job")


def append(folder: Path, record: Record, name: str = RESULTS) -> None:
    """One line, in one write."""
    line = json.dumps(record) + "\n"
    with (folder / name).open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = "\n" + line  # a crash cut the last line off
        file.write(line.encode())


def records(folder: Path, name: str = RESULTS) -> list[Record]:
    """All complete lines; one that was cut off by a crash does not count."""
    path = folder / name
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [record for line in lines if (record := _parsed(line)) is not None]


def _parsed(line: str) -> Record | None:
    try:
        record: Record = json.loads(line)
    except ValueError:
        return None
    return record


def do_all(do: Callable[[Job], None], jobs: Sequence[Job], *, workers: int) -> None:
    """By worker processes of one thread each, or in this one."""
    if workers == 1:
        for job in jobs:
            do(job)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(do, jobs):
            pass
