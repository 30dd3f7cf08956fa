"""Counts of n-grams of a text, and the next token's probability that they give.

Kneser-Ney smoothing with three discounts, interpolated (Chen and Goodman 1999, doi:10.1006/csla.1999.0128).

Shapes: N tokens, P places to predict at, n order, V vocabulary. A context of length k is a place's last k tokens.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MULTIPLIER = -7046029254386353131  # an odd number; a product with it, modulo 2^64, spreads the bits
AT_ONCE = 2**22  # probabilities that are worked on at once: 16 MiB
UNKNOWN = -1  # a token of a context that is not known


def hashed(h: Tensor, tokens: Tensor) -> Tensor:
    """int64 hashes that take in one more token each."""
    h = (h ^ (tokens + 1)) * MULTIPLIER
    return h ^ (h >> 29)


def context_hashes(contexts: Tensor) -> list[Tensor]:
    """(P, n - 1) contexts, the newest token last -> (P,) int64 for each length from 0 to n - 1."""
    hashes = [torch.zeros(len(contexts), dtype=torch.int64, device=contexts.device)]
    for token in contexts.unbind(1)[::-1]:
        hashes.append(hashed(hashes[-1], token))
    return hashes


@dataclass(frozen=True)
class Level:
    """N-grams of one length, sorted by context. In the longest, counts are of tokens; in a shorter one, Kneser-Ney's:
    how many different tokens stood before the n-gram.

    Attributes:
        keys: (C,) hashes of the contexts, ascending.
        starts: (C + 1,) where the continuations of each begin in `tokens` and `counts`.
        totals: (C,) sum of the counts of each.
        tokens: (E,) continuations.
        counts: (E,).
        kept: (C,) share of the probability that each context leaves to the shorter one.
        discounts: (4,) what is taken from a count of 0, 1, 2, and of 3 and more.
    """

    keys: Tensor
    starts: Tensor
    totals: Tensor
    tokens: Tensor
    counts: Tensor
    kept: Tensor
    discounts: Tensor

    @classmethod
    def of(cls, contexts: Tensor, tokens: Tensor, counts: Tensor) -> Level:
        """(E,) different n-grams, in any order, and how often each counts."""
        order = contexts.argsort(stable=True)
        keys, lengths = contexts[order].unique_consecutive(return_counts=True)
        tokens, counts = tokens[order], counts[order]
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        discounts = discounts_of(counts)
        owner = torch.arange(len(keys), device=keys.device).repeat_interleave(lengths)
        zeros = torch.zeros(len(keys), dtype=torch.float32, device=keys.device)
        totals = zeros.index_add(0, owner, counts.float())
        taken = zeros.index_add(0, owner, discounts[counts.clamp_max(3)])
        return cls(keys, starts, totals, tokens, counts, taken / totals, discounts)

    def find(self, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) numbers of the contexts, and whether they are there."""
        at = torch.searchsorted(self.keys, hashes).clamp_max(len(self.keys) - 1)
        return at, self.keys[at] == hashes

    def mix_into(self, p: Tensor, hashes: Tensor, known: Tensor) -> None:
        """Make of what the shorter contexts say, (P, V), what these say, (P,), where all of one is known."""
        at, found = self.find(hashes)
        rows = (found & known).nonzero()[:, 0]
        at = at[rows]
        p[rows] *= self.kept[at, None]
        lengths = self.starts[at + 1] - self.starts[at]
        entry = torch.arange(int(lengths.sum()), device=rows.device) + (
            self.starts[at] - (lengths.cumsum(0) - lengths)
        ).repeat_interleave(lengths)
        left = self.counts[entry] - self.discounts[self.counts[entry].clamp_max(3)]
        own = left / self.totals[at].repeat_interleave(lengths)
        p.index_put_((rows.repeat_interleave(lengths), self.tokens[entry]), own, accumulate=True)


def discounts_of(counts: Tensor) -> Tensor:
    """(4,) for counts of 0, 1, 2, and of 3 and more (Chen and Goodman 1999, eq. 26); half of a count at most where
    there are too few to tell."""
    n = [float((counts == i).sum()) for i in range(1, 5)]
    if min(n) < 1:
        return torch.tensor([0.0, 0.5, 0.5, 0.5], dtype=torch.float32, device=counts.device)
    y = n[0] / (n[0] + 2 * n[1])
    found = [i + 1 - (i + 2) * y * n[i + 1] / n[i] for i in range(3)]
    bounded = [min(max(d, 0.05), i + 0.95) for i, d in enumerate(found)]
    return torch.tensor([0.0, *bounded], dtype=torch.float32, device=counts.device)


@dataclass(frozen=True)
class NGramCounts:
    """What follows each context of up to n - 1 tokens in a text, and how often.

    Attributes:
        levels: one for each length of context, from 0.
        vocab_size: V.
    """

    levels: list[Level]
    vocab_size: int

    @classmethod
    def of(cls, text: Tensor, *, order: int, vocab_size: int) -> NGramCounts:
        """Counts of a text (N,) of one token or more, taken as one stream: a document follows the one before."""
        padded = torch.cat([text.new_full((order - 1,), vocab_size), text]).long()
        windows = padded.unfold(0, order, 1)  # (N, n)
        hashes, tokens = context_hashes(windows[:, :-1]), windows[:, -1]
        first = torch.arange(len(text), device=text.device)  # a place for each different n-gram of the level above
        levels = []
        for k in reversed(range(order)):
            _, at, counts = hashed(hashes[k][first], tokens[first] + vocab_size).unique(
                return_inverse=True, return_counts=True
            )
            places = first.new_full((len(counts),), len(text)).scatter_reduce(0, at, first, "amin")
            levels.append(Level.of(hashes[k][places], tokens[places], counts))
            first = places
        return cls(levels[::-1], vocab_size)

    @property
    def order(self) -> int:
        return len(self.levels)

    def distribution(self, contexts: Tensor) -> Tensor:
        """(P, n - 1) contexts, the newest token last and UNKNOWN where nothing is known -> (P, V), float32."""
        (shortest, hashes, known), *longer = self._known(contexts)
        p = torch.full((1, self.vocab_size), 1 / self.vocab_size, dtype=torch.float32, device=contexts.device)
        shortest.mix_into(p, hashes[:1], known[:1])  # its context is empty: it says the same of all places
        p = p.repeat(len(contexts), 1)
        for level, hashes, known in longer:
            level.mix_into(p, hashes, known)
        return p

    def probabilities(self, text: Tensor) -> Tensor:
        """(N,) -> (N,) float64 of each of its tokens after those before it in this text."""
        before = torch.cat([text.new_full((self.order - 1,), UNKNOWN), text[:-1]])
        contexts, rows = before.unfold(0, self.order - 1, 1), max(1, AT_ONCE // self.vocab_size)
        parts = [
            self.distribution(some).gather(1, wanted[:, None])[:, 0].double()
            for some, wanted in zip(contexts.split(rows), text.split(rows), strict=True)
        ]
        return torch.cat(parts)

    def _known(self, contexts: Tensor) -> list[tuple[Level, Tensor, Tensor]]:
        """Each level, shortest first, with the hashes of the places' contexts, and whether all of those is known."""
        contexts = contexts[:, contexts.shape[1] - (self.order - 1) :]
        known = (contexts.flip(1) != UNKNOWN).cumprod(1).bool()
        all_known = torch.cat([known.new_ones(len(contexts), 1), known], dim=1)
        return list(zip(self.levels, context_hashes(contexts), all_known.unbind(1), strict=True))
