"""`fit_in: 8 minutes` becomes `trainer.max_steps`: a copy of the run is timed for 30 steps and thrown away."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_app.cli_checks import option
from lightning_app.duration import of_clock, seconds_of
from lightning_app.errors import InputError
from lightning_app.forecast import repeated
from lightning_app.resume_command import clock_of
from lightning_app.short_run import ShortRun, quiet
from lightning_app.training.callbacks.exact_resume import random_states, set_random_states

LONG, PARTS = 120.0, 40  # seconds; of a run that takes so many a part is timed
UNBOUNDED = 10**9  # steps of the copy: schedules and streams need a number, and no run comes to this one
WITHOUT_FIT = ("-h", "--help", "--print_config")


def sized(argv: Sequence[str], given: Mapping[str, Any], fit_in: str) -> list[str]:
    """The words of a fit with `trainer.max_steps` in place of `fit_in`.

    A given number of steps counts instead, and so does that of a checkpoint: `app.Harness` takes it from there.

    Args:
        argv: the words.
        given: value by key of all that they and the configs say.
        fit_in: what one of them says of it.

    Raises:
        InputError: it is not a time, or too short for the steps that are timed.
    """
    seconds, steps = seconds_of(fit_in, option="fit_in"), given.get("trainer.max_steps")
    if any(word.partition("=")[0] in WITHOUT_FIT for word in argv) or given.get("trainer.fast_dev_run"):
        return [*argv]
    if steps not in (None, -1):
        rank_zero_info(f"trainer.max_steps is {steps}, so fit_in ({fit_in}) does not count: -1 leaves it to fit_in")
        return [*argv, "--fit_in=null"]
    if option(argv, "ckpt_path", given.get("ckpt_path")):
        return [*argv]
    _warn_of_limit(given.get("trainer.max_time"), seconds, fit_in)
    return [*argv, f"--trainer.max_steps={_steps_within(argv, seconds, fit_in)}", "--fit_in=null"]


def _warn_of_limit(max_time: object, seconds: float, fit_in: str) -> None:
    limit = of_clock(max_time)
    if limit is not None and limit < seconds:
        rank_zero_warn(
            f"fit_in is {fit_in}, and trainer.max_time {max_time} ends the run before: its learning rate will not have "
            "come to its end"
        )


def _steps_within(argv: Sequence[str], seconds: float, fit_in: str) -> int:
    rank_zero_info(f"fit_in is {fit_in}: a copy of the run is timed, and thrown away")
    limit = clock_of(timedelta(seconds=math.ceil(seconds)))
    limits = [f"--trainer.max_steps={UNBOUNDED}", f"--trainer.max_time={limit}"]
    random = random_states()
    with ExitStack() as scratch, quiet(hide_warnings=True):
        timed = Timed([*argv, *limits, "--fit_in=null"], scratch=scratch, seconds=seconds)
        steps, is_enough, parts = timed.steps, timed.is_enough, timed.parts
    set_random_states(random)  # where the config has no seed
    del timed
    gc.collect()  # of the copy: its parts refer to each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if not is_enough:
        raise InputError(
            f"fit_in is {fit_in}, and of the {Timed.warm_up + Timed.timed} steps that a run is sized by {steps} fit in "
            f"it ({parts}): give more time, or trainer.max_steps"
        )
    rank_zero_info(f"fit_in is {fit_in}: trainer.max_steps is {steps} ({parts})")
    return steps


class Timed(ShortRun):
    """The first 30 steps of a run, and more where a fortieth of a long one takes longer.

    Attributes:
        steps: that fit into the seconds, or all that `max_epochs` has; the same number on all ranks.
        is_enough: whether those that were timed are among them.
        parts: of that time, in words.
    """

    warm_up, timed = 10, 20
    mean = True  # beside other programs a step is fast or slow, and a median one of the two

    def __init__(self, args: Sequence[str], *, scratch: ExitStack, seconds: float):
        self._seconds = seconds
        self.least = seconds / PARTS if seconds >= LONG else 0.0
        super().__init__(args, scratch=scratch)

    def after_fit(self) -> None:
        if not self._short.steps:
            raise InputError("fit_in: no step could be timed; give trainer.max_steps")
        self._short.share = self._share
        in_time, in_epochs = self._short.last_step_within(self._seconds), min(self._short.limits.values())
        end, is_enough = min(in_time, in_epochs), in_time >= min(in_epochs, self._short.wanted)
        parts = repeated(self._short.until(end), self._short.costs())
        self.steps, self.is_enough, self.parts = self.trainer.strategy.broadcast((end, is_enough, parts))
