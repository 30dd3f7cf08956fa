"""Scores on one scale: against numbers by hand, formulas in numpy, and scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.plasticity.scores import by_relative_depth, combine, min_max, seed_score, spearman

NAN = math.nan


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def same(a: Tensor, b: Sequence[Any]) -> None:
    torch.testing.assert_close(a, torch.tensor(b, dtype=torch.float32), equal_nan=True)


# One scale


def test_min_max_is_over_all_layers():
    same(min_max(torch.tensor([[2.0, 4.0], [3.0, 6.0]])), [[0, 0.5], [0.25, 1]])


def test_min_max_leaves_the_dead_out():
    x, alive = torch.tensor([2.0, 100.0, 4.0, NAN, 3.0]), torch.tensor([True, False, True, True, True])
    same(min_max(x, alive), [0, NAN, 1, NAN, 0.5])


def test_min_max_of_tiny_equal_and_no_numbers():
    same(min_max(torch.tensor([1e-12, 3e-12, 2e-12])), [0, 1, 0.5])
    same(min_max(torch.tensor([7.0, 7.0, NAN])), [0, 0, NAN])
    same(min_max(torch.tensor([1.0, 2.0]), torch.zeros(2).bool()), [NAN, NAN])


def test_min_max_of_whole_numbers_and_bfloat16_is_float32():
    same(min_max(torch.tensor([1, 2, 3])), [0, 0.5, 1])
    assert min_max(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32


# Entropy and gradient


def test_seed_score_is_its_formula():
    entropy, gradient = numbers(4, 6).double() * 3, numbers(4, 6, seed=1).double() * 1e-2
    e, g = entropy.numpy(), gradient.numpy()
    expected = 0.6 * (e - e.min()) / (e.max() - e.min() + 1e-8)
    expected += 0.4 * (1 - (g - g.min()) / (g.max() - g.min() + 1e-8))
    np.testing.assert_allclose(seed_score(entropy, gradient), expected, rtol=0, atol=1e-5)


def test_the_head_that_looks_everywhere_and_does_not_learn_goes_first():
    entropy, gradient = torch.tensor([[0.1, 2.0], [2.0, 0.1]]), torch.tensor([[5.0, 5.0], [1.0, 1.0]])
    same(seed_score(entropy, gradient), [[0, 0.6], [1, 0.4]])


# Several data sets


def test_combine_weighs_data_sets_on_one_scale():
    one, other = torch.tensor([[0.0, 10.0], [5.0, NAN]]), torch.tensor([[3.0, 1.0], [2.0, NAN]])
    same(combine([one, other], [3, 1]), [[0.25, 0.75], [0.5, NAN]])
    same(combine([one, other], [1, 1], "max"), [[1, 1], [0.5, NAN]])
    same(combine([one, other], [2, 1], "max"), [[0.5, 1], [0.5, NAN]])
    same(combine([one, other], [1, 0]), [[0, 1], [0.5, NAN]])


def test_combine_refuses_what_does_not_fit():
    x = numbers(2, 3)
    with pytest.raises(InputError, match="2 data sets and 1 weights"):
        combine([x, x], [1.0])
    with pytest.raises(InputError, match="0 data sets"):
        combine([], [])
    for weights in ([1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(InputError, match="none may be below 0"):
            combine([x, x], weights)
    with pytest.raises(InputError, match="must be of one model"):
        combine([x, numbers(3, 2)], [1, 1])
    with pytest.raises(InputError, match="how is 'median'"):
        combine([x], [1], "median")  # type: ignore[arg-type]


# Another model


def test_the_same_shape_is_the_same_map():
    x = numbers(5, 4)
    torch.testing.assert_close(by_relative_depth(x, (5, 4)), x)


def test_as_many_heads_are_interpolated_one_by_one():
    x = torch.tensor([[0.0, 8.0], [1.0, 4.0], [2.0, 0.0]])
    same(by_relative_depth(x, (5, 2)), [[0, 8], [0.5, 6], [1, 4], [1.5, 2], [2, 0]])
    same(by_relative_depth(x, (2, 2)), [[0, 8], [2, 0]])
    same(by_relative_depth(x, (1, 2)), [[1, 4]])
    same(by_relative_depth(x[:1], (2, 2)), [[0, 8], [0, 8]])


def test_with_another_number_of_heads_all_get_the_mean_of_their_depth():
    x = torch.tensor([[0.0, 8.0], [1.0, 5.0]])
    same(by_relative_depth(x, (3, 3)), [[4, 4, 4], [3.5, 3.5, 3.5], [3, 3, 3]])


def test_dead_heads_of_the_source_do_not_count():
    x = torch.tensor([[NAN, 8.0], [1.0, NAN], [NAN, 0.0]])
    same(by_relative_depth(x, (5, 2)), [[NAN, 8], [1, 8], [1, NAN], [1, 0], [NAN, 0]])
    same(by_relative_depth(x, (3, 1)), [[8], [1], [0]])
    for layers in range(2, 50):  # a layer that lies on a dead one takes nothing from its neighbours
        deep = torch.ones(layers, 2)
        deep[layers // 2] = NAN
        assert by_relative_depth(deep, (layers, 2)).isnan().sum() == 2
        assert by_relative_depth(deep, (2 * layers - 1, 2)).isnan().sum() == 2


@pytest.mark.parametrize("layers", [(6, 12), (12, 6), (7, 5), (1, 4), (4, 1)])
def test_a_map_that_is_linear_in_depth_stays_linear(layers: tuple[int, int]):
    source, target = layers
    x = torch.linspace(-1, 1, source)[:, None].expand(-1, 3) if source > 1 else torch.zeros(1, 3)
    expected = torch.linspace(-1, 1, target) if min(layers) > 1 else torch.zeros(target)
    torch.testing.assert_close(by_relative_depth(x, (target, 2)), expected[:, None].expand(-1, 2), rtol=0, atol=1e-6)


# Rank correlation


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_scipys(seed: int, ties: bool):
    a, b = numbers(6, 7, seed=seed), numbers(6, 7, seed=seed + 100)
    b = a + b
    if ties:
        a, b = (4 * a).round(), (4 * b).round()
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a.flatten(), b.flatten()).statistic, abs=1e-12)


def test_spearman_of_order_alone():
    x = numbers(20)
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_spearman_leaves_out_the_dead_and_may_be_undefined():
    a, b = torch.tensor([1.0, 2.0, NAN, 3.0, 9.0]), torch.tensor([1.0, 2.0, -5.0, 3.0, NAN])
    assert spearman(a, b) == pytest.approx(1)
    assert math.isnan(spearman(torch.ones(3), torch.arange(3.0)))
    assert math.isnan(spearman(torch.tensor([1.0, NAN]), torch.tensor([1.0, 2.0])))
    assert math.isnan(spearman(torch.tensor([NAN]), torch.tensor([1.0])))
    with pytest.raises(ValueError, match="shapes differ"):
        spearman(torch.ones(3), torch.ones(4))
