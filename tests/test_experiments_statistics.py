"""Intervals over seeds and documents: by hand, by simulation, and what each level adds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments import statistics
from experiments.statistics import Interval, by_document, change, difference, helped_and_hurt


def test_statistics_by_hand():
    assert by_document(np.array([1.0, 2.0, 4.0]), np.array([3, 7, 3])).tolist() == [5.0, 2.0]
    assert helped_and_hurt(np.array([1.0, 1.0, 1.0, 1.0]), np.array([2.0, 1.005, 0.5, 3.0])) == (0.5, 0.25)
    base = np.array([[1.0, 2.0, 3.0, 4.0] * 10])
    same = change(0.9 * base, base)  # each document has 10 % less: so has every resampling
    assert [same.mean, same.low, same.high] == pytest.approx([-10, -10, -10])
    noisy = change(base + np.array([1.0, -1.0] * 20), base)
    assert noisy.low < 0 < noisy.high
    assert math.isclose(noisy.mean, 0, abs_tol=1e-9)
    assert change(base[:, :1], base[:, :1]).high == math.inf  # one document says nothing of others


def test_two_documents_by_hand():
    """Drawn: both the first, both the second, or one of each: a quarter, a quarter, a half."""
    found = change(np.array([[12.0, 30.0]]), np.array([[10.0, 20.0]]))
    assert (found.mean, found.low, found.high) == pytest.approx((40.0, 20.0, 50.0))


def test_three_seeds_by_hand():
    """All documents alike: the extremes are one seed drawn three times, 1 of 27 each, and the part of seeds is widened
    by sqrt(3 / 2) 4.303 / 1.960."""
    base = np.full((3, 4), 10.0)
    found = change(base + np.array([[-1.0], [0.0], [1.0]]), base)
    assert found.mean == pytest.approx(0, abs=1e-9)
    assert [found.low, found.high] == pytest.approx([-26.89, 26.89], abs=0.01)


def drawn(rng: np.random.Generator, *, seeds: float, documents: float, S: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """An arm that is 3 % better in truth, and what it is better than: (S, 40) each."""
    base = np.repeat(100 * rng.gamma(4, 1, size=(1, 40)), S, axis=0)
    effect = -0.03 + seeds * rng.standard_normal((S, 1)) + documents * rng.standard_normal(40)
    return base * (1 + effect), base


def test_noise_of_seeds_widens_an_interval_and_without_their_level_it_is_narrower():
    quiet = change(*drawn(np.random.default_rng(0), seeds=0, documents=0.03))
    nats, base = drawn(np.random.default_rng(0), seeds=0.01, documents=0.03)
    noisy = change(nats, base)
    of_means = change(nats.mean(0, keepdims=True), base.mean(0, keepdims=True))
    assert noisy.high - noisy.low > 1.2 * (quiet.high - quiet.low)
    assert noisy.high - noisy.low > 1.2 * (of_means.high - of_means.low)
    assert noisy.mean == pytest.approx(of_means.mean)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "documents"), [(0.01, 0.0), (0.01, 0.03), (0.003, 0.05)])
def test_the_truth_lies_in_95_of_100_intervals(seeds: float, documents: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "RESAMPLINGS", 1000)
    rng = np.random.default_rng(1)
    found = [change(*drawn(rng, seeds=seeds, documents=documents)) for _ in range(400)]
    assert np.mean([one.low <= -3 <= one.high for one in found]) == pytest.approx(0.95, abs=0.03)


def test_of_one_seed_the_text_says_so():
    nats, base = drawn(np.random.default_rng(0), seeds=0.01, documents=0.03)
    assert str(change(nats[:1], base[:1])).endswith("] (one seed)")
    assert str(change(nats, base)).endswith("]")
    assert "`(one seed)`" in statistics.HOW


def test_sides_of_other_seeds_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 3\)"):
        change(np.ones((2, 3)), np.ones((3, 3)))


def test_a_difference_and_its_opposite():
    found = difference(np.array([[3.0, 4.0]]), np.array([[1.0, 1.0]]))
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 2.0, 3.0))
    assert (-found).low == -found.high == -3.0


@pytest.mark.parametrize(
    ("low", "high", "said"), [(-1.0, 0.9, "yes"), (0.5, 1.5, "undecided"), (-3, 1.0, "undecided"), (1.0, 2.0, "no")]
)
def test_not_worse_than_a_margin(low: float, high: float, said: str):
    assert Interval((low + high) / 2, low, high, seeds=5).not_worse(1.0) == said


@pytest.mark.parametrize(("seeds", "margin", "said"), [(4, 0.5, "undecided"), (5, 0.5, "yes"), (1, 1.0, "yes")])
def test_few_seeds_do_not_decide_about_little(seeds: int, margin: float, said: str):
    assert Interval(-1, -2, 0, seeds).not_worse(margin) == said
