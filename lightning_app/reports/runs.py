"""What a run's folder says of it, whatever kind of run it was: measures, cost, time, options.

Pure: records, options and samples in, facts out. What was not logged is None, never a guess.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lightning_app.reports.events import (
    Closed,
    Cost,
    Data,
    Ended,
    Failed,
    PassageSums,
    SplitCounts,
    Started,
    Trained,
    end_of,
)
from lightning_app.reports.intervals import SUMS
from lightning_app.reports.record import Numbers, Record
from lightning_app.reports.series import best_validation, events, is_of_fit, last_step, numbers, series
from lightning_app.yaml_file import leaves

AXES = ("steps", "tokens", "time")
SEEDS = ("seed_everything", "data.seed")
PLACES = ("name", "runs_dir", "ckpt_path", "weights_only", "data.cache_dir", "save_every_n_steps")  # change no result
WATCHING = (  # how options begin of what watches a run, and changes nothing of it
    "trainer.logger",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "trainer.callbacks[RunLog",
    "trainer.callbacks[Dashboard",
    "trainer.callbacks[Projector",
)


@dataclass(frozen=True)
class Run:
    """A run's folder, as it was read.

    Attributes:
        label: what it is called on the page; no other run has it.
        folder: where it lies.
        records: of its log, in order.
        config: its options as nested mappings; empty where there was no config.yaml.
        samples: texts that it wrote, without those that are not there.
        samples_from: the file that they stand in.
    """

    label: str
    folder: str
    records: Sequence[Record]
    config: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[str] = ()
    samples_from: str = ""

    # What was reached

    @cached_property
    def best(self) -> Numbers | None:
        """The numbers of the best validation of the model as it ended."""
        return best_validation(self.records)

    def measure(self, name: str) -> float | None:
        """A number of the best validation, such as "val/bpb"."""
        return self.best.values.get(name) if self.best else None

    @cached_property
    def passages(self) -> np.ndarray | None:
        """(P, S) sums of the passages of the validation text at the best validation; see `intervals`."""
        found = [one for one in events(self.records, PassageSums) if self.best and one.step == self.best.step]
        columns = [getattr(found[-1], name) for name in SUMS] if found else []
        if not all(columns) or len(set(map(len, columns))) != 1:
            return None
        sums = np.array(columns, dtype=float)
        return sums.T if sums[1:3].sum(1).all() else None

    @property
    def text(self) -> SplitCounts | None:
        """Counts of the validation text, and its digest in newer logs."""
        splits = (split for one in reversed(events(self.records, Data)) for split in one.splits or [])
        return next((split for split in splits if split.split == "val"), None)

    @property
    def adapts(self) -> bool:
        """Whether the model learned from the validation text while it was measured, as far as the log says."""
        return any(one.adapts for one in events(self.records, Closed)[-1:])

    @property
    def state(self) -> str:
        return end_of(self.records) or "not ended"

    @property
    def steps(self) -> int:
        return last_step(self.records)

    # What it cost

    @property
    def parameters(self) -> tuple[float | None, float | None]:
        """At the start, and when they were last measured."""
        measured = [one.parameters for one in events(self.records, Cost) if one.stage != "baseline"]
        first = self._start.parameters if self._start else None
        return first, (measured[-1] if measured else None) or first

    @property
    def _start(self) -> Started | None:
        return next(iter(events(self.records, Started)), None)

    @cached_property
    def flops_per_token(self) -> tuple[float | None, float | None]:
        """FLOPs of a training step per token, at the start and at the end."""
        ranks = (self._start.world_size if self._start else None) or 1
        rates = [(r.values.get("model_tflops"), r.values.get("tokens_per_s")) for r in numbers(self.records)]
        found = [1e12 * flops * ranks / tokens for flops, tokens in rates if flops and tokens]
        first = (self._start.flops_per_token if self._start else None) or (found[0] if found else None)
        return first, found[-1] if found else first

    def total(self, name: str) -> float | None:
        """The last logged "tokens" or "train_flops"."""
        found = (_total(record, name) for record in reversed(self.records))
        return next((value for value in found if value is not None), None)

    @property
    def tokens_per_s(self) -> float | None:
        """Median over the run."""
        found = self.values("tokens_per_s")
        return statistics.median(found) if found else None

    @cached_property
    def clock(self) -> list[float]:
        """Seconds of the run until each record; what lies between a crash and its resume does not count."""
        passed, before, found = 0.0, None, []
        for record in self.records:
            if record.time is not None:
                if before is not None and not isinstance(record, Started | Data):
                    passed += max(0.0, record.time - before)
                before = record.time
            found.append(passed)
        return found

    @property
    def seconds(self) -> float | None:
        """Seconds until the last step or the end of training, without what closes a run."""
        found = zip(self.clock, self.records, strict=True)
        return max((t for t, r in found if is_of_fit(r) or isinstance(r, Ended | Failed)), default=None)

    # Curves

    def series(self, name: str, axis: str) -> list[float] | None:
        """Where on an axis the points of `values(name)` lie; None where the log does not say."""
        found = [(i, r) for i, r in enumerate(self.records) if _has(r, name)]
        if axis == "steps":
            return [r.step for _, r in found]
        if axis == "time":
            return [self.clock[i] for i, _ in found] if self.clock and self.clock[-1] else None
        steps, tokens = series(self.records, "tokens")
        return np.interp([r.step for _, r in found], [0, *steps], [0, *tokens]).tolist() if steps else None

    def values(self, name: str) -> list[float]:
        """All finite values of a number that was logged at steps."""
        return series(self.records, name)[1]

    @property
    def numbers(self) -> list[str]:
        """Names of what was logged at steps."""
        return list(dict.fromkeys(name for r in numbers(self.records) for name in r.values))

    # Options

    @cached_property
    def options(self) -> dict[str, Any]:
        """Value by dotted key; of a list of parts each stands under the name of its class."""
        return dict(leaves(self.config, lists="classes"))

    @property
    def seed(self) -> tuple[Any, ...]:
        return tuple(self.options.get(name) for name in SEEDS)

    @property
    def prompts(self) -> list[str]:
        """The prompts of its samples, the longest first, so that one that begins another is found last."""
        found = [v for key, v in self.options.items() if key.endswith(".prompts") and isinstance(v, list)]
        return sorted({str(prompt) for prompts in found for prompt in prompts}, key=len, reverse=True)


def _total(record: Record, name: str) -> float | None:
    if isinstance(record, Trained):
        found: float | None = getattr(record, name)
        return found
    return record.values.get(name) if is_of_fit(record) else None


def _has(record: Record, name: str) -> bool:
    return is_of_fit(record) and record.values.get(name) is not None


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Options that are not the same in all runs, with each run's value; `ABSENT` where it has no such option."""
    keys = dict.fromkeys(key for run in runs for key in run.options)
    found = {key: [run.options.get(key, ABSENT) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if any(v != values[0] for v in values)}


def changes_result(option: str) -> bool:
    """Whether a run may end otherwise with another value of this option."""
    return option not in PLACES and not option.startswith(WATCHING)


class _Absent:
    def __str__(self) -> str:
        return "\u2013"


ABSENT = _Absent()
