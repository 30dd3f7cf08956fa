"""Which units go: properties over random maps, and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.plasticity.pruning import choose, choose_widths, dead_after, most_missed

NAN = math.nan
SEEDS = st.integers(0, 2**31)


def numbers(*shape: int, seed: int) -> Tensor:
    """Few different ones, so that there are equals."""
    return torch.randint(8, shape, generator=torch.Generator().manual_seed(seed)).float()


def some(*shape: int, share: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < share


# How many


def test_level_is_reached_in_even_steps():
    assert [dead_after(0.3, 72, cycle, 3) for cycle in range(4)] == [0, 7, 14, 22]


def test_a_list_has_the_level_after_each_cycle():
    assert [dead_after([0.1, 0.1, 0.5], 72, cycle, 3) for cycle in range(4)] == [0, 7, 7, 36]


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000), st.integers(1, 10))
def test_the_count_never_falls_and_ends_at_the_level(level: float, total: int, cycles: int):
    counts = [dead_after(level, total, cycle, cycles) for cycle in range(cycles + 1)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == round(level * total)


def test_levels_and_cycles_that_make_no_sense_are_refused():
    for level in (1.1, -0.1, NAN, [0.1, 1.2]):
        with pytest.raises(InputError, match="must lie between 0 and 1"):
            dead_after(level, 10, 1, 2)
    with pytest.raises(InputError, match="must not fall"):
        dead_after([0.2, 0.1], 10, 1, 2)
    with pytest.raises(InputError, match="2 values for 3 cycles"):
        dead_after([0.1, 0.2], 10, 1, 3)
    with pytest.raises(InputError, match="cycle 3 of 2"):
        dead_after(0.1, 10, 3, 2)


# Which heads


def test_the_least_important_go_first_and_of_equals_the_first():
    importance = torch.tensor([[3.0, 1.0, 2.0], [1.0, 9.0, 0.5]])
    assert choose(importance, torch.ones(2, 3).bool(), 3) == [(1, 2), (0, 1), (1, 0)]


def test_no_layer_is_emptied():
    importance, alive = torch.tensor([[0.0, 1.0, 2.0], [7.0, 8.0, 9.0]]), torch.ones(2, 3).bool()
    assert choose(importance, alive, 4) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert choose(importance, alive, 2, keep_per_layer=2) == [(0, 0), (1, 0)]
    assert choose(importance, alive, 6, keep_per_layer=0)[-1] == (1, 2)


@settings(deadline=None)
@given(SEEDS, st.floats(0, 1), st.integers(0, 3), st.floats(0, 1))
def test_chosen_are_living_least_and_leave_enough(seed: int, share: float, keep: int, part: float):
    importance, alive = numbers(4, 6, seed=seed), some(4, 6, share=share, seed=seed)
    importance = importance.where(alive, NAN)
    left = alive.sum(1)
    n = int(part * (left - keep).clamp_min(0).sum())
    chosen = choose(importance, alive, n, keep_per_layer=keep)
    assert len(set(chosen)) == len(chosen) == n
    after = alive.clone()
    for unit in chosen:
        assert alive[unit]
        after[unit] = False
    assert (after.sum(1) >= left.clamp_max(keep)).all()
    scores = [float(importance[unit]) for unit in chosen]
    assert scores == sorted(scores)
    for layer in range(4):  # one that stays is worth as much as any that goes, or its layer can lose no more
        if after[layer].sum() > keep and chosen:
            assert importance[layer][after[layer]].min() >= scores[-1]
        mine = [float(importance[unit]) for unit in chosen if unit[0] == layer]
        if mine and after[layer].any():
            assert importance[layer][after[layer]].min() >= max(mine)


def test_too_many_and_unmeasured_heads_are_refused():
    alive = torch.tensor([[True, True, False], [True, False, False]])
    assert choose(torch.ones(2, 3), alive, 1) == [(0, 0)]
    with pytest.raises(InputError, match="2 units are to go, and 1 can: 3 are alive, and each layer keeps 1"):
        choose(torch.ones(2, 3), alive, 2)
    with pytest.raises(InputError, match="-1 units are to go"):
        choose(torch.ones(2, 3), alive, -1)
    with pytest.raises(InputError, match=r"1 units have no score \(NaN\), the first is 1 of layer 0"):
        choose(torch.tensor([[1.0, NAN, NAN], [1.0, NAN, NAN]]), alive, 1)


# Which come back


def test_the_dead_with_the_largest_gradient_come_back():
    gradient = torch.tensor([[9.0, 1.0, 5.0], [5.0, 0.0, 7.0]])
    alive = torch.tensor([[True, False, False], [False, False, True]])
    assert most_missed(gradient, alive, 3) == [(0, 2), (1, 0), (0, 1)]
    assert most_missed(gradient, alive, 0) == []
    with pytest.raises(InputError, match="5 units are to come back, and 4 are dead"):
        most_missed(gradient, alive, 5)
    with pytest.raises(InputError, match="the first is 0 of layer 1"):
        most_missed(gradient.where(gradient != 5, NAN).index_fill(1, torch.tensor([2]), 1), alive, 1)


# Which neurons


def test_chunks_with_the_least_mean_importance_go():
    importance = torch.tensor([[1.0, 8.0, 2.0, 9.0, 3.0, 7.0], [4.0, 4.0, 4.0, 4.0, 4.0, 9.0]])
    alive = torch.ones(2, 6).bool()
    removed = choose_widths(
        importance, alive, 4, multiple=2
    )  # layer 0 has chunks of 1.5, 5 and one it keeps; layer 1 of 4, 4
    assert removed.int().tolist() == [[1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_widths_that_are_no_multiple_become_one():
    importance = torch.arange(14.0).view(2, 7)
    alive = torch.ones(2, 7).bool()
    alive[1, 0] = False
    for n, widths in ((0, [6, 6]), (1, [6, 6]), (2, [6, 6]), (3, [3, 6]), (4, [3, 6]), (7, [3, 3])):
        removed = choose_widths(importance, alive, n, multiple=3)
        assert (alive & ~removed).sum(1).tolist() == widths


def test_a_layer_with_a_single_chunk_keeps_it():
    alive = torch.ones(2, 6).bool()
    alive[0, 2:] = False
    removed = choose_widths(torch.arange(12.0).view(2, 6), alive, 4, multiple=2)
    assert removed.sum(1).tolist() == [0, 4]


@settings(deadline=None)
@given(SEEDS, st.floats(0.3, 1), st.integers(1, 6), st.floats(0, 1))
def test_widths_are_multiples_and_the_total_is_near(seed: int, share: float, multiple: int, part: float):
    importance, alive = numbers(3, 40, seed=seed), some(3, 40, share=share, seed=seed)
    importance = importance.where(alive, NAN)
    if alive.sum(1).min() < multiple:
        return
    n = int(part * (alive.sum(1) - multiple).sum())
    removed = choose_widths(importance, alive, n, multiple=multiple)
    kept = alive & ~removed
    assert not (removed & ~alive).any()
    assert (kept.sum(1) % multiple == 0).all()
    assert (kept.sum(1) >= multiple).all()
    forced = int((alive.sum(1) % multiple).sum())
    total, spare = int(removed.sum()), int((alive.sum(1) - multiple).sum())
    assert abs(total - n) == min(abs(possible - n) for possible in range(forced, spare + 1, multiple))
    for layer in range(3):  # in each layer the least important ones
        if removed[layer].any():
            assert importance[layer][removed[layer]].max() <= importance[layer][kept[layer]].min()


def test_too_many_and_too_few_neurons_are_refused():
    alive = torch.ones(2, 64).bool()
    assert choose_widths(torch.ones(2, 64), alive, 64).sum() == 64
    with pytest.raises(InputError, match="65 neurons are to go, and 64 can: each layer keeps 32"):
        choose_widths(torch.ones(2, 64), alive, 65)
    with pytest.raises(InputError, match="a layer has 20 neurons left, fewer than the multiple 32"):
        choose_widths(torch.ones(2, 20), torch.ones(2, 20).bool(), 1)
    with pytest.raises(InputError, match="no score"):
        choose_widths(torch.full((2, 64), NAN), alive, 1)
