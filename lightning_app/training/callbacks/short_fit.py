"""The first steps of a fit, timed, and its end behind them: what a whole one repeats, and what so many steps take."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import lightning as L
import torch

from lightning_app.data.accumulation import accumulated
from lightning_app.data.batch import Batch
from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.callbacks.samples import Samples
from lightning_app.training.course import Costs, Course, Plan, Texts, Work, first_step, validated_every
from lightning_app.training.lightning_internals import fit_loop
from lightning_app.training.lightning_internals.callbacks import (
    model_checkpoints,
    of_kind,
    steps_between,
    time_limit,
    timers,
)
from lightning_app.training.lightning_internals.stopwatch import Span, Stopwatch

VALIDATED = 10  # batches, which stand for all of a validation
NEVER = 10**12  # steps or epochs


class ShortFit(RunCallback):
    """Ends a fit after a few steps, as its own end does it: with a validation, checkpoints and samples.

    It validates at that end alone. The limits of the fit (max_steps, max_epochs) stay as they are until the last step,
    so that schedules are checked and made as for the whole.

    Args:
        watch: the trainer's profiler.
        saves_every: steps between two last.ckpt of the whole fit; None: it writes no checkpoints.
        warm_up: steps that are not timed.
        timed: steps behind them, at least.
        least: seconds that all of them take, at least: a processor is faster in its first seconds.
        mean: of their seconds; False: the median, where few are timed.

    Attributes:
        share: of the whole fit, whose length is not known yet, between two validations; None: batches lie between.
        limits: steps after which the whole fit ends, by the option that says so; max_time is not among them.
        time_left: seconds that `max_time` leaves, from the first step on; None without.
        batches: that were learned.
        tokens: in them, on all ranks, padding included.
        seconds: from the first step on to the end of the short fit, all callbacks' work at its end included.
        rehearsed: callbacks that can tell what they will do now and then, and seconds of it in so many further steps.
    """

    priority = Priority.RESUME

    def __init__(
        self,
        watch: Stopwatch,
        saves_every: int | None,
        *,
        warm_up: int,
        timed: int,
        mean: bool,
        least: float = 0.0,
    ):
        self.watch, self._saves_every = watch, saves_every
        self.warm_up, self.wanted, self._mean, self._least = warm_up, warm_up + timed, mean, least
        self._plan: Plan | None = None
        self.limits: dict[str, int] = {}
        self.time_left: float | None = None
        self.batches = self.tokens = 0
        self.seconds = 0.0
        self.share: float | None = None
        self.rehearsed: dict[L.Callback, Callable[[int], float]] = {}
        self._rehearsal = 0.0  # seconds that trying it has taken
        self._start, self._began = 0, 0.0
        self._steps: list[tuple[float, int]] = []  # when a step was done, and the batches by then
        self._validated: list[float] = []  # when each batch of the validation began
        self._of_validation = 0  # batches of a whole one
        self._interval: float | None = None  # seconds between two, where no number of batches says it
        self._samples: list[tuple[Samples, int]] = []  # with the validations before

    # The fit

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._plan, self._start = self._planned(trainer), trainer.global_step
        self.limits = _limits(trainer, self._plan.course)
        left = [limit - timer.time_elapsed() for timer in timers(trainer) if (limit := time_limit(timer)) is not None]
        self.time_left = min(left, default=None)
        self._of_validation, self._interval = (
            fit_loop.validation_batches(trainer),
            fit_loop.validation_interval(trainer),
        )
        fit_loop.shorten_validation(trainer, VALIDATED)
        trainer.check_val_every_n_epoch = NEVER
        self._samples = [(c, c.state_dict()["validations"]) for c in of_kind(trainer, Samples)]
        for samples, _ in self._samples:
            samples.load_state_dict({"validations": samples.every - 1})  # the next one is one with samples
        self._began = time.monotonic()
        self._steps = [(self._began, 0)]

    def _planned(self, trainer: L.Trainer) -> Plan:
        every = trainer.val_check_batch
        course = Course(
            batches=int(trainer.num_training_batches),
            accumulated=lambda epoch: accumulated(trainer, epoch),
            validates_every=int(every) if every is not None and every < math.inf else None,
            of_epochs=trainer.check_val_every_n_epoch,
        )
        return Plan(
            course,
            start=trainer.global_step,
            saves_every=self._saves_every,
            best=sum(checkpoint.monitor is not None for checkpoint in model_checkpoints(trainer)),
            further=[every for checkpoint in model_checkpoints(trainer) if (every := steps_between(checkpoint))],
            validates=bool(trainer.enable_validation),
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.batches += 1
        self.tokens += batch.input_ids.numel() * trainer.world_size
        if trainer.global_step - self._start < len(self._steps):
            return  # within an accumulation
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._steps.append((time.monotonic(), self.batches))
        if self.steps >= self.wanted and self._has_time(trainer):
            self._rehearse(trainer)
            fit_loop.end_here(trainer)
            warnings.simplefilter("ignore")  # what follows is warned of an end that the fit does not have

    def _has_time(self, trainer: L.Trainer) -> bool:
        """Whether the least time is over; on all ranks the same."""
        return not self._least or trainer.strategy.broadcast(time.monotonic() - self._began >= self._least)

    def _rehearse(self, trainer: L.Trainer) -> None:
        start = time.monotonic()
        for callback in of_kind(trainer, RunCallback):
            if (seconds := callback.rehearse()) is not None:
                self.rehearsed[callback] = seconds
        self._rehearsal = time.monotonic() - start

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        if self._steps:  # not in the check before
            self._validated.append(time.monotonic())

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.monotonic() - self._began

    # What it has found

    @property
    def plan(self) -> Plan:
        """The whole fit, from where it starts."""
        assert self._plan is not None
        if self._interval is None or not self.steps:
            return self._plan
        every = max(1, round(self._interval / self._of_batch()))
        return replace(self._plan, course=replace(self._plan.course, validates_every=every, of_epochs=None))

    def until(self, end: int) -> Work:
        """All that a fit to step `end` does."""
        course = self.plan.course
        if self.share is not None:
            every = validated_every(self.share, steps=end, accumulated=course.accumulated(0))
            course = replace(course, validates_every=every)
        return replace(self.plan, course=course).until(end)

    @property
    def steps(self) -> int:
        """How many were done."""
        return max(0, len(self._steps) - 1)  # a fit without a step left does not start

    def costs(self) -> Costs:
        saving = [span.seconds for span in self.watch.saving(Span(self._began, math.inf))]
        return Costs(
            batch=self._of_batch(),
            validation=self._validation() + self._left_out(),
            checkpoint=statistics.median(saving) if saving else 0.0,
            texts=[Texts(samples.every, before, self._of(samples)) for samples, before in self._samples],
        )

    def seconds_beyond(self, end: int) -> float:
        """By which the whole fit, to step `end`, takes longer than this one did."""
        costs = self.costs()
        done = Work(self.batches, int(self.plan.validates), len(self.watch.saving(Span(self._began, math.inf))))
        texts = sum(one.seconds for one in costs.texts)
        own = replace(costs, texts=(), validation=self._validation())
        beyond = self.until(end).seconds(costs) - done.seconds(own) - texts
        return beyond + self.seconds_of_ideas(end) - self._rehearsal

    def seconds_of_ideas(self, end: int) -> float:
        """What rehearsed callbacks will do until step `end` besides."""
        further = max(0, end - self._start - self.steps)
        return sum(seconds(further) for seconds in self.rehearsed.values())

    def last_step_within(self, seconds: float) -> int:
        """The last step with which a whole fit takes no longer, from its first step on to its end; 0: there is none."""
        return first_step(lambda end: self.seconds + self.seconds_beyond(end) > seconds, after=self._start) - 1

    def step_at(self, limit: float) -> int:
        """The step with which a fit ends that has so many seconds from its first step on."""
        costs = self.costs()
        warm, batches = self._steps[min(self.warm_up, self.steps)]
        return self.plan.step_at(limit - max(0.0, warm - self._began - batches * costs.batch), costs)

    def _of_batch(self) -> float:
        """The average over the steps that are no warm-up."""
        timed = self._steps[max(0, min(self.warm_up, self.steps - 1)) :]
        spans = [(Span(begin[0], end[0]), end[1] - begin[1]) for begin, end in pairwise(timed)]
        average = statistics.fmean if self._mean else statistics.median
        return average((span.seconds - self._saved(span)) / batches for span, batches in spans)

    def _validation(self) -> float:
        """The one that was done, without checkpoints and samples."""
        span = self.watch.validation(self._began)
        if span is None:
            return 0.0
        return span.seconds - self._saved(span) - sum(self._of(samples) for samples, _ in self._samples)

    def _left_out(self) -> float:
        """Seconds of the batches that a whole validation has besides."""
        begun = self._validated[1:]  # the first one may take longer
        each = (begun[-1] - begun[0]) / (len(begun) - 1) if len(begun) > 1 else 0.0
        return each * (self._of_validation - len(self._validated))

    def _saved(self, span: Span) -> float:
        return sum(saving.seconds for saving in self.watch.saving(span))

    def _of(self, samples: Samples) -> float:
        spans = self.watch.hooks(f"]{samples.state_key}.on_validation_end", self._began)
        return sum(span.seconds for span in spans)


def _limits(trainer: L.Trainer, course: Course) -> dict[str, int]:
    limits = {"max_steps": trainer.max_steps} if trainer.max_steps > 0 else {}
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        limits["max_epochs"] = course.steps_in(trainer.max_epochs)
    return limits
