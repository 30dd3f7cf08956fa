"""The events of every run, and the table of all, by which a line of the log is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lightning_app.plugins import here, load
from lightning_app.reports.record import Event, Numbers, Other, Record, Row, finite

COMMANDS = ("validate", "test")  # their numbers are not a part of a fit's curves


@dataclass(frozen=True, kw_only=True)
class SplitCounts(Row):
    """What a split holds; see `data.counts`.

    Attributes:
        split: "train" or "val".
        text: a digest: the same text has the same one, whatever the tokenizer. Not in older logs.
    """

    split: str | None
    documents: int | None
    words: int | None
    bytes: int | None
    tokens: int | None
    windows: int | None = None
    truncated: int | None = None
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Data(Event):
    """The texts of a run, before it starts or goes on."""

    NAME = "data"
    is_of_the_whole = True
    splits: list[SplitCounts] | None


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """Training begins: at step 0.

    Attributes:
        flops_per_token: of a training step.
        max_steps: the step with which the run ends, unless something ends it earlier; None: it has no such limit.
    """

    NAME = "started"
    is_of_the_whole = True
    model: str | None
    parameters: int | None
    world_size: int | None
    precision: str | None
    flops_per_token: float | None = None
    max_steps: int | None = None

    def resumed(self, lines: int | None) -> Resumed:
        """The same of a run that goes on."""
        own = {name: getattr(self, name) for name in ("model", "parameters", "world_size", "precision", "max_steps")}
        return Resumed(**own, flops_per_token=self.flops_per_token, lines=lines)


@dataclass(frozen=True, kw_only=True)
class Resumed(Started):
    """Training goes on from a checkpoint.

    Attributes:
        lines: that the log had when the checkpoint was written; later ones, of steps that are done again, do not count.
    """

    NAME = "resumed"
    lines: int | None = None


@dataclass(frozen=True, kw_only=True)
class PassageSums(Event):
    """Sums over each passage of the validation text; see `intervals`."""

    NAME = "passages"
    nats: list[float] | None
    tokens: list[float] | None
    bytes: list[float] | None
    right: list[float] | None


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """Training is over: all its steps are done, or something has stopped it early."""

    NAME = "ended"
    is_of_the_whole = True


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """An error has ended training.

    Attributes:
        error: name of its class.
    """

    NAME = "failed"
    is_of_the_whole = True
    error: str | None
    message: str | None


@dataclass(frozen=True, kw_only=True)
class Interrupted(Event):
    """A signal has ended training, such as "SIGTERM"."""

    NAME = "interrupted"
    signal: str | None


@dataclass(frozen=True, kw_only=True)
class Trained(Event):
    """What training took since step 0, on all ranks."""

    NAME = "trained"
    tokens: float | None = None
    train_flops: float | None = None


@dataclass(frozen=True, kw_only=True)
class Beside(Event):
    """What a model's bits per byte of a text stand beside: those of what needs no model.

    Attributes:
        lzma_bpb: of LZMA after the training text.
        trigrams_bpb: of counts of the training text.
        fivegrams_bpb: the same of 5 tokens.
        ppmd_bpb: of PPMd after the training text, where it is installed.
        zpaq_bpb: the same of zpaq.
        adapts: whether the model learned from the text while it was measured.
    """

    lzma_bpb: float | None
    trigrams_bpb: float | None = None
    fivegrams_bpb: float | None = None
    ppmd_bpb: float | None = None
    zpaq_bpb: float | None = None
    adapts: bool = False

    @property
    def text(self) -> str | None:
        """The split that was measured."""
        raise NotImplementedError

    @property
    def model_bpb(self) -> float | None:
        """The model's own."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Closed(Beside):
    """The end of a run: `more` has the measures of its best validation by name.

    Attributes:
        verbatim: share of what was sampled that stands in the training text.
    """

    NAME = "closed"
    is_of_the_whole = True
    verbatim: float | None

    @property
    def text(self) -> str:
        return "val"

    @property
    def model_bpb(self) -> float | None:
        return finite(self.more.get("val/bpb"))


@dataclass(frozen=True, kw_only=True)
class Measured(Beside):
    """What `validate` or `test` has measured.

    Attributes:
        split: "val" or "test".
        bpb: of the model.
    """

    NAME = "measured"
    split: str | None
    bpb: float | None

    @property
    def text(self) -> str | None:
        return self.split

    @property
    def model_bpb(self) -> float | None:
        return self.bpb


@dataclass(frozen=True, kw_only=True)
class Cost(Event):
    """What the model costs.

    Attributes:
        stage: "baseline", or a stage and its cycle in words.
        flops_per_token: of a training step.
        latency_ms: the shortest forward of one batch.
        latency_spread: shortest and longest.
        ceiling: speed-up over the baseline that the FLOPs allow; `measured`: the one that there is.
    """

    NAME = "cost"
    cycle: int | None
    stage: str | None
    parameters: float | None
    bytes: float | None
    flops_per_token: float | None
    latency_ms: float | None
    latency_spread: list[float] | None
    ceiling: float | None = None
    measured: float | None = None


OF_ALL_RUNS = (Data, Started, Resumed, PassageSums, Ended, Failed, Interrupted, Trained, Closed, Measured, Cost)


@cache
def kinds() -> dict[str, type[Event]]:
    """By their names in the log: those of all runs, and of the ideas that are here."""
    of_ideas = (kind for idea in here() if idea.events for kind in load(idea.events))
    return {kind.NAME: kind for kind in (*OF_ALL_RUNS, *of_ideas)}


def parsed(record: Mapping[str, Any]) -> Record:
    """A line of the log, as `log.read_log` has read it."""
    name = record.get("event")
    if name is None or name in COMMANDS:
        return Numbers.from_json(record)
    return kinds().get(name, Other).from_json(record)


def end_of(records: Sequence[Record]) -> str | None:
    """How a run ended, in words: "ended", "failed: ..." or "interrupted by SIGTERM"; None while nothing says so."""
    marks = [r for r in records if isinstance(r, Started | Ended | Failed | Interrupted)]
    last = marks[-1] if marks else None
    if isinstance(last, Failed):
        return f"failed: {last.error or 'reason not logged'}"
    if isinstance(last, Interrupted):
        return f"interrupted by {last.signal or 'a signal'}"
    return "ended" if isinstance(last, Ended) else None
