"""What each action of a Trainer takes, by the names under which Lightning reports them to a profiler."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lightning.pytorch.profilers import Profiler

SAVE = "save_checkpoint"
VALIDATION = ("on_validation_start", "on_validation_end")


@dataclass(frozen=True)
class Span:
    """From `start` to `end`, in seconds of `time.monotonic`, of what Lightning 2.6.6 profiles."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Stopwatch(Profiler):
    """Keeps when each action began and ended. Seen in Lightning 2.6.6."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[tuple[str, Span]] = []
        self._begun: dict[str, list[float]] = {}

    def start(self, action_name: str) -> None:
        self._begun.setdefault(action_name, []).append(time.monotonic())

    def stop(self, action_name: str) -> None:
        self.actions.append((action_name, Span(self._begun[action_name].pop(), time.monotonic())))

    def hooks(self, name: str, since: float) -> list[Span]:
        """The calls of a hook since then, of all whose names end so: "on_validation_end", "]Samples.setup"."""
        return [span for action, span in self.actions if action.endswith(name) and span.start >= since]

    def saving(self, within: Span) -> list[Span]:
        """The writing of each checkpoint that begins within."""
        spans = [span for action, span in self.actions if action == SAVE]
        return [span for span in spans if within.start <= span.start < within.end]

    def validation(self, since: float) -> Span | None:
        """The first whole one since then, with all callbacks at its start and its end."""
        starts, ends = (self.hooks(name, since) for name in VALIDATION)
        return Span(min(span.start for span in starts), max(span.end for span in ends)) if starts and ends else None
