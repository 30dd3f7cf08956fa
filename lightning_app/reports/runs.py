"""What a run's folder says of it, whatever kind of run it was: measures, cost, time, options.

Pure: records, options and samples in, facts out. What was not logged is None, never a guess.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lightning_app.reports.intervals import SUMS
from lightning_app.reports.loss_curve import best_validation
from lightning_app.reports.plasticity.facts import Record, baseline_and_now, events, finite, last_step, step_of

AXES = ("steps", "tokens", "time")
SEEDS = ("seed_everything", "data.seed")
PLACES = ("name", "runs_dir", "ckpt_path", "weights_only", "data.cache_dir", "save_every_n_steps")  # change no result


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
    def best(self) -> Record | None:
        """The record of the best validation of the model as it ended."""
        return best_validation(self.records)

    def measure(self, name: str) -> float | None:
        """A number of the best validation, such as "val/bpb"."""
        return finite(self.best.get(name)) if self.best else None

    @cached_property
    def passages(self) -> np.ndarray | None:
        """(P, S) sums of the passages of the validation text at the best validation; see `intervals`."""
        step = step_of(self.best) if self.best else None
        found = [r for r in events(self.records, "passages") if step_of(r) == step]
        sums = _table([found[-1].get(name) for name in SUMS]) if found else None
        return sums.T if sums is not None and sums[1:3].sum(1).all() else None

    @property
    def text(self) -> Record | None:
        """Counts of the validation text, and its digest in newer logs."""
        splits = (split for r in reversed(events(self.records, "data")) for split in r.get("splits") or [])
        return next((split for split in splits if split.get("split") == "val"), None)

    @property
    def state(self) -> str:
        last = next(reversed(events(self.records, "started", "resumed", "ended", "failed")), {})
        if last.get("event") == "failed":
            return f"failed: {last.get('error', 'reason not logged')}"
        return "ended" if last.get("event") == "ended" else "not ended"

    @property
    def steps(self) -> int:
        return last_step(self.records)

    # What it cost

    @property
    def parameters(self) -> tuple[float | None, float | None]:
        """At the start, and after the last surgery that measured them."""
        start = next(iter(events(self.records, "started", "resumed")), {})
        _, now = baseline_and_now(self.records, "cost")
        first = finite(start.get("parameters"))
        return first, (finite(now.get("parameters")) if now else None) or first

    @cached_property
    def flops_per_token(self) -> tuple[float | None, float | None]:
        """Of a training step, at the start and at the end."""
        start = next(iter(events(self.records, "started", "resumed")), {})
        ranks = finite(start.get("world_size")) or 1
        rates = [(finite(r.get("model_tflops")), finite(r.get("tokens_per_s"))) for r in self.records]
        found = [1e12 * flops * ranks / tokens for flops, tokens in rates if flops and tokens]
        first = finite(start.get("flops_per_token")) or (found[0] if found else None)
        return first, found[-1] if found else first

    def total(self, name: str) -> float | None:
        """The last logged "tokens" or "train_flops"."""
        found = [value for r in self.records if (value := finite(r.get(name))) is not None]
        return found[-1] if found else None

    @property
    def tokens_per_s(self) -> float | None:
        """Median over the run."""
        found = [rate for r in self.records if (rate := finite(r.get("tokens_per_s"))) is not None]
        return statistics.median(found) if found else None

    @cached_property
    def clock(self) -> list[float]:
        """Seconds of the run until each record; what lies between a crash and its resume does not count."""
        passed, before, found = 0.0, None, []
        for record in self.records:
            now = finite(record.get("time"))
            if now is not None:
                if before is not None and record.get("event") not in ("started", "resumed", "data"):
                    passed += max(0.0, now - before)
                before = now
            found.append(passed)
        return found

    @property
    def seconds(self) -> float | None:
        """Until the last step or the end of training; what closes a run is no part of it."""
        ours = [t for t, r in zip(self.clock, self.records, strict=True) if r.get("event") in (None, "ended", "failed")]
        return max(ours, default=None)

    # Curves

    def series(self, name: str, axis: str) -> list[float] | None:
        """Where on an axis the points of `values(name)` lie; None where the log does not say."""
        found = [(i, r) for i, r in enumerate(self.records) if _has(r, name)]
        if axis == "steps":
            return [step_of(r) for _, r in found]
        if axis == "time":
            return [self.clock[i] for i, _ in found] if self.clock and self.clock[-1] else None
        known = [(step_of(r), n) for r in self.records if (n := finite(r.get("tokens"))) is not None]
        steps, tokens = zip((0, 0), *known, strict=True)
        return np.interp([step_of(r) for _, r in found], steps, tokens).tolist() if known else None

    def values(self, name: str) -> list[float]:
        """All finite values of a number that was logged at steps."""
        return [r[name] for r in self.records if _has(r, name)]

    @property
    def numbers(self) -> list[str]:
        """Names of what was logged at steps."""
        own = ("time", "step", "epoch")
        return list(dict.fromkeys(n for r in self.records if "event" not in r for n in r if n not in own))

    # Options

    @cached_property
    def options(self) -> dict[str, Any]:
        """Value by dotted key; of a list of parts each stands under the name of its class."""
        return dict(_leaves(self.config))

    @property
    def seed(self) -> tuple[Any, ...]:
        return tuple(self.options.get(name) for name in SEEDS)

    @property
    def prompts(self) -> list[str]:
        """Those of its samples, the longest first, so that one that begins another is found last."""
        found = [v for key, v in self.options.items() if key.endswith(".prompts") and isinstance(v, list)]
        return sorted({str(prompt) for prompts in found for prompt in prompts}, key=len, reverse=True)


def _table(columns: list[Any]) -> np.ndarray | None:
    """Columns of numbers as one array; None where they are not that, as a damaged line may have them."""
    try:
        table = np.array(columns, dtype=float)
    except (ValueError, TypeError):
        return None
    return table if table.ndim == 2 and table.size and np.isfinite(table).all() else None


def _has(record: Record, name: str) -> bool:
    return "event" not in record and finite(record.get(name)) is not None


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list) and any(isinstance(one, Mapping) for one in tree):
        for i, one in enumerate(tree):
            name = str(one["class_path"]).rpartition(".")[2] if "class_path" in one else str(i)
            yield from _leaves(one, f"{prefix}[{name}]")
    else:
        yield prefix, tree


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Options that are not the same in all runs, with each run's value; `ABSENT` where it has no such option."""
    keys = dict.fromkeys(key for run in runs for key in run.options)
    found = {key: [run.options.get(key, ABSENT) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if any(v != values[0] for v in values)}


class _Absent:
    def __str__(self) -> str:
        return "\u2013"


ABSENT = _Absent()
