"""Counts of n-grams of a text, and the next token's probability that they give.

Kneser-Ney smoothing with three discounts, interpolated (Chen and Goodman 1999, doi:10.1006/csla.1999.0128).

Shapes: N tokens, P places to predict at, n order, V vocabulary. A context of length k is a place's last k tokens.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MULTIPLIER = -7046029254386353131  # an odd number; a product with it, modulo 2^64, spreads the bits
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
    """N-grams of one length. In the longest, counts are of tokens; in a shorter one, Kneser-Ney's: how many different
    tokens stood before the n-gram.

    Attributes:
        grams: (E,) int64, ascending: a token in the low bits, above them the hash of the context before it.
        counts: (E,) int32.
        low: the low bits, all set.
    """

    grams: Tensor
    counts: Tensor
    low: int

    @classmethod
    def empty(cls, vocab_size: int, device: torch.device) -> Level:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(none, none.int(), (1 << vocab_size.bit_length()) - 1)

    def keys(self, hashes: Tensor, tokens: Tensor | int) -> Tensor:
        """Keys of n-grams: hashes of contexts, and the tokens after these."""
        return (hashes & ~self.low) | tokens

    def with_more(self, grams: Tensor) -> tuple[Level, Tensor]:
        """(m,) n-grams that are seen once more -> the level with them, and where in `grams` each is that is new."""
        seen, inverse, times = grams.unique(return_inverse=True, return_counts=True)
        at = torch.searchsorted(self.grams, seen)
        is_new = at == torch.searchsorted(self.grams, seen, right=True)
        counts = self.counts.index_add(0, at[~is_new], times[~is_new].int())
        place = at[is_new] + torch.arange(int(is_new.sum()), device=at.device)
        whole = (inserted(self.grams, seen[is_new], place), inserted(counts, times[is_new].int(), place))
        places = torch.arange(len(grams), device=grams.device)
        first = places.new_full((len(seen),), len(grams)).scatter_reduce(0, inverse, places, "amin")
        return Level(*whole, self.low), first[is_new]

    @cached_property
    def discounts(self) -> Tensor:
        """(4,) what is taken from a count of 0, 1, 2, and of 3 and more."""
        return discounts_of(self.counts)

    @cached_property
    def sums(self) -> Tensor:
        """(3, E + 1) of the counts before each entry, and how many of these are 1, and 2."""
        each = torch.stack([self.counts, (self.counts == 1).int(), (self.counts == 2).int()])
        return torch.cat([each.new_zeros(3, 1), each.cumsum(1, dtype=torch.int32)], dim=1)

    def kept(self, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) share of the probability that each context leaves to the shorter one, and the sum of its counts."""
        total, ones, twos = (self.sums[:, ends] - self.sums[:, starts]).float()
        _, one, two, more = self.discounts
        return (one * ones + two * twos + more * (ends - starts - ones - twos)) / total, total

    def range_of(self, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) where the n-grams of each context begin and end; the same where it was not seen."""
        first, last = (torch.searchsorted(self.grams, self.keys(hashes, token)) for token in (0, self.low))
        return first, last

    def mix_into(self, p: Tensor, hashes: Tensor, known: Tensor) -> None:
        """Make of what the shorter contexts say, (P, V), what these say, (P,), where all of one is known."""
        rows, starts, ends = self._seen(hashes, known)
        kept, total = self.kept(starts, ends)
        p[rows] *= kept[:, None]
        lengths = ends - starts
        entry = torch.arange(int(lengths.sum()), device=rows.device) + (
            starts - (lengths.cumsum(0) - lengths)
        ).repeat_interleave(lengths)
        counts = self.counts[entry]
        own = (counts - self.discounts[counts.clamp_max(3)]) / total.repeat_interleave(lengths)
        p.index_put_((rows.repeat_interleave(lengths), self.grams[entry] & self.low), own, accumulate=True)

    def mix_into_p_of(self, tokens: Tensor, p: Tensor, hashes: Tensor, known: Tensor) -> None:
        """`mix_into` for one token of each place, (P,): of a large vocabulary the others need not be computed."""
        rows, starts, ends = self._seen(hashes, known)
        kept, total = self.kept(starts, ends)
        p[rows] *= kept
        wanted = self.keys(hashes[rows], tokens[rows])
        at = torch.searchsorted(self.grams, wanted).clamp_max(max(0, len(self.grams) - 1))
        there = self.grams[at] == wanted
        counts = self.counts[at[there]]
        p[rows[there]] += (counts - self.discounts[counts.clamp_max(3)]) / total[there]

    def _seen(self, hashes: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R,) rows whose context is known and was seen, and where its n-grams begin and end."""
        starts, ends = self.range_of(hashes)
        rows = ((starts < ends) & known).nonzero()[:, 0]
        return rows, starts[rows], ends[rows]


