"""Reads log.jsonl, which `callbacks.run_log` writes, without Lightning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE_NAME = "log.jsonl"


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """All records of a run in order. What a run logged after the checkpoint from which it was resumed never counts.

    A line that a crash cut short, or that is no JSON object, is left out.
    """
    records: list[dict[str, Any]] = []
    for line in (Path(folder) / FILE_NAME).read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(record, dict):  # damaged, though it can be read
            continue
        if record.get("event") == "resumed":
            kept = ("started", "data")
            records = [r for r in records if (r.get("step") or 0) <= record["step"] or r.get("event") in kept]
        records.append(record)
    return records
