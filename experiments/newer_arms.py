"""Arms that are read off what a model made of the texts: a datastore, caches, and both.

Shapes: N scored tokens, G temperatures, E experts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments import baselines
from experiments.newer_states import Read
from lightning_app.data.token_array import TokenArray
from lightning_app.memory.knn import mixture_weights, p_of_target
from lightning_app.memory.readers.distribution import CacheReader, DistributionReader, KNNReader

NEIGHBOURS = 256  # what `memory build` looks for
SCALES = tuple(2.0 ** (i / 2) for i in range(-12, 5))  # temperatures tried, times the reader's own scale
LAMS = (0.0, *(2.0 ** (i / 2) for i in range(-13, 0)))  # weights tried: 0.011 to 0.71


@dataclass(frozen=True)
class Looked:
    """What a reader says of a text.

    Attributes:
        p: (N, G) probability of each token at each temperature; the model's own where nothing was found.
        seconds: CPU time.
    """

    p: Tensor
    seconds: float


@dataclass(frozen=True)
class Chosen:
    """Number of the temperature, weight, and mean nats of the tokens that both were chosen on."""

    number: int
    lam: float
    nats: float


def datastore(texts: Sequence[Read], vocab_size: int) -> KNNReader:
    """All states of these texts, with the tokens that followed."""
    size = sum(len(text.nats) for text in texts)
    knn = KNNReader(memory_size=size, num_search_results=min(NEIGHBOURS, size))
    _fill(knn, texts, width=texts[0].width, vocab_size=vocab_size)
    return knn


def cache(size: int, vocab_size: int, *, before: Sequence[Read], width: int) -> CacheReader:
    """A cache of so many states, which has read some texts."""
    reader = CacheReader(memory_size=size)
    _fill(reader, before, width=width, vocab_size=vocab_size)
    return reader


def p_of_counts(known: Tensor, ids: Tensor, read: Read, tokens: TokenArray, vocab_size: int) -> Tensor:
    """(N,) probability of each token that was read of a text `ids`, by counts of the n-grams of another."""
    p = baselines.p_of_next(baselines.counts_of(known, vocab_size), ids)
    at = torch.from_numpy(tokens.offsets[read.documents.numpy()]) + read.positions  # of the token before it
    return p[at]


def _fill(reader: DistributionReader, texts: Sequence[Read], *, width: int, vocab_size: int) -> None:
    reader.build(width=width, vocab_size=vocab_size)
    for text in texts:
        for at, context in text.contexts():
            reader.bank.write(context.update_of(text.states[None, at], context.new), training=False)
    reader.eval()


@torch.no_grad()
def look(reader: DistributionReader, text: Read, temperatures: Sequence[float]) -> Looked:
    """Read a text in order, into a cache too; all that it has seen before a token is looked at."""
    start, parts = time.process_time(), []
    for at, context in text.contexts():
        states = text.states[None, at]
        found = reader.neighbours(states, context)
        match = found.entries.tokens[0] == text.targets[at, None]
        distances, some = found.distances[0], found.found[0].any(-1)
        p = [p_of_target(distances, match, temperature=T).double().where(some, text.p[at]) for T in temperatures]
        parts.append(torch.stack(p, dim=1))
        if reader.writes_now():
            reader.bank.write(context.update_of(states, context.new), training=False)
    return Looked(torch.cat(parts), time.process_time() - start)


def temperatures_of(reader: DistributionReader, text: Read) -> list[float]:
    """Those to try: times the mean distance to the neighbours, of a cache times the mean square of a state."""
    if isinstance(reader, CacheReader):
        return [float(text.states.square().sum(-1).mean()) * x for x in SCALES]
    at, context = next(text.contexts())
    return [float(reader.neighbours(text.states[None, at], context).distances.mean()) * x for x in SCALES]


def chosen(looked: Looked, text: Read) -> Chosen:
    """The temperature and the weight with the fewest nats."""
    tried = [
        Chosen(g, lam, float(-(lam * looked.p[:, g] + (1 - lam) * text.p).log().mean()))
        for g in range(looked.p.shape[1])
        for lam in LAMS
    ]
    return min(tried, key=lambda one: one.nats)


def weights_of(experts: Sequence[Tensor]) -> Tensor:
    """(N,) probabilities of the tokens by each expert -> the best weights (E,)."""
    return mixture_weights(torch.stack(list(experts), dim=1))