def inserted(values: Tensor, new: Tensor, places: Tensor) -> Tensor:
    """(E,) values and new ones, which come to lie at these places."""
    whole = values.new_empty(len(values) + len(new))
    is_old = torch.ones(len(whole), dtype=torch.bool, device=values.device)
    is_old[places] = False
    whole[is_old], whole[places] = values, new
    return whole


def discounts_of(counts: Tensor) -> Tensor:
    """(4,) for counts of 0, 1, 2, and of 3 and more (Chen and Goodman 1999, eq. 26); half of a count at most where
    there are too few to tell."""
    n = counts.clamp_max(5).bincount(minlength=6)[1:5].tolist()
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
        last: (n - 1,) the last tokens of the text, which more of it follows; V before its first one.
        vocab_size: V.
    """

    levels: list[Level]
    last: Tensor
    vocab_size: int

    @classmethod
    def of(cls, text: Tensor, *, order: int, vocab_size: int) -> NGramCounts:
        """Counts of a text (N,), taken as one stream: a document follows the one before."""
        levels = [Level.empty(vocab_size, text.device)] * order
        before = torch.full((order - 1,), vocab_size, dtype=torch.int64, device=text.device)
        return cls(levels, before, vocab_size).extended(text)

    def extended(self, text: Tensor) -> NGramCounts:
        """Counts of the text with (N,) more of it: those of the whole, in less time."""
        if not len(text):
            return self
        whole = torch.cat([self.last, text.long()])
        windows = whole.unfold(0, self.order, 1)  # (N, n)
        hashes, tokens = context_hashes(windows[:, :-1]), windows[:, -1]
        places = torch.arange(len(text), device=text.device)  # of each n-gram that is new in the level above
        levels = []
        for hashes_k, level in zip(hashes[::-1], self.levels[::-1], strict=True):
            more, new = level.with_more(level.keys(hashes_k[places], tokens[places]))
            levels.append(more)
            places = places[new]
        return NGramCounts(levels[::-1], whole[len(text) :], self.vocab_size)

    def to(self, device: torch.device) -> NGramCounts:
        if self.last.device == device:
            return self
        levels = [Level(level.grams.to(device), level.counts.to(device), level.low) for level in self.levels]
        return NGramCounts(levels, self.last.to(device), self.vocab_size)

    @property
    def n_bytes(self) -> int:
        """Bytes of all that predicting needs."""
        return sum(t.nbytes for level in self.levels for t in (level.grams, level.counts, level.sums))

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
        p = torch.full((len(text),), 1 / self.vocab_size, dtype=torch.float32, device=text.device)
        for level, hashes, known in self._known(before.unfold(0, self.order - 1, 1)):
            level.mix_into_p_of(text.long(), p, hashes, known)
        return p.double()

    def _known(self, contexts: Tensor) -> list[tuple[Level, Tensor, Tensor]]:
        """Each level, shortest first, with the hashes of the places' contexts, and whether all of those is known."""
        contexts = contexts[:, contexts.shape[1] - (self.order - 1) :]
        known = (contexts.flip(1) != UNKNOWN).cumprod(1).bool()
        all_known = torch.cat([known.new_ones(len(contexts), 1), known], dim=1)
        return list(zip(self.levels, context_hashes(contexts), all_known.unbind(1), strict=True))
