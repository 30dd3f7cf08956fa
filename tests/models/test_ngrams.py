"""Counts of n-grams, against a slow re-computation by the formulas."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_app.models.ngrams import UNKNOWN, NGramCounts, discounts_of


def counted(text: list[int], k: int, *, order: int, vocab_size: int) -> Counter[tuple[int, ...]]:
    """N-grams of k + 1 tokens: how often the longest are there, and before how many different tokens the others."""
    padded = [vocab_size] * (order - 1) + text
    grams = Counter(tuple(padded[i : i + order]) for i in range(len(text)))
    return grams if k == order - 1 else Counter(longer[1:] for longer in {gram[order - k - 2 :] for gram in grams})


def slowly(text: list[int], context: tuple[int, ...], *, order: int, vocab_size: int) -> list[float]:
    """Interpolated Kneser-Ney with three discounts, from its definition."""
    p = [1 / vocab_size] * vocab_size
    for k in range(order):
        counts = counted(text, k, order=order, vocab_size=vocab_size)
        n = Counter(counts.values())
        d = [0.5] * 3
        if all(n[i] for i in range(1, 5)):
            y = n[1] / (n[1] + 2 * n[2])
            d = [min(max(i + 1 - (i + 2) * y * n[i + 2] / n[i + 1], 0.05), i + 0.95) for i in range(3)]
        seen = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context[len(context) - k :]}
        if seen:
            total = sum(seen.values())
            taken = sum(d[min(count, 3) - 1] for count in seen.values())
            own = {w: count - d[min(count, 3) - 1] for w, count in seen.items()}
            p = [(own.get(w, 0) + taken * p[w]) / total for w in range(vocab_size)]
    return p


@pytest.mark.parametrize("order", [2, 3, 5])
def test_the_distribution_is_that_of_the_formulas(order: int):
    draw = random.Random(order)
    text = [draw.choice([0, 0, 0, 1, 1, 2, 3, 4, 5]) for _ in range(300)]
    counts = NGramCounts.of(torch.tensor(text), order=order, vocab_size=7)
    contexts = [text[i - order + 1 : i] for i in range(order, 300, 7)]
    contexts += [[draw.randrange(7) for _ in range(order - 1)] for _ in range(20)]
    found = counts.distribution(torch.tensor(contexts))
    for context, p in zip(contexts, found.tolist(), strict=True):
        assert p == pytest.approx(slowly(text, tuple(context), order=order, vocab_size=7), abs=1e-6)
    assert (found.sum(-1) - 1).abs().max() < 1e-6


def test_what_is_not_known_is_left_out():
    text = torch.tensor([0, 1, 2, 3] * 20)
    counts = NGramCounts.of(text, order=4, vocab_size=5)
    contexts = torch.tensor([[1, 2, 3], [UNKNOWN, 2, 3], [UNKNOWN, UNKNOWN, UNKNOWN], [2, UNKNOWN, 3]])
    whole, less, nothing, gap = counts.distribution(contexts)
    assert whole.argmax() == less.argmax() == gap.argmax() == 0
    assert (nothing - counts.distribution(torch.tensor([[4, 4, 4]]))[0]).abs().max() < 1e-6
    shorter = counts.distribution(torch.tensor([[4, 4, 3]]))[0]
    assert torch.equal(gap, shorter)


def test_more_of_a_text_gives_the_counts_of_the_whole():
    draw = random.Random(0)
    text = torch.tensor([draw.choice([0, 0, 0, 1, 1, 2, 3, 4, 5]) for _ in range(500)])
    whole, parts = NGramCounts.of(text, order=4, vocab_size=7), NGramCounts.of(text[:0], order=4, vocab_size=7)
    for part in text.split([1, 0, 2, 97, 400]):
        parts = parts.extended(part)
    for one, other in zip(whole.levels, parts.levels, strict=True):
        assert torch.equal(one.grams, other.grams)
        assert torch.equal(one.counts, other.counts)
    contexts = text.unfold(0, 3, 1)
    assert torch.equal(whole.distribution(contexts), parts.distribution(contexts))


class Sizes(TorchDispatchMode):
    """The most elements that any tensor of whole numbers has."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple) else (found,):
            if isinstance(tensor, torch.Tensor) and not tensor.is_floating_point():
                self.most = max(self.most, tensor.numel())
        return found


def test_what_is_known_of_each_token_alone_is_asked_once():
    """Not for each place: of a large vocabulary the numbers of all entries would be far more than what comes out."""
    counts = NGramCounts.of(torch.arange(500), order=3, vocab_size=500)
    contexts = torch.arange(100)[:, None].repeat(1, 2)
    with Sizes() as sizes:
        found = counts.distribution(contexts)
    assert sizes.most < 10 * 500
    assert torch.equal(found, torch.cat([counts.distribution(context[None]) for context in contexts]))


def test_a_text_is_scored_as_the_distribution_says_without_it(monkeypatch: pytest.MonkeyPatch):
    draw = np.random.default_rng(1)
    learned, text = (torch.from_numpy(draw.zipf(1.3, n).clip(max=60)) for n in (2000, 300))
    counts = NGramCounts.of(learned, order=4, vocab_size=80)  # some ids occur nowhere
    before = torch.cat([torch.full((3,), UNKNOWN), text[:-1]]).unfold(0, 3, 1)
    expected = counts.distribution(before).gather(1, text[:, None])[:, 0].double()
    monkeypatch.setattr(NGramCounts, "distribution", None)
    assert torch.equal(counts.probabilities(text), expected)


@pytest.mark.parametrize("text", [[3], [3, 3]])
def test_short_texts_have_counts(text: list[int]):
    counts = NGramCounts.of(torch.tensor(text), order=3, vocab_size=4)
    assert float(counts.distribution(torch.tensor([[3, 3]])).sum()) == pytest.approx(1)


def test_it_is_float32_whatever_the_default():
    """In 64-true the default is float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = NGramCounts.of(torch.tensor([0, 1, 2] * 9), order=3, vocab_size=4).distribution(torch.tensor([[0, 1]]))
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32


def test_discounts_by_hand():
    counts = torch.tensor([1] * 8 + [2] * 4 + [3] * 2 + [4])
    y = 8 / (8 + 2 * 4)
    assert discounts_of(counts).tolist() == pytest.approx([0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2])
