"""What has been run: one JSON object a line; a run that is there is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments import store

FILE = "speedrun.jsonl"
FROZEN, ADAPTING = "frozen", "adapting"


@dataclass(frozen=True)
class Key:
    """What makes a run another one.

    Attributes:
        table: `frozen` or `adapting`.
        budget: CPU seconds; 0 where nothing is trained by steps.
        sha256: of the three parts of the text.
    """

    table: str
    contestant: str
    text: str
    budget: float
    seed: int
    threads: int
    options: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """Short, and another one for each key."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        trial: number of the trial whose options it has.
        cpu_seconds: of the training, to the saved model; of an archive, to read the text.
        spent: the same with the calibration and with what was discarded.
        discarded: runs that took more than 1 % beyond the budget.
        heldout_bpb: what recipes are chosen by; None for archives.
        test_bpb: None for a trial that was not chosen.
    """

    key: Key
    trial: int = 0
    steps: int = 0
    cpu_seconds: float = 0.0
    spent: float = 0.0
    discarded: int = 0
    heldout_bpb: float | None = None
    test_bpb: float | None = None
    commit: str = ""
    machine: str = ""

    @classmethod
    def of(cls, record: dict[str, Any]) -> Result:
        return cls(**{**record, "key": Key(**record["key"])})


@dataclass
class Results:
    """All that a folder holds; a later line of the same key replaces an earlier one."""

    folder: Path
    by_name: dict[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> None:
        """Take in what other processes have added, too."""
        found = [Result.of(record) for record in store.records(self.folder, FILE)]
        self.by_name = {result.key.name: result for result in found}

    def add(self, result: Result) -> None:
        store.append(self.folder, asdict(result), FILE)
        self.read()

    def get(self, key: Key) -> Result | None:
        return self.by_name.get(key.name)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.by_name.values())

    def of(self, table: str, **wanted: Any) -> list[Result]:
        """Those of a table whose keys have these values."""
        of_table = [result for result in self if result.key.table == table]
        return [r for r in of_table if all(getattr(r.key, name) == value for name, value in wanted.items())]
