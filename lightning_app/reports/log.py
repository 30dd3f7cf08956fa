"""log.jsonl, which `training.callbacks.run_log` writes: its lines, and what is left when some are damaged."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_app.reports.events import Data, Resumed, Started

FILE_NAME = "log.jsonl"
_SUM = b', "crc": "'  # behind all else in a line: 8 hexadecimal digits, of the line without it
NAMED = 5  # damaged lines whose numbers are listed


def line_of(record: dict[str, Any]) -> str:
    """One line, with a checksum: a flipped bit in a number would be another number."""
    line = json.dumps(record, allow_nan=False)
    return f'{line[:-1]}{_SUM.decode()}{zlib.crc32(line.encode()):08x}"}}\n'


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """All records of a run in order. What a run logged after the checkpoint from which it was resumed never counts.

    A resume names the number of lines that there were when its checkpoint was written; older ones the step alone.
    Damaged lines are left out; `damage` names them.
    """
    records: dict[int, dict[str, Any]] = {}  # by number of the line
    for number, record in _lines(folder):
        if record is None:
            continue
        if record.get("event") == Resumed.NAME:
            records = {n: r for n, r in records.items() if _counts(n, r, record)}
        records[number] = record
    return list(records.values())


def damage(folder: str | Path) -> str:
    """Which lines of a run's log are left out, such as the one that a crash cut short; "" where all are whole."""
    lost = [number for number, record in _lines(folder) if record is None]
    if not lost:
        return ""
    numbers = ", ".join(map(str, lost[:NAMED])) + (", ..." if len(lost) > NAMED else "")
    return f"{len(lost)} damaged line{'s' * (len(lost) > 1)} left out ({numbers})"


def _lines(folder: str | Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number, from 1, and record of each line; None for a damaged one."""
    for number, line in enumerate((Path(folder) / FILE_NAME).read_bytes().split(b"\n"), start=1):
        if line.strip():
            yield number, _record(line)


def _record(line: bytes) -> dict[str, Any] | None:
    head, found, checksum = line.rstrip().rpartition(_SUM)
    whole = head + b"}" if found else line
    if found and checksum != b'%08x"}' % zlib.crc32(whole):
        return None
    try:
        record = json.loads(whole.decode())
    except (ValueError, RecursionError):
        return None
    return record if _is_record(record) else None


def _is_record(record: Any) -> bool:
    """Logs of earlier versions have no checksum: what all readers count on must be there."""
    if not isinstance(record, dict) or not _are_numbers(record.get("step"), record.get("time")):
        return False
    if "event" not in record:
        return "step" in record and _are_numbers(*record.values())
    return isinstance(record["event"], str) and (record["event"] != Resumed.NAME or record.get("step") is not None)


def _are_numbers(*values: Any) -> bool:
    """Or null, which is written for those that are not finite."""
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)


def _counts(number: int, record: dict[str, Any], resumed: dict[str, Any]) -> bool:
    """Whether a record before a resume belongs to the run: what was learned and measured up to its checkpoint."""
    if record.get("event") in (Started.NAME, Data.NAME) or "step" not in record:
        return True
    return number <= resumed.get("lines", number) and (record["step"] or 0) <= resumed["step"]
