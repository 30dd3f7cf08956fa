"""Reads log.jsonl, which `callbacks.run_log` writes, without Lightning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE_NAME = "log.jsonl"


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """All records of a run in order. What a run logged after the checkpoint from which it was resumed never counts.

    A resume names the number of lines that there were when its checkpoint was written; older ones the step alone.

    A line that a crash cut short, or that is no JSON object, is left out.
    """
    records: dict[int, dict[str, Any]] = {}  # by number of the line
    for i, line in enumerate((Path(folder) / FILE_NAME).read_text(encoding="utf-8").split("\n")):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(record, dict):  # damaged, though it can be read
            continue
        if record.get("event") == "resumed":
            records = {n: r for n, r in records.items() if _counts(n, r, record)}
        records[i] = record
    return list(records.values())


def _counts(number: int, record: dict[str, Any], resumed: dict[str, Any]) -> bool:
    """Whether a record before a resume belongs to the run: what was learned and measured up to its checkpoint."""
    if record.get("event") in ("started", "data") or "step" not in record:
        return True
    return number < resumed.get("lines", number + 1) and (record["step"] or 0) <= resumed["step"]
