"""How far a fit goes: its batches, steps, epochs and validations, and how long so many of them take. Numbers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile


@dataclass(frozen=True)
class Course:
    """The batches of a fit, counted from its first step on. A step does not cross the end of an epoch.

    Args:
        batches: of an epoch, on each rank.
        accumulated: batches that make a step, by epoch.
        validates_every: batches between two validations; None: there is none but that of the last step.
        of_epochs: counted within every so many epochs; None: over all of them.
    """

    batches: int
    accumulated: Callable[[int], int]
    validates_every: int | None = None
    of_epochs: int | None = None

    def steps_in(self, epochs: int) -> int:
        return sum(self._steps(epoch) for epoch in range(epochs))

    def batches_at(self, step: int) -> int:
        """Batches, over all epochs, when so many steps are done."""
        for epoch, first in self._epochs():
            if step <= first + self._steps(epoch):
                return epoch * self.batches + min(self.batches, (step - first) * self.accumulated(epoch))
        raise AssertionError  # epochs do not end

    def validations(self, step: int) -> list[int]:
        """The steps up to `step` behind which there is a validation, that of the last one not counted."""
        found: list[int] = []
        for epoch, first in self._epochs():
            if first >= step or self.validates_every is None:
                break
            of_epoch = (first + math.ceil(batch / self.accumulated(epoch)) for batch in self._validated_in(epoch))
            found += takewhile(lambda validated: validated <= step, of_epoch)  # a stream is one endless epoch
        return found

    def _steps(self, epoch: int) -> int:
        return math.ceil(self.batches / self.accumulated(epoch))

    def _epochs(self) -> Iterator[tuple[int, int]]:
        """Each epoch with the number of steps before it."""
        steps = 0
        for epoch in count():
            yield epoch, steps
            steps += self._steps(epoch)

    def _validated_in(self, epoch: int) -> range:
        """The batches of an epoch, the first one being 1, behind which there is a validation."""
        assert self.validates_every is not None
        if self.of_epochs is None:
            past = epoch * self.batches % self.validates_every
            return range(self.validates_every - past, self.batches + 1, self.validates_every)
        due = (epoch + 1) % self.of_epochs == 0
        return range(self.validates_every, self.batches + 1 if due else 0, self.validates_every)


def validated_every(share: float, *, steps: int, accumulated: int) -> int:
    """Batches between two validations that lie a share of the whole fit apart; the last one is that of its last step.

    Args:
        share: above 0, below 1.
        steps: of the fit.
        accumulated: batches that make a step.
    """
    return max(1, math.ceil(round(share * steps, 6))) * accumulated


@dataclass(frozen=True)
class Texts:
    """Seconds of what is written behind every so many validations, `before` of which were before the fit's start."""

    every: int
    before: int
    seconds: float

    def behind(self, validations: int) -> float:
        return ((self.before + validations) // self.every - self.before // self.every) * self.seconds


@dataclass(frozen=True)
class Costs:
    """Seconds of what is repeated in a fit.

    Args:
        batch: a training batch, with its share of the optimizer's step.
        validation: a whole one, with what is done behind it, but for texts.
        checkpoint: writing one.
        texts: see there.
    """

    batch: float
    validation: float = 0.0
    checkpoint: float = 0.0
    texts: Sequence[Texts] = ()


@dataclass(frozen=True)
class Work:
    """How often each is done in a part of a fit."""

    batches: int = 0
    validations: int = 0
    checkpoints: int = 0

    def seconds(self, costs: Costs) -> float:
        each = (self.batches, costs.batch), (self.validations, costs.validation), (self.checkpoints, costs.checkpoint)
        return sum(n * seconds for n, seconds in each) + sum(texts.behind(self.validations) for texts in costs.texts)


@dataclass(frozen=True)
class Plan:
    """A fit from the step on where it starts or goes on.

    Args:
        course: its batches.
        start: steps done before.
        saves_every: steps between two last.ckpt; None: no checkpoint is written.
        best: checkpoints that each validation may lead to.
        further: steps between two checkpoints of each callback that writes them by steps, besides last.ckpt.
        validates: whether there are validations.
    """

    course: Course
    start: int = 0
    saves_every: int | None = None
    best: int = 1
    further: Sequence[int] = ()
    validates: bool = True

    def before(self, step: int) -> Work:
        """What is done when the last batch of `step` is learned, and nothing that follows it."""
        batches = self.course.batches_at(step) - self.course.batches_at(self.start)
        validated = [v for v in self.course.validations(step - 1) if v > self.start] if self.validates else []
        if self.saves_every is None:
            return Work(batches, len(validated))
        saved = (step - 1) // self.saves_every - self.start // self.saves_every
        saved += sum(v % self.saves_every != 0 for v in validated)  # before a validation, too
        saved += sum((step - 1) // every - self.start // every for every in self.further)
        return Work(batches, len(validated), saved + self.best * len(validated))

    def until(self, end: int) -> Work:
        """All of a fit that ends with step `end`: the last step is validated, and last.ckpt is then written anew."""
        if end <= self.start:
            return Work()
        done, validates = self.before(end), int(self.validates)
        if self.saves_every is None:
            return Work(done.batches, done.validations + validates)
        saved = 1 + (1 + self.best) * validates + sum(end % every == 0 for every in self.further)
        return Work(done.batches, done.validations + validates, done.checkpoints + saved)

    def step_at(self, limit: float, costs: Costs) -> int:
        """The step whose end is the first one at `limit` seconds or later: with it a fit of that time ends."""
        return first_step(lambda step: self.before(step).seconds(costs) >= limit, after=self.start)


def first_step(holds: Callable[[int], bool], *, after: int) -> int:
    """The first step behind `after` of which something holds, which holds of all later ones, too."""
    low, high = after, after + 1
    while not holds(high):
        low, high = high, after + 2 * (high - after)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
