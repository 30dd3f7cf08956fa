"""Adaptive Resonance Theory: against artlib, against a loop over rows and categories, and against numbers by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_app.art.rules import (
    CosineRule,
    FuzzyRule,
    Learned,
    Rates,
    Rule,
    Usage,
    combined,
    learn,
    overlapping,
    pool,
    resonate,
    whitening,
)
from lightning_app.errors import InputError

NAN = math.nan


def unused(capacity: int) -> Usage:
    nothing = torch.zeros(capacity, dtype=torch.int64)
    return Usage(nothing, nothing, nothing, size=0, seen=0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def after(prototypes_CW: Tensor, learned: Learned) -> Tensor:
    """All prototypes, once those that changed are put in."""
    prototypes_CW = prototypes_CW.clone()
    prototypes_CW[learned.changed] = learned.prototypes
    return prototypes_CW


# Fuzzy ART of others


@pytest.mark.slow  # its import takes 3 s; a loop over rows is compared above
@pytest.mark.parametrize("dim", [2, 5, 20])
@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("vigilance", [0.5, 0.75, 0.9])
def test_fuzzy_art_has_the_categories_and_weights_of_artlib(dim: int, rate: float, vigilance: float):
    import artlib  # a second of each process that collects tests

    rows, alpha, sizes = 120, 0.001, []
    for seed in range(3):
        rule = FuzzyRule(alpha)
        inputs = rule.code(torch.rand(rows, dim, dtype=torch.float64, generator=generator(seed)))
        theirs = artlib.FuzzyART(rho=vigilance, alpha=alpha, beta=rate).fit(inputs.numpy())
        prototypes = torch.zeros(rows, 2 * dim, dtype=torch.float64)
        ours = learn(rule, inputs, prototypes, unused(rows), vigilance=vigilance, rates=Rates(slow=rate))
        assert ours.slots.tolist() == theirs.labels_.tolist()
        assert ours.usage.size == len(theirs.W)
        found = after(prototypes, ours)[: ours.usage.size].numpy()
        np.testing.assert_allclose(found, np.stack(theirs.W), rtol=0, atol=1e-12)
        sizes.append(ours.usage.size)
    assert max(sizes) > 1  # at least once there was something to choose


# A batch and its rows


@dataclass
class Case:
    """Inputs in clusters that lie close enough together for all that can happen to happen."""

    rule: Rule
    inputs: Tensor
    vigilance: float
    rates: Rates
    capacity: int


def case(kind: str, seed: int) -> Case:
    g = generator(seed)
    centres = torch.rand(6, 4, dtype=torch.float64, generator=g)
    which = torch.randint(6, (40,), generator=g)
    noise = torch.randn(40, 4, dtype=torch.float64, generator=g)
    rates = (Rates(slow=0.2), Rates(slow=1.0), Rates(slow=0.05, fast=0.6, fast_inputs=3))[seed % 3]
    capacity = (60, 5)[seed % 2]
    if kind == "cosine":
        inputs = CosineRule().code(centres[which] - 0.5 + 0.15 * noise)
        return Case(CosineRule(), inputs, 0.9, rates, capacity)
    inputs = FuzzyRule().code((centres[which] + 0.08 * noise).clamp(0, 1))
    return Case(FuzzyRule(), inputs, 0.85, rates, capacity)


def compared(kind: str, x: Tensor, w: Tensor) -> tuple[float, float]:
    """Choice and match by their formulas."""
    if kind == "cosine":
        cosine = float(x @ w / (x.norm() * w.norm()))
        return cosine, cosine
    common = float(torch.minimum(x, w).sum())
    return common / (0.001 + float(w.sum())), common / float(x.sum())


def moved(kind: str, w: Tensor, x: Tensor, rate: float) -> Tensor:
    if kind == "cosine":
        w = (1 - rate) * w + rate * x
        return w / w.norm()
    return (1 - rate) * w + rate * torch.minimum(w, x)


def one_by_one(kind: str, given: Case, start: list[Tensor], counts: list[int], events: Counter[str]) -> list[int]:
    """Slots by a loop with the search of the papers: best choice first, the next one where it does not match.

    `start` and `counts` are changed as prototypes are; `events` counts what happened.
    """
    frozen, slots, fresh, touched = [w.clone() for w in start], [], set(), set()
    used = [0] * len(start)
    for i, x in enumerate(given.inputs):

        def winner(prototypes: list[Tensor], x: Tensor = x) -> int | None:
            both = [compared(kind, x, w) for w in prototypes]
            for slot in sorted(range(len(both)), key=lambda slot: -both[slot][0]):
                if both[slot][1] >= given.vigilance:
                    return slot
            return None

        slot = winner(start)
        events["another than without the rows before"] += slot != winner(frozen)
        if slot is not None:
            events["matches what this batch opened"] += slot in fresh
            events["winner was moved before"] += slot in touched - fresh
            rate = given.rates.fast if counts[slot] < given.rates.fast_inputs else given.rates.slow
            events["fast"] += counts[slot] < given.rates.fast_inputs
            start[slot] = moved(kind, start[slot], x, rate)
        elif len(start) < given.capacity:
            slot = len(start)
            start.append(x)
            counts.append(0)
            used.append(0)
            fresh.add(slot)
        else:
            slot = min(range(len(start)), key=lambda slot: (counts[slot], used[slot]))
            events["evicted"] += 1
            start[slot], counts[slot] = x, 0
            fresh.add(slot)
        touched.add(slot)
        counts[slot] += 1
        used[slot] = i
        slots.append(slot)
    return slots


KINDS = ["cosine", "fuzzy"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_a_loop_over_its_rows_gives(kind: str):
    events: Counter[str] = Counter()
    for seed in range(24):
        given = case(kind, seed)
        first = given.inputs[:4]
        first = torch.stack([x for i, x in enumerate(first) if not any(torch.equal(x, y) for y in first[:i])])
        prototypes = torch.zeros(given.capacity, given.inputs.shape[1], dtype=torch.float64)
        prototypes[: len(first)] = first
        usage = unused(given.capacity)
        usage.counts[: len(first)] = 1
        usage = replace(usage, size=len(first))
        theirs, counts = list(first), [1] * len(first)
        before = prototypes.clone()
        slots = one_by_one(kind, given, theirs, counts, events)
        found = learn(given.rule, given.inputs, prototypes, usage, vigilance=given.vigilance, rates=given.rates)
        assert found.slots.tolist() == slots
        assert found.usage.size == len(theirs)
        assert found.usage.counts[: len(counts)].tolist() == counts
        torch.testing.assert_close(after(prototypes, found)[: len(theirs)], torch.stack(theirs), rtol=0, atol=1e-12)
        assert torch.equal(prototypes, before)
    happened = {"matches what this batch opened", "winner was moved before", "evicted", "fast"}
    assert all(events[name] >= 20 for name in happened | {"another than without the rows before"}), events


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_in_pieces_gives_the_same_prototypes_bit_for_bit(kind: str):
    for seed in range(12):
        given, found = case(kind, seed), []
        for rows in (1, 7, 40):
            usage, prototypes = unused(given.capacity), torch.zeros(given.capacity, given.inputs.shape[1]).double()
            pieces = []
            for inputs in given.inputs.split(rows):
                piece = learn(given.rule, inputs, prototypes, usage, vigilance=given.vigilance, rates=given.rates)
                usage, prototypes = piece.usage, after(prototypes, piece)
                pieces.append(piece)
            slots, opened, match = (
                torch.cat([getattr(p, name) for p in pieces]) for name in ("slots", "opened", "match")
            )
            found.append((slots, opened, usage.counts, usage.born, usage.used, prototypes, match))
        for pieces_of in found[:2]:
            assert all(torch.equal(x, y) for x, y in zip(pieces_of[:-1], found[2][:-1], strict=True))
            torch.testing.assert_close(pieces_of[-1], found[2][-1])
        assert found[0][1].sum() > 3


def test_no_input_changes_nothing():
    usage = unused(4)
    found = learn(CosineRule(), torch.zeros(0, 3), torch.zeros(4, 3), usage, vigilance=0.8, rates=Rates())
    assert len(found.slots) == len(found.match) == len(found.changed) == found.usage.size == found.usage.seen == 0


# By hand


def test_a_cosine_prototype_moves_by_the_seeds_formula():
    """(1 - b) p + b e, renormalised: 0.95 (1, 0) + 0.05 (0.8, 0.6) = (0.99, 0.03)."""
    usage = replace(unused(2), counts=torch.tensor([3, 0]), size=1, seen=3)
    x = torch.tensor([[8.0, 6.0]])
    rule = CosineRule()
    found = learn(rule, rule.code(x), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), usage, vigilance=0.8, rates=Rates())
    assert found.slots.tolist() == found.changed.tolist() == [0]
    assert found.opened.tolist() == [False]
    torch.testing.assert_close(found.match, torch.tensor([0.8]))
    torch.testing.assert_close(found.prototypes, torch.tensor([[0.99, 0.03]]) / math.hypot(0.99, 0.03))
    assert (found.usage.counts.tolist(), found.usage.used.tolist(), found.usage.seen) == ([4, 0], [3, 0], 4)


def test_the_winner_in_fuzzy_art_is_the_best_choice_of_those_that_match():
    """The small category is chosen first and does not match; the next one does; nothing else is looked at."""
    rule = FuzzyRule(alpha=0.001)
    inputs = rule.code(torch.tensor([[0.5, 0.5]]))
    prototypes = torch.tensor(
        [[0.5, 0.0, 0.0, 0.5], [0.4, 0.5, 0.5, 0.5], [0.45, 0.45, 0.5, 0.5], [0.0, 0.0, 0.9, 0.9]]
    )
    choice, match = rule.compare(inputs, prototypes)
    torch.testing.assert_close(choice, torch.tensor([[1 / 1.001, 1.9 / 1.901, 1.9 / 1.901, 1 / 1.801]]))
    torch.testing.assert_close(match, torch.tensor([[0.5, 0.95, 0.95, 0.5]]))
    slots = {v: int(resonate(rule, inputs, prototypes, vigilance=v).slots) for v in (0.4, 0.9)}
    assert slots == {0.4: 1, 0.9: 1}
    assert int(resonate(rule, inputs, prototypes[[0, 3]], vigilance=0.9).slots) == 0  # none: the first of all
    assert not resonate(rule, inputs, prototypes[[0, 3]], vigilance=0.9).resonant


def test_without_categories_nothing_resonates():
    found = resonate(CosineRule(), torch.ones(2, 3), torch.zeros(0, 3), vigilance=-1)
    assert (found.slots.tolist(), found.match.tolist(), found.resonant.tolist()) == (
        [-1] * 2,
        [-math.inf] * 2,
        [False] * 2,
    )


def test_beyond_the_capacity_the_least_used_makes_room_and_of_those_the_one_used_longest_ago():
    usage = Usage(torch.tensor([5, 1, 1]), torch.tensor([0, 1, 2]), torch.tensor([6, 3, 2]), size=3, seen=7)
    prototypes = torch.eye(4)[:3]
    found = learn(CosineRule(), torch.eye(4)[3:], prototypes, usage, vigilance=0.8, rates=Rates())
    assert (found.slots.tolist(), found.opened.tolist(), found.usage.size) == ([2], [True], 3)
    assert torch.equal(found.prototypes, torch.eye(4)[3:])
    assert (found.usage.counts.tolist(), found.usage.born.tolist(), found.usage.used.tolist()) == (
        [5, 1, 1],
        [0, 1, 7],
        [6, 3, 7],
    )


def test_overlapping_categories_are_paired_once_with_the_larger_first():
    prototypes = CosineRule().code(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.15, 0.0], [0.0, 0.0, 1.0]]))
    counts = torch.tensor([1, 5, 2, 9])

    def pairs(changed: list[int], at: float) -> list[tuple[int, int]]:
        return overlapping(
            CosineRule(), prototypes, counts, torch.tensor(changed, dtype=torch.int64), at=at, vigilance=0.8
        )

    assert pairs([0], 0.99) == [(1, 0)]
    assert pairs([0, 2], 0.99) == [(1, 0)]  # 2 is most like 1 as well, which is taken
    assert pairs([2, 0], 0.99) == [(1, 2)]
    assert pairs([0], 0.9999) == pairs([3], 0.5) == pairs([], 0.5) == []


def test_fuzzy_categories_overlap_where_one_box_holds_the_other():
    """Boxes [0.2, 0.6], [0.3, 0.5], [0.5, 0.7] and [0.9, 1]: |w| is 1 less their length."""
    boxes = torch.tensor([[0.2, 0.4], [0.3, 0.5], [0.5, 0.3], [0.9, 0.0]])
    found = FuzzyRule().overlap(boxes[:1], boxes, vigilance=0.45)
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 0.5 / 0.6, -math.inf]]))


def test_joined_prototypes():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(CosineRule().joined(one, other, (3, 4)), torch.tensor([0.6, 0.8]))
    boxes = torch.tensor([0.2, 0.7]), torch.tensor([0.4, 0.1])
    assert torch.equal(FuzzyRule().joined(*boxes, (3, 4)), torch.tensor([0.2, 0.1]))


def test_fuzzy_inputs_outside_zero_to_one_are_refused_with_the_value():
    with pytest.raises(InputError, match=r"features in \[0, 1\], found 1\.5"):
        FuzzyRule().code(torch.tensor([[0.5, 1.5]]))
    with pytest.raises(InputError, match=r"features in \[0, 1\], found -0\.25"):
        FuzzyRule().code(torch.tensor([[-0.25, 1.0]]))
    with pytest.raises(InputError, match="choice_alpha is 0"):
        FuzzyRule(alpha=0)


# Pooling

MASK = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
STATES = torch.arange(18.0).view(3, 3, 2)


@pytest.mark.parametrize(
    ("how", "embeddings", "ends"),
    [
        ("mean", [[1.0, 2.0], [14.0, 15.0]], [[0, 1], [2, 2]]),
        ("last", [[2.0, 3.0], [16.0, 17.0]], [[0, 1], [2, 2]]),
        (
            "token",
            [[0.0, 1.0], [2.0, 3.0], [12.0, 13.0], [14.0, 15.0], [16.0, 17.0]],
            [[0, 0], [0, 1], [2, 0], [2, 1], [2, 2]],
        ),
    ],
)
def test_pooling_takes_real_tokens_alone(how, embeddings, ends):
    """Row 1 has none; whatever stands on padding, NaN too, is not seen, and gets no gradient."""
    for padding in (0.0, 1e9, NAN, math.inf):
        states = STATES.masked_fill(~MASK[..., None], padding).requires_grad_()
        found, at = pool(states, MASK, how)
        torch.testing.assert_close(found, torch.tensor(embeddings))
        assert at.tolist() == ends
        (gradient,) = torch.autograd.grad(found.sum(), states)
        assert torch.equal(gradient.abs().sum(-1)[~MASK], torch.zeros(4))
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


# Statistics


@pytest.mark.parametrize("shape", ["covariance", "variance"])
def test_running_statistics_are_numpys_of_all_inputs(shape: str):
    x = (
        torch.randn(200, 5, dtype=torch.float64, generator=generator(0))
        @ torch.randn(5, 5, generator=generator(1)).double()
    )
    x += 10
    n, mean = 0.0, torch.zeros(5, dtype=torch.float64)
    scatter = torch.zeros((5, 5) if shape == "covariance" else 5, dtype=torch.float64)
    for some in x.split([1, 30, 2, 100, 67]):
        n, mean, scatter = combined(n, mean, scatter, some, at_most=10_000)
    assert n == 200
    np.testing.assert_allclose(mean, x.numpy().mean(0), rtol=1e-12)
    covariance = np.cov(x.numpy().T, bias=True)
    np.testing.assert_allclose(scatter, covariance if shape == "covariance" else covariance.diagonal(), rtol=1e-10)


def test_beyond_at_most_older_inputs_fade():
    n, mean, scatter = 100.0, torch.zeros(1), torch.ones(1)
    for _ in range(60):
        n, mean, scatter = combined(n, mean, scatter, torch.full((10, 1), 4.0), at_most=100)
    assert n == 100
    assert mean.item() == pytest.approx(4.0, abs=0.05)
    assert scatter.item() == pytest.approx(0.0, abs=0.1)


def test_whitened_inputs_have_unit_covariance():
    x = torch.randn(4000, 6, dtype=torch.float64, generator=generator(0)) * torch.tensor([3.0, 2, 1, 1, 0.7, 0.5])
    x = x @ torch.linalg.qr(torch.randn(6, 6, generator=generator(1)).double()).Q
    whitener = whitening(torch.cov(x.T), n=len(x))
    torch.testing.assert_close(whitener, whitener.T)
    torch.testing.assert_close(torch.cov((x @ whitener).T), torch.eye(6).double(), rtol=0, atol=0.05)


def test_few_inputs_are_whitened_to_finite_numbers():
    for n in (1, 2, 5):
        x = torch.randn(n, 50, generator=generator(n))
        x -= x.mean(0)
        whitener = whitening(torch.cov(x.T, correction=0), n=n)
        assert whitener.isfinite().all()
        assert (x @ whitener).norm(dim=-1).max() < 100
    assert whitening(torch.zeros(3, 3), n=5).isfinite().all()
