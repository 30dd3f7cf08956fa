"""Two rules for a plateau: against scipy and numpy.polyfit, and how often each is right on simulated curves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from experiments import stabilization as experiment
from lightning_app.errors import InputError
from lightning_app.plasticity.stabilization import THRESHOLD, WINDOW, judged, quadratic_rule, slope_rule


def falling_then_level(seed: int, steps: int = 400, begins: int = 200) -> list[float]:
    noise = 0.1 * np.random.default_rng(seed).standard_normal(steps)
    return list(2 + 0.005 * np.maximum(begins - np.arange(steps), 0) + noise)


# The slope


@pytest.mark.parametrize("window", [3, 10, 70])
def test_statistic_is_the_t_value_of_linear_regression(window: int):
    for seed in range(5):
        losses = falling_then_level(seed)[100 : 180 + 40 * seed]
        fit = stats.linregress(np.arange(window), losses[-window:])
        verdict = slope_rule(losses, window=window)
        assert verdict.statistic == pytest.approx(fit.slope / fit.stderr, rel=1e-9)
        assert verdict.stable == (verdict.statistic > -THRESHOLD)
        assert verdict.window == window


def test_slope_rule_tells_a_plateau_from_a_fall():
    losses = falling_then_level(0)
    assert not slope_rule(losses[:200]).stable
    assert slope_rule(losses).stable
    assert slope_rule([-loss for loss in losses[:200]]).stable  # a rise is no fall
    assert "still fall: t = -" in slope_rule(losses[:200]).reason
    assert "do not fall" in slope_rule(losses).reason


def test_threshold_is_compared_with_the_statistic():
    losses = falling_then_level(0)[:200]
    t = slope_rule(losses).statistic
    assert slope_rule(losses, threshold=-t + 0.01).stable
    assert not slope_rule(losses, threshold=-t - 0.01).stable


def test_losses_without_noise():
    assert slope_rule([0.1] * WINDOW).stable
    assert not slope_rule([3 - 0.25 * i for i in range(WINDOW)]).stable
    assert not slope_rule([3 - 0.1 * i for i in range(WINDOW)]).stable
    assert slope_rule([3 + 0.25 * i for i in range(WINDOW)]).stable


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_slope_rule_does_not_depend_on_level_or_unit(scale: float):
    losses = falling_then_level(1)
    for end in range(WINDOW, 400, 7):
        moved = [scale * (loss + 5) for loss in losses[:end]]
        assert slope_rule(moved).statistic == pytest.approx(slope_rule(losses[:end]).statistic, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_too_few_losses_and_such_that_are_no_numbers_are_not_stable(bad: float):
    level = falling_then_level(0)[-WINDOW:]
    early = slope_rule(level[1:])
    assert not early.stable
    assert math.isnan(early.statistic)
    assert early.reason == f"{WINDOW - 1} losses so far, {WINDOW} are needed"
    for rule in (slope_rule, quadratic_rule):
        assert not rule([]).stable
        broken = rule([*level[:-2], bad, level[-1]])
        assert not broken.stable
        assert "not finite" in broken.reason
    assert slope_rule([bad, *level]).stable == slope_rule(level).stable  # what lies further back does not count


def test_windows_that_are_too_short_are_refused():
    with pytest.raises(InputError, match="window is 2"):
        slope_rule([1.0, 2.0, 3.0], window=2)
    with pytest.raises(InputError, match="window is 2, patience 20"):
        quadratic_rule([1.0, 2.0, 3.0], window=2)
    with pytest.raises(InputError, match="window is 5, patience 0"):
        quadratic_rule([1.0, 2.0, 3.0], patience=0)


# The parabola


def by_polyfit(losses: list[float], min_steps: int, patience: int, window: int) -> bool:
    if len(losses) < min_steps:
        return False
    recent = losses[-window:]
    a = np.polyfit(range(len(recent)), recent, 2)[0]
    old = patience - int(np.argmin(losses[-patience:])) - 1 >= patience // 2
    return bool(abs(a) < 0.01 and old)


@pytest.mark.parametrize(("patience", "window"), [(20, 5), (7, 5), (4, 10), (20, 30)])
def test_quadratic_rule_is_its_formula(patience: int, window: int):
    losses, answers = falling_then_level(2), set()
    for end in range(3, 200):
        expected = by_polyfit(losses[:end], 12, patience, window)
        verdict = quadratic_rule(losses[:end], min_steps=12, patience=patience, window=window)
        assert verdict.stable == expected, end
        answers.add(expected)
    assert answers == {False, True}


def test_quadratic_rule_says_why():
    verdict = quadratic_rule([1.0] * 20 + [2.0] * 19 + [3.0])
    assert not verdict.stable
    assert verdict.statistic == pytest.approx(np.polyfit(range(5), [2, 2, 2, 2, 3], 2)[0])
    assert verdict.reason == "curvature 0.1429, limit 0.01; lowest loss 19 steps ago, needed 10"
    assert quadratic_rule([1.0] * 20, min_steps=21).reason == "20 losses so far, 21 are needed"


# How often they are right


@pytest.mark.parametrize(
    ("vectorised", "rule"),
    [(experiment.slope_rule(), slope_rule), (experiment.quadratic_rule(), quadratic_rule)],
)
def test_the_simulation_asks_these_rules(vectorised, rule):
    losses = np.array([falling_then_level(seed) for seed in range(2)])
    said = vectorised(losses)
    assert said.any()
    for row, answers in zip(losses, said, strict=True):
        for step in range(WINDOW - 1, 400, 3):
            assert rule(list(row[: step + 1])).stable == answers[step]


def test_noise_is_as_the_simulation_says():
    for correlation in (0.0, 0.3):
        noise = experiment.noise((200, 1000), correlation=correlation, generator=np.random.default_rng(0))
        assert noise.std() == pytest.approx(0.1, rel=0.02)
        assert noise[:, 0].std() == pytest.approx(0.1, rel=0.15)
        assert np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] == pytest.approx(correlation, abs=0.01)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("correlation", "false_alarms", "detected"), [(0.0, 0.01, 0.99), (0.3, 0.05, 0.95)])
def test_slope_rule_finds_plateaus_in_time_and_no_others(
    correlation: float, false_alarms: float, detected: float, seed: int
):
    outcome = experiment.simulate(experiment.slope_rule(), correlation=correlation, seed=seed)
    assert outcome.false_alarms <= false_alarms
    assert outcome.detected >= detected


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_quadratic_rule_answers_before_the_plateau(correlation: float):
    assert experiment.simulate(experiment.quadratic_rule(), correlation=correlation).false_alarms > 0.99


def test_slope_rule_stops_an_exponential_fall_near_its_end():
    steps = experiment.exponential(experiment.slope_rule(), correlation=0.0)
    assert 0.1 < experiment.to_come(np.median(steps)) < 0.2  # of 2 nats


@pytest.mark.slow  # a figure of an experiment
def test_a_longer_window_sees_slower_falls():
    short, long = (
        experiment.smallest_slope(experiment.slope_rule(window), correlation=0.0) for window in (WINDOW, 2 * WINDOW)
    )
    assert long < short / 2 < 0.003


def test_a_rule_by_its_name():
    losses = [1.0] * 80
    assert judged(losses, rule="slope") == slope_rule(losses)
    assert judged(losses, rule="slope", window=5) == slope_rule(losses, window=5)
    assert judged(losses, rule="quadratic") == quadratic_rule(losses, min_steps=20, patience=20)
    assert judged(losses[:9], rule="quadratic", window=8).stable
    assert not judged(losses[:7], rule="quadratic", window=8).stable
