"""Adaptive Resonance Theory: an input resonates with the category that it matches, or opens a category of its own.

Every category has a prototype. An input chooses among the prototypes that match it at least as well as the vigilance
asks; the winner moves towards it. Where none does, the input is novel and becomes a prototype.

Shapes: B inputs, D features, C categories, W numbers of a prototype (D, or 2 D with complement coding), M changed ones.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_app.errors import InputError

Pooling = Literal["mean", "last", "token"]

# The match of an exact repeat, less 16 units of fp32's rounding. Measured at widths up to 4,096: at most 8 are missing.
REPEATED = 1 - 16 * torch.finfo(torch.float32).eps


class Rule(ABC):
    """How inputs are coded, compared with prototypes and learned. Without a state of its own."""

    @abstractmethod
    def code(self, features_BD: Tensor) -> Tensor:
        """(B, D) -> (B, W): what is compared, and what a new category starts as."""

    @abstractmethod
    def compare(self, inputs_BW: Tensor, prototypes_CW: Tensor) -> tuple[Tensor, Tensor]:
        """Choice and match, (B, C) each: the choice orders the categories, the match is held against the vigilance."""

    @abstractmethod
    def match(self, inputs_BW: Tensor, prototypes_BW: Tensor) -> Tensor:
        """(B,) match of each input with a prototype of its own, with a gradient."""

    @abstractmethod
    def moved(self, prototypes_MW: Tensor, inputs_MW: Tensor, rate: float) -> Tensor:
        """Prototypes after learning: at rate 1 all of the input counts, at 0 none."""

    @abstractmethod
    def joined(self, one_W: Tensor, other_W: Tensor, counts: tuple[int, int]) -> Tensor:
        """The prototype of two categories that become one; `counts` says how many inputs each has had."""

    @abstractmethod
    def overlap(self, some_MW: Tensor, prototypes_CW: Tensor, *, vigilance: float) -> Tensor:
        """(M, C) how much two prototypes are alike, at most 1; -inf where nothing could match them joined."""


class CosineRule(Rule):
    """Inputs and prototypes of length 1; choice and match are the cosine. Zeros stay zeros, and match zeros fully."""

    def code(self, features_BD: Tensor) -> Tensor:
        return F.normalize(features_BD, dim=-1)

    def compare(self, inputs_BW: Tensor, prototypes_CW: Tensor) -> tuple[Tensor, Tensor]:
        cosine = inputs_BW @ prototypes_CW.T + (_is_zero(inputs_BW)[:, None] & _is_zero(prototypes_CW))
        return cosine, cosine

    def match(self, inputs_BW: Tensor, prototypes_BW: Tensor) -> Tensor:
        return (inputs_BW * prototypes_BW).sum(-1) + (_is_zero(inputs_BW) & _is_zero(prototypes_BW))

    def moved(self, prototypes_MW: Tensor, inputs_MW: Tensor, rate: float) -> Tensor:
        return F.normalize(torch.lerp(prototypes_MW, inputs_MW, rate), dim=-1)

    def joined(self, one_W: Tensor, other_W: Tensor, counts: tuple[int, int]) -> Tensor:
        return F.normalize(counts[0] * one_W + counts[1] * other_W, dim=-1)

    def overlap(self, some_MW: Tensor, prototypes_CW: Tensor, *, vigilance: float) -> Tensor:
        return self.compare(some_MW, prototypes_CW)[1]


def _is_zero(rows_NW: Tensor) -> Tensor:
    return ~rows_NW.any(-1)


class FuzzyRule(Rule):
    """Fuzzy ART (Carpenter, Grossberg and Rosen 1991, Neural Networks 4, 759-771) with complement coding.

    An input is I = [x, 1 - x] for x in [0, 1]; |.| is the sum, ^ the minimum. The choice function is |I ^ w| /
    (alpha + |w|), the match function |I ^ w| / |I|, the learning law w <- rate (I ^ w) + (1 - rate) w.

    Args:
        alpha: the choice parameter, above 0.
    """

    def __init__(self, alpha: float = 0.001):
        if alpha <= 0:
            raise InputError(f"choice_alpha is {alpha}; it must be above 0")
        self.alpha = alpha

    def code(self, features_BD: Tensor) -> Tensor:
        outside = (features_BD < 0) | (features_BD > 1)
        if outside.any():
            worst = features_BD[outside][0].item()
            raise InputError(f"Fuzzy ART needs features in [0, 1], found {worst:g}: scale them, or take their sigmoid")
        return torch.cat([features_BD, 1 - features_BD], dim=-1)

    def compare(self, inputs_BW: Tensor, prototypes_CW: Tensor) -> tuple[Tensor, Tensor]:
        common = self._common(inputs_BW, prototypes_CW)
        return common / (self.alpha + prototypes_CW.sum(-1)), common / self._norm(inputs_BW)

    @staticmethod
    def _common(some_BW: Tensor, others_CW: Tensor) -> Tensor:
        """(B, C) |a ^ b|: min(a, b) = (a + b - |a - b|) / 2, so no (B, C, W) tensor is needed."""
        return (some_BW.sum(-1, keepdim=True) + others_CW.sum(-1) - torch.cdist(some_BW, others_CW, p=1)) / 2

    def match(self, inputs_BW: Tensor, prototypes_BW: Tensor) -> Tensor:
        return torch.minimum(inputs_BW, prototypes_BW).sum(-1) / self._norm(inputs_BW)

    @staticmethod
    def _norm(inputs_BW: Tensor) -> float:
        """|I|, of every input: x and 1 - x sum to D."""
        return inputs_BW.shape[-1] / 2

    def moved(self, prototypes_MW: Tensor, inputs_MW: Tensor, rate: float) -> Tensor:
        return torch.lerp(prototypes_MW, torch.minimum(prototypes_MW, inputs_MW), rate)

    def joined(self, one_W: Tensor, other_W: Tensor, counts: tuple[int, int]) -> Tensor:
        return torch.minimum(one_W, other_W)

    def overlap(self, some_MW: Tensor, prototypes_CW: Tensor, *, vigilance: float) -> Tensor:
        """How little the larger box grows if it takes in the other: 1 where it holds it already.

        Boxes only grow. So what did not fit into one box when the second opened never will, unless the vigilance falls.
        """
        common = self._common(some_MW, prototypes_CW)
        larger = torch.minimum(some_MW.sum(-1, keepdim=True), prototypes_CW.sum(-1))
        return (common / larger).where(common / self._norm(some_MW) >= vigilance, -torch.inf)


@dataclass(frozen=True)
class Resonance:
    """Where inputs belong.

    Attributes:
        slots: (B,) the category that won: of those that match well enough the first by choice, else the first of all;
            -1 where there is none.
        match: (B,) with the category that matches best; -inf where there is none.
        resonant: (B,) bool, whether that is well enough.
    """

    slots: Tensor
    match: Tensor
    resonant: Tensor


def resonate(rule: Rule, inputs_BW: Tensor, prototypes_CW: Tensor, *, vigilance: float) -> Resonance:
    """Find the winner of each input, without learning.

    The search with resets (best choice first, the next one where the match fails) ends at the best choice of those
    that match; so it is looked for at once.
    """
    if len(prototypes_CW) == 0:
        nowhere = torch.full(inputs_BW.shape[:1], -1, dtype=torch.int64, device=inputs_BW.device)
        return Resonance(nowhere, inputs_BW.new_full(nowhere.shape, -torch.inf), nowhere >= 0)
    return _search(*rule.compare(inputs_BW, prototypes_CW), vigilance)


def _search(choice_BC: Tensor, match_BC: Tensor, vigilance: float) -> Resonance:
    vigilance = min(vigilance, REPEATED)
    passes, best = match_BC >= vigilance, match_BC.amax(-1)
    resonant = best >= vigilance
    slots = choice_BC.where(passes | ~resonant[..., None], -torch.inf).argmax(-1)
    return Resonance(slots, best, resonant)


@dataclass(frozen=True)
class Usage:
    """What is known of each of the C slots, a category or free.

    Attributes:
        counts: (C,) inputs that it has had; 0 where free.
        born, used: (C,) number of the input that opened it, and of its last one.
        size: slots in use: the first ones.
        seen: inputs so far.
    """

    counts: Tensor
    born: Tensor
    used: Tensor
    size: int
    seen: int


@dataclass(frozen=True)
class Rates:
    """How fast prototypes follow their inputs: `fast` for the first `fast_inputs` inputs of a category, then `slow`."""

    slow: float = 0.05
    fast: float = 0.5
    fast_inputs: int = 0


@dataclass(frozen=True)
class Learned:
    """What B inputs change.

    Attributes:
        slots: (B,) the category that each input went to.
        match: (B,) with the best category when it came; -inf where there was none.
        opened: (B,) bool, whether it opened that category, in a free slot or in that of the least used.
        changed: (M,) slots whose prototype is another one now.
        prototypes: (M, W) of these.
        usage: after it.
    """

    slots: Tensor
    match: Tensor
    opened: Tensor
    changed: Tensor
    prototypes: Tensor
    usage: Usage


def learn(
    rule: Rule,
    inputs_BW: Tensor,
    prototypes_CW: Tensor,
    usage: Usage,
    *,
    vigilance: float,
    rates: Rates,
) -> Learned:
    """Learn from inputs one by one, in their order; nothing given is changed.

    All inputs are compared with all prototypes at once. A prototype that an input opens or moves is compared anew with
    those that come after it, so that each sees what it would have seen alone.

    Args:
        prototypes_CW: as many as there are slots; those beyond `usage.size` are free.
    """
    B, capacity, size = len(inputs_BW), len(usage.counts), usage.size
    choice = inputs_BW.new_full((B, min(capacity, size + B)), -torch.inf)
    match = choice.clone()
    if size:
        choice[:, :size], match[:, :size] = rule.compare(inputs_BW, prototypes_CW[:size])
    counts, born, used = (x.tolist() for x in (usage.counts, usage.born, usage.used))
    now: dict[int, Tensor] = {}
    slots, matches, opened = [], [], []
    for i, x in enumerate(inputs_BW):
        found = _search(choice[i], match[i], vigilance)
        slot, resonant = int(found.slots), size > 0 and bool(found.resonant)
        matches.append(found.match)
        if resonant:
            rate = rates.fast if counts[slot] < rates.fast_inputs else rates.slow
            before = now.get(slot, prototypes_CW[slot])
            after = rule.moved(before, x, rate)
            changed = not torch.equal(before, after)
        else:
            slot, after, changed = (size if size < capacity else _least_used(counts, used)), x, True
            size = min(size + 1, capacity)
            counts[slot], born[slot] = 0, usage.seen + i
        counts[slot] += 1
        used[slot] = usage.seen + i
        slots.append(slot)
        opened.append(not resonant)
        if changed:
            now[slot] = after
            later = rule.compare(inputs_BW[i + 1 :], after[None])
            choice[i + 1 :, slot], match[i + 1 :, slot] = later[0][:, 0], later[1][:, 0]

    def numbers(values: Sequence[int | bool], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=inputs_BW.device)

    return Learned(
        slots=numbers(slots),
        match=torch.stack(matches) if matches else inputs_BW.new_empty(0),
        opened=numbers(opened, torch.bool),
        changed=numbers(list(now)),
        prototypes=torch.stack(list(now.values())) if now else inputs_BW[:0],
        usage=Usage(numbers(counts), numbers(born), numbers(used), size, usage.seen + B),
    )


def _least_used(counts: Sequence[int], used: Sequence[int]) -> int:
    """The slot with the fewest inputs; of several the one whose last input is longest ago."""
    return min(range(len(counts)), key=lambda slot: (counts[slot], used[slot]))


def overlapping(
    rule: Rule, prototypes_CW: Tensor, counts_C: Tensor, changed_M: Tensor, *, at: float, vigilance: float
) -> list[tuple[int, int]]:
    """Pairs of categories, of which one has changed, that are alike by `at` or more; the larger one comes first.

    A category is in one pair at most: with the one that it is most alike.
    """
    overlap = rule.overlap(prototypes_CW[changed_M], prototypes_CW, vigilance=vigilance)
    overlap[torch.arange(len(changed_M)), changed_M] = -torch.inf  # with itself
    best = overlap.max(-1)
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for i in (best.values >= at).nonzero()[:, 0].tolist():
        one, other = int(changed_M[i]), int(best.indices[i])
        if not taken & {one, other}:
            pairs.append((one, other) if counts_C[one] >= counts_C[other] else (other, one))
            taken |= {one, other}
    return pairs


# What is compared: pooled states, with their common mean and scale taken out


def pool(states_BTD: Tensor, mask_BT: Tensor, how: Pooling) -> tuple[Tensor, Tensor]:
    """Embeddings of texts (N, D), and where each ends (N, 2): its row and its last position. Padding never counts.

    Args:
        how: `mean` over a row's real tokens or its `last` one, N = rows with real tokens; or every real `token`.
    """
    if how == "token":
        return states_BTD[mask_BT], mask_BT.nonzero()
    rows = mask_BT.any(-1).nonzero()[:, 0]
    mask = mask_BT[rows]
    positions = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last = positions.where(mask, -1).amax(-1)
    ends = torch.stack([rows, last], dim=-1)
    if how == "last":
        return states_BTD[rows, last], ends
    real = states_BTD[rows].masked_fill(~mask[..., None], 0)  # not times the mask: what stands on padding may be NaN
    return real.sum(1) / mask.sum(1, keepdim=True), ends


def spread(embeddings_ND: Tensor, ends_N2: Tensor, *, at_most: int) -> tuple[Tensor, Tensor]:
    """At most so many of them, evenly spread."""
    if len(embeddings_ND) <= at_most:
        return embeddings_ND, ends_N2
    some = torch.linspace(0, len(embeddings_ND) - 1, at_most, device=embeddings_ND.device).long()
    return embeddings_ND[some], ends_N2[some]


def spans(ids_BT: Tensor, mask_BT: Tensor, ends_N2: Tensor, how: Pooling, *, length: int) -> Tensor:
    """(N, length) token ids of what was pooled, -1 behind its end.

    The first ones with `mean`, else the last ones up to where an embedding ends.
    """
    rows, last = ends_N2[:, :1], ends_N2[:, 1:]
    start = mask_BT.int().argmax(-1)[rows]  # padding may stand on the left
    first = start if how == "mean" else (last - length + 1).maximum(start)
    at = first + torch.arange(length, device=ids_BT.device)
    return ids_BT[rows, at.minimum(last)].where(at <= last, -1)


def combined(
    n: float, mean_D: Tensor, scatter: Tensor, features_BD: Tensor, *, at_most: float
) -> tuple[float, Tensor, Tensor]:
    """Running count, mean, and covariance (D, D) or variance (D,), with B more inputs (Chan, Golub and LeVeque 1979).

    Beyond `at_most` inputs older ones fade: the count stays, so that the newest always weigh as much.
    """
    B = len(features_BD)
    share = B / (n + B)
    new_mean = features_BD.mean(0)
    apart, centred = new_mean - mean_D, features_BD - new_mean
    if scatter.dim() == 2:
        new_scatter, between = centred.T @ centred / B, torch.outer(apart, apart)
    else:
        new_scatter, between = centred.square().mean(0), apart.square()
    scatter = torch.lerp(scatter, new_scatter, share) + share * (1 - share) * between
    return min(n + B, at_most), torch.lerp(mean_D, new_mean, share), scatter


def whitening(covariance_DD: Tensor, *, n: float) -> Tensor:
    """(D, D) symmetric W with W C W = I: the whitening that changes its input least, so that it moves slowly with C.

    C is the covariance of n inputs, shrunk towards a multiple of I by D / (n + D): few inputs do not span D features.
    Kessy, Lewin and Strimmer 2018 (arXiv:1512.00809), "ZCA".
    """
    D = len(covariance_DD)
    scale = covariance_DD.diagonal().mean().clamp_min(1e-12)
    shrunk = torch.lerp(covariance_DD, scale * torch.eye(D).to(covariance_DD), D / (n + D))
    values, vectors = torch.linalg.eigh(shrunk)
    return (vectors * values.clamp_min(1e-6 * scale).rsqrt()) @ vectors.T
