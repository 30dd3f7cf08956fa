"""Results of an experiment: one JSON object a line, kept as they come, so that an interrupted run goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

RESULTS = "results.jsonl"
SECONDS = "cpu_seconds.jsonl"
GAINS = "entry.jsonl"  # what the models without memory gain from their context
SHORT = 0.1  # seconds: a job that found all done
Record = dict[str, Any]
Job = TypeVar("Job")


def append(folder: Path, record: Record, name: str = RESULTS) -> None:
    """One line, in one write."""
    line = json.dumps(record) + "\n"
    with (folder / name).open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = "\n" + line  # a crash cut the last line off
        file.write(line.encode())


def write(folder: Path, records: Sequence[Record], name: str = RESULTS) -> None:
    """In place of what is there."""
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / name).write_text("".join(lines), encoding="utf-8")


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


class Stopwatch:
    """CPU seconds of this process within its contexts."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._start


@contextmanager
def counted(folder: Path) -> Iterator[None]:
    """Keep the CPU seconds of what is within, also where it fails: those of all runs count."""
    watch = Stopwatch()
    try:
        with watch:
            yield
    finally:
        if watch.seconds > SHORT:
            append(folder, {"cpu_seconds": round(watch.seconds, 2)}, SECONDS)


def cpu_hours(folder: Path) -> float:
    """Of all jobs of all runs, but those that were killed."""
    return float(sum(record["cpu_seconds"] for record in records(folder, SECONDS))) / 3600


def do_all(do: Callable[[Job], None], jobs: Sequence[Job], *, workers: int, folder: Path) -> None:
    """By worker processes of one thread each, or in this one; `folder` keeps their CPU seconds."""
    counting = partial(_do, do, folder)
    if workers == 1:
        for job in jobs:
            counting(job)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(counting, jobs):
            pass


def _do(do: Callable[[Job], None], folder: Path, job: Job) -> None:
    with counted(folder):
        do(job)
