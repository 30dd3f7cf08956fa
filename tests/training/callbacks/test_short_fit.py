"""How many steps fit into a time, from timings that were made by hand."""

from __future__ import annotations

import math

import pytest

from lightning_app.training.callbacks.short_fit import ShortFit
from lightning_app.training.course import Course, Plan
from lightning_app.training.lightning_internals.stopwatch import SAVE, Span, Stopwatch


def measured(mean: bool = True) -> ShortFit:
    """10 steps of 2 s, 20 of 1 s; a validation of 4 s, three checkpoints of 1 s, and a page of 2 s at the end: 49 s."""
    watch = Stopwatch()
    watch.actions = [
        (SAVE, Span(40.0, 41.0)),
        ("[Callback]on_validation_start", Span(41.0, 41.0)),
        (SAVE, Span(44.0, 45.0)),
        ("[Callback]on_validation_end", Span(43.0, 46.0)),
        (SAVE, Span(46.0, 47.0)),
    ]
    short = ShortFit(watch, 500, warm_up=10, timed=20, mean=mean)
    short._plan = Plan(Course(batches=100, accumulated=lambda epoch: 1), saves_every=500)
    short._steps = [(2.0 * i, i) for i in range(11)] + [(20.0 + i, 10 + i) for i in range(1, 21)]
    short.batches, short.seconds = 30, 49.0
    return short


@pytest.mark.parametrize(
    ("seconds", "steps"), [(49.0, 30), (49.5, 30), (100.0, 81), (519.0, 500), (520.9, 500), (521.0, 501)]
)
def test_the_last_step_within_a_time(seconds: float, steps: int):
    assert measured().last_step_within(seconds) == steps  # behind step 500 there is one more checkpoint


def test_a_time_in_which_nothing_fits():
    assert measured().last_step_within(1.0) == 0


def test_validations_at_shares_follow_the_number():
    short = measured()
    short.share = 0.5  # one more validation, with its two checkpoints
    assert short.last_step_within(100.0) == 81 - 6
    assert short.until(75).validations == 2


def test_what_ideas_do_now_and_then_counts():
    short = measured()
    short.rehearsed = {short: lambda further: 10.0 * math.floor(further / 20)}
    assert short.last_step_within(100.0) == 69  # 1 s each, and 10 s for the 20th further step, the 40th, ...


@pytest.mark.parametrize(("mean", "seconds"), [(True, 2.75), (False, 1.0)])
def test_slow_steps_among_fast_ones_count_in_a_mean(mean: bool, seconds: float):
    """7 of the 20 steps wait 5 s more for a busy core."""
    short = measured(mean)
    short.watch.actions = []
    for i in range(20):
        short._steps[11 + i] = (short._steps[10 + i][0] + (6.0 if i % 3 == 0 else 1.0), 11 + i)
    assert short.costs().batch == seconds
