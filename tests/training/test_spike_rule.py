import math

import pytest

from lightning_app.training.spike_rule import ENOUGH, WINDOW, is_spike, limit

STEADY = [1.0, 3.0] * 64  # mean 2, deviation 1


@pytest.mark.parametrize(
    ("value", "spike"), [(7.9, False), (8.0, False), (8.1, True), (-100.0, False), (math.nan, True), (math.inf, True)]
)
def test_beyond_six_deviations_above_the_mean(value: float, spike: bool):
    assert limit(STEADY, deviations=6) == pytest.approx(8.0)
    assert is_spike(value, STEADY, deviations=6) is spike
    assert is_spike(4.1, STEADY, deviations=2)


def test_few_steps_judge_nothing_and_old_ones_are_forgotten():
    assert not is_spike(1e9, STEADY[: ENOUGH - 1], deviations=6)
    assert is_spike(1e9, STEADY[:ENOUGH], deviations=6)
    assert limit([1e9] * 50 + STEADY, deviations=6) == pytest.approx(8.0)
    assert len(STEADY) == WINDOW


def test_a_level_that_never_moves_has_room_for_rounding():
    assert not is_spike(2.0 + 1e-6, [2.0] * 40, deviations=6)
    assert is_spike(2.1, [2.0] * 40, deviations=6)
